"""Files of records about images: where the images lie that they name, and one row for each.

A file names its images as they lay where it was written. `find_images` finds the folder below which
most of them lie here. Several records of one image are gathered to one row (`Gathered`), or, where
they are neighbours in a long list, joined as they come (`merged`).
"""

import functools
import os
import posixpath
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from openblip.runtime.errors import DataError
from openblip.sources.report import Reason
from openblip.sources.source import (
    Cursor,
    Entry,
    Found,
    Refused,
    Remark,
    SourceOptions,
    UnsafePath,
    inside,
    is_address,
    is_file,
    name_below,
    one_name,
    plain,
)
from openblip.sources.splits import both_splits, known_split

# Tried below the file's folder; with COCO's usual layout it is annotations/captions_val2014.json
# beside val2014/, and FiftyOne writes labels.json beside data/.
ROOTS = (".", "images", "data", "..", "../images")
_COCO_PARTS = ("train2014", "val2014", "test2014", "test2015")
_COCO_2017 = ("train2017", "val2017", "test2017")
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")
"""What a name without a suffix may lack."""
_DRIVE = re.compile(r"^[A-Za-z]:[\\/]")
# Folders that names are looked for in, so that odd lists cost no minutes.
_MAX_FOLDERS = 2000
# Of what a record is called in a report.
_MAX_NAME = 120


@dataclass(frozen=True)
class ImageFolder:
    """The folder below which the images of a file lie."""

    root: Path
    prefix: str = ""
    """What absolute names begin with in the place of `root`, as on the machine that they come
    from, the last `/` included; empty where there are none."""

    def below(self, name: str) -> str:
        """The one name that a file has below `root`, however it is spelt.

        One that does not lie there stays where it is.
        """
        name = one_name(name)
        if "\\" in name and not is_file(self.root / name):
            name = one_name(_with_slashes(name))
        if self.prefix and name.startswith(self.prefix):
            return name.removeprefix(self.prefix)
        return name_below(self.root, name)

    def path(self, name: str) -> Path:
        """The path of an image.

        Raises:
            UnsafePath: the name points out of `root`.
        """
        return inside(self.root, self.below(name))

    def folder_of(self, name: str) -> str:
        """The folder that a name says, below `root`; empty where it says none."""
        below = self.below(name)
        return "" if below.startswith("/") else posixpath.dirname(below)


def find_images(
    file: Path, names: Iterable[str], options: SourceOptions, roots: Iterable[str] = ROOTS
) -> ImageFolder:
    """The folder below which most of the images are found, or the one that the user names.

    Names that are absolute, as on another machine, lie below it from one place in them on, which
    is the same for all: so no two of them can mean one file.

    Args:
        file: of annotations.
        names: of all images; some may be missing, or in other folders.
        options: may name the folder.
        roots: folders to look in, relative to that of the file.

    Raises:
        DataError: there are images, and none is found.
    """
    groups = _by_folder(names)
    told = options.image_root
    best, most = ImageFolder(told or file.parent), 0
    for root in [told] if told else [file.parent / root for root in roots]:
        number, prefix = _search(root, groups, is_told=told is not None)
        # Of folders with as many the first of `roots` is taken.
        if number > most:
            best, most = ImageFolder(root, prefix), number
    if groups and not (most or told):
        searched = ", ".join(dict.fromkeys(roots))
        raise DataError(
            f"the images of {file} are in none of the folders {searched} beside it: name the "
            "folder that their paths start from (--image-root)"
        )
    return best


def folder_told(root: Path, names: Iterable[str]) -> ImageFolder:
    """The folder that the user names for a list, of which `names` are some of the first."""
    return ImageFolder(root, _search(root, _by_folder(names), is_told=True)[1])


def coco_names(image_id: int) -> tuple[str, ...]:
    """Where an image of COCO may be, whose id is the same in all years and parts."""
    name = f"{image_id:012d}.jpg"
    below = (f"{part}/{name}" for part in _COCO_2017)
    older = [f"COCO_{part}_{name}" for part in _COCO_PARTS]
    parts = (f"{part}/{old}" for part, old in zip(_COCO_PARTS, older, strict=True))
    return (name, *below, *parts, *older)


def with_suffixes(name: str) -> tuple[str, ...]:
    """The files that a name without its suffix may mean; the name itself first."""
    return (name, *(f"{name}{suffix}" for suffix in SUFFIXES))


