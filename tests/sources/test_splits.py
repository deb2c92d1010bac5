"""The order of authority over the split of a row."""

from dataclasses import replace
from pathlib import Path

import pytest

from openblip.runtime.errors import DataError
from openblip.sources.source import Found
from openblip.sources.splits import (
    Authority,
    SourceRoot,
    SplitConflict,
    known_split,
    pop_split,
    row_split,
    source_root,
    split_in_name,
    split_of_path,
)

ROOT = Path("/photos")


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
        ("testdev_balanced_questions", "test"),
        ("teststd", "test"),
        ("refcoco_testA", "test"),
        ("TestSet", "test"),
        ("valset", "val"),
        ("imagesVal2017", "val"),
        ("trainImages", "train"),
        ("minival", "val"),
        ("eval", "test"),
        ("evals", "test"),
        ("photos_validate", "val"),
        ("tests", "test"),
        ("my-holdout", "test"),
        ("held_out", "test"),
        ("held-out_photos", "test"),
        ("HeldOut", "test"),
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
        "validates",
        "household",
        "trainval",
    ],
)
def test_part_of_another_word_says_no_split(name: str) -> None:
    assert split_in_name(name) is None


def test_the_digits_of_a_split_stay_in_its_name() -> None:
    assert split_in_name("captions_val2014") == "val2014"
    assert known_split("VAL2014") == "val"
    assert known_split("2014") is None


@pytest.mark.parametrize(
    ("path", "split"),
    [
        ("data/test-00000-of-00001.parquet", "test"),
        ("Test.csv", "test"),
        ("coco-test-000.tar", "test"),
        ("validation/a/b", "val"),
        ("v2_OpenEnded_mscoco_test-dev2015_questions.json", "test"),
        ("test/test-0.parquet", "test"),
        ("default/latest.parquet", None),
        ("photos.test", None),
        ("", None),
    ],
)
def test_names_of_files_and_folders_say_the_split(path: str, split: str | None) -> None:
    assert split_of_path(Path(path)) == split


def test_training_with_validation_data_is_training_where_a_record_or_source_says_so() -> None:
    assert known_split("trainval") == known_split("TrainVal2012") == "train"
    assert pop_split({"split": "val", "image_set": "trainval"}) == "val"
    # Such a list has images of another one again, which says of them what it says.
    assert split_of_path(Path("trainval/val.csv")) == "val"


@pytest.mark.parametrize(
    "path", ["train/test.csv", "train_val.json", "train_test/a.jpg", "val/x/test-0.tar"]
)
def test_names_that_contradict_each_other_are_both_named(path: str) -> None:
    with pytest.raises(SplitConflict, match=r"names two splits, '(train|val)' and '(val|test)'"):
        split_of_path(Path(path))


def _found(
    split: str | None = None, place: str | None = None, card: str | None = None, folder: str = ""
) -> Found:
    return Found(
        where="here",
        cursor={},
        image=b"",
        captions=["x"],
        split=split,
        place=None if place is None else ROOT / place,
        card_split=card,
        image_folder=folder,
    )


@pytest.mark.parametrize(
    ("entry", "option", "expected"),
    [
        (_found("val", "test.csv", "train", "test"), "train", ("train", Authority.OPTION)),
        (_found("val", "test.csv", "train", "test"), None, ("val", Authority.RECORD)),
        (_found("val", "train.csv"), None, ("val", Authority.RECORD)),
        (_found("restval", "annotations.json", None, "val2014"), None, ("train", Authority.RECORD)),
        (_found("train", "train_val.json"), None, ("train", Authority.RECORD)),
        (_found(None, "test.csv", "train", "train"), None, ("test", Authority.NAME)),
        (_found(None, "karpathy_train.json", None, "val2014"), None, ("train", Authority.NAME)),
        (_found(None, "x.parquet", "validation", "train"), None, ("val", Authority.CARD)),
        (_found(None, "x.csv", None, "test/cats"), None, ("test", Authority.IMAGE_FOLDER)),
        (_found(None, "x.csv"), None, ("train", Authority.NOTHING)),
    ],
)
def test_the_first_that_says_anything_is_believed(
    entry: Found, option: str | None, expected: tuple[str, Authority]
) -> None:
    assert row_split(entry, SourceRoot(ROOT), option) == expected


def test_only_names_below_the_source_count_and_that_of_its_own_folder_as_a_whole() -> None:
    entry = _found(None, "x.csv")
    assert row_split(entry, SourceRoot(Path("/photos/test_of_mine"))) == (
        "train",
        Authority.NOTHING,
    )
    assert row_split(entry, SourceRoot(Path("/photos/test"))) == ("test", Authority.SOURCE_FOLDER)


def test_what_lies_in_a_test_file_never_becomes_training_data() -> None:
    with pytest.raises(SplitConflict, match=r"says 'train', but data/test\.csv says 'test'"):
        row_split(_found("train", "data/test.csv"), SourceRoot(ROOT))


def test_a_word_that_names_no_split_is_an_error() -> None:
    with pytest.raises(DataError, match="unknown split 'extra'"):
        row_split(_found("extra", "test.csv"), SourceRoot(ROOT))


