"""What every kind of source shares."""

import pytest

from openblip.data.importers.source import known_split, split_in_name


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("captions_val2014", "val"),
        ("nocaps_val_4500_captions", "val"),
        ("v2_OpenEnded_mscoco_test-dev2015_questions", "test"),
        ("coco_karpathy_train", "train"),
        ("flickr30k-validation", "val"),
        ("nlvr_dev", "val"),
        ("test1", "test"),
        ("retrieval_train", "train"),
        ("2014train", "train"),
    ],
)
def test_a_files_name_says_the_split_in_a_word_of_its_own(name: str, split: str) -> None:
    found = split_in_name(name)
    assert found is not None
    assert known_split(found) == split


@pytest.mark.parametrize(
    "name",
    [
        "retrieval",
        "latest_captions",
        "constrained",
        "testimony",
        "devices",
        "val2014x",
        "évaltrain",
    ],
)
def test_part_of_another_word_says_no_split(name: str) -> None:
    assert split_in_name(name) is None


def test_the_digits_of_a_split_stay_in_its_name() -> None:
    assert split_in_name("captions_val2014") == "val2014"
    assert known_split("VAL2014") == "val"
    assert known_split("2014") is None
