"""Parquet, CSV and TSV tables with a column of images (bytes or paths) and one of texts.

In the tables of img2dataset stands what became of each address; the images lie beside them.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from openblip.runtime.errors import DataError
from openblip.sources.columns import Columns, Place, arrow_kinds, find_columns, row_entry
from openblip.sources.delimited import (
    cell_id,
    delimited_layout,
    delimited_records,
    is_token_file,
    unique_names,
)
from openblip.sources.records import ImageFolder, folder_told, merged
from openblip.sources.report import Reason
from openblip.sources.source import (
    Cursor,
    DamagedRecord,
    Entry,
    Found,
    Refused,
    Remark,
    Shard,
    SourceOptions,
    UnsafePath,
    is_file,
)
from openblip.sources.splits import pop_split, says_split
from openblip.sources.text_files import FILE_DAMAGE, in_one_line, open_text, or_none, plain_name

_END = -1
"""The row of a cursor behind the last of a file."""
_NUM_TRIED = 100
# In each of them up to `_NUM_TRIED` names are looked for.
_MAX_FOLDERS_TRIED = 200


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


class TableSource:
    """Rows of one or more tables.

    Columns are found by name, in this order unless the user says otherwise: images by
    `BYTES_COLUMNS` if the type is binary (or the struct with `bytes` and `path` of the Hugging
    Face `datasets` library), by `PATH_COLUMNS` if it is text; texts by `CAPTION_COLUMNS`, of which
    each row has its own first; and `ID_COLUMNS`, and those of a split, where there are any. All
    others become metadata, a JSON object in `META_FIELD` as if each of its fields were a column.
    Neighbouring rows with the same path (tables with a row per caption) become one row with several
    captions. The id is the path, or for bytes their SHA-256, where there is none.
    """

    format = "table"

    def __init__(self, files: Sequence[Path], options: SourceOptions, within: str = "") -> None:
        """Finds the columns of the first table.

        Args:
            files: of the tables.
            options: what they do not say themselves.
            within: folder of the tables in a source of several, with a slash behind; begins ids
                that are paths.

        Raises:
            DataError: there is one table, and it is empty or damaged, or has not the columns; of
                several each one says so in its turn.
        """
        self._files, self._options, self._within = sorted(files, key=str), options, within
        if len(self._files) == 1:
            self._opened(self._files[0])

    def total(self) -> int | None:
        """Number of rows of Parquet tables; None for text, which would have to be read."""
        return num_parquet_rows(self._files)

    def entries(self, cursor: Cursor | None) -> Iterator[Entry]:
        """Yields one entry for each image, or row."""
        at = cursor or {"file": "", "row": 0}
        for file in self._files:
            is_begun = str(file) == at["file"]
            if str(file) >= str(at["file"]) and not (is_begun and at["row"] == _END):
                done = int(at["row"]) if is_begun else 0
                yield from merged(self._file_entries(file, done))

    def shards(self) -> list[Shard]:
        """The tables."""
        return [
            Shard.of_file(f"{self._within}{file.name}", {"file": str(file)}, file)
            for file in self._files
        ]

    def entries_of(self, shard: Shard) -> Iterator[Entry]:
        """Yields those of one table."""
        return merged(self._file_entries(Path(str(shard.cursor["file"])), 0))

    def listed(self) -> Iterator[Entry]:
        """Yields rows; only their images where no column says a split."""
        for file in self._files:
            with suppress(DataError, *FILE_DAMAGE):
                table, columns = self._opened(file)
                if table.kinds[columns.image] == "binary":
                    continue
                if columns.splits:
                    yield from self._file_entries(file, 0)
                    continue
                for path in TableSource([file], self._options).image_paths():
                    if isinstance(path, Path):
                        yield Found(str(path), {}, path, (), place=file)

    def image_paths(self) -> Iterator[Path | str]:
        """Where the images are that rows name, whether they are there or not.

        A name that is not followed, as an address, comes as it is.

        Raises:
            DataError, FILE_DAMAGE: a table cannot be read, or from some row on.
        """
        for file in self._files:
            table, columns = self._opened(file)
            place, _ = self._place(file, table, columns)
            for name in table.images(columns):
                if not isinstance(name, str) or not name:
                    continue
                try:
                    yield place.images.path(name)
                except UnsafePath:
                    yield name

    def _file_entries(self, file: Path, done: int) -> Iterator[Entry]:
        number, end, names_images = done, Cursor(file=str(file), row=_END), False
        try:
            table, columns = self._opened(file)
            names_images = table.kinds[columns.image] != "binary"
            place, closed = self._place(file, table, columns)
            # Told once, with the first row, and not again where an import goes on.
            remarks = (*_repeated_columns(file, table), *closed) if done == 0 else ()
            for record in table.records(columns, done):
                number += 1
                cursor: Cursor = {"file": str(file), "row": number}
                where = f"{self._within}{file.name} row {number}"
                if isinstance(record, ValueError):
                    detail, image = in_one_line(record), _image_of(record, place)
                    is_cut = isinstance(record, DamagedRecord) and record.breaks_off
                    told = Refused(where, cursor, Reason.BAD_RECORD, detail, image=image)
                    yield replace(told, breaks_off=is_cut and names_images)
                    continue
                entry = row_entry(record, columns, place, where, cursor)
                if remarks and isinstance(entry, Found):
                    entry, remarks = replace(entry, remarks=remarks), ()
                yield entry
            if number == 0:
                where = f"{self._within}{file.name}"
                yield Refused(where, end, Reason.EMPTY_FILE, "it has columns, but no rows")
        except (DataError, *FILE_DAMAGE) as error:
            # One damaged file must not keep the others out.
            detail = in_one_line(error).removeprefix(f"{file}: ").removeprefix(f"{file} ")
            if number:
                detail = f"cannot be read from here on: {detail}"
            where = f"{self._within}{file.name}" + (f" row {number + 1}" if number else "")
            yield Refused(where, end, Reason.BAD_RECORD, detail, breaks_off=names_images)

    def _opened(self, file: Path) -> tuple[TableFile, Columns]:
        table = open_table(file, self._options)
        return table, find_columns(table.kinds, self._options, str(file))

    def _place(
        self, file: Path, table: TableFile, columns: Columns
    ) -> tuple[Place, tuple[Remark, ...]]:
        """Where the images of a table are: below its folder, or in one beside it that has them.

        What could not be looked into on the way there are remarks.
        """
        root, texts = self._options.image_root, list[str]()
        if table.kinds[columns.image] != "binary":
            with suppress(*FILE_DAMAGE):  # said when the rows are read
                for name in islice(table.images(columns), _NUM_TRIED):
                    texts += [name] if isinstance(name, str) and name else []
        if root is not None:
            return Place(file, folder_told(root, texts)), ()
        closed: list[Remark] = []
        folder = ImageFolder(_folder_of(file.parent, texts, closed))
        return Place(file, folder, self._within), tuple(closed)


def _image_of(record: ValueError, place: Place) -> Path | None:
    """The file of the image of a row that cannot be read otherwise; None if that is not clear."""
    with suppress(UnsafePath):
        return place.images.path(record.image) if isinstance(record, DamagedRecord) else None
    return None


def _folder_of(parent: Path, names: Sequence[str], closed: list[Remark]) -> Path:
    """The folder of the images: that of the table, or the only one near it that holds some."""

    def holds(root: Path) -> bool:
        for name in names:
            with suppress(UnsafePath):
                if is_file(ImageFolder(root).path(name)):
                    return True
        return False

    # An absolute one says where it is, so that nothing has to be guessed.
    names = [name for name in names if not name.startswith("/")]
    if not names or holds(parent):
        return parent
    below = _folders_in(parent, closed)
    deeper = [folder for path in below for folder in _folders_in(path, closed)]
    near = [*below, *deeper, parent.parent, parent.parent / "images"]
    holding = [path for path in near[:_MAX_FOLDERS_TRIED] if holds(path)]
    # Of two folders with images of that name neither can be trusted.
    return holding[0] if len(holding) == 1 else parent


def _folders_in(folder: Path, closed: list[Remark]) -> list[Path]:
    """The folders in one; it goes to `closed` where it cannot be read, as a disk's lost+found."""
    try:
        return sorted(path for path in folder.iterdir() if path.name[0] != "." and path.is_dir())
    except OSError as error:
        detail = f"not looked into for the images of the table ({error.strerror})"
        closed.append(Remark(Reason.UNREADABLE_FILE, str(folder), detail))
        return []


