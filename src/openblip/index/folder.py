"""The table of a folder follows the folder: only files whose content is new are embedded.

A row says of which file it is: path, size, time of change, and a hash of the content. A file that
has the same three first is not opened; one whose content another row has gets that row's embedding,
so that moved, copied and touched files cost their reading. Rows of a batch appear in one version of
the table, those that they replace disappear in the same, and rows of files that are gone go last.
So a killed update has lost one batch at most, and the next one ends where it would have ended.
"""

import hashlib
import json
import os
from collections.abc import Collection, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from openblip.curation.marks import EMBEDDING_KEY
from openblip.index.embeddings import embed_all, embedding_array, embedding_width
from openblip.inference.embedder import Embedder
from openblip.inference.image_sources import ImageSources, left_out_text
from openblip.runtime.documents import escaped, has_halves
from openblip.runtime.errors import DataError, one_line
from openblip.runtime.progress import Progress
from openblip.runtime.threads import default_threads, ordered_map
from openblip.sources.images import open_image, read_header
from openblip.sources.row_images import image_path, read_image_file
from openblip.table.columns import column_state
from openblip.table.rows import PairRow, row_batches, row_schema
from openblip.table.table import PairTable
from openblip.table.vectors import exchange_rows, vector_length

if TYPE_CHECKING:
    import pyarrow as pa

MOST_COMPARED = 20_000
"""In a larger folder a search looks at the files that it shows alone: all would take seconds."""
BATCH_FILES = 256
"""Files of one version: what a killed update may lose, and longer than a version takes to write."""
_DIGEST_BYTES = 16


@dataclass
class FolderChanges:
    """What an update found, by files."""

    unchanged: int = 0
    new: int = 0
    edited: int = 0
    """Another content under a path that was there."""
    moved: int = 0
    """The content of a file that is gone."""
    copied: int = 0
    """The content of another file that is there."""
    touched: int = 0
    """Its time or place has changed, its content not."""
    deleted: int = 0
    """Gone, and no other file has its content."""
    unreadable: int = 0
    """Files that are no images, or damaged; they are tried again each time."""
    embedded: int = 0
    """What went through the model."""
    left_out: str = ""
    """What is no image or cannot be looked into, in a line."""

    def __str__(self) -> str:
        """The numbers that are not zero."""
        told = [(f.name, getattr(self, f.name)) for f in fields(self) if f.name != "left_out"]
        return ", ".join(f"{count:,} {name}" for name, count in told if count) or "nothing there"


@dataclass(frozen=True)
class _Known:
    """What the table says of a file."""

    row: int
    uri: str
    size: int
    mtime: int
    digest: str | None
    error: str | None

    def is_as(self, seen: "_Seen") -> bool:
        return (self.uri, self.size, self.mtime) == (seen.uri, seen.size, seen.mtime)

    def is_still(self, seen: "_Seen", read: "_Read") -> bool:
        """Whether nothing has to be written about a file that cannot be read."""
        return self.is_as(seen) and (self.digest, self.error) == (read.digest, read.error)


@dataclass(frozen=True)
class _Seen:
    """A file as it is now."""

    row_id: str
    path: Path
    uri: str
    size: int
    mtime: int
    """Nanoseconds."""


@dataclass(frozen=True)
class _Read:
    """What a file was found to be."""

    digest: str | None
    width: int | None = None
    height: int | None = None
    error: str | None = None
    """Why it is no image."""


def folder_schema(model: Embedder) -> "pa.Schema":
    """Columns of the table of a folder, for embeddings of this model."""
    import pyarrow as pa

    more = {
        "file_size": pa.int64(),
        "file_mtime": pa.int64(),
        "file_digest": pa.string(),
        "image_error": pa.string(),
        EMBEDDING_KEY: pa.list_(pa.float16(), embedding_width(model)),
    }
    return pa.schema([*row_schema(), *more.items()])


