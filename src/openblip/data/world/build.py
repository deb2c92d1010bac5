"""The rows and the table of an embedded world."""

import json
from collections.abc import Iterable, Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

from openblip.atomic import replace_folder
from openblip.data.table import PairRow, PairTable
from openblip.data.world.claims import describe
from openblip.data.world.config import WorldConfig, config_to_dict
from openblip.data.world.dice import Dice
from openblip.data.world.drawing import draw_scene
from openblip.data.world.grammar import write_human_caption
from openblip.data.world.noise import noisy_caption
from openblip.data.world.scene import Scene, sample_scene, scene_to_dict
from openblip.errors import RecipeError

# Every random choice is named (seed, stream, number): rows do not depend on their neighbours.
_STREAMS = {"web": 1, "human": 2, "val": 3, "test": 4}
_PICTURES, _CAPTIONS = 16, 32
# A split that finds no new scene in so many trials asks for more than the world has.
_MAX_TRIALS = 2000


def build_world(config: WorldConfig) -> Iterator[PairRow]:
    """The rows of a world as they are made: training web, training human, val, test.

    Within val and within test no human caption is true of a second image, and no training
    scene is a scene of val or test.

    Raises:
        RecipeError: the world is too poor for so many distinct scenes.
    """
    held_out: set[Scene] = set()
    evaluation = {
        split: _distinct_scenes(config, split, num_rows, held_out)
        for split, num_rows in (("val", config.val_rows), ("test", config.test_rows))
    }
    for index, scene in enumerate(_training_scenes(config, "web", config.web_rows, held_out)):
        yield _web_row(config, index, scene)
    human = _training_scenes(config, "human", config.human_rows, held_out)
    for index, scene in enumerate(human):
        yield _human_row(config, "human", index, scene)
    for split, scenes in evaluation.items():
        for index, scene in enumerate(scenes):
            yield _human_row(config, split, index, scene)


def create_world(uri: str | Path, config: WorldConfig) -> PairTable:
    """The new table of a world; its metadata entry `world` is the config as JSON.

    Raises:
        RecipeError: the world is too poor for so many distinct scenes.
        DataError: a table exists at `uri`.
    """
    return PairTable.create(
        uri, build_world(config), metadata={"world": json.dumps(config_to_dict(config))}
    )


def open_or_create_world(folder: Path, config: WorldConfig) -> PairTable:
    """The table of a world in a local folder, made if there is none: whole or not at all.

    A process that is killed before the end leaves nothing at `folder`.

    Raises:
        RecipeError: the world is too poor for so many distinct scenes.
        DataError: something else is there.
    """
    if not folder.exists():
        with replace_folder(folder) as unfinished:
            create_world(unfinished, config)
    return PairTable.open(folder)


def _training_scenes(
    config: WorldConfig, stream: str, num_rows: int, held_out: set[Scene]
) -> Iterator[Scene]:
    for index in range(num_rows):
        dice = Dice(config.seed, _STREAMS[stream], index)
        # Ends soon: of the 20 or more scenes of one core, val and test hold one each at most.
        while (scene := sample_scene(dice, config)) in held_out:
            pass
        yield scene


def _distinct_scenes(
    config: WorldConfig, split: str, num_rows: int, held_out: set[Scene]
) -> list[Scene]:
    """Scenes no one of which shows all that another shows; they are added to `held_out`.

    A human caption states the core of its scene in full, so it is false of a scene whose core
    does not contain that core.
    """
    scenes: list[Scene] = []
    cores: set[frozenset[tuple[str, str, int]]] = set()
    parts_of_cores: set[frozenset[tuple[str, str, int]]] = set()
    dice = Dice(config.seed, _STREAMS[split])
    trials = 0
    while len(scenes) < num_rows:
        scene = sample_scene(dice, config)
        parts = _parts(scene.core)
        trials += 1
        if scene in held_out or scene.core in parts_of_cores or not cores.isdisjoint(parts):
            if trials == _MAX_TRIALS:
                raise RecipeError(
                    f"this world has too few distinct scenes for {num_rows} {split} rows "
                    f"(found {len(scenes)}): ask for fewer, or for more kinds, colours or groups"
                )
            continue
        trials = 0
        scenes.append(scene)
        held_out.add(scene)
        cores.add(scene.core)
        parts_of_cores |= parts
    return scenes


def _parts(
    core: frozenset[tuple[str, str, int]],
) -> set[frozenset[tuple[str, str, int]]]:
    """Every non-empty subset of a core."""
    sizes = range(1, len(core) + 1)
    return {frozenset(part) for size in sizes for part in combinations(core, size)}


def _web_row(config: WorldConfig, index: int, scene: Scene) -> PairRow:
    dice = Dice(config.seed, _STREAMS["web"] + _CAPTIONS, index)
    caption, kind = noisy_caption(scene, dice, config)
    meta = {"scene": scene_to_dict(scene), "noise": kind}
    return _row(config, "web", index, scene, [caption], "train", meta)


def _human_row(config: WorldConfig, stream: str, index: int, scene: Scene) -> PairRow:
    dice = Dice(config.seed, _STREAMS[stream] + _CAPTIONS, index)
    captions = _human_captions(scene, config, dice)
    split = "train" if stream == "human" else stream
    return _row(config, stream, index, scene, captions, split, {"scene": scene_to_dict(scene)})


def _human_captions(scene: Scene, config: WorldConfig, dice: Dice) -> list[str]:
    """Different sentences as far as the grammar has them, exactly `captions_per_image`."""
    captions: list[str] = []
    trials = 10 * config.captions_per_image
    while len(captions) < config.captions_per_image:
        text = write_human_caption(describe(scene, dice, config), dice, config.language)
        trials -= 1
        if text not in captions or trials <= 0:
            captions.append(text)
    return captions


def _row(
    config: WorldConfig,
    stream: str,
    index: int,
    scene: Scene,
    captions: Iterable[str],
    split: str,
    meta: dict[str, Any],
) -> PairRow:
    dice = Dice(config.seed, _STREAMS[stream] + _PICTURES, index)
    return PairRow(
        id=f"{stream}-{index:07d}",
        image=draw_scene(scene, config.image_size, dice, config.jitter),
        width=config.image_size,
        height=config.image_size,
        captions=list(captions),
        origin="web" if stream == "web" else "human",
        split=split,
        meta=meta,
    )
