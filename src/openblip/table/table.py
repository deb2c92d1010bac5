"""The pair table: one Lance dataset from the first noisy pair to the bootstrapped collection.

A row is an image with its texts. Rows are only ever appended; what CapFilt or a check finds out is
added as columns beside them. Lance must not be used after a fork: read from threads.

Columns are changed in stages (`Staging`): made ready under hidden names, made visible in one step,
a renaming, and what they replaced removed.
"""

import re
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from openblip.runtime.documents import escaped
from openblip.runtime.errors import DataError
from openblip.table.reviews import ReviewLog, ReviewRecord
from openblip.table.rows import (
    BASE_COLUMNS,
    ORIGINS,
    SPLITS,
    IdSet,
    PairRow,
    check_rows,
    check_schema,
    listed,
    row_batches,
    row_schema,
)
from openblip.table.versions import (
    again_after_conflicts,
    append_version,
    change_version,
    create_version,
    lance_library,
    open_version,
    read,
    write_fragments,
)

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["BASE_COLUMNS", "ORIGINS", "SPLITS", "PairRow", "PairTable"]


class PairTable:
    """One version of a table of image-text pairs.

    Reading is safe from many threads at once. A table that is open does not see what another
    process writes: open it again for that, or `refresh` it. Rows are numbered from 0 in the order
    of writing.
    """

    def __init__(self, dataset: Any, uri: str) -> None:
        """Wraps an open Lance dataset; use `open` or `create` instead."""
        check_schema(uri, dataset.schema)
        self._dataset = dataset
        self._num_rows = int(read(uri, dataset.count_rows))
        self._ids: IdSet | None = None
        self._has_older_ids = False
        self._verdicts: list[ReviewRecord] | None = None
        self.uri = uri

    @classmethod
    def open(cls, uri: str | Path, version: int | None = None) -> Self:
        """The table at a local path or an `s3://` or `gs://` address (see `docs/storage.md`).

        Args:
            uri: where the table lies.
            version: an older version to read; None for the latest.

        Raises:
            DataError: there is no such table or version.
            StorageError: the object store cannot be reached.
        """
        if (table := cls.open_if_any(uri, version)) is not None:
            return table
        which = "" if version is None else f" with version {version}"
        raise DataError(
            f"no pair table{which} at {uri}: make one with `openblip data import SOURCE {uri}`"
        )

    @classmethod
    def open_if_any(cls, uri: str | Path, version: int | None = None) -> Self | None:
        """As `open`, but None where there is no table; a damaged one is an error all the same."""
        dataset = open_version(str(uri), version)
        return None if dataset is None else cls(dataset, str(uri))

    @classmethod
    def create(
        cls,
        uri: str | Path,
        rows: Iterable[PairRow] = (),
        metadata: Mapping[str, str] | None = None,
    ) -> Self:
        """The new table of `rows`, written as they come, in bounded memory.

        Nothing is visible at `uri` before the last row has been written.

        Raises:
            DataError: a table or something else is there, an id occurs twice, or a row is
                malformed.
        """
        place, known = str(uri), IdSet()
        taken = DataError(
            f"{uri} already holds a table: choose another place, or remove that one first"
        )
        if open_version(place) is not None:
            raise taken
        batches = row_batches(rows, known.add, on_duplicate=None)
        fragments, _ = write_fragments(place, place, batches)
        operation = lance_library().LanceOperation.Overwrite(row_schema(), fragments)
        if (dataset := create_version(place, operation)) is None:
            raise taken
        table = cls(dataset, place)
        table._ids = known
        if metadata:
            table.update_metadata(metadata)
        return table

    @classmethod
    def open_or_create(cls, uri: str | Path) -> Self:
        """The table at `uri`, which is made without rows if there is none.

        Raises:
            DataError: there is one that is damaged, or something else is there.
        """
        place = str(uri)
        if (dataset := open_version(place)) is None:
            empty = lance_library().LanceOperation.Overwrite(row_schema(), [])
            # Another process may be faster, and has made the same.
            dataset = create_version(place, empty) or open_version(place)
        return cls(dataset, place)

    @property
    def version(self) -> int:
        """Number of the version that this object reads; every change makes the next one."""
        return int(self._dataset.version)

    @property
    def fingerprint(self) -> str:
        """A version has it for itself, also where a table was removed and made again.

        A copy of the table has it too.
        """

        def transaction() -> Any:
            # Of a dataset of its own: Lance locks the one that it asks, and whoever reads from
            # that at the same time, in another thread, would fail.
            version = self.version
            return self._dataset.checkout_version(version).read_transaction(version)

        return str(read(self.uri, transaction).uuid)

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns, those added by CapFilt included."""
        return tuple(name for name in self._dataset.schema.names if not is_hidden(name))

    @property
    def dataset(self) -> Any:
        """The open Lance dataset, for `table/columns.py`."""
        return self._dataset

    @property
    def metadata(self) -> dict[str, str]:
        """Settings, model fingerprints and reports that were stored with the table."""
        return dict(self._dataset.metadata)

    def __len__(self) -> int:
        return self._num_rows

    def verdicts(self) -> list[ReviewRecord]:
        """What people say of its texts by now (`ReviewLog.standing`), or what was fixed.

        Raises:
            DataError, StorageError: the log beside it is damaged, or cannot be reached.
        """
        return ReviewLog.of(self.uri).standing() if self._verdicts is None else self._verdicts

    def fix_verdicts(self, verdicts: Sequence[ReviewRecord]) -> None:
        """Lets this object see these verdicts from now on, whatever people add to the log."""
        self._verdicts = list(verdicts)

    def refresh(self) -> None:
        """Show what others have written since it was opened: the latest version."""
        read(self.uri, self._dataset.checkout_latest)
        self._num_rows, self._ids = int(read(self.uri, self._dataset.count_rows)), None

    def update_metadata(self, values: Mapping[str, str | None]) -> None:
        """Sets metadata entries, all at once; a value of None removes its entry."""
        change_version(self._dataset, self.uri, lambda: self._dataset.update_metadata(dict(values)))

    def take(
        self, indices: Sequence[int] | np.ndarray, columns: Sequence[str] | None = None
    ) -> "pa.Table":
        """Rows by number, in the order of `indices`, which may repeat.

        One call for a batch is much faster than a call for each row.

        Raises:
            DataError: an index or a column does not exist, a file of the table is damaged, or a
                value is none that a pair table has.
        """
        rows = np.asarray(indices, dtype=np.int64)
        if rows.size and not (rows.min() >= 0 and rows.max() < len(self)):
            raise DataError(
                f"row {int(rows.max() if rows.max() >= len(self) else rows.min())} was asked for, "
                f"but {self.uri} has rows 0 to {len(self) - 1}"
            )
        names = self._existing(columns)
        found = read(self.uri, lambda: self._dataset.take(rows.tolist(), columns=names))
        check_rows(self.uri, found, rows)
        return found

    def scan(
        self, columns: Sequence[str] | None = None, batch_size: int = 8192, start: int = 0
    ) -> "Iterator[pa.RecordBatch]":
        """Batches of at most `batch_size` consecutive rows, in order, from row `start` on."""
        names = self._existing(columns)
        batches: Any = None

        def following() -> "pa.RecordBatch | None":
            nonlocal batches
            try:
                batches = batches or self._dataset.to_batches(
                    columns=names, batch_size=batch_size, offset=start or None, scan_in_order=True
                )
                return next(batches, None)
            except BaseException:
                # Tried again, it begins at the first row that was not yielded.
                batches = None
                raise

        while (batch := read(self.uri, following)) is not None:
            check_rows(self.uri, batch, range(start, start + batch.num_rows))
            start += batch.num_rows
            yield batch

    def append(
        self,
        rows: Iterable[PairRow],
        journal: Callable[[], Mapping[str, str]] | None = None,
        on_duplicate: Callable[[PairRow], None] | None = None,
    ) -> int:
        """Number of rows that were added, all of them in one atomic step.

        Args:
            rows: written as they come, in bounded memory.
            journal: asked once `rows` is exhausted; its notes become visible together with the
                rows, or not at all, and are read back by `journal_since`.
            on_duplicate: is given each row whose id the table has already, and which is
                therefore left out. Without it such a row is an error.

        Raises:
            DataError: an id is not new and there is no `on_duplicate`, another process has added
                one of the ids meanwhile, or a row is malformed.
        """
        try:
            # Data files are written before anything is decided: no version names them, so that
            # nobody sees them, and only the last step can conflict with another process.
            known, own = self.known_ids(), IdSet()
            batches = row_batches(rows, lambda key: known.add(key) and own.add(key), on_duplicate)
            fragments, num_rows = write_fragments(self._dataset, self.uri, batches)
            if num_rows:
                notes = dict(journal()) if journal else {}
                again_after_conflicts(lambda: self._commit_rows(fragments, own, notes))
        except BaseException:
            # Ids of rows that were not committed must not count as known.
            self._ids = None
            raise
        self._num_rows = int(self._dataset.count_rows())
        return num_rows

    def append_written(
        self, fragments: Sequence[Any], ids: IdSet, journal: Mapping[str, str]
    ) -> None:
        """Makes rows visible that others have written (`FragmentWriter`), in one atomic step.

        Args:
            fragments: in the order of the rows.
            ids: of these rows, each of them once and none of them in this version of the table;
                ids of this version may be among them.
            journal: becomes visible together with the rows, as in `append`.

        Raises:
            DataError: another process has added one of the ids meanwhile.
        """
        again_after_conflicts(lambda: self._commit_rows(fragments, ids, journal))
        self._ids = None
        self._num_rows = int(self._dataset.count_rows())

    def _commit_rows(self, fragments: Sequence[Any], own: IdSet, notes: Mapping[str, str]) -> None:
        """Makes written rows visible if no other process has added one of their ids."""
        read(self.uri, self._dataset.checkout_latest)
        # Ids are unique by this check alone; rows that come after it are a conflict.
        others = PairTable(self._dataset, self.uri)
        for batch in others.scan(["id"], start=len(self)) if len(others) > len(self) else ():
            for key in batch["id"].to_pylist():
                if key in own:
                    raise DataError(
                        f"{self.uri}: another process has added the id {key!r} at the same time: "
                        "run the same command again when it has ended"
                    )
            # Its rows are here now, their ids not known.
            self._ids = None
        self._dataset = append_version(self._dataset, self.uri, fragments, notes)

    def journal_since(self, version: int, key: str) -> str | None:
        """The latest note under `key` of an `append` after `version`; None if there is none."""
        count = max(self.version - version, 0)
        for transaction in read(self.uri, lambda: self._dataset.get_transactions(count)):
            notes = transaction.transaction_properties if transaction else None
            if notes and key in notes:
                return str(notes[key])
        return None

    def add_columns(self, columns: "pa.Table", overwrite: bool = False) -> None:
        """Adds columns whose rows stand in the order of the table's; no row is rewritten.

        Readers see either all of the change or none of it, also when columns are replaced.

        Args:
            columns: one value for each row of the table.
            overwrite: replace columns of the same names instead of refusing.

        Raises:
            DataError: a column exists, belongs to the source, or has another number of rows.
        """
        names = list(columns.column_names)
        if columns.num_rows != len(self):
            raise DataError(
                f"the columns {listed(names)} have {columns.num_rows} values, but must have one "
                f"for each of the {len(self)} rows of {self.uri}"
            )
        existing = [name for name in names if name in self.columns]
        self._refuse_base(names, "written")
        if existing and not overwrite:
            raise DataError(f"{self.uri} has the columns {listed(existing)} already: overwrite?")
        self.drop_leftovers()

        def add(dataset: Any, names: Sequence[str]) -> None:
            named = columns.rename_columns(names)
            dataset.add_columns(named.to_reader(), reader_schema=named.schema)

        # Columns that are new become visible in one step anyway; old ones must go in the same.
        if existing:
            Staging(names, existing).carry_out(self.change, add)
        else:
            self.change(lambda dataset: add(dataset, names), lambda there: there.issuperset(names))

    def drop_columns(self, names: Sequence[str]) -> None:
        """Removes columns that were added to the source's; older versions keep them.

        Raises:
            DataError: a column does not exist or belongs to the source.
        """
        self._refuse_base(names, "dropped")
        self._drop(self._existing(names))

    def drop_leftovers(self) -> None:
        """Removes the hidden columns of changes whose process was killed; see `Staging`."""
        self._drop([name for name in self._dataset.schema.names if is_leftover(name)])

    def change(self, action: Callable[[Any], object], is_made: Callable[[set[str]], bool]) -> None:
        """One step of a change of columns, taken again where an object store failed.

        Args:
            action: changes the dataset that it is given.
            is_made: told the names of the columns, hidden ones included, whether it has been.

        Raises:
            ConflictError: another process made a change that does not go with this one.
            OSError, StorageError: it cannot be written.
        """
        change_version(
            self._dataset,
            self.uri,
            lambda: action(self._dataset),
            lambda: is_made(set(self._dataset.schema.names)),
        )

    def count_values(self, column: str) -> int:
        """Number of rows that are not null in a column.

        Raises:
            DataError: the column does not exist.
        """
        self._existing([column])
        condition = f"{column} IS NOT NULL"
        return int(read(self.uri, lambda: self._dataset.count_rows(filter=condition)))

    def _drop(self, names: list[str]) -> None:
        if names:
            self.change(lambda dataset: dataset.drop_columns(names), set(names).isdisjoint)

    def _refuse_base(self, names: Iterable[str], verb: str) -> None:
        base = [name for name in names if name in BASE_COLUMNS]
        if base:
            raise DataError(f"{listed(base)}: columns of the source cannot be {verb}")

    def _existing(self, columns: Sequence[str] | None) -> list[str]:
        if columns is None:
            return list(self.columns)
        missing = [name for name in columns if name not in self.columns]
        if missing:
            raise DataError(
                f"{self.uri} has no column {listed(missing)}; it has {listed(self.columns)}"
            )
        return list(columns)

    def accept_older_ids(self) -> None:
        """Lets an id that looks like an escape count as known in both of its meanings.

        Before `escaped` a name that spells an escape had the id that it spells, as if it had the
        byte. A row of such a table may be of either.
        """
        self._has_older_ids, self._ids = True, None

    def known_ids(self) -> IdSet:
        """The ids of all rows; what is added to them counts as known to this object."""
        if self._ids is None:
            self._ids = IdSet()
            for batch in self.scan(["id"]):
                for key in batch["id"].to_pylist():
                    self._ids.add(key)
                    if self._has_older_ids and "\\" in key:
                        self._ids.add(escaped(key))
        return self._ids


# A table has no lock: a change that is slower than this fails, as its columns are gone.
LEFTOVER_SECONDS = 3600.0
"""A change that began so long ago is dead; it takes seconds, and clocks differ by less."""
_HIDDEN = re.compile(r"__(?:staged|replaced)_(\d+)_[0-9a-f]{8}$")


class Staging:
    """One change of columns: the hidden names of new ones, and of the old ones they replace.

    Whoever is killed on the way leaves columns that nobody sees, and nothing else:

    | killed after | readers see | what is hidden |
    | --- | --- | --- |
    | the first stage | the old columns | the new ones, empty or whole |
    | the renaming | the new columns | the old ones |

    The names tell when the change began, so that only what a dead change has left is removed, by
    the next change, and never the columns of another process that still works.
    """

    def __init__(self, names: Sequence[str], existing: Sequence[str]) -> None:
        """Draws names that no other change has.

        Args:
            names: of the new columns.
            existing: columns of the table that go: those of these names, and others.
        """
        change = f"{int(time.time())}_{uuid.uuid4().hex[:8]}"
        self.names, self.existing = list(names), list(existing)
        self.staged = [f"{name}__staged_{change}" for name in names]
        self.replaced = [f"{name}__replaced_{change}" for name in existing]

    def carry_out(
        self,
        change: "Callable[[Callable[[Any], object], Callable[[set[str]], bool]], None]",
        add: Callable[[Any, Sequence[str]], object],
        fill: Callable[[Sequence[str]], object] = lambda names: None,
    ) -> None:
        """Makes the change, which readers see whole or not at all.

        Args:
            change: takes one step, as `PairTable.change` does.
            add: adds the new columns to a dataset under hidden names.
            fill: gives the columns of these names their values, if `add` did not.

        Raises:
            ConflictError, OSError, StorageError: as `change` and `fill` do.
        """
        change(lambda dataset: add(dataset, self.staged), lambda names: names >= set(self.staged))
        fill(self.staged)
        change(lambda dataset: dataset.alter_columns(*self.renames()), self.is_visible)
        if self.replaced:
            change(
                lambda dataset: dataset.drop_columns(self.replaced), set(self.replaced).isdisjoint
            )

    def renames(self) -> list[dict[str, str]]:
        """What makes the new columns visible, for Lance's `alter_columns`."""
        away = zip(self.existing, self.replaced, strict=True)
        into = zip(self.staged, self.names, strict=True)
        return [{"path": path, "name": name} for path, name in [*away, *into]]

    def is_visible(self, columns: set[str]) -> bool:
        """Whether a table with these columns has been changed by `renames`."""
        return columns.isdisjoint(self.staged) and columns.issuperset(self.names + self.replaced)


def is_hidden(column: str) -> bool:
    """Whether a column is not visible yet, or no more."""
    return _HIDDEN.search(column) is not None


def is_leftover(column: str) -> bool:
    """Whether a column is hidden and its change is dead."""
    found = _HIDDEN.search(column)
    return found is not None and time.time() - int(found[1]) > LEFTOVER_SECONDS
