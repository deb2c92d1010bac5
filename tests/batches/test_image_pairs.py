"""Sentences about two images of a table, and batches of them."""

import io
import json
from dataclasses import replace

import pytest
import torch
from PIL import Image

from openblip.batches.augmentation import Augmentation
from openblip.batches.image_pairs import ImagePairIndex, ImagePairLoader, may_name_a_side, pairs_of
from openblip.batches.tokenizer import TextTokenizer
from openblip.runtime.errors import DataError
from openblip.table.table import PairRow, PairTable

PLAIN = Augmentation(min_scale=1.0, flip=False, randaugment=False)


def picture(value: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (16, 16), (value, value, value)).save(file, "PNG")
    return file.getvalue()


def rows(count: int = 12) -> list[PairRow]:
    made = []
    for number in range(count):
        sides = "the left one is darker" if number % 2 else "one is darker"
        pair = {"second": f"second-{number}", "sentence": sides, "label": str(number % 3 == 0)}
        meta = {"pairs": [pair]}
        made.append(PairRow(f"first-{number}", picture(10), split="train", meta=meta))
        # Its split is that of nothing that is asked for.
        made.append(PairRow(f"second-{number}", picture(200), split="val"))
    return made


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> ImagePairIndex:
    uri = tmp_path_factory.mktemp("pairs") / "pairs.lance"
    return ImagePairIndex.resolve(PairTable.create(uri, rows()), "train")


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return TextTokenizer.train(["the left one is darker", "one is darker"], 100)


def loader(
    index: ImagePairIndex, tokenizer: TextTokenizer, augmentation: Augmentation | None
) -> ImagePairLoader:
    return ImagePairLoader(index, tokenizer, 6, 16, augmentation, 16, 40, seed=0, num_threads=2)


def test_labels_may_be_words_or_truth_values() -> None:
    entries = [
        {"sentence": "s", "second": "b", "label": label} for label in (True, "True", False, "False")
    ]
    found = pairs_of("a", json.dumps({"pairs": entries}))
    assert [pair.label for pair in found] == [True, True, False, False]
    assert found[1].key == "a/1"


@pytest.mark.parametrize(
    "entry", [{"second": "b", "label": True}, {"sentence": "s", "second": "b", "label": "x"}, "s"]
)
def test_what_is_malformed_is_named(entry: object) -> None:
    with pytest.raises(DataError, match="a/0"):
        pairs_of("a", json.dumps({"pairs": [entry]}))


def test_a_second_image_that_is_not_there_is_named(tmp_path) -> None:
    alone = PairTable.create(tmp_path / "pairs.lance", rows()[:1])
    with pytest.raises(DataError, match="second-0"):
        ImagePairIndex.resolve(alone, "train")
    with pytest.raises(DataError, match="'test'"):
        ImagePairIndex.resolve(alone, "test")


def test_a_batch_has_both_images_and_the_label(
    index: ImagePairIndex, tokenizer: TextTokenizer
) -> None:
    batch = loader(index, tokenizer, None).make(0)
    assert (batch.first_images.mean(dim=(1, 2, 3)) < batch.second_images.mean(dim=(1, 2, 3))).all()
    assert (batch.tokens[:, 0] == tokenizer.special.enc).all()
    numbers = [int(key.removeprefix("first-").removesuffix("/0")) for key in batch.ids]
    assert batch.labels.tolist() == [int(number % 3 == 0) for number in numbers]


def test_in_training_sides_are_swapped_unless_the_sentence_names_one(
    index: ImagePairIndex, tokenizer: TextTokenizer
) -> None:
    batches = [loader(index, tokenizer, PLAIN).make(step) for step in range(8)]
    swapped: dict[bool, list[bool]] = {True: [], False: []}
    for batch in batches:
        darker = batch.first_images.mean(dim=(1, 2, 3)) > batch.second_images.mean(dim=(1, 2, 3))
        for key, is_swapped in zip(batch.ids, darker.tolist(), strict=True):
            names_side = int(key.removeprefix("first-").removesuffix("/0")) % 2 == 1
            swapped[names_side].append(is_swapped)
    assert not any(swapped[True])
    assert {True, False} == set(swapped[False])


def test_it_goes_on_at_any_step(index: ImagePairIndex, tokenizer: TextTokenizer) -> None:
    with loader(index, tokenizer, PLAIN) as batches:
        again, once = next(batches.iterate(4)), batches.make(4)
    assert again.ids == once.ids
    assert torch.equal(again.first_images, once.first_images)


def test_another_sentence_has_another_fingerprint(
    index: ImagePairIndex, tokenizer: TextTokenizer
) -> None:
    other = [replace(index.pairs[0], sentence="one is brighter"), *index.pairs[1:]]
    fingerprints = [
        loader(replace(index, pairs=pairs), tokenizer, None).fingerprint()
        for pairs in (index.pairs, list(index.pairs), other)
    ]
    assert fingerprints[0] == fingerprints[1] != fingerprints[2]


@pytest.mark.parametrize(
    ("sentence", "may"),
    [
        ("The Left one is darker", True),
        ("The dog is on the left.", True),
        ("Two dogs (right) and one (left)", True),
        ("the leftmost dog is brown", True),
        ("The first image has two dogs", True),
        ("it is brighter; a theft of light", False),
        ("one is darker", False),
        ("a café is darker", False),
        ("左边的更暗", True),
        ("एक चित्र बाईं ओर है", True),
    ],
)
def test_where_a_side_may_be_named_nothing_is_swapped(sentence: str, may: bool) -> None:
    assert may_name_a_side(sentence) is may