def _by_folder(names: Iterable[str]) -> Mapping[str, set[str]]:
    groups: dict[str, set[str]] = defaultdict(set)
    for name in names:
        if is_address(name):
            continue  # Each is refused for what it is.
        for spelt in {one_name(name), one_name(_with_slashes(name))}:
            folder, base = posixpath.split(spelt)
            if folder in groups or len(groups) < _MAX_FOLDERS:
                groups[folder].add(base)
    return groups


def _with_slashes(name: str) -> str:
    """A path of Windows as others write it."""
    return name if name.startswith("/") else name.replace("\\", "/")


def _search(root: Path, groups: Mapping[str, set[str]], is_told: bool) -> tuple[int, str]:
    """How many names lie below `root`, and the prefix with which most absolute ones do.

    Of absolute names a folder must be left at least, unless the user names `root`: else any
    `1.jpg` would do. Where relative names are found, these say what lies in `root`.
    """
    relative, absolute = 0, Counter[str]()
    own = f"{root.as_posix().rstrip('/')}/"
    for folder, bases in groups.items():
        if not (folder.startswith("/") or _DRIVE.match(f"{folder}/")):
            relative += _number_of(root, folder, bases)
            continue
        parts = folder.split("/")
        # From the longest remainder on, so that among equals most of a name is kept.
        for cut in range(1, len(parts) + 1) if ".." not in parts else ():
            prefix, rest = "/".join(parts[:cut]) + "/", "/".join(parts[cut:])
            if rest or is_told or prefix == own:
                absolute[prefix] += _number_of(root, rest, bases)
    if relative:
        return relative + absolute[own], ""
    prefix, number = absolute.most_common(1)[0] if absolute else ("", 0)
    return number, prefix if number else ""


def _number_of(root: Path, folder: str, bases: set[str]) -> int:
    """How many files of these names are in a folder below `root`."""
    try:
        where = inside(root, f"{folder}/_").parent if folder else root
        with os.scandir(where) as entries:
            return sum(entry.name in bases and entry.is_file() for entry in entries)
    except (OSError, ValueError, UnsafePath):
        return 0


@dataclass(slots=True)
class GatheredImage:
    """An image and all that the file says about it."""

    key: str
    names: tuple[str, ...]
    """Where its file may be below the folder of images; the first that is there is taken."""
    captions: list[str] = field(default_factory=list)
    meta: dict[str, Any] = field(default_factory=dict)
    split: str | None = None
    """Split in the words of its records; None if they say nothing."""
    may_lack_captions: bool = False
    """The file says outright that there are none."""
    num_records: int = 0
    """How many records were gathered to it; 0 of an image that another one's record names."""
    other_names: tuple[str, ...] = ()
    """The names of a record that says the same id of another file."""
    remarks: tuple[Remark, ...] = ()
    """What of its records is not taken over."""


@dataclass
class Gathered:
    """The images of a file, in the order in which they first occur."""

    file: Path
    folder: ImageFolder
    split: str | None = None
    """What the file says inside about all of its images."""
    images: dict[str, GatheredImage] = field(default_factory=dict)
    stray: list[tuple[str, str]] = field(default_factory=list)
    """Records that belong to no image, and why."""

    def image(
        self, key: str, names: tuple[str, ...], split: str | None = None, num_records: int = 1
    ) -> GatheredImage:
        """The image of that key, which is new at first, with a record more.

        Args:
            key: what tells images apart.
            names: where its file may be.
            split: what the record says.
            num_records: 0 if the record is another image's.
        """
        names = tuple(self.folder.below(name) for name in names)
        found = self.images.setdefault(key, GatheredImage(key, names))
        if names != found.names:
            found.other_names = names
        found.num_records += num_records
        found.split = both_splits(found.split, split)
        return found

    def refuse(self, what: str, detail: str) -> None:
        """Notes a record that belongs to no image."""
        self.stray.append((f"{self.file.name} {what[:_MAX_NAME]}", detail))

    def remark(self, image: GatheredImage, what: str, detail: str) -> None:
        """Notes a part of an image's record that is not taken over."""
        remark = Remark(Reason.BAD_RECORD, f"{self.file.name} {what[:_MAX_NAME]}", detail)
        image.remarks = (*image.remarks, remark)