def _repeated_columns(file: Path, table: TableFile) -> tuple[Remark, ...]:
    return tuple(
        Remark(
            Reason.REPEATED_COLUMN,
            file.name,
            f"several columns are called {name!r}: the first is read, the others are metadata "
            f"({name}_2 and so on)",
        )
        for name in table.repeated
    )


TABLE_SUFFIXES = (".csv", ".tsv", ".parquet")
# Text files that are tables if their first line looks so.
_TEXT_SUFFIXES = (".txt", ".token")
# With their images in memory.
_BATCH_ROWS = 64


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
            if isinstance(record, DamagedRecord):
                yield record.image
                if record.breaks_off:
                    raise ValueError(str(record))
            elif not isinstance(record, ValueError):
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
        self._labels = _label_names(schema)

    def records(self, columns: Columns, done: int) -> Iterator[Record | ValueError]:
        from pyarrow import parquet

        labels = {name: self._labels[name] for name in columns.splits if name in self._labels}
        with _parquet_damage(), parquet.ParquetFile(self._file) as table:
            for group in range(table.num_row_groups):
                num_rows = table.metadata.row_group(group).num_rows
                # A group that is done is not even read.
                if done >= num_rows:
                    done -= num_rows
                    continue
                for batch in table.iter_batches(batch_size=_BATCH_ROWS, row_groups=[group]):
                    skipped = min(done, batch.num_rows)
                    done -= skipped
                    # Parquet lets columns have one name, of which a dict would keep the last.
                    for row in _rows_of(batch.slice(skipped).rename_columns(self._names)):
                        yield row if isinstance(row, ValueError) else _named_labels(row, labels)

    def images(self, columns: Columns) -> Iterator[Any]:
        from pyarrow import parquet

        number = self._names.index(columns.image)
        if self.kinds[columns.image] == "binary":
            return
        with _parquet_damage(), parquet.ParquetFile(self._file) as table:
            # Its own name, under which a column of the same name may be read beside it.
            wanted = table.schema_arrow.names[number]
            # One after another: a group that is damaged takes nothing from those before it.
            for group in range(table.num_row_groups):
                for batch in table.iter_batches(columns=[wanted], row_groups=[group]):
                    yield from batch.column(0).to_pylist()


