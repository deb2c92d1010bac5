"""The index of a table or a folder: its embeddings, of which model, and what speeds up searching.

A folder gets a table, by default the hidden `.openblip/index.lance` in it, which refers to the
files; any other table gets a column. `build` makes an index, `update` brings it up to date.
"""

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from openblip.curation.marks import EMBEDDING_KEY
from openblip.index.embeddings import embed_table, embedding_width
from openblip.index.folder import (
    FolderChanges,
    Outdated,
    folder_schema,
    outdated_files,
    reconcile,
)
from openblip.inference import Embedder
from openblip.inference.embedder import embedder_fingerprint, load_embedder
from openblip.inference.image_sources import is_table
from openblip.inference.loading import PUBLISHED
from openblip.runtime.errors import DataError, RecipeError
from openblip.runtime.locks import only_one
from openblip.table.columns import column_state
from openblip.table.storage import is_object_address
from openblip.table.table import PairTable
from openblip.table.vectors import (
    LEAST_INDEXED_ROWS,
    VectorIndex,
    compact,
    create_rows_table,
    index_vectors,
    vector_index,
    vector_length,
)

FOLDER_TABLE = Path(".openblip", "index.lance")
"""Where the table of a folder is; hidden, so that nothing takes it for a part of the collection."""
_KEY = "search_index"


@dataclass(frozen=True)
class IndexState:
    """What the metadata of a table says of its index."""

    model: str
    """Name of the model, as it was given; a path is absolute."""
    fingerprint: str
    """Of the model whose embeddings stand in the table; empty where there are none."""
    folder: str | None
    """Absolute path of the folder whose files the rows are; None in other tables."""

    @classmethod
    def of(cls, table: PairTable) -> Self | None:
        """That of a table; None if it has no index."""
        noted, state = column_state(table, _KEY), column_state(table, EMBEDDING_KEY)
        if EMBEDDING_KEY not in table.columns or not (noted or state):
            return None
        fingerprint = state.get("settings", {}).get("model", "")
        return cls(noted.get("model", ""), fingerprint, noted.get("folder"))

    def note(self, table: PairTable) -> None:
        """Write it into the metadata, where it is read from."""
        settings = {"settings": {"model": self.fingerprint}, "rows": len(table)}
        own = {"model": self.model, "folder": self.folder}
        entries = {_KEY: json.dumps(own), EMBEDDING_KEY: json.dumps(settings)}
        if any(table.metadata.get(name) != entry for name, entry in entries.items()):
            table.update_metadata(entries)


@dataclass(frozen=True)
class IndexReport:
    """An index, and what was done for it."""

    table: str
    model: str
    rows: int
    """Rows of the table."""
    missing: int
    """Rows that have no embedding yet: they came later."""
    unreadable: int
    """Rows whose images are known to be damaged or gone."""
    embedded: int
    """Images that went through the model this time."""
    changes: FolderChanges | None
    """What had become of a folder's files; None for other tables."""
    vectors: VectorIndex | None
    """None where a scan is as fast."""
    seconds: float


def build_index(
    place: str,
    model: str | None = None,
    *,
    table: str | None = None,
    device: str | None = None,
    batch_size: int = 32,
    processes: int = 1,
    least_rows: int = LEAST_INDEXED_ROWS,
    show_progress: bool = True,
) -> IndexReport:
    """Index a folder of images or a table; goes on where an earlier call was stopped.

    With another model than that of an index that is there, all images are embedded again.

    Args:
        place: the folder, or the table.
        model: whatever `load_embedder` takes; by default that of the index that is there, or else
            the published base model that matches.
        table: where the table of a folder goes; by default `FOLDER/.openblip/index.lance`.
        device: by default the GPU where there is one.
        batch_size: images that go through the model together.
        processes: of this machine that embed rows of a table, each with the model.
        least_rows: smaller tables are scanned.
        show_progress: on stderr.

    Raises:
        DataError: there is no such folder or table.
        RecipeError: several processes are asked for, for a folder.
        OpenBlipError: another process indexes it, or one of several that embed died.
        CheckpointError, MissingHead: the model cannot be read, or cannot embed.
    """
    started = time.monotonic()
    uri, folder = _places(place, table)
    with _alone(uri):
        opened = PairTable.open_if_any(uri) if folder is not None else PairTable.open(uri)
        state = IndexState.of(opened) if opened is not None else None
        if state is not None and state.folder is not None:
            if folder is None:
                folder = _folder(state.folder)
            elif table is not None and str(folder) != state.folder:
                raise DataError(f"{uri} is the index of {state.folder}: give another --table")
        if folder is not None and processes > 1:
            raise RecipeError(
                f"--processes {processes}: {place} is a folder, which is embedded by one process; "
                f"import it as a table (`openblip data import {place} pairs.lance`), and index that"
            )
        name = _absolute(model or (state.model if state else "") or PUBLISHED["match"])
        wanted = IndexState(
            name, embedder_fingerprint(name), None if folder is None else str(folder)
        )
        changes = None
        if folder is not None:
            embedder = load_embedder(name, device)
            begun = _folder_table(uri, wanted, state, embedder)
            indexed, changes = reconcile(
                begun, folder, embedder, batch_size=batch_size, show_progress=show_progress
            )
            indexed = compact(indexed)
            embedded = changes.embedded
        else:
            indexed = PairTable.open(uri)
            embedded = embed_table(
                indexed,
                name,
                device=device,
                batch_size=batch_size,
                show_progress=show_progress,
                processes=processes,
            )
        wanted.note(indexed)
        index_vectors(PairTable.open(uri), EMBEDDING_KEY, least_rows)
    return _report(uri, embedded, changes, time.monotonic() - started)