def reconcile(
    table: PairTable,
    folder: Path,
    model: Embedder,
    *,
    batch_size: int = 32,
    batch_files: int = BATCH_FILES,
    show_progress: bool = True,
) -> tuple[PairTable, FolderChanges]:
    """The table of a folder as the folder is now, and what had changed.

    Args:
        table: with the columns of `folder_schema`.
        folder: with images, also in folders in it.
        model: embeds what is new.
        batch_size: images that go through the model together.
        batch_files: files whose rows appear together.
        show_progress: on stderr.

    Raises:
        DataError: the folder is not there: it may be a disk that is not mounted.
        ConflictError: another process has changed the table meanwhile.
    """
    update = _Update(table, folder, model, batch_size)
    update.run(batch_files, show_progress)
    return update.table, update.changes


@dataclass(frozen=True)
class Outdated:
    """Files, or rows of a table, that are not as the index has them."""

    new: int = 0
    changed: int = 0
    """Their size or time; of their content nothing is read."""
    gone: int = 0
    of_shown: bool = False
    """Whether only files that are shown were looked at."""
    kind: Literal["file", "row"] = "file"

    @property
    def count(self) -> int:
        """How many."""
        return self.new + self.changed + self.gone

    def __str__(self) -> str:
        """Such as "3 files are new or changed since the index"."""
        kinds = " or ".join(name for name in ("new", "changed", "gone") if getattr(self, name))
        things = f"{self.kind} is" if self.count == 1 else f"{self.kind}s are"
        shown = " (of those that are shown)" if self.of_shown else ""
        return f"{self.count:,} {things} {kinds} since the index{shown}"


def outdated_files(table: PairTable, folder: Path, shown: Sequence[int]) -> Outdated:
    """How far a folder has gone on since its index; no file is read.

    Of a folder of more than `MOST_COMPARED` files only those that are shown are looked at.

    Args:
        table: of the folder.
        folder: where its files are now.
        shown: numbers of rows.
    """
    if len(table) > MOST_COMPARED:
        known = _known(table.take(shown, _KNOWN).to_batches())
        paths = {row_id: image_path(each.uri) for row_id, each in known.items()}
        found = (_stat(row_id, path) for row_id, path in paths.items())
        seen = {each.row_id: each for each in found if each is not None}
        closed: list[str] = []
    else:
        known = _known(table.scan(_KNOWN))
        # A folder that is away has no files: what stands there is gone for now.
        seen, closed, _ = _seen(folder) if folder.is_dir() else ({}, [], "")
    return Outdated(
        new=len(seen.keys() - known.keys()),
        changed=sum(
            row_id in known and not known[row_id].is_as(now) for row_id, now in seen.items()
        ),
        gone=len(_gone(known, seen, closed)),
        of_shown=len(table) > MOST_COMPARED,
    )


