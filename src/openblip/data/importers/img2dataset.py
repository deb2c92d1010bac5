"""Tables in which img2dataset notes what became of each address, beside the images themselves."""

from collections.abc import Iterator
from pathlib import Path

from openblip.data.importers.columns import Columns
from openblip.data.importers.source import Cursor, Entry, Refused, SourceOptions, is_file
from openblip.data.importers.table_files import open_table
from openblip.data.importers.text_files import FILE_DAMAGE, in_one_line
from openblip.data.report import Reason
from openblip.errors import DataError

_COLUMNS = Columns("key", (), (), ())
_SUFFIXES = ("jpg", "png", "webp", "jpeg")
_END = -1


class DownloadLog:
    """Rows of addresses that could not be fetched, each with its reason.

    The others stand for the images in the folder, or archive, of the table's name, which are read
    where they lie.
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

    def total(self) -> None:
        """Unknown before it is read."""

    def listed(self) -> Iterator[Entry]:
        """Nothing."""
        return iter(())

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
            yield Refused(self._name, end, Reason.BAD_RECORD, detail)
            return
        detail = "img2dataset's table of the images beside it"
        yield Refused(self._name, end, Reason.OTHER_FILE, detail)

    def _is_there(self, key: str) -> bool:
        if is_file(self._file.with_suffix(".tar")):
            return True
        folder = self._file.with_suffix("")
        return any(is_file(folder / f"{key}.{suffix}") for suffix in _SUFFIXES)
