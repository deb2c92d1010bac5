"""The rows and the table of an embedded world, and what is known for certain about them.

Web captions are true, or of one of the labelled kinds of false ones. Some hold names, which no
picture and no human caption shows: somebody's behind the noun of a group ("a red circle named
Kelmir"), a place's at the end ("in Dorburg"). There are 256 and 128 of them, of few syllables.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

from openblip.runtime.atomic import replace_folder
from openblip.runtime.errors import DataError, RecipeError
from openblip.table.table import PairRow, PairTable
from openblip.world.claims import Claim, describe, is_true_of, make_claim
from openblip.world.drawing import draw_scene
from openblip.world.english import write_boilerplate, write_human_caption, write_web_caption
from openblip.world.scene import (
    COLOURS,
    GROUND_COLOURS,
    KINDS,
    NOISE_KINDS,
    PATTERNS,
    SIZES,
    Dice,
    Scene,
    WorldConfig,
    config_to_dict,
    sample_scene,
    scene_from_dict,
    scene_to_dict,
)

# Every random choice is named (seed, stream, number): rows do not depend on their neighbours.
_STREAMS = {"web": 1, "human": 2, "val": 3, "test": 4}
# Added to a number below 16, so that no two sums are equal.
_PICTURES, _CAPTIONS, _NAMES = 16, 32, 64
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
    meta: dict[str, Any] = {"scene": scene_to_dict(scene), "noise": kind}
    if config.names:
        # Dice of their own: all else is as it is in a world without names.
        caption, names = name_caption(
            caption, kind, Dice(config.seed, _STREAMS["web"] + _NAMES, index), config
        )
        meta["names"] = names
    return _row(config, "web", index, scene, [caption], "train", meta)


def _human_row(config: WorldConfig, stream: str, index: int, scene: Scene) -> PairRow:
    dice = Dice(config.seed, _STREAMS[stream] + _CAPTIONS, index)
    captions = human_captions(scene, config, dice)
    split = "train" if stream == "human" else stream
    return _row(config, stream, index, scene, captions, split, {"scene": scene_to_dict(scene)})


def human_captions(scene: Scene, config: WorldConfig, dice: Dice) -> list[str]:
    """Different sentences as far as the grammar has them, exactly `captions_per_image`."""
    captions: list[str] = []
    # A poor world may not have as many sentences: then one comes twice.
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


@dataclass(frozen=True)
class RowTruth:
    """What an image shows, and of which kind its web caption is."""

    scene: Scene
    noise: str | None
    """One of `NOISE_KINDS`; None for rows with human captions."""
    names: tuple[str, ...] = ()
    """Names that are true of the image and stand in its web caption, or, where that is of another
    image, false ones that stand there."""


def truth_of(meta: str | Mapping[str, Any]) -> RowTruth:
    """The truth about a row, from its `meta` (the column's JSON or what it holds).

    Raises:
        DataError: the row is not of an embedded world.
    """
    plain = json.loads(meta) if isinstance(meta, str) else meta
    try:
        names = tuple(plain.get("names", ()))
        return RowTruth(scene_from_dict(plain["scene"]), plain.get("noise"), names)
    except (KeyError, TypeError) as error:
        raise DataError(
            "this row carries no scene in its meta: the truth is known for tables made by "
            "`create_world` only"
        ) from error


def noisy_caption(scene: Scene, dice: Dice, config: WorldConfig) -> tuple[str, str]:
    """A web caption for a scene, and its kind (one of `NOISE_KINDS`).

    `wrong_attribute`, `wrong_object` and `other_image` are certain to be false of the scene.
    """
    kind = NOISE_KINDS[dice.weighted(config.noise.as_tuple())]
    if kind == "boilerplate":
        return write_boilerplate(dice, config.language), kind
    if kind == "other_image":
        claim = claim_of_other_image(scene, dice, config)
    else:
        claim = describe(scene, dice, config, config.web_partial)
        if kind == "wrong_attribute":
            claim = with_wrong_attribute(claim, scene, dice, config)
        elif kind == "wrong_object":
            claim = with_wrong_object(claim, scene, dice, config)
    return write_web_caption(claim, dice, config.language), kind


def claim_of_other_image(scene: Scene, dice: Dice, config: WorldConfig) -> Claim:
    """A true claim about another random scene that is false of this one."""
    # Most scenes differ, and one kind at least is always missing here: this ends soon.
    while True:
        other = sample_scene(dice, config)
        claim = describe(other, dice, config, config.web_partial)
        if not is_true_of(claim, scene):
            return claim


def with_wrong_object(claim: Claim, scene: Scene, dice: Dice, config: WorldConfig) -> Claim:
    """The claim with one group called by the name of a kind that the scene lacks."""
    present = {group.kind for group in scene.groups}
    absent = [kind for kind in KINDS[: config.num_kinds] if kind not in present]
    position = dice.below(len(claim.mentions))
    return _with_mention(claim, position, kind=dice.choose(absent))


def with_wrong_attribute(claim: Claim, scene: Scene, dice: Dice, config: WorldConfig) -> Claim:
    """The true claim with one false colour, size, count or background, all equally likely."""
    options = ["size", "background"]
    if config.num_colours > 1:
        options.append("colour")
    if config.num_counts > 1:
        options.append("count")
    attribute = dice.choose(options)
    if attribute == "background":
        return _with_wrong_background(claim, scene, dice)
    position = dice.below(len(claim.mentions))
    place = scene.group_of(claim.mentions[position].kind)
    assert place is not None, "the claim must be true of the scene"
    group = scene.groups[place]
    if attribute == "colour":
        others = [c for c in COLOURS[: config.num_colours] if c != group.colour]
        return _with_mention(claim, position, colour=dice.choose(others))
    if attribute == "size":
        return _with_mention(claim, position, size=SIZES[1 - SIZES.index(group.size)])
    counts = [count for count in range(1, config.num_counts + 1) if count != group.count]
    return _with_mention(claim, position, count=dice.choose(counts))


def _with_wrong_background(claim: Claim, scene: Scene, dice: Dice) -> Claim:
    # What the claim is silent about is stated, so that there is something wrong to see.
    if claim.ground is None or (claim.pattern is not None and dice.chance(0.5)):
        patterns = [pattern for pattern in PATTERNS if pattern != scene.background.pattern]
        return replace(claim, pattern=dice.choose(patterns))
    grounds = [ground for ground in GROUND_COLOURS if ground != scene.background.colour]
    return replace(claim, ground=dice.choose(grounds))


def _with_mention(claim: Claim, position: int, **changes: str | int) -> Claim:
    mentions = list(claim.mentions)
    mentions[position] = replace(mentions[position], **changes)  # type: ignore[arg-type]  # by name
    return make_claim(tuple(mentions), claim.relation, claim.pattern, claim.ground)


_FIRST = (
    *("Bel", "Dor", "Fen", "Gal", "Hal", "Jor", "Kel", "Lun"),
    *("Mar", "Nor", "Pel", "Qui", "Ros", "Sel", "Tor", "Vel"),
)
_LAST = (
    *("ado", "bia", "cor", "dan", "eth", "fin", "gar", "ian"),
    *("lo", "mir", "na", "os", "ra", "ton", "ul", "vek"),
)
_PLACES = ("burg", "land", "port", "stan", "mere", "ville", "wick", "gate")
BEINGS = tuple(first + last for first in _FIRST for last in _LAST)
PLACES = tuple(first + last for first in _FIRST for last in _PLACES)

_NOUN = re.compile(rf"\b(?:{'|'.join((*KINDS, 'disc'))})\b", re.IGNORECASE)
_NAMED, _AT = ("named", "called"), ("in", "at")
_PHRASE = re.compile(
    rf"\s+(?:(?:{'|'.join(_NAMED)})\s+(?:{'|'.join(BEINGS)})"
    rf"|(?:{'|'.join(_AT)})\s+(?:{'|'.join(PLACES)}))\b",
    re.IGNORECASE,
)
_NAME = re.compile(rf"\b(?:{'|'.join((*BEINGS, *PLACES))})\b", re.IGNORECASE)


def name_caption(
    caption: str, kind: str, dice: Dice, config: WorldConfig
) -> tuple[str, tuple[str, ...]]:
    """A web caption with the names that it has, and these; English captions alone have any.

    Args:
        caption: a web caption of any kind.
        kind: its kind; boilerplate names nobody.
        dice: of the row.
        config: says how often.
    """
    if config.language != "en" or kind == "boilerplate" or not dice.chance(config.names):
        return caption, ()
    being, place = dice.choose(BEINGS), dice.choose(PLACES)
    noun = _NOUN.search(caption)
    which = dice.choose(("being", "place", "both")) if noun else "place"
    names = []
    if noun and which != "place":
        end = noun.end()
        caption = f"{caption[:end]} {dice.choose(_NAMED)} {being}{caption[end:]}"
        names.append(being)
    if which != "being":
        caption = f"{caption} {dice.choose(_AT)} {place}"
        names.append(place)
    return caption, tuple(names)


def names_in(text: str) -> set[str]:
    """The names of the world that stand in a text, in lower case."""
    return {name.lower() for name in _NAME.findall(text)}


def without_names(text: str) -> str:
    """A text as the world's grammar reads it: without its names and the words that lead to them."""
    return _PHRASE.sub("", text)