class _Update:
    def __init__(self, table: PairTable, folder: Path, model: Embedder, batch_size: int) -> None:
        self._model, self._batch_size = model, batch_size
        # The version that was there first still has the embeddings of rows that disappear.
        self.table = self._before = table
        self._known = _known(table.scan(_KNOWN))
        self._seen, closed, left_out = _seen(folder)
        self._rows_with: dict[str, list[str]] = {}
        for row_id, known in self._known.items():
            if known.digest is not None and known.error is None:
                self._rows_with.setdefault(known.digest, []).append(row_id)
        self._gone = _gone(self._known, self._seen, closed)
        self._moved: set[str] = set()
        self.changes = FolderChanges(left_out=left_out)

    def run(self, batch_files: int, show_progress: bool) -> None:
        pending = [seen for row_id, seen in self._seen.items() if self._asks(row_id, seen)]
        self.changes.unchanged = start = len(self._seen) - len(pending)
        with Progress("index", len(self._seen), "files", start=start, enabled=show_progress) as bar:
            for at in range(0, len(pending), batch_files):
                some = pending[at : at + batch_files]
                self._batch(some)
                bar.update(len(some))
        # Last: until here they told which of the new files had only moved.
        if self._gone:
            self._change(self._gone, [])
        self.changes.deleted = len(self._gone - self._moved)

    def _asks(self, row_id: str, seen: _Seen) -> bool:
        """Whether a file has to be opened; one that could not be read may be readable now."""
        known = self._known.get(row_id)
        return known is None or known.error is not None or not known.is_as(seen)

    def _batch(self, files: Sequence[_Seen]) -> None:
        reads: list[_Read] = []
        embedded: list[int] = []

        def new_images() -> Iterator[Image.Image]:
            look = partial(_read, known=self._rows_with.keys())
            opened = ordered_map(look, files, default_threads(), 2 * self._batch_size)
            for place, (read, image) in enumerate(opened):
                reads.append(read)
                if image is not None:
                    embedded.append(place)
                    yield image

        values = embed_all(self._model, new_images(), self._batch_size)
        self.changes.embedded += len(embedded)
        self._exchange(files, reads, dict(zip(embedded, values, strict=True)))

    def _exchange(
        self,
        files: Sequence[_Seen],
        reads: Sequence[_Read],
        embedded: Mapping[int, NDArray[np.float16]],
    ) -> None:
        width = vector_length(self.table, EMBEDDING_KEY)
        values = np.zeros((len(files), width), np.float16)
        copies: dict[int, int] = {}
        written: list[int] = []
        for place, (seen, read) in enumerate(zip(files, reads, strict=True)):
            known = self._known.get(seen.row_id)
            if read.error is not None and known is not None and known.is_still(seen, read):
                self.changes.unreadable += 1
                continue
            written.append(place)
            if place in embedded:
                values[place] = embedded[place]
            elif read.error is None and read.digest is not None:
                copies[place] = self._known[self._origin(seen, read.digest)].row
            self._count(seen, known, read, place in embedded)
        if copies:
            values[list(copies)] = _stored(self._before, list(copies.values()))
        if written:
            replaced = {files[place].row_id for place in written} & self._known.keys()
            rows = _rows(files, reads, values, written)
            self._change(replaced, rows)

    def _change(self, removed: Collection[str], added: "Sequence[pa.RecordBatch]") -> None:
        if self.table is self._before:
            # Before the first change: whoever is killed between has only forgotten too much.
            _forget_computed(self.table)
        self.table = exchange_rows(self.table, removed, added)

    def _origin(self, seen: _Seen, digest: str) -> str:
        """The row that has the embedding of a content: the file's own, or one that is gone."""
        rows = self._rows_with[digest]
        free = (row_id for row_id in rows if row_id in self._gone - self._moved)
        return seen.row_id if seen.row_id in rows else next(free, rows[0])

    def _count(self, seen: _Seen, known: _Known | None, read: _Read, is_embedded: bool) -> None:
        if read.error is not None or read.digest is None:
            self.changes.unreadable += 1
        elif known is not None:
            is_same = known.digest == read.digest and known.error is None
            self.changes.touched += is_same
            self.changes.edited += not is_same
        elif is_embedded:
            self.changes.new += 1
        elif (origin := self._origin(seen, read.digest)) in self._gone - self._moved:
            self._moved.add(origin)
            self.changes.moved += 1
        else:
            self.changes.copied += 1


def _forget_computed(table: PairTable) -> None:
    """Columns that others have computed count rows from the first: they must begin again."""
    notes: dict[str, str | None] = {}
    for name in table.metadata.keys() - {EMBEDDING_KEY}:
        with suppress(DataError):  # an entry of another kind
            state = column_state(table, name)
            # A check notes what it compared with, each for itself; that it did is not forgotten.
            checks = {k: {**v, "rows": 0} for k, v in state.items() if _counts_rows(v)}
            if _counts_rows(state):
                notes[name] = None
            elif checks:
                notes[name] = json.dumps(state | checks, ensure_ascii=False)
    if notes:
        table.update_metadata(notes)


def _counts_rows(note: object) -> bool:
    return isinstance(note, dict) and "rows" in note


_KNOWN = ["id", "image_uri", "file_size", "file_mtime", "file_digest", "image_error"]


def _known(batches: "Iterable[pa.RecordBatch]") -> dict[str, _Known]:
    """What a table says of files, by their paths in the folder; `batches` are of `_KNOWN`."""
    found: dict[str, _Known] = {}
    for batch in batches:
        rows = zip(*(batch[name].to_pylist() for name in _KNOWN), strict=True)
        found |= {row_id: _Known(len(found) + n, *row) for n, (row_id, *row) in enumerate(rows)}
    return found


