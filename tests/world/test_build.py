"""The rows of a world: their noise, their truth, their distinctness, their bytes."""

import hashlib
import io
import itertools
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from openblip.runtime.errors import RecipeError
from openblip.table.table import PairRow
from openblip.world import (
    NoiseRates,
    WorldConfig,
    build_world,
    create_world,
    is_true_caption,
    open_or_create_world,
    truth_of,
)
from openblip.world.build import names_in, without_names
from openblip.world.scene import config_to_dict

CONFIG = WorldConfig(
    seed=7, web_rows=1200, human_rows=300, val_rows=120, test_rows=200, group_weights=(5, 5, 2)
)


@pytest.fixture(scope="module")
def rows() -> list[PairRow]:
    return list(build_world(CONFIG))


def of_split(rows: list[PairRow], origin: str, split: str) -> list[PairRow]:
    return [row for row in rows if (row.origin, row.split) == (origin, split)]


def test_there_are_as_many_rows_as_asked_for(rows):
    counts = Counter((row.origin, row.split) for row in rows)
    assert counts == {
        ("web", "train"): 1200,
        ("human", "train"): 300,
        ("human", "val"): 120,
        ("human", "test"): 200,
    }
    assert len({row.id for row in rows}) == len(rows)
    assert all(len(row.captions) == (1 if row.origin == "web" else 5) for row in rows)


def test_images_are_what_their_rows_say(rows):
    for row in rows[::50]:
        with Image.open(io.BytesIO(row.image)) as image:
            image.load()
            assert image.size == (row.width, row.height) == (64, 64)


def test_true_web_captions_are_true_and_false_ones_false(rows):
    expected = {"true": True, "boilerplate": None}
    for row in of_split(rows, "web", "train"):
        truth = truth_of(row.meta)
        verdict = is_true_caption(row.captions[0], truth.scene)
        assert verdict is expected.get(truth.noise, False), row.captions


def test_human_captions_are_true(rows):
    human = [row for row in rows if row.origin == "human"]
    for row in human:
        truth = truth_of(row.meta)
        assert truth.noise is None
        assert all(is_true_caption(text, truth.scene) for text in row.captions)
        assert len(set(row.captions)) == len(row.captions)


@pytest.mark.parametrize("split", ["val", "test"])
def test_no_caption_of_a_gallery_is_true_of_a_second_image(rows, split):
    gallery = of_split(rows, "human", split)
    for row, other in itertools.permutations(gallery[::4], 2):
        scene = truth_of(other.meta).scene
        assert not any(is_true_caption(text, scene) for text in row.captions[:2])


def test_no_core_of_a_gallery_contains_another(rows):
    """The whole gallery, by what every human caption states."""
    for split in ("val", "test"):
        cores = [truth_of(row.meta).scene.core for row in of_split(rows, "human", split)]
        assert not any(first <= second for first, second in itertools.permutations(cores, 2))


def test_galleries_are_held_out(rows):
    scenes = {
        part: {truth_of(row.meta).scene for row in rows if row.split == part}
        for part in ("train", "val", "test")
    }
    assert not scenes["test"] & (scenes["train"] | scenes["val"])
    assert not scenes["val"] & scenes["train"]


def test_captions_are_short_and_of_few_words(rows):
    human = [text for row in rows if row.origin == "human" for text in row.captions]
    assert len({word for text in human for word in text.split()}) < 150
    assert max(len(text.split()) for text in human) <= 30


def test_rows_are_made_one_by_one():
    """A world too large to hold gives its first rows at once."""
    endless = build_world(WorldConfig(web_rows=10**12, val_rows=5, test_rows=5))
    assert isinstance(endless, Iterator)
    assert [row.id for row in itertools.islice(endless, 2)] == ["web-0000000", "web-0000001"]


def test_a_longer_world_begins_with_a_shorter_one(rows):
    longer = build_world(WorldConfig(**vars(CONFIG) | {"web_rows": 10**6}))
    assert list(itertools.islice(longer, 20)) == rows[:20]


def test_another_seed_makes_another_world(rows):
    other = build_world(WorldConfig(**vars(CONFIG) | {"seed": 8}))
    images = {row.image for row in itertools.islice(other, 50)}
    assert not images & {row.image for row in rows[:50]}


def test_too_large_a_gallery_is_refused():
    """One group of eight kinds, eight colours and three counts has 192 cores."""
    with pytest.raises(RecipeError, match="too few distinct scenes for 193 test rows"):
        next(build_world(WorldConfig(group_weights=(1.0,), val_rows=0, test_rows=193)))


