"""Sources whose file has several records of an image: gathered to one row for each image."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from openblip.data.importers.coco import image_folder
from openblip.data.importers.source import (
    Cursor,
    Entry,
    Found,
    Refused,
    SourceOptions,
    UnsafePath,
    inside,
    is_file,
)
from openblip.data.report import Reason


@dataclass
class GatheredImage:
    """An image and all that the file says about it."""

    key: str
    names: tuple[str, ...]
    """Where its file may be below the folder of images; the first that is there is taken."""
    captions: list[str] = field(default_factory=list)
    meta: dict[str, Any] = field(default_factory=dict)


@dataclass
class Gathered:
    """The images of a file, in the order in which they first occur."""

    file: Path
    images: dict[str, GatheredImage] = field(default_factory=dict)
    stray: list[tuple[str, str]] = field(default_factory=list)
    """What belongs to no image, and why."""

    def image(self, key: str, names: tuple[str, ...]) -> GatheredImage:
        """The image of that key, which is new at first."""
        return self.images.setdefault(key, GatheredImage(key, names))

    def refuse(self, what: str, detail: str) -> None:
        """Notes a record that belongs to no image."""
        self.stray.append((f"{self.file.name} {what}", detail))


class GatheredSource:
    """One row for an image, with its captions, if any, and its metadata.

    The file is held in memory; images are read one by one.
    """

    def __init__(
        self,
        format: str,
        gathered: Gathered,
        roots: tuple[str, ...],
        split: str | None,
        options: SourceOptions,
    ) -> None:
        """Looks for the images.

        Args:
            format: name of the layout.
            gathered: the images.
            roots: folders to look in, relative to that of the file.
            split: of all images, where the file says it inside; its name counts besides.
            options: may name the folder of images.

        Raises:
            DataError: the images are nowhere to be found.
        """
        self.format = format
        self._file, self._split = gathered.file, split
        self._images, self._stray = list(gathered.images.values()), gathered.stray
        names = [name for image in self._images[:20] for name in image.names]
        self._root = image_folder(self._file, names, roots, options)

    def total(self) -> int:
        """Number of images, and of records that belong to none."""
        return len(self._images) + len(self._stray)

    def entries(self, cursor: Cursor | None) -> Iterator[Entry]:
        """Yields one entry for each image, then one for each record that belongs to none."""
        done = int(cursor["index"]) if cursor else 0
        for index in range(done, self.total()):
            here: Cursor = {"index": index + 1}
            if index < len(self._images):
                yield self._entry(self._images[index], here)
            else:
                where, detail = self._stray[index - len(self._images)]
                yield Refused(where, here, Reason.BAD_RECORD, detail)

    def _entry(self, image: GatheredImage, cursor: Cursor) -> Entry:
        where = f"{self._file.name} image {image.names[0]}"
        try:
            paths = [inside(self._root, name) for name in image.names]
        except UnsafePath as error:
            return Refused(where, cursor, Reason.UNSAFE_PATH, str(error))
        return Found(
            where=where,
            cursor=cursor,
            image=next((path for path in paths if is_file(path)), paths[0]),
            captions=image.captions,
            key=image.key,
            split=self._split,
            place=self._file,
            image_folder=str(PurePosixPath(image.names[0]).parent),
            meta=image.meta,
            may_lack_captions=not image.captions,
        )