def update_index(place: str, **settings: Any) -> IndexReport:
    """Bring an index up to date, with its own model: embed what it lacks, and nothing else.

    Args:
        place: an indexed folder, or table.
        settings: `device`, `batch_size`, `processes`, `least_rows` and `show_progress` of
            `build_index`.

    Raises:
        DataError: there is no index; else as `build_index`.
    """
    state = open_index(place)[1]
    if not state.model:
        raise DataError(
            f"{place}: its embeddings do not say where their model is: name it once "
            f"(`openblip index build {place} --model MODEL`)"
        )
    return build_index(place, state.model, **settings)


def describe_index(place: str) -> IndexReport:
    """What the index of a folder or a table covers; nothing is computed.

    Raises:
        DataError: there is none.
    """
    return _report(open_index(place)[0].uri, 0, None, 0.0)


def open_index(place: str) -> tuple[PairTable, IndexState]:
    """The table that has the embeddings of a folder or a table.

    Raises:
        DataError: there is none.
    """
    uri = place if is_table(place) else str(_folder(place) / FOLDER_TABLE)
    table = PairTable.open(uri) if uri == place else PairTable.open_if_any(uri)
    state = None if table is None else IndexState.of(table)
    if table is None or state is None:
        raise DataError(f"{place} has no index: make one (`openblip index build {place}`)")
    return table, state


def outdated_index(table: PairTable, shown: Sequence[int]) -> Outdated:
    """How far a folder, or a table, has gone on since its index; nothing is computed.

    Args:
        table: that has the embeddings.
        shown: numbers of rows whose files are looked at where a folder has very many.
    """
    state = IndexState.of(table)
    if state is None or state.folder is None:
        return Outdated(new=len(table) - table.count_values(EMBEDDING_KEY), kind="row")
    # The hidden table moves with its folder.
    is_hidden = Path(table.uri).parts[-2:] == FOLDER_TABLE.parts
    folder = Path(table.uri).parents[1] if is_hidden else Path(state.folder)
    return outdated_files(table, folder, shown)


def _places(place: str, table: str | None) -> tuple[str, Path | None]:
    """Where the index goes, and the folder whose images it is of."""
    if not is_table(place):
        folder = _folder(place)
        return table or str(folder / FOLDER_TABLE), folder
    if table is not None:
        raise DataError(f"{place} is a table already; --table is for the index of a folder")
    return place, None


def _folder(place: str) -> Path:
    path = Path(place)
    if not path.is_dir():
        kind = "is a file" if path.exists() else "does not exist"
        raise DataError(f"{place} {kind}: give a folder of images or a pair table")
    return path.absolute()


def _absolute(model: str) -> str:
    """A path means the same from any working directory; other names stay."""
    return str(Path(model).absolute()) if Path(model).exists() else model


@contextmanager
def _alone(uri: str) -> Iterator[None]:
    """One process at a time works on an index; in an object store, commits refuse the second."""
    if is_object_address(uri):
        yield
        return
    with only_one(Path(uri), "indexing"):
        yield


def _folder_table(
    uri: str, wanted: IndexState, state: IndexState | None, embedder: Embedder
) -> PairTable:
    """The table of a folder for the embeddings of one model; those of another are thrown away."""
    schema = folder_schema(embedder)
    table = create_rows_table(uri, schema)
    is_other = state is None or state.fingerprint != wanted.fingerprint
    is_other |= vector_length(table, EMBEDDING_KEY) != embedding_width(embedder)
    # A process killed between these two has left rows of no model, or none: both begin again.
    if (
        is_other
        or table.dataset.schema.field(EMBEDDING_KEY).type != schema.field(EMBEDDING_KEY).type
    ):
        table = create_rows_table(uri, schema, anew=True)
        wanted.note(table)
        table = PairTable.open(uri)
    return table


def _report(uri: str, embedded: int, changes: FolderChanges | None, seconds: float) -> IndexReport:
    table = PairTable.open(uri)
    state = IndexState.of(table)
    assert state is not None
    has_errors = "image_error" in table.columns
    return IndexReport(
        table=uri,
        model=state.model,
        rows=len(table),
        missing=len(table) - table.count_values(EMBEDDING_KEY),
        unreadable=table.count_values("image_error") if has_errors else 0,
        embedded=embedded,
        changes=changes,
        vectors=vector_index(table, EMBEDDING_KEY),
        seconds=seconds,
    )
