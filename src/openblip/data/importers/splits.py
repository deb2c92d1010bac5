"""Which split a row belongs to, and what says so: one order of authority for every importer."""

import re
from enum import StrEnum
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openblip.errors import DataError

if TYPE_CHECKING:
    from openblip.data.importers.source import Found

SPLIT_FIELDS = ("split", "set_name")
"""Fields of a record that say which split it is of."""
_BOTH = " and "

_SPLIT_NAMES = {
    "train": ("train", "training", "restval"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
# Such a word with its digits (val2014, test1); letters around it make it part of another one.
# Of the test images of VQA v2 one part is called test-dev, which is one word.
_SPLIT_IN_NAME = re.compile(
    r"(?<![^\W\d_])(?:test-dev|"
    rf"{'|'.join(word for words in _SPLIT_NAMES.values() for word in words)})"
    r"\d*(?![^\W_])",
    re.IGNORECASE,
)


class Authority(StrEnum):
    """What said which split a row belongs to; the first that says anything is believed."""

    OPTION = "the option --split"
    RECORD = "a field of the record"
    NAME = "the name of a file or folder"
    CARD = "the dataset card"
    IMAGE_FOLDER = "the folder of the image"
    SOURCE_FOLDER = "the folder of the source"
    NOTHING = "nothing says otherwise"


class SplitConflict(DataError):  # noqa: N818 - says what it is
    """Two of the same authority name different splits; the message names both."""


def known_split(name: str) -> str | None:
    """`train`, `val` or `test` for the words that data sets use; None for any other word.

    Digits at the end do not count: `val2014` is `val`.
    """
    word = name.strip().lower().rstrip("0123456789").removesuffix("-dev")
    return next((split for split, names in _SPLIT_NAMES.items() if word in names), None)


def pop_split(record: dict[str, Any]) -> str | None:
    """Takes what says the split out of a record, and returns it; None if nothing does.

    Of two fields that name different splits it is both, which `row_split` takes for a conflict.
    """
    told = [record.pop(name, None) for name in SPLIT_FIELDS]
    words = [str(word) for word in told if word not in (None, "")]
    is_one = len({known_split(word) or word for word in words}) < 2
    return next(iter(words), None) if is_one else _BOTH.join(words)


def both_splits(first: str | None, second: str | None) -> str | None:
    """What two that speak of one row say together; both words where they differ, as above."""
    if first is None or second is None or first == second:
        return first if second is None else second
    if (known_split(first) or first) == (known_split(second) or second):
        return first
    return first if second in first.split(_BOTH) else f"{first}{_BOTH}{second}"


def split_in_name(name: str) -> str | None:
    """The first word in a file's name that `known_split` knows, digits included; None without one.

    `captions_val2014.json` gives `val2014`; `retrieval.json` and `latest.json` give None.
    """
    found = _SPLIT_IN_NAME.search(name)
    return found[0] if found else None


@lru_cache(maxsize=4096)
def split_of_path(path: Path) -> str | None:
    """The split that the names in a path tell, as words of their own; None if none does.

    `data/test-00000-of-00001.parquet` and `test/a/b` give `test`; the suffix does not count.

    Raises:
        SplitConflict: names in it tell different splits, as `train/test.csv` and `train_val.csv`.
    """
    names = [*path.parts[:-1], path.stem]
    words = [word for name in names for word in _SPLIT_IN_NAME.findall(name)]
    splits = {known_split(word): word for word in reversed(words)}
    if len(splits) > 1:
        first, second, *_ = reversed(splits.values())
        raise SplitConflict(
            f"{path} names two splits, {first!r} and {second!r}: say which with --split, or give "
            "each record a field `split`"
        )
    return next(iter(splits), None)


def source_root(source: str) -> Path:
    """The folder that a source is, or lies in: names of files count from there on.

    Of a pattern it is the part before the first folder or file that has a mark of a pattern.
    """
    path = Path(source)
    if path.is_dir():
        return path
    if path.exists():
        return path.parent
    parts = path.parts
    marked = (n for n, part in enumerate(parts) if any(mark in part for mark in "*?[{"))
    return Path(*parts[: next(marked, len(parts) - 1)])


def row_split(entry: "Found", root: Path, option: str | None = None) -> tuple[str, Authority]:
    """The split of an entry, and what says so.

    Args:
        entry: of a source.
        root: see `source_root`.
        option: what the user said, for all rows.

    Raises:
        SplitConflict: two of one authority differ, or a record in a file or folder of validation
            or test claims to be training data.
        DataError: a word that names no split.
    """
    if option is not None:
        return option, Authority.OPTION
    if entry.split is not None:
        return _of_record(entry, entry.split, root), Authority.RECORD
    if (named := _in_names(entry.place, root)) is not None:
        return named, Authority.NAME
    if entry.card_split is not None:
        return _known(entry.card_split), Authority.CARD
    # Pictures lie together for reasons of their own: COCO's val2014 is mostly training data. So
    # their folder counts where nothing else says anything, and contradicts nobody.
    if entry.image_folder and (split := split_of_path(Path(entry.image_folder) / "_")) is not None:
        return split, Authority.IMAGE_FOLDER
    # The whole name: `test`, not `my_test_photos`, where people put sources to try them.
    if (split := known_split(root.name)) is not None:
        return split, Authority.SOURCE_FOLDER
    return "train", Authority.NOTHING


def _of_record(entry: "Found", word: str, root: Path) -> str:
    split = _known(word)
    if split == "train" and entry.place is not None:
        try:
            named = _in_names(entry.place, root)
        except SplitConflict:
            # Such a name says nothing, so that the record does.
            named = None
        if named not in (None, "train"):
            raise SplitConflict(
                f"the record says {word!r}, but {_below(entry.place, root)} says {named!r}: say "
                "which with --split, or mend one of them"
            )
    return split


def _known(word: str) -> str:
    split = known_split(word)
    if split is None and _BOTH in word:
        raise SplitConflict(
            f"its records say {word!r} ({', '.join(SPLIT_FIELDS)}): say which with --split, or "
            "mend one of them"
        )
    if split is None:
        raise DataError(
            f"unknown split {word!r}: train, val and test are known (--split says it for all)"
        )
    return split


def _in_names(place: Path | None, root: Path) -> str | None:
    return None if place is None else split_of_path(_below(place, root))


def _below(place: Path, root: Path) -> Path:
    return place.relative_to(root) if place.is_relative_to(root) else Path(place.name)
