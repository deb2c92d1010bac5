"""All texts of a table, flat, with where each stands."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from openblip.data.curation.near_texts import normalised
from openblip.data.table import PairTable

TEXT_COLUMNS = ("captions", "synthetic")


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
    def read(cls, table: PairTable, columns: Sequence[str] = TEXT_COLUMNS) -> "TableTexts":
        """The texts of all rows; memory for the distinct ones, and 8 bytes for each."""
        texts = cls(tuple(name for name in columns if name in table.columns))
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
