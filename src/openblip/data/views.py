"""Which texts of a table count: a view is a choice of sources and a threshold, not a copy."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from openblip.data.table import SPLITS, PairTable
from openblip.errors import DataError, RecipeError

if TYPE_CHECKING:
    import pyarrow as pa

SOURCES = ("human", "web", "synthetic")
_REMEDY = "run `openblip capfilt run` on the table first"


@dataclass(frozen=True)
class AdmittedText:
    """A text that counts, and what is known of it."""

    text: str
    source: str
    """One of `SOURCES`."""
    itm: float | None
    """The filter's match probability; None where it was not read or the text was not judged."""


@dataclass(frozen=True, kw_only=True)
class CaptionView:
    """The rows and texts that a run sees (BLIP, section 3.3: the bootstrapped dataset)."""

    sources: tuple[str, ...] = ("human", "web")
    """Of `human` (texts of annotated rows), `web` (texts of web rows) and `synthetic` (the
    captioner's texts for web rows)."""
    itm: float | None = None
    """Web and synthetic texts count if the filter's match probability, from 0 to 1, is above
    this; None lets all through. Human texts always count."""
    split: str = "train"
    """`train`, `val` or `test`."""

    def __post_init__(self) -> None:
        """Checks every field."""
        unknown = [source for source in self.sources if source not in SOURCES]
        if unknown or not self.sources:
            raise RecipeError(f"sources must be some of {', '.join(SOURCES)}. Got {self.sources}.")
        if self.itm is not None and not 0 <= self.itm <= 1:
            raise RecipeError(f"itm must be a probability from 0 to 1, or None. Got {self.itm}.")
        if self.split not in SPLITS:
            raise RecipeError(f"split must be one of {', '.join(SPLITS)}. Got {self.split!r}.")

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of the table that decide which texts count."""
        columns = ["origin", "captions"]
        if "synthetic" in self.sources:
            columns.append("synthetic")
        if self.itm is not None:
            scored = {"web": "captions_itm", "synthetic": "synthetic_itm"}
            columns += [column for source, column in scored.items() if source in self.sources]
        return tuple(columns)

    def resolve(self, table: PairTable) -> "ViewIndex":
        """The rows of `table` that have an admitted text, found in one scan without images.

        Raises:
            DataError: a column that the view needs is missing, a row has another number of
                scores than of texts, or no row is left.
        """
        missing = [column for column in self.columns if column not in table.columns]
        if missing:
            raise DataError(
                f"{table.uri} has no column {', '.join(missing)}, which the view "
                f"sources={self.sources}, itm={self.itm} needs: {_REMEDY}"
            )
        admitted_rows: list[np.ndarray] = []
        offered: Counter[str] = Counter()
        admitted: Counter[str] = Counter()
        splits: Counter[str] = Counter()
        start = 0
        for batch in table.scan([*self.columns, "split"]):
            split = _strings(batch["split"])
            splits.update(split.tolist())
            row_counts = np.zeros(batch.num_rows, dtype=np.int64)
            for source, (total, passing) in self._counts(batch, start).items():
                inside = split == self.split
                offered[source] += int(total[inside].sum())
                admitted[source] += int(passing[inside].sum())
                row_counts += np.where(inside, passing, 0)
            admitted_rows.append(start + np.flatnonzero(row_counts))
            start += batch.num_rows
        rows = np.concatenate(admitted_rows) if admitted_rows else np.zeros(0, dtype=np.int64)
        index = ViewIndex(table, self, rows, dict(admitted), dict(offered))
        if not rows.size:
            raise DataError(self._why_empty(index, splits))
        return index

    def admitted_texts(self, batch: "pa.RecordBatch | pa.Table") -> list[list[str]]:
        """The texts of each row that count, given columns; those of the row itself come first.

        Args:
            batch: rows of a table with `columns`, as `PairTable.take` returns them.
        """
        records = batch.select(list(self.columns)).to_pylist()
        return [[text.text for text in self.admitted(record)] for record in records]

    def admitted(self, record: Mapping[str, Any]) -> list[AdmittedText]:
        """The texts of one row that count, in the order of `SOURCES`.

        Args:
            record: a row with `columns`. Texts get their scores also without a threshold if the
                row has the columns `captions_itm` and `synthetic_itm`.
        """
        return [
            text
            for source in SOURCES
            if source in self.sources
            for text in self._texts_of(source, record)
        ]

    def _counts(
        self, batch: "pa.RecordBatch", start: int
    ) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Texts offered and texts admitted, per row, for each source."""
        is_human = _strings(batch["origin"]) == "human"
        counts = {}
        for source in self.sources:
            column = "synthetic" if source == "synthetic" else "captions"
            mask = is_human if source == "human" else ~is_human
            lengths = _lengths(batch[column])
            passing = lengths
            if self.itm is not None and source != "human":
                score_column = batch[f"{column}_itm"]
                score_lengths = _lengths(score_column)
                _check_lengths(lengths, score_lengths, mask, column, start)
                # Nulls become NaN, which compares as False: a text without a score does not count.
                scores = score_column.flatten().to_numpy(zero_copy_only=False)
                passing = _count_true(score_lengths, scores > self.itm)
            counts[source] = (np.where(mask, lengths, 0), np.where(mask, passing, 0))
        return counts

    def _texts_of(self, source: str, record: Mapping[str, Any]) -> Sequence[AdmittedText]:
        if (source == "human") != (record["origin"] == "human"):
            return []
        column = "synthetic" if source == "synthetic" else "captions"
        texts: list[str] = record[column] or []
        scores = [*(record.get(f"{column}_itm") or ()), *[None] * len(texts)]
        return [
            AdmittedText(text, source, score)
            for text, score in zip(texts, scores, strict=False)
            if self.itm is None or source == "human" or (score is not None and score > self.itm)
        ]

    def _why_empty(self, index: "ViewIndex", splits: Counter[str]) -> str:
        where = f"{index.table.uri}: the view has no row in the split {self.split!r}"
        if not splits[self.split]:
            return f"{where}; the table has {_listed(splits)}"
        return (
            f"{where}: of its {splits[self.split]} rows none has an admitted text "
            f"({index.summary()}). Widen the sources or lower the itm threshold."
        )


