"""The filter's scores of a table as flat arrays, and where each text stands."""

import json
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

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
                kind = json.loads(row["meta"] or "{}").get("noise", "")
                flat["web"].add(first + number, row["captions_itm"], row["captions_itc"], kind)
                flat["synthetic"].add(
                    first + number, row["synthetic_itm"], row["synthetic_itc"], ""
                )
        first += batch.num_rows
    return {source: collector.finish() for source, collector in flat.items()}


def texts_of(table: PairTable, scores: TextScores, chosen: NDArray[np.int64]) -> list[str]:
    """The texts at some positions of `scores`."""
    column = _TEXT_COLUMNS[scores.source]
    texts = table.take(scores.rows[chosen], [column])[column].to_pylist()
    return [row[place] for row, place in zip(texts, scores.places[chosen], strict=True)]


class _Collector:
    def __init__(self, source: str) -> None:
        self.source = source
        self.rows: list[int] = []
        self.places: list[int] = []
        self.itm: list[float] = []
        self.itc: list[float] = []
        self.kinds: list[str] = []

    def add(self, row: int, itm: list[float] | None, itc: list[float] | None, kind: str) -> None:
        """Append the texts of a row; a row without scores (an error) has none."""
        for place, (match, cosine) in enumerate(zip(itm or [], itc or [], strict=True)):
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
