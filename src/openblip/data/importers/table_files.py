"""The files that hold tables, each read in its own way: Parquet, and delimited text."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from openblip.data.importers.columns import Columns, arrow_kinds, find_columns
from openblip.data.importers.delimited import (
    cell_id,
    delimited_layout,
    delimited_records,
    is_token_file,
    or_none,
    unique_names,
)
from openblip.data.importers.source import SourceOptions
from openblip.data.importers.text_files import FILE_DAMAGE, in_one_line, open_text, plain_name
from openblip.errors import DataError

TABLE_SUFFIXES = (".csv", ".tsv", ".parquet")
# Text files that are tables if their first line looks so.
_TEXT_SUFFIXES = (".txt", ".token")
_BATCH_ROWS = 64

Record = Mapping[str, Any]


class TableFile(Protocol):
    """One file with rows."""

    kinds: dict[str, str]
    """`binary`, `text` or the name of another type for each column."""
    repeated: list[str]
    """Names that several columns have."""

    def records(self, columns: Columns, done: int) -> Iterator[Record | ValueError]:
        """Rows after the first `done`, or what is wrong with one."""

    def images(self, columns: Columns) -> Iterator[Any]:
        """What the rows have in the column of images, bytes left out."""


def open_table(file: Path, options: SourceOptions) -> TableFile:
    """The reader of a file, whose columns it knows.

    Raises:
        DataError: it is empty or damaged.
    """
    try:
        return _Parquet(file, options) if _is_parquet(file) else _Delimited(file, options)
    except FILE_DAMAGE as error:
        raise DataError(f"{file} cannot be read: {in_one_line(error)}") from error


def is_table_file(file: Path, options: SourceOptions) -> bool:
    """Whether a file is a table by its name, or a text whose first line says so."""
    name = plain_name(file)
    if name.endswith(TABLE_SUFFIXES):
        return True
    if not name.endswith(_TEXT_SUFFIXES) or not file.is_file():
        return False
    try:
        with open_text(file, options.encoding) as stream:
            line = stream.readline(4096)
        if is_token_file(line):
            return True
        find_columns(_Delimited(file, options).kinds, options, file.name)
    except (*FILE_DAMAGE, DataError):
        return False
    return True


class _Delimited:
    def __init__(self, file: Path, options: SourceOptions) -> None:
        self._file, self._encoding = file, options.encoding
        self._layout = delimited_layout(file, options)
        names = self._layout.names
        self.kinds = dict.fromkeys(unique_names(names), "text")
        self.repeated = _repeated(list(names))

    def records(self, columns: Columns, done: int) -> Iterator[Record | ValueError]:
        readers = dict.fromkeys((columns.image, *columns.captions, *columns.splits), or_none)
        readers |= dict.fromkeys(columns.keys, cell_id)
        image = columns.image
        for record in delimited_records(self._file, self._layout, image, self._encoding, done):
            if isinstance(record, ValueError):
                yield record
                continue
            yield dict(record) | {name: read(record[name]) for name, read in readers.items()}

    def images(self, columns: Columns) -> Iterator[Any]:
        for record in self.records(columns, 0):
            if not isinstance(record, ValueError):
                yield record[columns.image]


class _Parquet:
    def __init__(self, file: Path, options: SourceOptions) -> None:
        from pyarrow import parquet

        if options.columns is not None:
            raise DataError(f"{file} names its columns itself: --columns is for CSV and TSV files")
        self._file = file
        with _parquet_damage():
            schema = parquet.read_schema(file)
        self.repeated = _repeated(schema.names)
        self._names = unique_names(schema.names)
        self.kinds = dict(zip(self._names, arrow_kinds(schema), strict=True))

    def records(self, columns: Columns, done: int) -> Iterator[Record | ValueError]:
        from pyarrow import parquet

        with _parquet_damage(), parquet.ParquetFile(self._file) as table:
            for group in range(table.num_row_groups):
                num_rows = table.metadata.row_group(group).num_rows
                if done >= num_rows:
                    done -= num_rows
                    continue
                for batch in table.iter_batches(batch_size=_BATCH_ROWS, row_groups=[group]):
                    skipped = min(done, batch.num_rows)
                    done -= skipped
                    yield from _rows_of(batch.slice(skipped).rename_columns(self._names))

    def images(self, columns: Columns) -> Iterator[Any]:
        from pyarrow import parquet

        number = self._names.index(columns.image)
        if self.kinds[columns.image] == "binary":
            return
        with _parquet_damage(), parquet.ParquetFile(self._file) as table:
            # Its own name, under which a column of the same name may be read beside it.
            wanted = table.schema_arrow.names[number]
            for batch in table.iter_batches(columns=[wanted]):
                yield from batch.column(0).to_pylist()


@contextmanager
def _parquet_damage() -> Iterator[None]:
    """Turns the errors of Arrow that are no `ValueError` into one."""
    import pyarrow

    try:
        yield
    except pyarrow.ArrowException as error:
        raise ValueError(in_one_line(error)) from error


def _rows_of(batch: Any) -> Iterator[Record | ValueError]:
    import pyarrow

    # One value that Python cannot hold, as a time of the year 20000 or in an unknown zone, costs
    # its row alone.
    unreadable = (ValueError, OverflowError, LookupError, pyarrow.ArrowException)
    try:
        yield from batch.to_pylist()
    except unreadable:
        for number in range(batch.num_rows):
            try:
                yield from batch.slice(number, 1).to_pylist()
            except unreadable as error:
                yield ValueError(in_one_line(error))


def num_parquet_rows(files: list[Path]) -> int | None:
    """Number of rows of Parquet files; None with other files, which would have to be read."""
    from pyarrow import parquet

    if not all(map(_is_parquet, files)):
        return None
    total = 0
    for file in files:
        try:
            with _parquet_damage():
                total += int(parquet.read_metadata(file).num_rows)
        except (OSError, ValueError):
            return None
    return total


def _is_parquet(file: Path) -> bool:
    return file.name.lower().endswith(".parquet")


def _repeated(names: list[str]) -> list[str]:
    return [name for name in dict.fromkeys(names) if names.count(name) > 1]
