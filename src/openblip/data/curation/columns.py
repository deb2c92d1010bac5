"""Columns that take long to compute: done part by part, resumed, extended as a table grows."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from openblip.atomic import replace_file
from openblip.data.parallel import ordered_map
from openblip.data.table import PairTable
from openblip.errors import DataError
from openblip.progress import Progress

if TYPE_CHECKING:
    import pyarrow as pa

_PART_ROWS = 1024


def compute_columns(
    table: PairTable,
    key: str,
    settings: Mapping[str, Any],
    compute: "Callable[[range], pa.Table]",
    *,
    num_threads: int = 1,
    show_progress: bool = True,
) -> int:
    """Number of rows that were computed; the columns are in the table afterwards.

    Rows that an earlier call with the same settings did are not done again, also when the table
    has grown since. Finished parts are files in `work_folder` until the columns are written: a
    call that was stopped goes on with the parts that are missing.

    Args:
        table: gets the columns.
        key: the entry of the table's metadata that remembers `settings` and the number of rows.
        settings: what decides the values, besides the row; JSON values.
        compute: the new columns of some rows; called from `num_threads` threads.
        num_threads: at least 1.
        show_progress: on stderr.

    Raises:
        OSError: a part cannot be written.
    """
    import pyarrow as pa
    from pyarrow import parquet

    state = column_state(table, key)
    known = state["rows"] if state.get("settings") == dict(settings) else 0
    if known == len(table):
        return 0
    parts = list(_parts(table, key, settings, known))
    missing = [(rows, path) for rows, path in parts if not path.exists()]
    computed = sum(len(rows) for rows, _ in missing)

    def work(part: tuple[range, Path]) -> int:
        rows, path = part
        with replace_file(path) as unfinished:
            parquet.write_table(compute(rows), unfinished)
        return len(rows)

    start = len(table) - computed
    with Progress(key, len(table), "images", start=start, enabled=show_progress) as progress:
        for count in ordered_map(work, missing, num_threads, num_threads * 2):
            progress.update(count)
    # Memory maps: the columns of 100 million rows need not fit into memory twice.
    columns = pa.concat_tables([parquet.read_table(path, memory_map=True) for _, path in parts])
    if known:
        before = pa.Table.from_batches(table.scan(columns.column_names))
        columns = pa.concat_tables([before.slice(0, known).cast(columns.schema), columns])
    table.add_columns(columns, overwrite=True)
    note = json.dumps({"settings": dict(settings), "rows": len(table)})
    table.update_metadata({key: note})
    for _, path in parts:
        path.unlink()
    with suppress(OSError):  # another job keeps its parts there
        work_folder(table).rmdir()
    return computed


def column_state(table: PairTable, key: str) -> dict[str, Any]:
    """What the metadata remembers under a key; empty if nothing.

    Raises:
        DataError: it is no JSON object.
    """
    try:
        state = json.loads(table.metadata.get(key, "{}"))
    except (ValueError, RecursionError):
        state = None
    if not isinstance(state, dict):
        raise DataError(
            f"{table.uri}: its metadata under {key!r} is no JSON object: another program has "
            "written it; remove the entry (`PairTable.update_metadata`)"
        )
    return state


def work_folder(table: PairTable) -> Path:
    """Where unfinished work lies: beside a local table, else in the working directory."""
    place = table.uri.rstrip("/")
    if urlsplit(place).scheme not in ("", "file"):
        place = place.rsplit("/", 1)[-1]
    return Path(f"{place.removeprefix('file://')}.curation")


def _parts(
    table: PairTable, key: str, settings: Mapping[str, Any], start: int
) -> Iterator[tuple[range, Path]]:
    """The rows and the file of each part; its name is a function of all that decides it."""
    folder = work_folder(table)
    about = json.dumps([key, settings], sort_keys=True)
    for batch in table.scan(["id"], batch_size=_PART_ROWS, start=start):
        rows = range(start, start + batch.num_rows)
        ids = "\n".join(batch["id"].to_pylist())
        digest = hashlib.sha256(f"{about}\n{ids}".encode("utf-8", "surrogatepass")).hexdigest()
        yield rows, folder / f"{key}-{rows.start:010d}-{digest[:16]}.parquet"
        start = rows.stop
