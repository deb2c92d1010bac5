"""Which split a row belongs to, and what says so: one order of authority for every importer.

What several lists of a source say about the split of one image file is gathered before any of them
is believed.
"""

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from openblip.runtime.errors import DataError
from openblip.sources.source import (
    META_FIELD,
    SOURCES_FIELD,
    Entry,
    Found,
    id_text,
    parse_object,
)
from openblip.table.rows import IdSet

SPLIT_FIELDS = ("split", "set_name")
"""Fields of a record that say which split it is of, in whatever case."""
SUBSET_FIELDS = (
    *("subset", "partition", "fold", "phase", "usage", "set", "image_set"),
    *("splits", "split_name", "data_split", "dataset_split", "split_type", "set_type"),
    *("dataset_type", "part", "stage", "mode", "dataset", "group", "purpose"),
)
"""Fields that say it where none of the others does, if their value is the name of a split."""
META_FIELDS = (META_FIELD, "metadata")
"""Fields of a record with an object, or the text of one, that is as much its own as they are."""
_BOTH = " and "
_Told = tuple[str, str]
"""A field and a word for a split that it says, or that its name has."""
# Of these, those that are mostly called by something else: a word in their values is no second
# opinion where the split is said, unless it is the whole value.
_VAGUE_FIELDS = ("subset", "set", "part", "stage", "mode")
# Of these a split is nothing but the whole value: `coco_val2014` is a data set.
_WHOLE_FIELDS = ("dataset", "group", "purpose")
# So deep a record is asked where nothing in it says the split.
_DEPTH = 3

_SPLIT_NAMES = {
    "train": ("train", "training", "restval"),
    "val": ("val", "valid", "validate", "validation", "dev"),
    # Those of evaluations are tests to the library `datasets` too.
    "test": (
        *("test", "tests", "testing", "eval", "evals", "evaluation"),
        *("holdout", "hold-out", "hold_out", "heldout", "held-out", "held_out"),
    ),
}
# Training data with those of validation: so a record may say what it is for. A file or folder of
# this name says nothing, as `val.csv` beside `trainval.csv` has images of it again.
_WITH_VALIDATION = re.compile(r"trainval\d*", re.IGNORECASE)
# Words that are one with the name of a split: of the test images of VQA v2 one part is called
# test-dev, GQA's are testdev, RefCOCO's testA and testB, and of COCO's validation one is minival.
_SPLIT_WORD = (
    rf"(?:mini)?(?:{'|'.join(word for words in _SPLIT_NAMES.values() for word in words)})"
    r"(?:-?dev|-?std|set|split)?"
)
# Such a word with its digits (val2014, test1); other letters around it make it part of another
# word, but for a capital that begins one (testA, TestSet, imagesVal).
_SPLIT_IN_NAME = re.compile(
    rf"(?:(?<![^\W\d_])(?i:{_SPLIT_WORD})|(?<=[a-z])(?=[A-Z])(?i:{_SPLIT_WORD}))"
    r"\d*(?:(?![^\W_])|(?<=[a-z0-9])(?=[A-Z]))"
)
_A_SPLIT = re.compile(rf"{_SPLIT_WORD}(?-i:[A-Z]?)\d*", re.IGNORECASE)
_FLAG = re.compile(r"(is_?|in_)?(\w+)", re.IGNORECASE)
# Without an `is_` before them these mostly say something else: that a record is a valid one.
_NO_FLAGS = ("valid", "validate")
_YES, _NO = ("true", "t", "yes", "y", "1"), ("false", "f", "no", "n", "0")


class Authority(StrEnum):
    """What said which split a row belongs to; the first that says anything is believed."""

    OPTION = "the option --split"
    RECORD = "a field of the record"
    NAME = "the name of a file or folder"
    NAMES = "a list of the names of its images"
    CARD = "the dataset card"
    SAME_IMAGE = "another record of the same image"
    IMAGE_FOLDER = "the folder of the image"
    SOURCE_FOLDER = "the folder of the source"
    NOTHING = "nothing says otherwise"


class SplitConflict(DataError):  # noqa: N818 - says what it is
    """Two of the same authority name different splits; the message names both."""


def known_split(name: str) -> str | None:
    """`train`, `val` or `test` for the words that data sets use; None for any other word.

    What follows such a word does not count: `val2014` is `val`, `testA` and `testset` are `test`.
    """
    if has_validation(name):
        return "train"
    if not _A_SPLIT.fullmatch(word := name.strip()):
        return None
    word = word.lower().removeprefix("mini")
    # The longest name first: `valid` begins with `val`.
    names = {name: split for split, names in _SPLIT_NAMES.items() for name in names}
    begun = [name for name in names if word.startswith(name)]
    return names[max(begun, key=len)]


