"""The filter's scores of a table as flat arrays, and where each text stands."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from openblip.data.rows import read_meta
from openblip.data.table import PairTable
from openblip.errors import DataError

SCORE_COLUMNS = ("captions_itm", "captions_itc", "synthetic_itm", "synthetic_itc")
_TEXT_COLUMNS = {"web": "captions", "synthetic": "synthetic"}


@dataclass(frozen=True)
class TextScores:
    """Scores of all texts of one source; position i of every array is one text."""

    source: str
    """"web" or "synthetic"."""
    rows: NDArray[np.int64]
    """Row of the table."""
    places: NDArray[np.int64]
    """Which of the row's texts of this source."""
    itm: NDArray[np.float64]
    """Probability that text and image match; compared with thresholds as views compare them."""
    itc: NDArray[np.float32]
    """Cosine of text and image."""
    kinds: NDArray[np.str_]
    """Known kind of noise (`meta.noise` of the row) for web texts; empty where not known."""

    def __len__(self) -> int:
        return len(self.rows)


def read_scores(table: PairTable) -> dict[str, TextScores]:
    """Scores of the web and the synthetic texts of rows that came from the web.

    Raises:
        DataError: if CapFilt has not scored the table.
    """
    if missing := [c for c in SCORE_COLUMNS if c not in table.columns]:
        raise DataError(
            f"{table.uri} has no column {missing[0]}: score it first with "
            f"`openblip capfilt run {table.uri} --captioner ... --filter ...`"
        )
    flat: dict[str, _Collector] = {source: _Collector(source) for source in _TEXT_COLUMNS}
    first = 0
    for batch in table.scan(["origin", "meta", *SCORE_COLUMNS], batch_size=8192):
        for number, row in enumerate(batch.to_pylist()):
            if row["origin"] == "web":
                where = f"{first + number} of {table.uri}"
                kind = str(read_meta(where, row["meta"]).get("noise") or "")
                for source, column in _TEXT_COLUMNS.items():
                    pairs = _scores_of(where, row, column)
                    flat[source].add(first + number, pairs, kind if source == "web" else "")
        first += batch.num_rows
    return {source: collector.finish() for source, collector in flat.items()}


def texts_of(table: PairTable, scores: TextScores, chosen: NDArray[np.int64]) -> list[str]:
    """The texts at some positions of `scores`."""
    column = _TEXT_COLUMNS[scores.source]
    texts = table.take(scores.rows[chosen], [column])[column].to_pylist()
    return [row[place] for row, place in zip(texts, scores.places[chosen], strict=True)]


def _scores_of(where: str, row: dict[str, Any], column: str) -> list[tuple[float, float]]:
    """Match probability and cosine of each text of a row.

    Raises:
        DataError: there are more of one than of the other, or one is no such number.
    """
    itm, itc = row[f"{column}_itm"] or [], row[f"{column}_itc"] or []
    remedy = "run `openblip capfilt run` on the table again"
    if len(itm) != len(itc):
        raise DataError(
            f"row {where}: {len(itm)} values in {column}_itm but {len(itc)} in {column}_itc: "
            f"{remedy}"
        )
    for match, cosine in zip(itm, itc, strict=True):
        # A comparison with NaN is False.
        if match is None or cosine is None or not (0 <= match <= 1 and abs(cosine) < math.inf):
            raise DataError(
                f"row {where}: a text in {column} has the scores {match} and {cosine}, which are "
                f"no probability and cosine: {remedy}"
            )
    return list(zip(itm, itc, strict=True))


class _Collector:
    def __init__(self, source: str) -> None:
        self.source = source
        self.rows: list[int] = []
        self.places: list[int] = []
        self.itm: list[float] = []
        self.itc: list[float] = []
        self.kinds: list[str] = []

    def add(self, row: int, scores: list[tuple[float, float]], kind: str) -> None:
        """Append the texts of a row; a row without scores (an error) has none."""
        for place, (match, cosine) in enumerate(scores):
            self.rows.append(row)
            self.places.append(place)
            self.itm.append(match)
            self.itc.append(cosine)
            self.kinds.append(kind)

    def finish(self) -> TextScores:
        return TextScores(
            source=self.source,
            rows=np.array(self.rows, dtype=np.int64),
            places=np.array(self.places, dtype=np.int64),
            itm=np.array(self.itm, dtype=np.float64),
            itc=np.array(self.itc, dtype=np.float32),
            kinds=np.array(self.kinds, dtype=np.str_),
        )
