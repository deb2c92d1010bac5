"""The index of a table or a folder: its embeddings, of which model, and what speeds up searching.

A folder gets a table, by default the hidden `.openblip/index.lance` in it, which refers to the
files; any other table gets a column. `build` makes an index, `update` brings it up to date.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openblip.checkpoints.hub import PUBLISHED
from openblip.checkpoints.reading import split_backend, with_backend
from openblip.curation.marks import EMBEDDING_KEY
from openblip.index.embeddings import Embedded, embed_table, embedding_width
from openblip.index.folder import (
    FolderChanges,
    Outdated,
    folder_schema,
    outdated_files,
    reconcile,
)
from openblip.index.noted import ERROR_KEY, FOLDER_TABLE, IndexState, folder_named, open_index
from openblip.inference.embedder import Embedder, embedder_fingerprint, load_embedder
from openblip.inference.image_sources import ImageSources
from openblip.jobs.pools import RayCluster
from openblip.runtime.errors import DataError, RecipeError
from openblip.runtime.locks import only_one
from openblip.sources.paths import is_table
from openblip.table.storage import is_object_address
from openblip.table.table import PairTable
from openblip.table.vectors import (
    LEAST_INDEXED_ROWS,
    VectorIndex,
    compact,
    create_rows_table,
    index_vectors,
    rows_where,
    vector_index,
    vector_length,
)

_NUM_REASONS = 5


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
    reasons: tuple[str, ...]
    """Of the first few of these, each with its name."""
    left_out: str
    """What else was seen in a folder, in a line; empty for nothing."""
    embedded: int
    """Images that went through the model this time."""
    changes: FolderChanges | None
    """What had become of a folder's files; None for other tables."""
    vectors: VectorIndex | None
    """None where a scan is as fast."""
    failed: tuple[str, ...]
    """Why parts of a table could not be read; a later call tries them again."""
    seconds: float