def _gone(
    known: Mapping[str, _Known], seen: Mapping[str, _Seen], closed: Sequence[str]
) -> set[str]:
    """Files that are no more; what is in a folder that cannot be read today is not gone."""
    # With a slash, as `ab/` is not in `a`. All is in the folder itself, whose path in it is a dot.
    inside = tuple("" if name == "." else f"{name}/" for name in closed)
    # A link that leads nowhere today cannot be read either, and is no folder.
    absent = known.keys() - seen.keys() - set(closed)
    return {row_id for row_id in absent if not row_id.startswith(inside)}


def _seen(folder: Path) -> tuple[dict[str, _Seen], list[str], str]:
    """The images of a folder by their paths in it, what cannot be looked into, and what is left."""
    found: dict[str, _Seen] = {}
    closed: list[str] = []
    sources = ImageSources([str(folder)])
    for source in sources.images(lambda name, file: True):
        seen = None if source.file is None else _stat(escaped(source.key), source.file)
        if seen is None:
            closed.append(escaped(os.path.relpath(source.name, folder)))
            # A folder without permission, or a link that leads nowhere.
            sources.leave_out("cannot be looked into", closed[-1])
        else:
            found[seen.row_id] = seen
    return found, closed, left_out_text(sources.left_out)


def _stat(row_id: str, file: Path) -> _Seen | None:
    try:
        status = file.stat()
    except OSError:
        return None
    # Not resolved: a link is the file that the folder shows, wherever it leads.
    path = file.absolute()
    uri = path.as_uri() if has_halves(str(path)) else str(path)
    return _Seen(row_id, path, uri, status.st_size, status.st_mtime_ns)


def _read(seen: _Seen, known: Container[str]) -> tuple[_Read, Image.Image | None]:
    """A file's content, and its image if no row has the embedding of that content."""
    digest = None
    try:
        encoded = read_image_file(seen.path)
        digest = hashlib.blake2b(encoded, digest_size=_DIGEST_BYTES).hexdigest()
        # Only the header: it has a row's embedding, whose image was decoded once.
        if digest in known:
            header = read_header(encoded, str(seen.path))
            return _Read(digest, header.width, header.height), None
        image = open_image(encoded, str(seen.path))
        return _Read(digest, image.width, image.height), image
    except (DataError, OSError, ValueError) as error:
        return _Read(digest, error=one_line(error)), None


def _stored(table: PairTable, rows: Sequence[int]) -> NDArray[np.float16]:
    column = table.take(rows, [EMBEDDING_KEY])[EMBEDDING_KEY].combine_chunks()
    # Without nulls, which `flatten` would leave out: `folder_schema` gives every row a vector.
    values: NDArray[np.float16] = column.flatten().to_numpy().reshape(len(rows), -1)
    return values


def _rows(
    files: Sequence[_Seen],
    reads: Sequence[_Read],
    values: NDArray[np.float16],
    written: Sequence[int],
) -> "list[pa.RecordBatch]":
    import pyarrow as pa

    pairs = (
        PairRow(f.row_id, None, f.uri, width=r.width, height=r.height)
        for f, r in ((files[place], reads[place]) for place in written)
    )
    # Every id counts as new: rows of the same ids go in the same version.
    table = pa.Table.from_batches(row_batches(pairs, lambda row_id: True, None))
    more = {
        "file_size": pa.array([files[place].size for place in written], pa.int64()),
        "file_mtime": pa.array([files[place].mtime for place in written], pa.int64()),
        "file_digest": pa.array([reads[place].digest for place in written], pa.string()),
        "image_error": pa.array([reads[place].error for place in written], pa.string()),
        EMBEDDING_KEY: embedding_array(values[list(written)]),
    }
    for name, column in more.items():
        table = table.append_column(name, column)
    batches: list[pa.RecordBatch] = table.combine_chunks().to_batches()
    return batches