def has_validation(name: str) -> bool:
    """Whether a word is for training and validation data together."""
    return _WITH_VALIDATION.fullmatch(name.strip()) is not None


def says_split(field: str) -> bool:
    """Whether a field, or column, of that name may say the split of its record."""
    if field.lower() in (*SPLIT_FIELDS, *SUBSET_FIELDS, *META_FIELDS):
        return True
    return _flagged(field) is not None


def _flagged(field: str) -> str | None:
    """The word for a split in the name of a field that says yes or no to it: `is_test`, `test`."""
    flag = _FLAG.fullmatch(field)
    if flag is None or known_split(flag[2]) is None:
        return None
    return flag[2] if flag[1] or flag[2].lower() not in _NO_FLAGS else None


def pop_split(record: dict[str, Any]) -> str | None:
    """Takes what says the split out of a record, and returns it; None if nothing does.

    Of fields that name different splits it is both, each with its field, which `row_split` takes
    for a conflict. Values of `SUBSET_FIELDS` may say something else, so that they stay in the
    record, as do flags (`is_test`). Of a row that is only said to be no training data it is a word
    for no split. What stands in an object within the record, as in its `meta`, counts as well.
    """
    told: list[_Told] = []
    for name in [name for name in record if name.lower() in SPLIT_FIELDS]:
        told += [(name, word) for word in _words(record.pop(name))]
    if SOURCES_FIELD in record:
        # An exported row says its own split; what else its metadata say is of an earlier one.
        return _together(told)
    told = _with_subsets(record, told)
    own = [(outer, inner) for outer, inner in _objects(record) if outer.lower() in META_FIELDS]
    for outer, inner in own:
        told += _told_in(inner, outer, depth=1)
    if told:
        denied = [(f"{outer}.{n}", w) for outer, inner in own for n, w in _denials(inner, told)]
        return _together([*told, *_denials(record, told), *denied])
    # Of other objects in it nobody knows how much of them holds for the record.
    inside = (_told_in(inner, outer, _DEPTH) for outer, inner in _objects(record))
    found = _together([found for several in inside for found in several])
    denials = map(_not_training, (record, *(inner for _, inner in own)))
    return found or next(filter(None, denials), None)


def _told_in(record: Mapping[str, Any], name: str, depth: int) -> list[_Told]:
    """What an object of that name says of the split, and objects in it, so deep."""
    own = [inner for inner in record if inner.lower() in SPLIT_FIELDS]
    told = [(inner, word) for inner in own for word in _words(record[inner]) if known_split(word)]
    told = _with_subsets(record, told)
    for outer, value in _objects(record) if depth > 1 else ():
        told += _told_in(value, outer, depth - 1)
    return [(f"{name}.{inner}", word) for inner, word in told]


