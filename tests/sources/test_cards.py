"""What the card of a dataset says of its files."""

from collections.abc import Callable
from pathlib import Path

import pytest

from openblip.runtime.errors import DataError
from openblip.sources.cards import read_card

Splits = Callable[..., dict[str, str]]
LeftOut = Callable[..., list[tuple[str, str, str]]]


@pytest.fixture
def folder(tmp_path: Path, jpeg: Callable[..., bytes]) -> Path:
    """A folder with an image and the tables a.csv, b.csv and sub/c.csv, of a row each."""
    for number, name in enumerate(("a", "b", "sub/c")):
        file = tmp_path / "data" / f"{name}.csv"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.with_suffix(".jpg").write_bytes(jpeg(number))
        file.write_text(f"image,caption\n{file.stem}.jpg,{file.stem}\n")
    return tmp_path / "data"


def _card(folder: Path, *lines: str) -> None:
    text = "\n".join(("---", "license: mit", *lines, "---", "# A dataset"))
    (folder / "README.md").write_text(text)


@pytest.mark.parametrize(
    "lines",
    [
        [
            "  data_files:",
            "  - {split: test, path: a.csv}",
            "  - {split: validation, path: [b.csv]}",
        ],
        ["  data_files: {test: a.csv, validation: b.csv}"],
        ["  data_files: {test_sft: ./a.*, dev-2: ['b*', x.csv]}"],
    ],
)
def test_files_belong_to_the_splits_of_the_configuration(
    folder: Path, splits: Splits, lines: list[str]
) -> None:
    _card(folder, "configs:", "- config_name: default", *lines)
    assert splits(folder) == {"a": "test", "b": "val", "c": "train"}


@pytest.mark.parametrize("pattern", ["sub", "sub/**", "**/c.csv", "*/*"])
def test_a_folder_stands_for_what_is_in_it(folder: Path, splits: Splits, pattern: str) -> None:
    _card(folder, "configs:", "- data_files:", f"  - {{split: test, path: '{pattern}'}}")
    assert splits(folder) == {"a": "train", "b": "train", "c": "test"}


def test_a_pattern_means_files_and_not_the_folders_that_it_meets(
    folder: Path, splits: Splits
) -> None:
    _card(folder, "configs:", "- data_files: {test: '*'}")
    assert splits(folder) == {"a": "test", "b": "test", "c": "train"}


def test_names_of_files_come_before_the_card(folder: Path, splits: Splits) -> None:
    (folder / "a.csv").rename(folder / "test.csv")
    _card(folder, "configs:", "- data_files: {train: test.csv, test: b.csv}")
    assert splits(folder) == {"a": "test", "b": "test", "c": "train"}


def test_the_card_above_a_file_or_a_pattern_speaks_of_it(folder: Path, splits: Splits) -> None:
    _card(folder, "configs:", "- data_files: {test: sub/c.csv, validation: b.csv}")
    assert splits(folder / "sub" / "c.csv") == {"c": "test"}
    assert splits(folder / "a.csv") == {"a": "train"}
    assert splits(f"{folder}/*.csv") == {"a": "train", "b": "val"}


def test_a_file_of_two_splits_is_left_out_with_both(folder: Path, left_out: LeftOut) -> None:
    _card(folder, "configs:", "- data_files: {train: '*.csv', test: b.csv}")
    told = [entry for entry in left_out(folder) if entry[1] == "contradiction"]
    assert [(where, detail.partition(" puts ")[2]) for where, _, detail in told] == [
        ("b.csv row 1, b.jpg", "b.csv into 'train' and 'test': say which with --split")
    ]


def test_files_of_another_configuration_are_left_out(
    folder: Path, splits: Splits, left_out: LeftOut
) -> None:
    _card(
        folder,
        *("configs:", "- {config_name: en, data_files: a.csv}"),
        "- {config_name: de, default: true, data_files: {test: b.csv}}",
    )
    assert splits(folder) == {"b": "test", "c": "train"}
    told = {where: detail for where, _, detail in left_out(folder)}
    assert told["a.csv"] == "of the configuration 'en', which the card does not make the default"


def test_without_a_default_it_must_be_said_which_is_meant(folder: Path, splits: Splits) -> None:
    _card(
        folder,
        *("configs:", "- {config_name: en, data_files: a.csv}"),
        "- {config_name: de, data_files: {test: b.csv}}",
    )
    with pytest.raises(DataError, match=r"has the configurations en, de, and no default"):
        splits(folder)
    assert splits(folder / "b.csv") == {"b": "test"}


@pytest.mark.parametrize(
    "lines",
    [
        [],
        ["configs: 3"],
        ["configs: [3, {}]"],
        ["configs: [{data_files: [{split: test}]}]"],
        ["configs: [{data_files: {test: ../a.csv}}]"],
        ["configs: [{data_files: {test: /a.csv}}]"],
        ["configs: [{data_files: {test: 'hf://a.csv'}}]"],
    ],
)
def test_a_card_that_says_nothing_of_files_here_changes_nothing(
    folder: Path, splits: Splits, lines: list[str]
) -> None:
    _card(folder, *lines)
    assert set(splits(folder).values()) == {"train"}


@pytest.mark.parametrize(
    ("line", "message"),
    [("a: [", r"the header of .*README\.md is no YAML"), ("a: 2001-99-99", "is no YAML")],
)
def test_a_header_that_is_no_yaml_is_named(folder: Path, line: str, message: str) -> None:
    _card(folder, line)
    with pytest.raises(DataError, match=message):
        read_card(folder)


def test_a_pattern_that_is_none_is_named(folder: Path, splits: Splits) -> None:
    _card(folder, "configs: [{data_files: {test: '**b'}}]")
    with pytest.raises(DataError, match=r"README\.md: \*\*b is no pattern"):
        splits(folder)


def test_a_readme_without_header_is_no_card(folder: Path) -> None:
    (folder / "README.md").write_bytes(b"# caf\xe9\n---\nconfigs: 1\n---\n")
    assert read_card(folder) is None
