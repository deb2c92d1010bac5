"""Many images to work through: files, folders, patterns, tar archives, pair tables."""

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path, PurePosixPath

from PIL import Image

from openblip.data.images import open_image
from openblip.data.importers.source import IMAGE_SUFFIXES, UnsafePath
from openblip.data.importers.webdataset import TAR_DAMAGE, TAR_SUFFIXES, tar_members
from openblip.data.patterns import matching_paths
from openblip.data.reading import read_image_file, row_image
from openblip.data.storage import is_object_address
from openblip.data.table import PairRow, PairTable
from openblip.data.views import split_rows
from openblip.errors import DataError, RecipeError

_LANCE_MARK = "_versions"
# Images of a table that are read together, and held until they are decoded.
_ROWS_AT_ONCE = 32

Wanted = Callable[[str, Path | None], bool]
"""Asked for each image, by its name and the file that it has of its own, before it is read."""


@dataclass(frozen=True)
class SourceImage:
    """An image that is to be worked on."""

    name: str
    """What results call it: the path, `archive.tar/member.jpg`, or the row's id."""
    key: str
    """The path within the folder that was given, the file's or member's name, or the row's id: it
    stays the same wherever the images lie, and decides what is drawn for this image."""
    open: Callable[[], Image.Image]
    """Reads and decodes it, from any thread; raises `DataError` if that cannot be done."""
    file: Path | None = None
    """The image's own file; None in an archive or a table."""
    encoded: bytes | None = None
    """Its bytes, in an archive; None where they are read when it is opened."""


def is_single(place: str) -> bool:
    """Whether a place is one image, or nothing, and no collection that `ImageSources` opens."""
    if is_object_address(place) or _is_tar(place) or Path(place).is_dir():
        return False
    return Path(place).exists() or not matching_paths(place)


class ImageSources:
    """The images of some places, one after the other, in an order that depends on names alone.

    Nothing but the names in one folder is held in memory, and 32 images of a table. Within folders
    hidden files and folders are left out, and links to folders not followed.
    """

    def __init__(self, places: Sequence[str], split: str | None = None) -> None:
        """Looks only whether the places exist.

        Args:
            places: image files, folders, `.tar`, `.tar.gz` or `.tgz` archives, and pair tables: a
                folder that Lance wrote, or an `s3://` or `gs://` address. What a pattern such as
                `photos/*.jpg` or a range such as `{000..041}.tar` finds counts as if it were given
                itself.
            split: of tables only rows of this one.

        Raises:
            DataError: nothing is given, or something is not there.
            RecipeError: a split is given, but no table.
        """
        if not places:
            raise DataError("no image was given; name files, folders, tar archives or pair tables")
        self._places = [found for place in places for found in _expanded(place)]
        self._tables = {p: PairTable.open(p) for p in self._places if is_table(p)}
        self._split = split
        if split is not None and not self._tables:
            raise RecipeError(
                f"--split {split} chooses rows of a pair table, and {places[0]} is none; leave "
                "it out"
            )

    def without_own_file(self) -> str | None:
        """The first place whose images have no files of their own; None if there is none."""
        return next((p for p in self._places if p in self._tables or _is_tar(p)), None)

    def total(self) -> int | None:
        """Number of images; None where counting would mean reading an archive.

        Raises:
            DataError: a folder holds no image, or a table no row of the split.
        """
        counts = [self._count(place) for place in self._places]
        return None if None in counts else sum(count for count in counts if count is not None)

    def images(self, wanted: Wanted) -> Iterator[SourceImage]:
        """Yields the wanted images; what cannot be read fails when it is opened."""
        for place in self._places:
            if place in self._tables:
                yield from _table_images(self._tables[place], self._split, wanted)
            elif _is_tar(place):
                yield from _tar_images(Path(place), wanted)
            elif Path(place).is_dir():
                yield from _folder_images(Path(place), wanted)
            elif wanted(str(Path(place)), Path(place)):
                yield _file_image(Path(place), Path(place).name)

    def _count(self, place: str) -> int | None:
        if place in self._tables:
            table = self._tables[place]
            return len(table) if self._split is None else len(split_rows(table, self._split))
        if _is_tar(place):
            return None
        if not Path(place).is_dir():
            return 1
        count = sum(1 for _ in _walk(Path(place)))
        if not count:
            raise DataError(
                f"{place}: no image in this folder (looked for {', '.join(sorted(IMAGE_SUFFIXES))})"
                "; archives and tables in it must be named themselves"
            )
        return count


