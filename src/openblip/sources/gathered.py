"""Sources whose file has several records of an image: gathered to one row for each image.

Neighbouring records of one image, as lists with a record for each caption have them.
"""

import functools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from openblip.runtime.errors import DataError
from openblip.sources.image_folders import ImageFolder
from openblip.sources.report import Reason
from openblip.sources.source import (
    Cursor,
    Entry,
    Found,
    Refused,
    Remark,
    UnsafePath,
    is_file,
    plain,
)
from openblip.sources.splits import both_splits, known_split

_MAX_NAME = 120


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
            return refused(Reason.UNSAFE_PATH, str(error))
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