class GatheredSource:
    """One row for an image, with its captions, if any, and its metadata.

    The file is held in memory; images are read one by one.
    """

    def __init__(self, format: str, gathered: Gathered) -> None:
        """Takes over what was gathered; `format` is the name of the layout."""
        self.format = format
        self._gathered, self._images = gathered, list(gathered.images.values())

    def total(self) -> int:
        """Number of images, and of records that belong to none."""
        return len(self._images) + len(self._gathered.stray)

    def of_split(self, split: str | None) -> Self:
        """Itself, with what the file says of the split of all its images besides."""
        self._gathered.split = both_splits(self._gathered.split, split)
        return self

    def entries(self, cursor: Cursor | None) -> Iterator[Entry]:
        """Yields one entry for each image, then one for each record that belongs to none."""
        done = int(cursor["index"]) if cursor else 0
        for index in range(done, self.total()):
            here: Cursor = {"index": index + 1}
            if index < len(self._images):
                yield self._entry(self._images[index], here)
            else:
                where, detail = self._gathered.stray[index - len(self._images)]
                yield Refused(where, here, Reason.BAD_RECORD, detail)

    def listed(self) -> Iterator[Entry]:
        """All entries."""
        return self.entries(None)

    def _entry(self, image: GatheredImage, cursor: Cursor) -> Entry:
        folder, file = self._gathered.folder, self._gathered.file
        name = image.names[0]
        where = f"{file.name} image {'' if image.key == name else f'{image.key}, '}{name}"
        where = where[: _MAX_NAME + len(file.name)]
        number = max(image.num_records, 1)
        refused = functools.partial(Refused, where, cursor, num_records=number)
        if image.other_names:
            detail = f"its id is that of two files, {name!r} and {image.other_names[0]!r}"
            return refused(Reason.CONTRADICTION, detail)
        try:
            paths = [folder.path(name) for name in image.names]
            meta = plain(image.meta)
        except UnsafePath as error:
            return refused(Reason.UNSAFE_PATH, str(error), image_name=error.name)
        except ValueError as error:
            return refused(Reason.BAD_RECORD, str(error))
        return Found(
            where=where,
            cursor=cursor,
            image=next((path for path in paths if is_file(path)), paths[0]),
            captions=image.captions,
            key=image.key,
            split=self._split(image),
            place=file,
            image_folder=folder.folder_of(name),
            meta=meta,
            may_lack_captions=image.may_lack_captions,
            num_records=number,
            remarks=image.remarks,
        )

    def _split(self, image: GatheredImage) -> str | None:
        said = self._gathered.split
        # Of a whole file words such as "all" may be said, which contradict no record.
        is_vague = said is not None and known_split(said) is None
        return image.split if image.split and is_vague else both_splits(image.split, said)


def listed(file: Path, document: Mapping[str, Any], name: str) -> list[Any]:
    """The list of that name in a JSON file; its elements may be anything.

    Raises:
        DataError: it is missing, or no list.
    """
    values = document.get(name)
    if not isinstance(values, list):
        raise DataError(f"{file}: {name!r} is not a list of objects")
    return values


def fields_of(record: Any) -> dict[str, Any]:
    """The fields of a record; none of what is no object."""
    return record if isinstance(record, dict) else {}


def merged(entries: Iterable[Entry]) -> Iterator[Entry]:
    """The entries, neighbours of one image file and id as one with the texts of all.

    Where their metadata differ, those of the first count. Splits that differ are both said.
    """
    # The last one waits for its neighbours; its cursor is then that of the last of them, so that an
    # import that goes on neither repeats one nor leaves one out.
    held: Entry | None = None
    for entry in entries:
        if isinstance(held, Found) and isinstance(entry, Found) and _is_same(held, entry):
            held = _together(held, entry)
            continue
        if held is not None:
            yield held
        held = entry
    if held is not None:
        yield held


def _is_same(first: Found, second: Found) -> bool:
    is_file = isinstance(first.image, Path)
    return is_file and (first.image, first.key) == (second.image, second.key)


def _together(first: Found, second: Found) -> Found:
    return replace(
        first,
        cursor=second.cursor,
        captions=[*first.captions, *second.captions],
        split=both_splits(first.split, second.split),
        meta={**second.meta, **first.meta},
        may_lack_captions=first.may_lack_captions and second.may_lack_captions,
        num_records=first.num_records + second.num_records,
        remarks=(*first.remarks, *second.remarks),
    )