def build_index(
    place: str,
    model: str | None = None,
    *,
    table: str | None = None,
    device: str | None = None,
    batch_size: int = 32,
    processes: int | None = None,
    ray: RayCluster | None = None,
    save_seconds: float = 10.0,
    least_rows: int = LEAST_INDEXED_ROWS,
    show_progress: bool = True,
    backend: str | None = None,
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
        processes: that embed rows of a table; default: one for each GPU, or for each core where
            there is none. One computes in this process.
        ray: for a table: workers of a Ray cluster instead of processes of this machine.
        save_seconds: of a table: what is finished is saved so often; what a killed worker loses.
        least_rows: smaller tables are scanned.
        show_progress: on stderr.
        backend: of `load`; by default PyTorch, or that of the index that is there.

    Raises:
        DataError: there is no such folder or table.
        RecipeError: several processes or a cluster are asked for, for a folder.
        JobLockedError, OpenBlipError: another process indexes it, or the job cannot go on; what is
            finished is kept.
        CheckpointError, MissingHead: the model cannot be read, or cannot embed.
    """
    started = time.monotonic()
    uri, folder = _places(place, table)
    if folder is not None and not is_table(uri):
        ImageSources([str(folder)]).total()  # there must be one, or nothing is begun
    with _alone(uri):
        # Looked at once it is held: another process may have made the index meanwhile.
        state, folder = _as_it_is(uri, folder, table)
        if folder is not None:
            _check_alone(place, processes, ray)
        named = model or (state.model if state else "") or PUBLISHED["match"]
        name = _absolute(with_backend(named, backend))
        wanted = IndexState(name, embedder_fingerprint(name), str(folder) if folder else None)
        changes, done = None, Embedded(0, 0, ())
        if folder is not None:
            # Before there is a table, whose column is as wide as the model's embeddings.
            embedder = load_embedder(name, device)
            begun = _folder_table(uri, wanted, state, embedder)
            indexed, changes = reconcile(
                begun, folder, embedder, batch_size=batch_size, show_progress=show_progress
            )
            # Every batch of files was a version with a file of its own, and left deleted rows
            # behind.
            indexed = compact(indexed)
        else:
            indexed = PairTable.open(uri)
            done = embed_table(
                indexed,
                name,
                device=device,
                batch_size=batch_size,
                show_progress=show_progress,
                processes=processes,
                ray=ray,
                save_seconds=save_seconds,
            )
        wanted.note(indexed)
        # Opened anew, since the note has made another version.
        index_vectors(PairTable.open(uri), EMBEDDING_KEY, least_rows)
    return _report(uri, done, changes, time.monotonic() - started)


def update_index(place: str, **settings: Any) -> IndexReport:
    """Bring an index up to date, with its own model: embed what it lacks, and nothing else.

    Args:
        place: an indexed folder, or table.
        settings: `device`, `batch_size`, `processes`, `ray`, `save_seconds`, `least_rows` and
            `show_progress` of `build_index`.

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
    return _report(open_index(place)[0].uri, Embedded(0, 0, ()), None, 0.0)


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
        folder = folder_named(place)
        return table or str(folder / FOLDER_TABLE), folder
    if table is not None:
        raise DataError(f"{place} is a table already; --table is for the index of a folder")
    return place, None


def _as_it_is(
    uri: str, folder: Path | None, table: str | None
) -> tuple[IndexState | None, Path | None]:
    """What an index that is there says of itself, and the folder that it is of, if of one."""
    opened = PairTable.open_if_any(uri) if folder is not None else PairTable.open(uri)
    state = IndexState.of(opened) if opened is not None else None
    if state is not None and state.folder is not None:
        if folder is None:
            folder = folder_named(state.folder)
        elif table is not None and str(folder) != state.folder:
            raise DataError(f"{uri} is the index of {state.folder}: give another --table")
    return state, folder


def _check_alone(folder: str, processes: int | None, ray: RayCluster | None) -> None:
    """That no workers are asked for where there is none: a folder's rows come with embeddings."""
    if ray is not None or (processes or 1) > 1:
        flag = f"--ray {ray.address}" if ray is not None else f"--processes {processes}"
        raise RecipeError(
            f"{flag}: {folder} is a folder, which is embedded by one process; import it as a table "
            f"(`openblip data import {folder} pairs.lance`), and index that"
        )


def _absolute(model: str) -> str:
    """A path means the same from any working directory; other names stay."""
    backend, place = split_backend(model)
    absolute = str(Path(place).absolute()) if Path(place).exists() else place
    return with_backend(absolute, backend)


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


def _report(uri: str, done: Embedded, changes: FolderChanges | None, seconds: float) -> IndexReport:
    table = PairTable.open(uri)
    state = IndexState.of(table)
    assert state is not None
    column = "image_error" if state.folder is not None else ERROR_KEY
    is_noted = column in table.columns
    return IndexReport(
        table=uri,
        model=state.model,
        rows=len(table),
        missing=len(table) - table.count_values(EMBEDDING_KEY),
        unreadable=table.count_values(column) if is_noted else 0,
        # Of a part that cannot be read nobody knows the ids; why it cannot is told besides.
        reasons=_first_reasons(table, column) if is_noted and not done.failed else (),
        left_out=changes.left_out if changes is not None else "",
        embedded=changes.embedded if changes is not None else done.images,
        changes=changes,
        vectors=vector_index(table, EMBEDDING_KEY),
        failed=done.failed,
        seconds=seconds,
    )


def _first_reasons(table: PairTable, column: str) -> tuple[str, ...]:
    """Why the first images that cannot be read cannot, each with its id."""
    rows = rows_where(table, f"{column} IS NOT NULL")[:_NUM_REASONS]
    found = table.take(rows, ["id", column]).to_pylist() if len(rows) else []
    return tuple(f"{row['id']}: {row[column]}" for row in found)
