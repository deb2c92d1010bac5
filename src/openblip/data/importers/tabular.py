"""Parquet, CSV and TSV tables with a column of images (bytes or paths) and one of texts."""

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from openblip.data.caption_cells import captioned_row
from openblip.data.importers.source import (
    Cursor,
    Entry,
    Found,
    Refused,
    SourceOptions,
    UnsafePath,
    inside,
    name_below,
    texts_of,
    unfolded,
)
from openblip.data.report import Reason
from openblip.errors import DataError

TABLE_SUFFIXES = (".parquet", ".csv", ".tsv")
# The first of these that a table has is taken, whatever its case.
BYTES_COLUMNS = ("image", "image_bytes", "bytes", "jpg", "jpeg", "png", "webp", "img")
PATH_COLUMNS = (
    *("image", "image_path", "file_name", "filename", "filepath", "file_path", "path"),
    *("img_path", "image_file", "image_name", "img", "file"),
)
CAPTION_COLUMNS = (
    *("captions", "caption", "text", "texts", "txt", "sentences", "sentence", "raw"),
    *("title", "description", "alt_text", "alt", "comment"),
)
ID_COLUMNS = ("id", "key", "uid", "image_id")
SPLIT_COLUMNS = ("split",)
_BATCH_ROWS = 64


@dataclass(frozen=True)
class _Columns:
    """Names of the columns that have a meaning; None where a table has none."""

    image: str
    captions: str
    key: str | None
    split: str | None


class TableSource:
    """Rows of one or more tables.

    Columns are found by name, in this order unless the user says otherwise: images by
    `BYTES_COLUMNS` if the type is binary (or the struct with `bytes` and `path` of the Hugging
    Face `datasets` library), by `PATH_COLUMNS` if it is text; texts by `CAPTION_COLUMNS`; and
    `ID_COLUMNS`, `SPLIT_COLUMNS` where there are any. All others become metadata, a JSON object in
    `META_FIELD` as if each of its fields were a column. Neighbouring
    rows with the same path (tables with a row per caption) become one row with several captions.
    The id is the path, or for bytes their SHA-256, where there is none.
    """

    format = "table"

    def __init__(self, files: Sequence[Path], options: SourceOptions) -> None:
        """Finds the columns of the first table.

        Raises:
            DataError: a column is missing.
        """
        self._files = list(files)
        self._options = options
        self._columns(self._files[0])

    def total(self) -> int | None:
        """Number of rows of Parquet tables; None for text, which would have to be read."""
        if any(file.suffix.lower() != ".parquet" for file in self._files):
            return None
        from pyarrow import parquet

        return sum(int(parquet.read_metadata(file).num_rows) for file in self._files)

    def entries(self, cursor: Cursor | None) -> Iterator[Entry]:
        """Yields one entry for each image, or row."""
        at = cursor or {"file": "", "row": 0}
        for file in self._files:
            if str(file) >= str(at["file"]):
                done = int(at["row"]) if str(file) == at["file"] else 0
                yield from self._merged(file, done)

    def _merged(self, file: Path, done: int) -> Iterator[Entry]:
        held: Entry | None = None
        for entry in self._file_entries(file, done):
            if held is not None and _same_image(held, entry):
                assert isinstance(held, Found)
                assert isinstance(entry, Found)
                texts = [*held.captions, *entry.captions]
                number = held.num_records + entry.num_records
                held = replace(held, captions=texts, cursor=entry.cursor, num_records=number)
                continue
            if held is not None:
                yield held
            held = entry
        if held is not None:
            yield held

    def _file_entries(self, file: Path, done: int) -> Iterator[Entry]:
        number = done
        try:
            columns = self._columns(file)
            for record in _records(file, done):
                number += 1
                cursor: Cursor = {"file": str(file), "row": number}
                yield self._entry(file, columns, record, f"{file.name} row {number}", cursor)
        except (DataError, OSError, ValueError) as error:
            # One damaged file must not keep the others out.
            cursor = {"file": str(file), "row": number + 1}
            detail = f"cannot be read from here on: {error}"
            yield Refused(f"{file.name} row {number + 1}", cursor, Reason.BAD_RECORD, detail)

    def _entry(
        self,
        file: Path,
        columns: _Columns,
        record: Mapping[str, Any] | ValueError,
        where: str,
        cursor: Cursor,
    ) -> Entry:
        try:
            if isinstance(record, ValueError):
                raise record
            image, name = self._image(record[columns.image], self._root(file))
            captions = texts_of(record[columns.captions])
        except UnsafePath as error:
            return Refused(where, cursor, Reason.UNSAFE_PATH, str(error))
        except ValueError as error:
            return Refused(where, cursor, Reason.BAD_RECORD, str(error))
        if image is None:
            return Refused(where, cursor, Reason.MISSING_IMAGE, f"{columns.image} is empty")
        key = record[columns.key] if columns.key else None
        split = record[columns.split] if columns.split else None
        used = (columns.image, columns.captions, columns.key, columns.split)
        return Found(
            where=f"{where}, {name}" if name else where,
            cursor=cursor,
            image=image,
            captions=captions,
            key=name if key in (None, "") else str(key),
            split=None if split in (None, "") else str(split),
            place=file,
            image_folder=str(PurePosixPath(name).parent) if name else "",
            meta=unfolded({name: value for name, value in record.items() if name not in used}),
        )

    def _image(self, value: Any, root: Path) -> tuple[bytes | Path | None, str | None]:
        if isinstance(value, Mapping):
            value = value.get("bytes") or value.get("path")
        if isinstance(value, str) and value:
            name = name_below(root, value)
            return inside(root, name), name
        return (value, None) if isinstance(value, bytes) and value else (None, None)

    def _root(self, file: Path) -> Path:
        return self._options.image_root or file.parent

    def _columns(self, file: Path) -> _Columns:
        kinds = _column_kinds(file)
        binary = [name for name, kind in kinds.items() if kind == "binary"]
        text = [name for name, kind in kinds.items() if kind == "text"]
        told = self._options
        image = _named(told.image_column, kinds, file) or (
            _first(binary, BYTES_COLUMNS) or _first(text, PATH_COLUMNS)
        )
        if image is None:
            raise DataError(_no_image(file, kinds))
        captions = _named(told.caption_column, kinds, file) or _first(text, CAPTION_COLUMNS)
        if captions is None:
            raise DataError(
                f"{file}: no column of texts among {', '.join(kinds)}; looked for "
                f"{', '.join(CAPTION_COLUMNS)}: name it (caption_column)"
            )
        key = _named(told.id_column, kinds, file) or _first(kinds, ID_COLUMNS)
        return _Columns(image, captions, key, _first(kinds, SPLIT_COLUMNS))


