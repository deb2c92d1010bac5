"""Parquet, CSV and TSV tables with a column of images (bytes or paths) and one of texts."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path

from openblip.data.importers.columns import Columns, Place, find_columns, row_entry
from openblip.data.importers.image_folders import ImageFolder, folder_told
from openblip.data.importers.neighbours import merged
from openblip.data.importers.source import (
    Cursor,
    Entry,
    Found,
    Refused,
    Remark,
    SourceOptions,
    UnsafePath,
    is_file,
)
from openblip.data.importers.table_files import TableFile, num_parquet_rows, open_table
from openblip.data.importers.text_files import FILE_DAMAGE, in_one_line
from openblip.data.report import Reason
from openblip.errors import DataError

_END = -1
"""The row of a cursor behind the last of a file."""
_NUM_TRIED = 100
_MAX_FOLDERS_TRIED = 200


class TableSource:
    """Rows of one or more tables.

    Columns are found by name, in this order unless the user says otherwise: images by
    `BYTES_COLUMNS` if the type is binary (or the struct with `bytes` and `path` of the Hugging
    Face `datasets` library), by `PATH_COLUMNS` if it is text; texts by `CAPTION_COLUMNS`, of which
    each row has its own first; and `ID_COLUMNS`, `SPLIT_FIELDS` where there are any. All others
    become metadata, a JSON object in `META_FIELD` as if each of its fields were a column.
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
                    yield Found(str(path), {}, path, (), place=file)

    def image_paths(self) -> Iterator[Path]:
        """Where the images are that rows name, whether they are there or not."""
        for file in self._files:
            with suppress(DataError, *FILE_DAMAGE):
                table, columns = self._opened(file)
                place = self._place(file, table, columns)
                for name in table.images(columns):
                    with suppress(UnsafePath):
                        if isinstance(name, str) and name:
                            yield place.images.path(name)

    def _file_entries(self, file: Path, done: int) -> Iterator[Entry]:
        number, end = done, Cursor(file=str(file), row=_END)
        try:
            table, columns = self._opened(file)
            place = self._place(file, table, columns)
            remarks = _repeated_columns(file, table) if done == 0 else ()
            for record in table.records(columns, done):
                number += 1
                cursor: Cursor = {"file": str(file), "row": number}
                where = f"{self._within}{file.name} row {number}"
                if isinstance(record, ValueError):
                    yield Refused(where, cursor, Reason.BAD_RECORD, in_one_line(record))
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
            yield Refused(where, end, Reason.BAD_RECORD, detail)

    def _opened(self, file: Path) -> tuple[TableFile, Columns]:
        table = open_table(file, self._options)
        return table, find_columns(table.kinds, self._options, str(file))

    def _place(self, file: Path, table: TableFile, columns: Columns) -> Place:
        """Where the images of a table are: below its folder, or in one beside it that has them."""
        root, texts = self._options.image_root, []
        if table.kinds[columns.image] != "binary":
            names = islice(table.images(columns), _NUM_TRIED)
            texts = [name for name in names if isinstance(name, str) and name]
        if root is not None:
            return Place(file, folder_told(root, texts))
        return Place(file, ImageFolder(_folder_of(file.parent, texts)), self._within)


def _folder_of(parent: Path, names: Sequence[str]) -> Path:
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