def _label_names(schema: Any) -> dict[str, list[str]]:
    """For each column of class labels of the library `datasets` their names, in their order."""
    with suppress(ValueError, KeyError, TypeError, AttributeError):
        features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
        return {
            column: feature["names"]
            for column, feature in features.items()
            if feature.get("_type") == "ClassLabel" and isinstance(feature.get("names"), list)
        }
    return {}


def _named_labels(row: Record, labels: Mapping[str, Sequence[str]]) -> Record:
    # What is no label stays what it is.
    return dict(row) | {
        column: names[row[column]]
        for column, names in labels.items()
        if isinstance(row[column], int) and 0 <= row[column] < len(names)
    }


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


_COLUMNS = Columns("key", (), (), ())
_SUFFIXES = ("jpg", "png", "webp", "jpeg")


class DownloadLog:
    """Rows of addresses that could not be fetched, each with its reason.

    The others stand for the images in the folder, or archive, of the table's name, which are read
    where they lie. A column may say the split of these.
    """

    format = "table"

    def __init__(self, file: Path, options: SourceOptions, within: str = "") -> None:
        """Looks at the columns.

        Raises:
            DataError: it is no such table.
        """
        self._table, self._file, self._name = open_table(file, options), file, within + file.name
        if not {"key", "status"} <= self._table.kinds.keys():
            raise DataError(f"{file} is no table of img2dataset")

        self.splits = tuple(filter(says_split, self._table.kinds))
        """Columns that say the split of an image."""

    def total(self) -> None:
        """Unknown before it is read."""

    def listed(self) -> Iterator[Entry]:
        """Yields the names of the images of rows that say a split."""
        if not self.splits:
            return
        for record in self._table.records(replace(_COLUMNS, splits=self.splits), 0):
            if isinstance(record, ValueError) or not (image := self._image(str(record["key"]))):
                continue
            if split := pop_split(dict(record)):
                yield Found(self._name, {}, image, (), split=split, is_name_only=True)

    def entries(self, cursor: Cursor | None) -> Iterator[Entry]:
        """Yields one entry for each row without image, and one for the table itself."""
        number = int(cursor["row"]) if cursor else 0
        if number == _END:
            return
        end: Cursor = {"row": _END}
        try:
            for record in self._table.records(_COLUMNS, number):
                number += 1
                where, here = f"{self._name} row {number}", Cursor(row=number)
                if isinstance(record, ValueError):
                    yield Refused(where, here, Reason.BAD_RECORD, in_one_line(record))
                    continue
                key, status = record["key"], record["status"]
                if status != "success":
                    said = [status, record.get("error_message"), record.get("url")]
                    detail = ", ".join(str(word) for word in said if word)
                    yield Refused(where, here, Reason.MISSING_IMAGE, detail)
                elif not self._is_there(str(key)):
                    detail = f"fetched, but no image {key} is in {self._file.stem}/"
                    yield Refused(where, here, Reason.MISSING_IMAGE, detail)
        except (DataError, *FILE_DAMAGE) as error:
            detail = f"cannot be read from here on: {in_one_line(error)}"
            is_told = bool(self.splits)
            yield Refused(self._name, end, Reason.BAD_RECORD, detail, breaks_off=is_told)
            return
        detail = "img2dataset's table of the images beside it"
        yield Refused(self._name, end, Reason.OTHER_FILE, detail)

    def _is_there(self, key: str) -> bool:
        # What is in an archive shows when that is read; it is not opened for each row.
        if is_file(self._file.with_suffix(".tar")):
            return True
        return self._image(key) is not None

    def _image(self, key: str) -> Path | None:
        folder = self._file.with_suffix("")
        paths = (folder / f"{key}.{suffix}" for suffix in _SUFFIXES)
        return next(filter(is_file, paths), None)