def _same_image(held: Entry, entry: Entry) -> bool:
    return (
        isinstance(held, Found)
        and isinstance(entry, Found)
        and isinstance(entry.image, Path)
        and (held.image, held.key, held.split) == (entry.image, entry.key, entry.split)
    )


def _column_kinds(file: Path) -> dict[str, str]:
    """`binary`, `text` or `other` for each column."""
    if file.suffix.lower() != ".parquet":
        with file.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as stream:
            return dict.fromkeys(_header(stream.readline(), _delimiter(file)), "text")
    from pyarrow import parquet, types

    def kind(column: Any) -> str:
        if types.is_struct(column):
            return "binary" if column.get_field_index("bytes") >= 0 else "other"
        if types.is_binary(column) or types.is_large_binary(column):
            return "binary"
        if types.is_list(column) or types.is_large_list(column):
            column = column.value_type
        is_text = types.is_string(column) or types.is_large_string(column)
        return "text" if is_text else "other"

    return {field.name: kind(field.type) for field in parquet.read_schema(file)}


def _records(file: Path, done: int) -> Iterator[Mapping[str, Any] | ValueError]:
    """Rows after the first `done`, or what is wrong with one."""
    if file.suffix.lower() == ".parquet":
        yield from _parquet_records(file, done)
    else:
        yield from _text_records(file, done)


def _parquet_records(file: Path, done: int) -> Iterator[Mapping[str, Any]]:
    from pyarrow import parquet

    with parquet.ParquetFile(file) as table:
        for group in range(table.num_row_groups):
            num_rows = table.metadata.row_group(group).num_rows
            if done >= num_rows:
                done -= num_rows
                continue
            for batch in table.iter_batches(batch_size=_BATCH_ROWS, row_groups=[group]):
                skipped = min(done, batch.num_rows)
                done -= skipped
                yield from batch.slice(skipped).to_pylist()


def _text_records(file: Path, done: int) -> Iterator[Mapping[str, Any] | ValueError]:
    delimiter = _delimiter(file)
    with file.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as stream:
        names = _header(stream.readline(), delimiter)
        reader = csv.reader(stream, delimiter=delimiter, skipinitialspace=True)
        number = 0
        while True:
            record: Mapping[str, Any] | ValueError
            try:
                values = next(reader)
                if not values:
                    continue
                record = _text_record(names, values)
            except StopIteration:
                return
            except (csv.Error, ValueError) as error:
                record = ValueError(str(error))
            number += 1
            if number > done:
                yield record


def _text_record(names: Sequence[str], values: Sequence[str]) -> Mapping[str, Any]:
    if len(values) != len(names):
        raise ValueError(f"{len(values)} fields where the header has {len(names)}")
    if any("\udc80" <= character <= "\udcff" for value in values for character in value):
        raise ValueError("not UTF-8")
    row = dict(zip(names, (value.strip() for value in values), strict=True))
    return captioned_row(names, row)


def _header(line: str, delimiter: str) -> list[str]:
    return [name.strip() for name in next(csv.reader([line], delimiter=delimiter), [])]


def _delimiter(file: Path) -> str:
    """The likeliest delimiter: what the header has most of."""
    with file.open(encoding="utf-8-sig", errors="replace") as stream:
        header = stream.readline()
    return max("\t,;|" if file.suffix.lower() == ".tsv" else ",\t;|", key=header.count)


def _first(names: Sequence[str] | Mapping[str, str], wanted: Sequence[str]) -> str | None:
    by_lower = {name.lower(): name for name in names}
    return next((by_lower[name] for name in wanted if name in by_lower), None)


def _named(name: str | None, kinds: Mapping[str, str], file: Path) -> str | None:
    if name is not None and name not in kinds:
        raise DataError(f"{file} has no column {name!r}; it has {', '.join(kinds)}")
    return name


def _no_image(file: Path, kinds: Mapping[str, str]) -> str:
    if any("url" in name.lower() for name in kinds):
        return (
            f"{file} holds addresses of images, not images: download them first (img2dataset "
            "does that well) and import its output"
        )
    wanted = dict.fromkeys((*BYTES_COLUMNS, *PATH_COLUMNS))
    return (
        f"{file}: no column of images among {', '.join(kinds)}; looked for {', '.join(wanted)}: "
        "name it (image_column)"
    )