@dataclass(frozen=True, eq=False)
class ViewIndex:
    """What a view admits of one table: row numbers only, 8 bytes each; texts are read on demand."""

    table: PairTable
    view: CaptionView
    rows: np.ndarray
    """Row numbers with at least one admitted text, int64, ascending."""
    num_admitted: dict[str, int]
    """Texts that count, for each source."""
    num_offered: dict[str, int]
    """Texts that there are in the split, for each source."""

    def __len__(self) -> int:
        return int(self.rows.size)

    def captions_of(self, row: int) -> list[str]:
        """The admitted texts of one row of the table, by its row number."""
        return self.captions_of_rows([row])[0]

    def captions_of_rows(self, rows: Sequence[int] | np.ndarray) -> list[list[str]]:
        """The admitted texts of several rows, read in one call."""
        return self.view.admitted_texts(self.table.take(rows, self.view.columns))

    def summary(self) -> str:
        """One line: how many texts of each source are admitted."""
        return ", ".join(
            f"{source}: {self.num_admitted.get(source, 0):,} of "
            f"{self.num_offered.get(source, 0):,} texts"
            for source in self.view.sources
        )


def split_rows(table: PairTable, split: str) -> np.ndarray:
    """Numbers of all rows of a split, with or without texts, int64, ascending.

    Raises:
        DataError: the split has no row; names those that there are.
    """
    parts = [np.zeros(0, dtype=np.int64)]
    there: Counter[str] = Counter()
    for batch in table.scan(["split"]):
        names = _strings(batch["split"])
        parts.append(np.flatnonzero(names == split) + there.total())
        there.update(names.tolist())
    rows = np.concatenate(parts)
    if not rows.size:
        raise DataError(f"{table.uri} has no row in the split {split!r}; it has {_listed(there)}")
    return rows


def _listed(splits: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(splits.items())) or "no rows"


def _strings(column: "pa.Array") -> np.ndarray:
    return np.asarray(column.to_numpy(zero_copy_only=False), dtype=object)


def _lengths(column: "pa.Array") -> np.ndarray:
    """Number of values in each list, 0 for a null."""
    lengths = column.value_lengths().fill_null(0)
    return np.asarray(lengths.to_numpy(zero_copy_only=False), dtype=np.int64)


def _count_true(lengths: np.ndarray, flags: np.ndarray) -> np.ndarray:
    """How many of the flags of each list are set."""
    running = np.concatenate([[0], np.cumsum(flags)])
    ends = np.cumsum(lengths)
    return np.asarray(running[ends] - running[ends - lengths], dtype=np.int64)


def _check_lengths(
    texts: np.ndarray, scores: np.ndarray, mask: np.ndarray, column: str, start: int
) -> None:
    # A row whose scores are missing altogether was not judged (it failed, or came later).
    wrong = np.flatnonzero(mask & (scores != texts) & (scores != 0))
    if wrong.size:
        row = int(wrong[0])
        raise DataError(
            f"row {start + row}: {texts[row]} texts in {column} but {scores[row]} scores in "
            f"{column}_itm: {_REMEDY}"
        )