def test_the_root_of_a_source(tmp_path: Path) -> None:
    (tmp_path / "a.tar").touch()
    assert source_root(str(tmp_path)).path == tmp_path
    assert source_root(str(tmp_path / "a.tar")).path == tmp_path
    assert source_root("/d/*/x-*.parquet").path == Path("/d")
    assert source_root("/d/test/x-{0..3}.tar").path == Path("/d/test")


@pytest.mark.parametrize(
    ("record", "split"),
    [
        ({"Split": "test"}, "test"),
        ({"SPLIT": "val", "split": None}, "val"),
        ({"Set_Name": "Test"}, "Test"),
        ({"subset": "test"}, "test"),
        ({"Partition": "Validation", "fold": 3}, "Validation"),
        ({"data_split": "dev", "subset": "cats"}, "dev"),
        ({"split": "train", "subset": "test"}, "train (split) and test (subset)"),
        ({"split": "train", "subset": "en"}, "train"),
        ({"split": "train", "subset": "train2014", "fold": 2}, "train"),
        ({"split": "train", "Partition": "val"}, "train (split) and val (Partition)"),
        ({"split": "train", "is_test": True}, "train (split) and test (is_test)"),
        ({"split": "val", "is_val": 0}, "val (split) and not val (is_val)"),
        ({"split": "train", "is_train": "no"}, "train (split) and not train (is_train)"),
        ({"split": "train", "subset": "test-tube"}, "train"),
        ({"split": "test", "subset": "train_station"}, "test"),
        ({"subset": "test-clean"}, "test"),
        ({"subset": "train station"}, None),
        ({"split": "train", "Usage": "PrivateTest"}, "train (split) and Test (Usage)"),
        ({"split": "train", "image_set": "train_val"}, "train"),
        ({"image_set": "train_val"}, "train (image_set) and val (image_set)"),
        ({"Usage": "PrivateTest"}, "Test"),
        ({"Usage": "PublicTest"}, "Test"),
        ({"Usage": "Training"}, "Training"),
        ({"subset": "a test"}, None),
        ({"subset": "stage lights"}, None),
        ({"meta": {"split": "test"}}, "test"),
        ({"Metadata": {"subset": "val", "lang": "en"}}, "val"),
        ({"meta": '{"split": "test"}'}, "test"),
        ({"meta": "{"}, None),
        ({"meta": {"split": "en"}}, None),
        ({"info": {"source": {"is_test": 1}}}, "test"),
        ({"split": "train", "meta": {"split": "test"}}, "train (split) and test (meta.split)"),
        ({"split": "train", "meta": {"split": "train"}}, "train"),
        ({"split": "train", "source": {"split": "val"}}, "train"),
        ({"split": "train", "subset": "test", "caption_sources": ["web"]}, "train"),
        ({"subset": "cats", "fold": 1}, None),
        ({"split": "", "usage": float("nan")}, None),
        ({"split": "test", "Split": "train"}, "test and train"),
        ({"subset": "test", "fold": "train"}, "test (subset) and train (fold)"),
        ({"splits": "test"}, "test"),
        ({"set": "flowers"}, None),
        ({"split": ["test"]}, "test"),
        ({"split": ["train", "test"]}, "train and test"),
        ({"is_test": True}, "test"),
        ({"isVal": "TRUE", "is_test": 0.0}, "Val"),
        ({"is_test": False}, None),
        ({"is_train": 1}, "train"),
        ({"is_train": False, "is_val": 1}, "val"),
        ({"is_train": False, "is_val": 0}, "is_train: false"),
        ({"is_train": True, "is_test": True}, "train (is_train) and test (is_test)"),
        ({"is_test": "t"}, "test"),
        ({"is_val": "Y"}, "val"),
        ({"meta": {"is_train": False}}, "is_train: false"),
        (
            {"split": "train", "meta": {"is_train": False}},
            "train (split) and not train (meta.is_train)",
        ),
        ({"split": "train", "is_test": False}, "train"),
        ({"train": "0", "val": "0", "test": "1"}, "test"),
        ({"train": "1", "val": "0", "test": "0"}, "train"),
        ({"train": "0", "val": "0", "test": "0"}, "train: false"),
        ({"test": True}, "test"),
        ({"in_test": "yes"}, "test"),
        ({"holdout": 1}, "holdout"),
        ({"train": False}, "train: false"),
        ({"split": "train", "test": 1}, "train (split) and test (test)"),
        ({"train": "a blue train", "val": 0.5, "test": ""}, None),
        ({"valid": True, "invalid": True, "validate": 1}, None),
        ({"dataset": "test"}, "test"),
        ({"group": "Validation"}, "Validation"),
        ({"purpose": "testing"}, "testing"),
        ({"Phase": "val"}, "val"),
        ({"dataset": "coco_val2014", "group": "test images"}, None),
        ({"dataset": "coco_val2014", "split": "train"}, "train"),
        ({"split": "train", "group": "test"}, "train (split) and test (group)"),
    ],
)
def test_fields_of_a_record_say_the_split_in_any_case(
    record: dict[str, object], split: str | None
) -> None:
    assert pop_split(record) == split