def scratch_table(sources: ImageSources, uri: Path, report: Callable[[str], None]) -> PairTable:
    """A table of some images that refers to their files, for jobs that work on tables.

    Ids are the images' names. What an archive holds is copied.

    Args:
        sources: the images.
        uri: where the table goes.
        report: is told of what cannot be read at all; images are not decoded.

    Raises:
        DataError: there is no image, or a table among the places, which is one already.
    """
    if (opened := next(iter(sources._tables), None)) is not None:
        raise DataError(f"{opened} is a pair table: give it alone")
    sources.total()

    def rows() -> Iterator[PairRow]:
        seen: Counter[str] = Counter()
        for image in sources.images(lambda name, file: True):
            if image.file is None and image.encoded is None:
                try:
                    image.open()
                except DataError as error:
                    report(str(error))
                continue
            seen[image.name] += 1
            # An archive may have several members of one name.
            again = f" ({seen[image.name]})" if seen[image.name] > 1 else ""
            uri = None if image.file is None else str(image.file.absolute())
            yield PairRow(image.name + again, image.encoded, uri)

    table = PairTable.create(uri, rows())
    if not len(table):
        raise DataError("no image in what was given; name other files, folders or archives")
    return table


def _expanded(place: str) -> list[str]:
    if is_object_address(place):
        return [place]
    found = matching_paths(place)
    if not found:
        raise DataError(
            f"{place}: no such file or folder, nor a pattern that finds one; give images that exist"
        )
    return [str(path) for path in found]


def is_table(place: str) -> bool:
    """Whether a place is a pair table, or an address, which can be nothing else."""
    return is_object_address(place) or (Path(place) / _LANCE_MARK).is_dir()


def _is_tar(place: str) -> bool:
    return place.lower().endswith(TAR_SUFFIXES) and not Path(place).is_dir()


def _is_image_name(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES


def _walk(folder: Path) -> Iterator[Path | OSError]:
    """Image files in a folder and the folders in it, and why one of these cannot be read."""
    problems: list[OSError] = []
    for parent, folders, files in os.walk(folder, onerror=problems.append):
        yield from problems
        problems.clear()
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if _is_image_name(name) and not name.startswith("."):
                yield Path(parent) / name
    yield from problems


def _folder_images(folder: Path, wanted: Wanted) -> Iterator[SourceImage]:
    for found in _walk(folder):
        if isinstance(found, OSError):
            yield _unreadable(str(found.filename), f"cannot be read ({found.strerror})")
        elif wanted(str(found), found):
            yield _file_image(found, found.relative_to(folder).as_posix())


def _file_image(file: Path, key: str) -> SourceImage:
    return SourceImage(str(file), key, partial(_open_file, file), file)


def _open_file(file: Path) -> Image.Image:
    return open_image(read_image_file(file), str(file))


def _tar_images(archive: Path, wanted: Wanted) -> Iterator[SourceImage]:
    def is_wanted(member: str) -> bool:
        return _is_image_name(member) and wanted(f"{archive}/{_plain(member)}", None)

    try:
        for member, content in tar_members(archive, is_wanted):
            key = _plain(member.name)
            name = f"{archive}/{key}"
            if isinstance(content, bytes):
                yield SourceImage(name, key, partial(open_image, content, name), encoded=content)
            elif _is_image_name(key):
                why = str(content) if isinstance(content, UnsafePath) else content[1]
                yield _unreadable(name, why)
    except TAR_DAMAGE as error:
        yield _unreadable(
            str(archive), f"breaks off or is damaged ({error}); fetch the archive again"
        )


def _plain(member: str) -> str:
    return member.removeprefix("./")


def _table_images(table: PairTable, split: str | None, wanted: Wanted) -> Iterator[SourceImage]:
    rows = _wanted_rows(table, split, wanted)
    while batch := list(islice(rows, _ROWS_AT_ONCE)):
        for row in table.take(batch, ["id", "image", "image_uri"]).to_pylist():
            yield SourceImage(row["id"], row["id"], partial(row_image, row))


def _wanted_rows(table: PairTable, split: str | None, wanted: Wanted) -> Iterator[int]:
    """Numbers of rows; which of them are wanted is found out without their images."""
    number = -1
    for batch in table.scan(["id", "split"]):
        for row_id, of_split in zip(
            batch["id"].to_pylist(), batch["split"].to_pylist(), strict=True
        ):
            number += 1
            if split in (None, of_split) and wanted(row_id, None):
                yield number


def _unreadable(name: str, why: str) -> SourceImage:
    def fail() -> Image.Image:
        raise DataError(f"{name}: {why}")

    return SourceImage(name, name, fail)
