"""What repeats what in a table: columns of ids, a note of what was checked, and the texts.

Checks compare texts as numbers: `TableTexts` has all of a table, flat, with where each stands, and
`text_column` makes of what was found a column of lists like theirs.
"""

import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from openblip.table.columns import column_state
from openblip.table.table import PairTable

if TYPE_CHECKING:
    import pyarrow as pa

DUPLICATES, LEAKS = "duplicates", "leaks"
"""What can be checked; the entries of the metadata with the notes of the checks."""
CORRECTED = "corrected"
"""Field of a note on leaks, see `corrected_words`: a column has no place for other words."""
IMAGE_FLAGS = {DUPLICATES: "duplicate_of", LEAKS: "leak_of"}
"""Column with the id of what an image repeats, or null, by check; of the texts of a column it is
`COLUMN_duplicate_of` and `COLUMN_leak_of`, a list with a place for each text."""


def text_flags(column: str, check: str) -> str:
    """Name of the column that says which texts of a column repeat what."""
    return f"{column}_{IMAGE_FLAGS[check]}"


def string_column(num_rows: int, values: Mapping[int, str]) -> "pa.Array":
    """A text for some rows, null for the others."""
    import pyarrow as pa

    return pa.array((values.get(row) for row in range(num_rows)), pa.string(), size=num_rows)


_TEXT_COLUMNS = ("captions", "synthetic")


@dataclass(eq=False)
class TableTexts:
    """Texts of a table as numbers: equal texts (see `normalised`) have the same."""

    columns: tuple[str, ...]
    """Columns with texts that the table has."""
    lengths: dict[str, NDArray[np.int64]] = field(default_factory=dict)
    """How many texts each row has, -1 for a null, by column."""
    numbers: dict[str, NDArray[np.int64]] = field(default_factory=dict)
    """Numbers of the texts one after the other, by column; -1 for a text without a word."""
    distinct: list[str] = field(default_factory=list)
    """The normalised texts."""

    @classmethod
    def read(cls, table: PairTable, columns: Sequence[str] = _TEXT_COLUMNS) -> "TableTexts":
        """The texts of all rows; memory for the distinct ones, and 8 bytes for each."""
        texts = cls(tuple(name for name in columns if name in table.columns))
        # A text without a word is there from the beginning, so that others count from 0.
        known: dict[str, int] = {"": -1}
        lengths: dict[str, list[int]] = {name: [] for name in texts.columns}
        numbers: dict[str, list[int]] = {name: [] for name in texts.columns}
        for batch in table.scan(texts.columns):
            for name in texts.columns:
                for row in batch[name].to_pylist():
                    lengths[name].append(-1 if row is None else len(row))
                    for text in row or ():
                        plain = normalised(text or "")
                        numbers[name].append(known.setdefault(plain, len(known) - 1))
        texts.lengths = {name: np.array(values, np.int64) for name, values in lengths.items()}
        texts.numbers = {name: np.array(values, np.int64) for name, values in numbers.items()}
        texts.distinct = list(known)[1:]
        return texts

    def rows(self, column: str) -> NDArray[np.int64]:
        """The row of each text of a column."""
        lengths = np.maximum(self.lengths[column], 0)
        return np.repeat(np.arange(len(lengths)), lengths)


def text_column(texts: TableTexts, column: str, values: Sequence[str | None]) -> "pa.Array":
    """Lists with a value for each text of a column; null where the column is."""
    import pyarrow as pa

    lengths = texts.lengths[column]
    # Arrow's plain lists count in int32: 2^31 texts in a column.
    offsets = np.concatenate([[0], np.cumsum(np.maximum(lengths, 0))]).astype(np.int32)
    flat = pa.array(values, pa.string())
    return pa.ListArray.from_arrays(pa.array(offsets), flat, mask=pa.array(lengths < 0))


def row_ids(table: PairTable, rows: NDArray[np.int64]) -> dict[int, str]:
    """The ids of some rows."""
    unique = np.unique(rows)
    return dict(zip(unique.tolist(), table.take(unique, ["id"])["id"].to_pylist(), strict=True))


def count_flagged(table: PairTable, check: str, rows: NDArray[np.int64]) -> int:
    """How many images of some rows the last checks have flagged; 0 if there was none."""
    name = IMAGE_FLAGS[check]
    if name not in table.columns:
        return 0
    flagged = [
        batch[name].is_valid().to_numpy(zero_copy_only=False) for batch in table.scan([name])
    ]
    return int(np.concatenate([np.zeros(0, bool), *flagged])[rows].sum())


def write_flags(
    table: PairTable, check: str, against: str, columns: "pa.Table", note: Mapping[str, Any]
) -> None:
    """Write the columns of a check, and then its note as `remember_check` does.

    The note of the same check that stood there is taken back first: a kill between the columns and
    their note would leave it beside flags that were found with other thresholds.
    """
    before = column_state(table, check)
    others = {} if check == DUPLICATES else {k: v for k, v in before.items() if k != against}
    if before != others:
        entry = json.dumps(others, ensure_ascii=False) if others else None
        table.update_metadata({check: entry})
    table.add_columns(columns, overwrite=True)
    remember_check(table, check, against, note)


def remember_check(table: PairTable, check: str, against: str, note: Mapping[str, Any]) -> None:
    """Notes in the table's metadata what was checked, and of which rows and synthetic texts.

    Args:
        table: that was checked.
        check: `DUPLICATES` or `LEAKS`.
        against: what it was compared with; the notes of comparisons whose flags stay do so too.
        note: the report; JSON values.
    """
    covered = {"rows": len(table), "synthetic": _synthetic_texts(table)}
    # Each check for duplicates makes all flags anew, whatever address the table is opened by.
    before = {} if check == DUPLICATES else column_state(table, check)
    notes = before | {against: {**note, **covered}}
    table.update_metadata({check: json.dumps(notes, ensure_ascii=False)})


def corrected_words(table: PairTable) -> list[dict[str, str | None]]:
    """What each check for leaks has found of words that people have corrected texts to.

    Returns:
        For each comparison: by normalised words the id of the evaluation row that has them, or
        None.
    """
    return [note.get(CORRECTED, {}) for note in column_state(table, LEAKS).values()]


def what_is_unchecked(table: PairTable, check: str) -> str | None:
    """What the last checks did not cover, in words; None if they covered everything."""
    notes = column_state(table, check)
    if not notes or IMAGE_FLAGS[check] not in table.columns:
        return "the table has not been checked"
    for against, note in notes.items():
        # Imports only add rows, so that their number tells.
        if note["rows"] != len(table):
            return f"{len(table) - note['rows']:,} rows were not compared with {against}"
        if note["synthetic"] != _synthetic_texts(table):
            return f"the synthetic texts have changed since they were compared with {against}"
    return None


def _synthetic_texts(table: PairTable) -> str | None:
    """Fingerprint of the CapFilt job that wrote the table's synthetic texts."""
    if "synthetic" not in table.columns:
        return None
    return str(column_state(table, "capfilt").get("fingerprint", ""))


_NO_WORD = re.compile(r"[\W_]+")


def normalised(text: str) -> str:
    """The text by which captions count as equal: letters and digits in lower case, single spaces.

    Unicode forms of the same letter are one (NFKC); punctuation and white space are one space.
    """
    return _NO_WORD.sub(" ", unicodedata.normalize("NFKC", text).casefold()).strip()