def test_a_contradiction_within_a_record_names_both_fields() -> None:
    entry = _found(pop_split({"split": "train", "is_test": True}))
    with pytest.raises(SplitConflict, match=r"'train \(split\) and test \(is_test\)': say which"):
        row_split(entry, SourceRoot(ROOT))


def test_a_row_that_is_only_said_to_be_no_training_data_is_refused() -> None:
    entry = _found(pop_split({"is_train": False}))
    with pytest.raises(DataError, match=r"unknown split 'is_train: false'"):
        row_split(entry, SourceRoot(ROOT))


def test_only_what_is_a_split_by_its_name_is_taken_out_of_a_record() -> None:
    record: dict[str, object] = {"SPLIT": "test", "subset": "test", "n": 1}
    assert pop_split(record) == "test"
    assert record == {"subset": "test", "n": 1}


@pytest.mark.parametrize(
    ("given", "split"),
    [
        ("test", "test"),
        ("test/images", "test"),
        ("test/images/..", "test"),
        ("test/sub/..", "test"),
        ("test/images/deep", None),
        ("link", "test"),
        ("link/images", "test"),
        ("my_test_photos", None),
        ("test/train", "train"),
    ],
)
def test_the_sources_own_folder_counts_wherever_the_path_leads(
    tmp_path: Path, given: str, split: str | None
) -> None:
    for name in ("test/images/deep", "test/sub", "test/train", "my_test_photos"):
        (tmp_path / "data" / name).mkdir(parents=True)
    (tmp_path / "data" / "link").symlink_to("test")
    assert source_root(str(tmp_path / "data" / given)).split == split


def test_a_link_and_its_target_may_not_contradict_each_other(tmp_path: Path) -> None:
    (tmp_path / "test").mkdir()
    (tmp_path / "train").symlink_to("test")
    with pytest.raises(SplitConflict, match=r"train says 'train', and .*test, to which it links"):
        _ = source_root(str(tmp_path / "train")).split


@pytest.mark.parametrize(
    ("link", "target", "split"),
    [
        ("more", "test", "test"),
        ("more", "test/images", "test"),
        ("test", "photos", "test"),
        ("val", "coco_val2014", "val"),
        ("more", "photos", None),
    ],
)
def test_targets_of_links_in_a_source_say_the_split(
    tmp_path: Path, link: str, target: str, split: str | None
) -> None:
    (tmp_path / "far" / target / "sub").mkdir(parents=True)
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / link).symlink_to(tmp_path / "far" / target)
    root = SourceRoot(tmp_path / "source")
    assert root.split_in(root.path / link) == split
    assert root.split_in(root.path / link / "sub") == split


def test_a_link_in_a_source_contradicts_its_target(tmp_path: Path) -> None:
    (tmp_path / "far" / "test").mkdir(parents=True)
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "train").symlink_to(tmp_path / "far" / "test")
    root = SourceRoot(tmp_path / "source")
    with pytest.raises(SplitConflict, match=r"'train', and .*'test'"):
        root.split_in(root.path / "train" / "sub")


@pytest.mark.parametrize(
    ("link", "target", "split"),
    [
        ("more/a.jpg", "source/test/a.jpg", "test"),
        ("more/a.jpg", "source/test/images/a.jpg", "test"),
        ("more/a.jpg", "far/val/a.jpg", "val"),
        ("more/a.jpg", "far/photos/a.jpg", "train"),
        ("more/test.jpg", "far/photos/a.jpg", "train"),
    ],
)
def test_a_linked_image_has_the_split_of_its_target(
    tmp_path: Path, link: str, target: str, split: str
) -> None:
    entry = _linked(tmp_path, link, target)
    assert row_split(entry, SourceRoot(tmp_path / "source"))[0] == split
    listed = replace(entry, place=tmp_path / "source" / "list.csv")
    # Where a list names it, the folder of its target is that of a picture.
    assert row_split(listed, SourceRoot(tmp_path / "source"))[0] == "train"


@pytest.mark.parametrize("split", [None, "train"])
def test_a_linked_image_contradicts_its_target(tmp_path: Path, split: str | None) -> None:
    entry = replace(_linked(tmp_path, "train/a.jpg", "source/test/a.jpg"), split=split)
    if split is None:
        with pytest.raises(SplitConflict, match=r"a\.jpg says 'train', and .*'test'"):
            row_split(entry, SourceRoot(tmp_path / "source"))
    else:
        # The record is believed where names contradict each other.
        assert row_split(entry, SourceRoot(tmp_path / "source"))[0] == "train"


def _linked(tmp_path: Path, link: str, target: str) -> Found:
    for name in (f"source/{link}", target):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / target).touch()
    image = tmp_path / "source" / link
    image.symlink_to(tmp_path / target)
    return replace(_found(), image=image, place=image.parent)


def test_a_link_to_a_list_has_the_name_of_its_target(tmp_path: Path) -> None:
    (tmp_path / "test.csv").touch()
    (tmp_path / "link.csv").symlink_to("test.csv")
    assert source_root(str(tmp_path / "link.csv")).split_in(tmp_path / "link.csv") == "test"
