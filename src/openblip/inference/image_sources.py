"""From what a person calls images to batches of tensors.

A few that are given by hand, or many to work through: files, folders, patterns, tar archives, pair
tables.
"""

import os
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Generic, TypeVar, cast

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from openblip.batches.transforms import eval_transform
from openblip.inference.encoding import check_batch_size
from openblip.runtime.documents import escaped
from openblip.runtime.errors import DataError, RecipeError
from openblip.runtime.threads import default_threads, ordered_map
from openblip.sources.image_formats import format_of, is_image_file, known_by_name
from openblip.sources.images import (
    MAX_IMAGE_BYTES,
    Encoded,
    ImageSource,
    open_image,
    other_than_a_path,
)
from openblip.sources.paths import (
    INDEX_FOLDER,
    Seen,
    is_of_output,
    is_table,
    matching_paths,
    walk,
)
from openblip.sources.report import Reason
from openblip.sources.row_images import read_image_file, row_image
from openblip.sources.tars import (
    TAR_DAMAGE,
    TAR_SUFFIXES,
    UNREAD_ARCHIVES,
    Member,
    tar_members,
    why_refused,
)
from openblip.table.storage import is_object_address
from openblip.table.table import PairRow, PairTable
from openblip.table.views import split_rows

Images = ImageSource | Iterable[ImageSource]
"""One image or several: paths, Pillow images, uint8 arrays (height, width, 3), encoded bytes, open
files."""

Item = TypeVar("Item")

# Images of a table that are read together, and held until they are decoded.
_ROWS_AT_ONCE = 32

Wanted = Callable[[str, Path | None], bool]
"""Asked for each image, by its name and the file that it has of its own, before it is read."""
LeaveOut = Callable[[str, str], None]
"""Told of what is no image: why, and its name."""
_NO_IMAGE = "not an image"
NOTHING_FOUND = "no image in what was given; name other files, folders or archives"


def as_sources(images: Images) -> Iterable[ImageSource]:
    """The images one by one; a single one is a list of one, and so is what is no image at all."""
    if isinstance(images, np.ndarray):
        # With a dimension more, or of texts and objects, it is no image but several.
        is_list = images.ndim > 3 or images.dtype.kind in "OU"
        return list(images) if is_list else [images]
    # Iterating over an open file would give its lines, over bytes or a tensor numbers.
    is_one = isinstance(images, str | Encoded | os.PathLike | Image.Image | Mapping | Tensor)
    if is_one or hasattr(images, "read") or not isinstance(images, Iterable):
        return [cast(ImageSource, images)]
    return cast(Iterable[ImageSource], images)


def one_or_each(images: Images, texts: Sequence[str], what: str, remedy: str) -> list[ImageSource]:
    """The images, of which there must be one for all texts, or one for each.

    Args:
        images: one or several.
        texts: any number.
        what: the texts are, in the plural.
        remedy: what an error advises.

    Raises:
        DataError: if there are others.
    """
    sources = list(as_sources(images))
    if len(sources) not in (1, len(texts)):
        raise DataError(f"{len(sources)} images and {len(texts)} {what}: {remedy}")
    return sources


def image_batches(
    images: Images, size: int, batch_size: int
) -> Iterator[Float[Tensor, "batch 3 size size"]]:
    """Normalised images of size x size pixels, in order; all else as in `tried_batches`.

    Raises:
        DataError: if an image cannot be read; names it.
    """
    return prepared_batches(images, partial(eval_transform, size=size), batch_size)


def prepared_batches(
    images: Images, prepare: Callable[[Image.Image], Tensor], batch_size: int
) -> Iterator[Float[Tensor, "batch 3 height width"]]:
    """As `image_batches`, with another way from an RGB image to a tensor."""
    sources = as_sources(images)
    for batch in tried_batches(sources, lambda source: prepare(open_image(source)), batch_size):
        for _, error in batch.failures:
            raise error
        yield batch.images