def _objects(record: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Objects in a record, also what is the text of one in `META_FIELDS`."""
    for name, value in record.items():
        if isinstance(value, Mapping):
            yield name, value
        elif isinstance(value, str) and name.lower() in META_FIELDS:
            with suppress(ValueError):
                yield name, parse_object(value.encode("utf-8", "surrogatepass"))


def _with_subsets(record: Mapping[str, Any], told: Sequence[_Told]) -> list[_Told]:
    """What is told, and what `SUBSET_FIELDS` and flags tell besides.

    A field that names several splits, as `train_val`, says nothing more than the one of them that
    is told already.
    """
    splits, found = {known_split(word) for _, word in told}, list(told)
    for name in [name for name in record if name.lower() in SUBSET_FIELDS]:
        values = _words(record[name])
        words = [value for value in values if known_split(value)]
        # With what is told it goes together, as does `train_val`.
        words = [word for word in words if not (told and has_validation(word))]
        is_vague = name.lower() in _WHOLE_FIELDS or (told and name.lower() in _VAGUE_FIELDS)
        if not words and not is_vague:
            words = [word for value in values for word in _splits_within(value)]
        if splits.isdisjoint(map(known_split, words)):
            found += [(name, word) for word in words]
    return [*found, *_flags(record, _YES)]


def _splits_within(value: str) -> list[str]:
    """The words for splits in a value such as `PrivateTest`; none in several words.

    None too if they are all for training, which is so without them: `train_station`.
    """
    words = [] if len(value.split()) > 1 else _SPLIT_IN_NAME.findall(value)
    return words if {known_split(word) for word in words} != {"train"} else []


def _words(value: Any) -> list[str]:
    """What a field says; of a list each item."""
    told = [id_text(item) for item in (value if isinstance(value, list) else [value])]
    return [word for word in told if word is not None]


def _flags(record: Mapping[str, Any], values: Sequence[str]) -> Iterator[_Told]:
    """Fields such as `is_test` that have one of these values, and the words in their names."""
    for name, value in record.items():
        if (word := _flagged(name)) and str(id_text(value)).lower() in values:
            yield name, word


def _denials(record: Mapping[str, Any], told: Sequence[_Told]) -> Iterator[_Told]:
    """Flags by which a row is not of a split that it is told to be of."""
    splits = {known_split(word) for _, word in told}
    for name, word in _flags(record, _NO):
        if known_split(word) in splits:
            yield name, f"not {word}"


def _not_training(record: Mapping[str, Any]) -> str | None:
    """That a row is not for training, where nothing says what it is for: no name of a split."""
    denied = (name for name, word in _flags(record, _NO) if known_split(word) == "train")
    return next((f"{name}: false" for name in denied), None)


def _together(told: Sequence[_Told]) -> str | None:
    """The first word if all name one split, else all of them, with fields of other names."""
    words = [word for _, word in told]
    if len({known_split(word) or word for word in words}) < 2:
        return next(iter(words), None)
    if any(name.lower() not in SPLIT_FIELDS for name, _ in told):
        words = [f"{word} ({name})" for name, word in told]
    return _BOTH.join(dict.fromkeys(words))


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


def splits_in_name(name: str) -> list[str]:
    """As `split_in_name`, the first word for each split that the name has."""
    words = reversed(_SPLIT_IN_NAME.findall(name))
    return [*reversed({known_split(word): word for word in words}.values())]


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


@dataclass(frozen=True)
class SourceRoot:
    """The folder that a source is, or lies in, and what names of files and folders in it say."""

    path: Path
    _named: dict[Path, str | None] = field(default_factory=dict, compare=False, repr=False)

    @cached_property
    def split(self) -> str | None:
        """What its own name says as a whole word, or else that of the folder around it.

        `test` and `test/images` say it, `my_test_photos`, where people put sources to try them,
        does not. A link has the names of its target besides its own.

        Raises:
            SplitConflict: these differ.
        """
        path = Path(os.path.realpath(self.path))
        spelt = path if ".." in self.path.parts else self.path.absolute()
        return _one_of_links(
            {spelt: known_split(spelt.name), path: known_split(path.name)}
        ) or _one_of_links({p: known_split(p.name) for p in (spelt.parent, path.parent)})

    def split_in(self, place: Path) -> str | None:
        """What the names from here on to a file or folder say, and the targets of links in it.

        Raises:
            SplitConflict: two of them differ.
        """
        if place not in self._named:
            # Again at each call where it raises.
            self._named[place] = self._split_in(place)
        return self._named[place]

    def below(self, place: Path) -> Path:
        """The path of a place from here on."""
        return place.relative_to(self.path) if place.is_relative_to(self.path) else Path(place.name)

    def _split_in(self, place: Path) -> str | None:
        names = self.below(place)
        said = {names: split_of_path(names)}
        above = Path(str(place).removesuffix(str(names)))
        for depth in range(1, len(names.parts) + 1):
            step = above.joinpath(*names.parts[:depth])
            if step.is_symlink():
                target = Path(os.path.realpath(step))
                said[target] = self._split_of_target(target)
        return _one_of_links(said)

    def split_by(self, entry: Found) -> str | None:
        """What the names of an entry's place say; of a link to an image, its target's as well.

        Raises:
            SplitConflict: two of them differ.
        """
        if entry.place is None:
            return None
        split, image = self.split_in(entry.place), entry.image
        # The folder in which a list's image lies says nothing for sure, and so its target's.
        if not isinstance(image, Path) or image.parent != entry.place or not image.is_symlink():
            return split
        target = Path(os.path.realpath(image))
        return _one_of_links({image: split, target: self._split_of_target(target.parent)})

    def _split_of_target(self, target: Path) -> str | None:
        """What a folder or list says to which a link leads: all names of it in the source."""
        real = Path(os.path.realpath(self.path))
        if target != real and target.is_relative_to(real):
            is_folder = target.is_dir()
            names = target.relative_to(real)
            return split_of_path(names / "_" if is_folder else names)
        return split_of_path(Path(target.name)) or known_split(target.parent.name)


def _one_of_links(said: Mapping[Path, str | None]) -> str | None:
    """The split that a path says, and those that it links to.

    Raises:
        SplitConflict: these differ.
    """
    paths = {split: path for path, split in said.items() if split is not None}
    if len(paths) > 1:
        (first, path), (second, target), *_ = paths.items()
        raise SplitConflict(
            f"{path} says {first!r}, and {target}, to which it links, says {second!r}: say which "
            "with --split"
        )
    return next(iter(paths), None)


def source_root(source: str) -> SourceRoot:
    """The folder from which on names of files in a source count.

    Of a pattern it is the part before the first folder or file that has a mark of a pattern.
    """
    path = Path(source)
    if path.is_dir():
        return SourceRoot(path)
    if path.exists():
        return SourceRoot(path.parent)
    parts = path.parts
    marked = (n for n, part in enumerate(parts) if any(mark in part for mark in "*?[{"))
    return SourceRoot(Path(*parts[: next(marked, len(parts) - 1)]))


def row_split(entry: Found, root: SourceRoot, option: str | None = None) -> tuple[str, Authority]:
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
    if (named := root.split_by(entry)) is not None:
        return named, Authority.NAME
    if entry.card_split is not None:
        if has_validation(entry.card_split):
            # Beside it may be a split with the same images, which nobody sees in their bytes.
            raise _unknown(entry.card_split)
        return _known(entry.card_split), Authority.CARD
    # Pictures lie together for reasons of their own: COCO's val2014 is mostly training data. So
    # their folder counts where nothing else says anything, and contradicts nobody.
    if entry.image_folder and (split := split_of_path(Path(entry.image_folder) / "_")) is not None:
        return split, Authority.IMAGE_FOLDER
    if root.split is not None:
        return root.split, Authority.SOURCE_FOLDER
    return "train", Authority.NOTHING


def _of_record(entry: Found, word: str, root: SourceRoot) -> str:
    split = _known(word)
    if split == "train" and entry.place is not None:
        try:
            named = root.split_by(entry)
        except SplitConflict:
            # Such a name says nothing, so that the record does.
            named = None
        if named not in (None, "train"):
            raise SplitConflict(
                f"the record says {word!r}, but {root.below(entry.place)} says {named!r}: say "
                "which with --split, or mend one of them"
            )
    return split


def _known(word: str) -> str:
    split = known_split(word)
    if split is None and _BOTH in word:
        fields = "" if "(" in word else f" ({', '.join(SPLIT_FIELDS)})"
        raise SplitConflict(
            f"its records say {word!r}{fields}: say which with --split, or mend one of them"
        )
    if split is None:
        raise _unknown(word)
    return split


def _unknown(word: str) -> DataError:
    return DataError(
        f"unknown split {word!r}: train, val and test are known (--split says it for all)"
    )


# What says nothing about an image in itself, so that what is said elsewhere of it holds.
_WEAK = (Authority.IMAGE_FOLDER, Authority.SOURCE_FOLDER, Authority.NOTHING)


class FileSplits:
    """Which splits each file is said to be in; a file has one, however many records name it."""

    def __init__(self, entries: Iterable[Entry] = (), root: SourceRoot | None = None) -> None:
        """Reads all entries; what cannot be understood will be refused where it stands.

        Args:
            entries: of all lists of a source, and names in lists of splits.
            root: of the source.
        """
        self._folder = lru_cache(maxsize=4096)(os.path.realpath)
        self._told: dict[str, IdSet] = {}
        self._named: dict[str, IdSet] = {}
        found = set()
        for entry in entries:
            if root is None or not isinstance(entry, Found) or not isinstance(entry.image, Path):
                continue
            if entry.is_name_only:
                # An unknown word stays, so that the image is refused.
                split = known_split(entry.split or "") or str(entry.split)
                self._named.setdefault(split, IdSet()).add(self._name(entry.image))
                continue
            try:
                split, said_by = row_split(entry, root)
            except DataError:
                continue
            found.add(split)
            if said_by not in _WEAK:
                self._told.setdefault(split, IdSet()).add(self._name(entry.image))
        if len(found) < 2:
            self._told = {}

    def __reduce__(self) -> tuple[Any, ...]:
        # What it was told, and no cache: other processes ask the disk themselves.
        return FileSplits, (), {"_told": self._told, "_named": self._named}

    def agreed(self, entry: Entry, split: str, said_by: Authority) -> tuple[str, Authority]:
        """The split of an entry, and what says so, after what other records say of its image.

        Args:
            entry: of the source.
            split: what is said of it alone.
            said_by: and what says that.

        Raises:
            SplitConflict: its image is said to be in several splits.
            DataError: a list has it in a split that is unknown.
        """
        if not (self._told or self._named) or not isinstance(entry.image, Path):
            return split, said_by
        name = self._name(entry.image)
        told = [split for split, names in self._told.items() if name in names]
        named = [split for split, names in self._named.items() if name in names]
        # The list of a split speaks of the image itself, as a record of it does.
        own = set() if not named or said_by in _WEAK or said_by == Authority.CARD else {split}
        if len(both := {*told, *named, *own}) > 1:
            raise SplitConflict(
                f"{entry.image.name} is in {' and '.join(map(repr, sorted(both)))} here (this "
                f"record: {split!r}, by {said_by}): say which with --split, or mend the records"
            )
        if named and not own:
            return _known(named[0]), Authority.NAMES
        if told and said_by in _WEAK:
            return told[0], Authority.SAME_IMAGE
        return split, said_by

    def _name(self, path: Path) -> str:
        folder, name = os.path.split(path)
        return os.path.join(self._folder(folder), name)  # noqa: PTH118 - for each of many names
