"""Parquet, CSV and TSV tables with a column of images (bytes or paths) and one of texts."""

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path

from openblip.data.importers.columns import Columns, Place, find_columns, row_entry
from openblip.data.importers.source import (
    IMAGE_SUFFIXES,
    Cursor,
    Entry,
    Found,
    Refused,
    Remark,
    SourceOptions,
    UnsafePath,
    is_file,
    placed,
)
from openblip.data.importers.table_files import TableFile, num_parquet_rows, open_table
from openblip.data.importers.text_files import FILE_DAMAGE, in_one_line
from openblip.data.report import Reason
from openblip.errors import DataError

_END = -1
"""The row of a cursor behind the last of a file."""
_NUM_TRIED = 20
_MAX_FOLDERS_TRIED = 200


class TableSource:
    """Rows of one or more tables.

    Columns are found by name, in this order unless the user says otherwise: images by
    `BYTES_COLUMNS` if the type is binary (or the struct with `bytes` and `path` of the Hugging
    Face `datasets` library), by `PATH_COLUMNS` if it is text; texts by `CAPTION_COLUMNS`, of which
    each row has its own first; and `ID_COLUMNS`, `SPLIT_COLUMNS` where there are any. All others
    become metadata, a JSON object in `META_COLUMN` as if each of its fields were a column.
    Neighbouring rows with the same path (tables with a row per caption) become one row with several
    captions. The id is the path, or for bytes their SHA-256, where there is none.
    """

    format = "table"

    def __init__(
        self, files: Sequence[Path], options: SourceOptions, folder: Path | None = None
    ) -> None:
        """Finds the columns of the first table that can be read.

        Args:
            files: of the tables.
            options: what they do not say themselves.
            folder: the source if it is one: what else is in it is accounted for.

        Raises:
            DataError: there is one table, and it cannot be read; or none has the columns.
        """
        self._files, self._options, self._folder = sorted(files, key=str), options, folder
        problem: DataError | None = None
        for file in self._files:
            try:
                self._opened(file)
            except DataError as error:
                problem = problem or error
            else:
                return
        if problem is not None and (len(self._files) == 1 and folder is None):
            raise problem

    def total(self) -> int | None:
        """Number of rows of Parquet tables; None for text, which would have to be read."""
        return num_parquet_rows(self._files)

    def entries(self, cursor: Cursor | None) -> Iterator[Entry]:
        """Yields one entry for each image, or row; then one for each file that no row names."""
        at = cursor or {"file": "", "row": 0}
        if "other" not in at:
            for file in self._files:
                is_begun = str(file) == at["file"]
                if str(file) >= str(at["file"]) and not (is_begun and at["row"] == _END):
                    yield from self._merged(file, int(at["row"]) if is_begun else 0)
        if self._folder is not None:
            yield from self._others(self._folder, str(at.get("other", "")))

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
        number, end = done, Cursor(file=str(file), row=_END)
        try:
            table, columns = self._opened(file)
            place = self._place(file, table, columns)
            remarks = _repeated_columns(file, table) if done == 0 else ()
            for record in table.records(columns, done):
                number += 1
                cursor: Cursor = {"file": str(file), "row": number}
                where = f"{file.name} row {number}"
                if isinstance(record, ValueError):
                    yield Refused(where, cursor, Reason.BAD_RECORD, in_one_line(record))
                    continue
                entry = row_entry(record, columns, place, where, cursor)
                if remarks and isinstance(entry, Found):
                    entry, remarks = replace(entry, remarks=remarks), ()
                yield entry
            if number == 0:
                yield Refused(file.name, end, Reason.EMPTY_FILE, "it has columns, but no rows")
        except (DataError, *FILE_DAMAGE) as error:
            # One damaged file must not keep the others out.
            detail = in_one_line(error).removeprefix(f"{file}: ").removeprefix(f"{file} ")
            if number:
                detail = f"cannot be read from here on: {detail}"
            where = f"{file.name} row {number + 1}" if number else file.name
            yield Refused(where, end, Reason.BAD_RECORD, detail)

    def _opened(self, file: Path) -> tuple[TableFile, Columns]:
        table = open_table(file, self._options)
        return table, find_columns(table.kinds, self._options, str(file))

    def _place(self, file: Path, table: TableFile, columns: Columns) -> Place:
        """Where the images of a table are: below its folder, or in one beside it that has them."""
        if self._options.image_root is not None:
            return Place(file, self._options.image_root, is_told=True)
        names = islice(table.images(columns), _NUM_TRIED)
        texts = [name for name in names if isinstance(name, str) and name]
        return Place(file, _folder_of(file.parent, texts) if texts else file.parent)

    def _others(self, folder: Path, after: str) -> Iterator[Entry]:
        """Files beside the tables that are no table and no image of a row."""
        named: set[int] | None = None
        tables = set(self._files)
        begun = tuple(after.split("/")) if after else ()
        for path in files_below(folder):
            parts = path.relative_to(folder).parts
            if parts <= begun or path in tables:
                continue
            where = "/".join(parts)
            detail = "no table that is read here"
            if path.suffix.lower() in IMAGE_SUFFIXES:
                named = self._named_images() if named is None else named
                if hash(os.path.normpath(path)) in named:
                    continue
                detail = "an image that no row names"
            yield Refused(where, {"other": where}, Reason.OTHER_FILE, detail)

    def _named_images(self) -> set[int]:
        """Hashes of the paths of all images that rows name: the paths would take much memory."""
        named = set()
        for file in self._files:
            with suppress(DataError, *FILE_DAMAGE):
                table, columns = self._opened(file)
                place = self._place(file, table, columns)
                for name in table.images(columns):
                    with suppress(UnsafePath):
                        if isinstance(name, str) and name:
                            path, _ = placed(place.root, name, place.is_told)
                            named.add(hash(os.path.normpath(path)))
        return named


def files_below(folder: Path, seen: frozenset[Path] = frozenset()) -> Iterator[Path]:
    """Files in a folder and below it that are not hidden, in the order of their path parts.

    Links to folders are followed, but not in circles.
    """
    seen = seen | {folder.resolve()}
    for path in sorted(folder.iterdir(), key=lambda path: path.name):
        if path.name.startswith("."):
            continue
        if not path.is_dir():
            yield path
        elif path.resolve() not in seen:
            yield from files_below(path, seen)


def _folder_of(parent: Path, names: Sequence[str]) -> Path:
    """The folder of the images: that of the table, or the only one near it that holds some."""

    def holds(root: Path) -> bool:
        for name in names:
            with suppress(UnsafePath):
                if is_file(placed(root, name)[0]):
                    return True
        return False

    if holds(parent):
        return parent
    below = _folders_in(parent)
    deeper = [folder for path in below for folder in _folders_in(path)]
    near = [*below, *deeper, parent.parent, parent.parent / "images"]
    holding = [path for path in near[:_MAX_FOLDERS_TRIED] if holds(path)]
    # Of two folders with images of that name neither can be trusted.
    return holding[0] if len(holding) == 1 else parent


def _folders_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and path.name[0] != ".")


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


def _same_image(held: Entry, entry: Entry) -> bool:
    return (
        isinstance(held, Found)
        and isinstance(entry, Found)
        and isinstance(entry.image, Path)
        and (held.image, held.key, held.split) == (entry.image, entry.key, entry.split)
    )