@dataclass(frozen=True)
class TriedBatch(Generic[Item]):
    """Some items, in order, divided into those whose images could be read and the others."""

    items: list[Item]
    """Items whose images stand in `images`, in their order."""
    images: Float[Tensor, "items 3 height width"]
    """Prepared; without a dimension where there is no item."""
    failures: list[tuple[Item, DataError]]
    """The others, and why."""


def tried_batches(
    items: Iterable[Item], prepare: Callable[[Item], Tensor], batch_size: int
) -> Generator[TriedBatch[Item], None, None]:
    """Batches of images, in order, decoded by threads ahead of their use.

    An image that cannot be read does not stop the others.

    Args:
        items: taken from the consumer's thread; may be endless, since only the next two batches
            are held.
        prepare: from an item to its image as a tensor; called from threads.
        batch_size: items at a time.

    Raises:
        RecipeError: if `batch_size` is below 1.
    """
    check_batch_size(batch_size)

    def tried(item: Item) -> tuple[Item, Tensor | DataError]:
        try:
            return item, prepare(item)
        except DataError as error:
            # As a value: raised in a thread, it would end the images after it too.
            return item, error

    found = ordered_map(tried, items, default_threads(), num_ahead=2 * batch_size)
    try:
        while batch := list(islice(found, batch_size)):
            read = [(item, image) for item, image in batch if isinstance(image, Tensor)]
            yield TriedBatch(
                items=[item for item, _ in read],
                images=torch.stack([image for _, image in read]) if read else torch.empty(0),
                failures=[(item, why) for item, why in batch if isinstance(why, DataError)],
            )
    finally:
        # Else the threads would live until this generator is collected.
        found.close()


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


@dataclass
class LeftOut:
    """Files or members that are no images."""

    example: str
    count: int = 0