def test_galleries_are_held_out_of_the_smallest_world():
    tiny = WorldConfig(
        group_weights=(1.0,),
        count_weights=(1.0,),
        num_kinds=2,
        num_colours=1,
        val_rows=0,
        test_rows=2,
        web_rows=300,
        human_rows=0,
    )
    rows = list(build_world(tiny))
    held_out = {truth_of(row.meta).scene for row in rows if row.split == "test"}
    trained = {truth_of(row.meta).scene for row in rows if row.split == "train"}
    assert len(held_out) == 2
    assert not held_out & trained


def test_the_table_holds_the_rows_and_their_truth(tmp_path):
    config = WorldConfig(web_rows=60, human_rows=10, val_rows=5, test_rows=5)
    table = create_world(tmp_path / "world.lance", config)
    expected = list(build_world(config))
    read = [row for batch in table.scan() for row in batch.to_pylist()]
    assert [row["id"] for row in read] == [row.id for row in expected]
    assert [row["image"] for row in read] == [row.image for row in expected]
    assert [row["captions"] for row in read] == [list(row.captions) for row in expected]
    assert [truth_of(row["meta"]) for row in read] == [truth_of(row.meta) for row in expected]
    assert json.loads(table.metadata["world"])["web_rows"] == 60


def test_a_table_that_was_half_written_is_made_again(tmp_path: Path) -> None:
    place = tmp_path / "demo" / "pairs.lance"
    endless = (
        "import pathlib, sys\n"
        "from openblip.table import versions\n"
        "from openblip.world import WorldConfig, open_or_create_world\n"
        "versions._FRAGMENT_ROWS = 1\n"
        "open_or_create_world(pathlib.Path(sys.argv[1]), WorldConfig(web_rows=10**9))\n"
    )
    with subprocess.Popen([sys.executable, "-c", endless, str(place)]) as process:
        while process.poll() is None and not list(tmp_path.rglob("data/*.lance")):
            time.sleep(0.02)
        process.kill()
    assert list(tmp_path.rglob("data/*.lance"))
    assert not place.exists()

    config = WorldConfig(web_rows=3, human_rows=1, val_rows=1, test_rows=1)
    table = open_or_create_world(place, config)

    assert len(table) == 6
    assert "world" in table.metadata
    assert open_or_create_world(place, config).version == table.version


def test_the_rows_are_pinned():
    """The same texts and pictures on every machine; every setting that matters is spelt out."""
    config = WorldConfig(
        seed=2022,
        image_size=64,
        web_rows=150,
        human_rows=30,
        val_rows=10,
        test_rows=10,
        captions_per_image=5,
        num_kinds=8,
        num_colours=8,
        group_weights=(4.0, 4.0, 2.0),
        count_weights=(0.6, 0.25, 0.15),
        mention_size=0.35,
        mention_background=0.5,
        mention_relation=0.75,
        web_partial=0.15,
        jitter=0.5,
        noise=NoiseRates(
            true=0.4, wrong_attribute=0.15, wrong_object=0.15, other_image=0.2, boilerplate=0.1
        ),
    )
    total = hashlib.sha256()
    for row in build_world(config):
        plain = json.dumps([row.id, list(row.captions), dict(row.meta)], sort_keys=True)
        total.update(plain.encode() + row.image)
    assert total.hexdigest() == "ca42b9c3ee6bbc069cc43ed856ab1fdc55b833b1cd522eaafc0069d977ac8d2d"


def test_names_are_facts_that_only_web_captions_have():
    rows = list(build_world(replace(CONFIG, names=0.5, test_rows=20, val_rows=20)))
    num_named = 0
    for row in rows:
        truth = truth_of(row.meta)
        told = set().union(*map(names_in, row.captions))
        assert told == {name.lower() for name in truth.names}
        if row.origin == "human" or truth.noise == "boilerplate":
            assert not told
        else:
            num_named += bool(told)
    assert 450 < num_named < 630


def test_a_caption_without_its_names_is_what_it_would_be_in_a_world_without_any():
    named = build_world(replace(CONFIG, names=1.0, test_rows=5, val_rows=5, human_rows=5))
    plain = build_world(replace(CONFIG, test_rows=5, val_rows=5, human_rows=5))
    for row, other in zip(named, plain, strict=True):
        assert [without_names(text) for text in row.captions] == list(other.captions)
        assert row.image == other.image
        assert "names" not in other.meta


def test_worlds_without_names_are_written_down_as_before():
    assert "names" not in config_to_dict(CONFIG)
    assert config_to_dict(replace(CONFIG, names=0.5))["names"] == 0.5