class ImageSources:
    """The images of some places, one after the other, in an order that depends on names alone.

    Nothing but the names in one folder is held in memory, and 32 images of a table. Within folders
    and archives images are known by their suffixes, or else by their first bytes; links to folders
    are followed once. What is left out, as hidden files are, is counted, but for what `openblip
    caption` itself has written into a folder.

    Attributes:
        left_out: what no image was seen in so far, by the reason.
    """

    def __init__(self, places: Sequence[str], split: str | None = None) -> None:
        """Looks only whether the places exist.

        Args:
            places: image files, folders, tar archives (packed by gzip, bzip2 or xz, too), and pair
                tables: a folder that Lance wrote, or an `s3://` or `gs://` address. What a pattern
                such as `photos/*.jpg` or a range such as `{000..041}.tar` finds counts as if it
                were given itself.
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
        self.left_out: dict[str, LeftOut] = {}
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
        self.left_out = {}
        for place in self._places:
            if place in self._tables:
                yield from _table_images(self._tables[place], self._split, wanted)
            elif _is_tar(place):
                yield from _tar_images(Path(place), wanted, self.leave_out)
            elif Path(place).is_dir():
                yield from _folder_images(Path(place), wanted, self.leave_out)
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
        count = sum(1 for _ in _folder_images(Path(place), lambda *_: True, self.leave_out))
        # Counted again when the images are worked on.
        found, self.left_out = left_out_text(self.left_out), {}
        if not count:
            raise DataError(
                f"{place}: no image in this folder; {found}: archives and tables in it must be "
                "named themselves"
                if found
                else f"{place}: no image in this folder: it is empty"
            )
        return count

    def leave_out(self, reason: str, name: str) -> None:
        """Count something that is no image, or that cannot be looked into."""
        self.left_out.setdefault(reason, LeftOut(name)).count += 1


def left_out_text(left_out: dict[str, LeftOut]) -> str:
    """What was left out, in a line: how many of which reason, and an example; empty for nothing."""
    return ", ".join(
        f"{found.count:,} {reason} (such as {found.example})" for reason, found in left_out.items()
    )


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
    # For its errors: no table is begun where there is no image.
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
            yield PairRow(escaped(image.name) + again, image.encoded, uri)

    table = PairTable.create(uri, rows())
    if not len(table):
        raise DataError(NOTHING_FOUND)
    return table


def _expanded(place: str) -> list[str]:
    if is_object_address(place):
        return [place]
    found = matching_paths(place)
    is_mistyped = place.startswith(("s3:", "gs:"))
    if not found and not is_mistyped and (other := other_than_a_path(place)) is not None:
        raise DataError(f"{place}: {other}")
    if not found:
        raise DataError(
            f"{place}: no such file or folder, nor a pattern that finds one; give images that exist"
        )
    return [str(path) for path in found]


def _is_tar(place: str) -> bool:
    # A folder may be called so, too.
    return place.lower().endswith(TAR_SUFFIXES) and not Path(place).is_dir()


def _folder_images(folder: Path, wanted: Wanted, leave_out: LeaveOut) -> Iterator[SourceImage]:
    for seen in walk(folder):
        # What an index keeps there is ours, and no image of the folder.
        if seen.name == INDEX_FOLDER:
            continue
        name = str(seen.path)
        why = seen.problem if seen.is_unreadable else ""
        try:
            if not why and (reason := _why_no_image(seen)) is not None:
                if not is_of_output(seen):
                    leave_out(reason, name)
                continue
        except OSError as error:
            why = f"cannot be read ({error.strerror})"
        if why:
            yield _unreadable(name, why)
        elif wanted(name, seen.path):
            yield _file_image(seen.path, seen.name)


def _why_no_image(seen: Seen) -> str | None:
    if seen.problem:
        return seen.problem
    if seen.parts[-1].lower().endswith((*TAR_SUFFIXES, *UNREAD_ARCHIVES)):
        return "an archive, to be named itself"
    return None if is_image_file(seen.path) else _NO_IMAGE


def _file_image(file: Path, key: str) -> SourceImage:
    return SourceImage(str(file), key, partial(_open_file, file), file)


def _open_file(file: Path) -> Image.Image:
    return open_image(read_image_file(file), str(file))


def _tar_images(archive: Path, wanted: Wanted, leave_out: LeaveOut) -> Iterator[SourceImage]:
    try:
        for member in tar_members(archive):
            key = member.name.removeprefix("./")
            name = f"{archive}/{key}"
            is_image, why = _judged(member)
            if not is_image:
                leave_out(why or _NO_IMAGE, name)
            elif why:
                yield _unreadable(name, why)
            elif wanted(name, None):
                # Now, not when it is opened by a thread: an archive is read from front to back.
                encoded = member.read()
                yield SourceImage(name, key, partial(open_image, encoded, name), encoded=encoded)
    except TAR_DAMAGE as error:
        yield _unreadable(
            str(archive), f"breaks off or is damaged ({error}); fetch the archive again"
        )


def _judged(member: Member) -> tuple[bool, str]:
    """Whether a member is an image, and why it cannot be read, or is not looked into."""
    known = known_by_name(member.name)
    if (refused := why_refused(member.name)) is not None:
        return known is True and refused[0] != Reason.HIDDEN_FILE, refused[1]
    if not member.is_file:
        return known is True, "a link or a device"
    if member.size > MAX_IMAGE_BYTES:
        return known is True, f"{member.size} bytes, more than {MAX_IMAGE_BYTES}"
    return format_of(member.head()) is not None if known is None else known, ""


def _table_images(table: PairTable, split: str | None, wanted: Wanted) -> Iterator[SourceImage]:
    """Those of a table; one that is damaged fails, and no other source with it."""
    try:
        # Ids of the whole table are cheap, images are not: only wanted rows are fetched, and few.
        rows = _wanted_rows(table, split, wanted)
        while batch := list(islice(rows, _ROWS_AT_ONCE)):
            for row in table.take(batch, ["id", "image", "image_uri"]).to_pylist():
                yield SourceImage(row["id"], row["id"], partial(row_image, row))
    except DataError as error:
        yield _unreadable(table.uri, str(error).removeprefix(f"{table.uri}: "))


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
