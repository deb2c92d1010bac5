"""How many texts stay at a threshold, and how well the filter finds noise that is known.

The scores of a table are flat arrays, beside them where each text stands.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from openblip.batches.shuffle import thinned_size
from openblip.runtime.errors import RecipeError
from openblip.table.columns import column_state
from openblip.table.judging import LEAST_WEIGHT, JudgedTexts, judge
from openblip.table.rows import TEXT_SOURCES, read_meta
from openblip.table.scores import (
    PROBABILITIES,
    RIGHT,
    TEXT_COLUMNS,
    FlatScores,
    check_scored,
    columns_of,
    flat_scores,
    join_scores,
    score_words,
    sources_with,
    threshold_above,
)
from openblip.table.table import PairTable
from openblip.table.views import CaptionView

if TYPE_CHECKING:
    import pyarrow as pa

# Standard deviation of probabilities below which a filter separates nothing.
_NARROW = 0.02
_TRUE_KIND = "true"
FIT_REPORT = "fit_report"
"""Entry of a table's metadata: how good the score `right` is (`openblip capfilt fit`)."""
DEFAULT_THRESHOLDS = (0.1, 0.3, 0.5, 0.7, 0.9)


@dataclass(frozen=True)
class KeepRate:
    """How many texts of a source stay at a threshold."""

    threshold: float
    source: str
    kept: int
    total: int

    @property
    def rate(self) -> float:
        """The share that stays, 0 where there is no text."""
        return self.kept / self.total if self.total else 0.0


@dataclass(frozen=True)
class Rejected:
    """How many texts of a source do not count for one reason."""

    threshold: float
    source: str
    reason: str
    """See `data.judging.Rejection`."""
    count: int


@dataclass(frozen=True)
class NoiseQuality:
    """The filter as a detector of one kind of noise among true texts.

    A rejected text is a detection: `precision` is the share of noise among the rejected texts of
    this kind and the rejected true ones, `recall` the share of this kind that is rejected.
    """

    kind: str
    total: int
    precision: float
    recall: float


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
    """Values of `score`; compared with thresholds as views compare them."""
    itc: NDArray[np.float32]
    """Cosine of text and image; NaN where the table has none."""
    kinds: NDArray[np.str_]
    """Known kind of noise (`meta.noise` of the row) for web texts; empty where not known."""
    score: str = "itm"
    """Which score the values are: the probability that text and image match, or another one."""

    def __len__(self) -> int:
        return len(self.rows)


def keep_rates(scores: dict[str, TextScores], thresholds: Sequence[float]) -> list[KeepRate]:
    """How many web and synthetic texts have a score above each threshold.

    Raises:
        RecipeError: if a threshold of a probability is not in [0, 1].
    """
    score = next((texts.score for texts in scores.values()), "itm")
    for threshold in thresholds:
        check_threshold(threshold, score)
    return [
        KeepRate(threshold, source, int((texts.itm > threshold).sum()), len(texts))
        for threshold in thresholds
        for source, texts in scores.items()
    ]


def check_threshold(threshold: float, score: str) -> None:
    """Nothing, if a score can be compared with a threshold.

    Raises:
        RecipeError: it is a probability, and the threshold is not in [0, 1].
    """
    if score in PROBABILITIES and not 0.0 <= threshold <= 1.0:
        raise RecipeError(f"threshold {threshold}: a probability between 0 and 1 is needed")


def empty_sources(rates: Sequence[KeepRate]) -> list[str]:
    """A line for each source of whose texts a threshold keeps none."""
    return [
        f"at the threshold {rate.threshold:g} none of {rate.total:,} {rate.source} texts stays"
        for rate in rates
        if rate.total and not rate.kept
    ]


@dataclass(frozen=True)
class Cut(KeepRate):
    """The threshold that keeps a share of a source's texts, as nearly as equal scores allow."""

    share: float
    """What was asked for, from 0 to 1."""


@dataclass(frozen=True)
class Spread:
    """How far apart the scores of a source lie, by default its ITM probabilities."""

    source: str
    total: int
    """Scored texts; where there is none, the other numbers are 0."""
    lowest: float
    highest: float
    deviation: float
    """Standard deviation."""
    score: str = "itm"
    """Which score."""

    @property
    def is_narrow(self) -> bool:
        """Whether a threshold tells next to nothing apart: a deviation below 0.02.

        Scores all over a range of 0.07 have it, and so has one text in 2,500 that lies far off. Of
        scores that are no probabilities, such as cosines, only equal ones tell nothing apart.
        """
        # Equal numbers have a deviation of 0 but for rounding.
        least = _NARROW if self.score in PROBABILITIES else 1e-9
        return self.total > 1 and self.deviation < least

    def __str__(self) -> str:
        if not self.total:
            return f"there is no scored {self.source} text"
        text = (
            f"{score_words(self.score)} of {self.total:,} {self.source} texts: "
            f"{self.lowest:.3g} to {self.highest:.3g}, standard deviation {self.deviation:.2g}"
        )
        if not self.is_narrow:
            return text
        return (
            f"{text}: so narrow a range separates nothing, whatever the threshold; the filter has "
            "learnt too little, or the texts are alike"
        )


def cuts(scores: dict[str, TextScores], shares: Sequence[float]) -> list[Cut]:
    """For each share the thresholds that keep it of the web and of the synthetic texts.

    Raises:
        RecipeError: if a share is not in [0, 1].
    """
    found = []
    for share in shares:
        if not 0.0 <= share <= 1.0:
            raise RecipeError(f"a share of {share:g} cannot be kept; give 0% to 100%")
        for source, texts in scores.items():
            itm = np.sort(texts.itm)
            threshold = threshold_above(itm, len(itm) - round(share * len(itm)))
            if texts.score in PROBABILITIES:
                threshold = max(threshold, 0.0)
            kept = int((itm > threshold).sum())
            found.append(Cut(threshold, source, kept, len(itm), share))
    return found


def spreads(scores: dict[str, TextScores]) -> list[Spread]:
    """How far apart the scores of each source lie."""
    return [
        Spread(
            source=source,
            total=len(texts),
            lowest=float(texts.itm.min()) if len(texts) else 0.0,
            highest=float(texts.itm.max()) if len(texts) else 0.0,
            deviation=float(texts.itm.std()) if len(texts) else 0.0,
            score=texts.score,
        )
        for source, texts in scores.items()
    ]


def rejections(
    table: PairTable,
    thresholds: Sequence[float],
    itm_of: tuple[str, ...] = (),
    without: tuple[str, ...] = (),
    score: str = "itm",
) -> list[Rejected]:
    """How many training texts do not count at each threshold, by source and reason.

    Args:
        table: scored by `run_capfilt`.
        thresholds: of the score; ITM probabilities by default.
        itm_of: see `CaptionView`.
        without: see `CaptionView`.
        score: see `CaptionView`.

    Raises:
        DataError: if the table lacks what is asked for.
        RecipeError: if a threshold is none of the score's.
    """
    found = []
    # Some scores are of given texts alone.
    there = sources_with(table, score)
    sources = tuple(name for name in TEXT_SOURCES if name in ("human", *there))
    for threshold in thresholds:
        view = CaptionView(
            sources=sources, itm=threshold, score=score, itm_of=itm_of, without=without
        )
        index = view.resolve(table, may_be_empty=True)
        found += [
            Rejected(threshold, source, reason, count)
            for source, reasons in index.num_rejected.items()
            for reason, count in reasons.items()
        ]
    return found


@dataclass(frozen=True)
class Weighed:
    """What a view that weighs texts instead of cutting them makes of a table."""

    score: str
    """By which texts are weighed."""
    images: int
    """That have a text which counts."""
    shown: int
    """Images of an epoch: the sum of their weights, each that of its likeliest text."""
    texts: dict[str, int]
    """Texts that count, by source."""
    shares: dict[str, float]
    """Of the texts that are drawn in the long run, by source."""


def weighed(table: PairTable) -> Weighed | None:
    """What `weights=calibrated` makes of the training texts of a table; None where none is scored.

    Human texts and those of all scored sources take part, as the view decides by itself which
    score weighs them.

    Raises:
        DataError: a score is no probability, or a column is out of date.
    """
    sources = ("human", *(name for name, own in TEXT_COLUMNS.items() if own in table.columns))
    score = CaptionView(sources=sources, weights="calibrated").settled(table).score
    there = sources_with(table, score)
    if not there:
        return None
    view = CaptionView(sources=("human", *there), weights="calibrated", score=score)
    index = view.resolve(table, may_be_empty=True)
    if index.weights is None or not len(index):
        return None
    comes = np.zeros(len(table))
    comes[index.rows] = index.weights
    drawn = dict.fromkeys(view.sources, 0.0)
    start = 0
    for batch in table.scan(view.columns_in(table)):
        sums = {source: _sums(judge(batch, view, source, start)) for source in view.sources}
        # How often the image comes, divided among its texts; of another split it never does.
        each = comes[start : start + batch.num_rows] / np.maximum(sum(sums.values()), LEAST_WEIGHT)
        for source, own in sums.items():
            drawn[source] += float((each * own).sum())
        start += batch.num_rows
    total = sum(drawn.values())
    shares = {source: own / total for source, own in drawn.items()}
    shown = thinned_size(index.weights)
    return Weighed(score, len(index), shown, dict(index.num_admitted), shares)


def _sums(judged: JudgedTexts) -> NDArray[np.float64]:
    """Of each row, the weights of its texts that count."""
    counts = (judged.codes == 0).astype(np.float64)
    weights = counts if judged.weights is None else counts * judged.weights
    sums = np.bincount(judged.rows, weights, minlength=len(judged.lengths))
    return np.asarray(sums, dtype=np.float64)


def noise_quality(web: TextScores, threshold: float) -> list[NoiseQuality]:
    """Precision and recall of rejection at a threshold, for each known kind of noise and for all.

    The last entry, "all noise", takes every kind together. Empty where the kinds are not known.
    """
    rejected = web.itm <= threshold
    true = web.kinds == _TRUE_KIND
    noisy_kinds = sorted(set(web.kinds.tolist()) - {_TRUE_KIND, ""})
    if not noisy_kinds:
        return []
    groups = {kind: web.kinds == kind for kind in noisy_kinds}
    groups["all noise"] = ~true & (web.kinds != "")
    return [_quality(kind, noisy, true, rejected) for kind, noisy in groups.items()]


def precision_at_recall(web: TextScores, kind: str, recall: float) -> tuple[float, float]:
    """Best precision of rejecting a kind of noise at a recall of at least `recall`.

    Precision is as in `NoiseQuality`.

    Returns:
        Precision, and the threshold that gives it.

    Raises:
        RecipeError: if no text is of that kind, or the recall is not in (0, 1].
    """
    noisy = np.sort(web.itm[web.kinds == kind])
    if not noisy.size or not 0.0 < recall <= 1.0:
        raise RecipeError(f"{noisy.size} texts are {kind!r}; recall must be in (0, 1]: {recall}")
    true = np.sort(web.itm[web.kinds == _TRUE_KIND])
    # The best threshold is the score of a noisy text: between two of them a higher one rejects more
    # true texts, and no more noise.
    # Rounded up, but for what binary fractions add: 0.28 of 25 is not a little more than 7.
    least = max(int(np.ceil(recall * noisy.size - 1e-9)), 1)
    thresholds = np.unique(noisy[least - 1 :])
    # A score that is equal to the threshold is rejected, as by a view.
    found = np.searchsorted(noisy, thresholds, side="right")
    wrong = np.searchsorted(true, thresholds, side="right")
    precision = found / (found + wrong)
    best = int(np.argmax(precision))
    return float(precision[best]), float(thresholds[best])


def _quality(
    kind: str,
    noisy: NDArray[np.bool_],
    true: NDArray[np.bool_],
    rejected: NDArray[np.bool_],
) -> NoiseQuality:
    found = int((noisy & rejected).sum())
    wrong = int((true & rejected).sum())
    total = int(noisy.sum())
    return NoiseQuality(
        kind=kind,
        total=total,
        precision=found / (found + wrong) if found + wrong else float("nan"),
        recall=found / total if total else float("nan"),
    )


def read_scores(table: PairTable, score: str = "itm") -> dict[str, TextScores]:
    """Scores of the web and the synthetic texts of rows that came from the web.

    Args:
        table: that has them.
        score: which one thresholds are compared with.

    Raises:
        DataError: if the table has no such score; says which it has.
    """
    check_scored(table, score)
    parts: dict[str, list[FlatScores]] = {source: [] for source in TEXT_COLUMNS}
    kinds: list[NDArray[np.str_]] = []
    first = 0
    for batch in table.scan(["origin", "meta", *columns_of(table, score)], batch_size=8192):
        for source, own in parts.items():
            own.append(flat_scores(batch, source, first, table.uri, score))
        # A text has the kind of its row.
        kinds.append(_noise_kinds(batch, first, table.uri)[parts["web"][-1].rows - first])
        first += batch.num_rows
    # Typed, as NumPy takes an empty list for floats.
    none = np.zeros(0, dtype=np.str_)
    flat = {source: join_scores(own) for source, own in parts.items()}
    of_texts = {
        "web": np.concatenate([none, *kinds]),
        "synthetic": np.full(len(flat["synthetic"]), "", dtype=np.str_),
    }
    return {
        source: TextScores(source, own.rows, own.places, own.itm, own.itc, of_texts[source], score)
        for source, own in flat.items()
    }


def fit_report(table: PairTable) -> dict[str, Any] | None:
    """The report of the fit whose probabilities a table has; None where there are none."""
    if not sources_with(table, RIGHT):
        return None
    return column_state(table, FIT_REPORT) or None


def texts_of(table: PairTable, scores: TextScores, chosen: NDArray[np.int64]) -> list[str]:
    """The texts at some positions of `scores`."""
    column = TEXT_COLUMNS[scores.source]
    texts = table.take(scores.rows[chosen], [column])[column].to_pylist()
    return [row[place] for row, place in zip(texts, scores.places[chosen], strict=True)]


def _noise_kinds(batch: "pa.RecordBatch", first: int, uri: str) -> NDArray[np.str_]:
    """The known kind of noise of each row that came from the web, empty for the others."""
    kinds = [
        str(read_meta(f"{first + number} of {uri}", meta).get("noise") or "")
        if origin == "web"
        else ""
        for number, (origin, meta) in enumerate(
            zip(batch["origin"].to_pylist(), batch["meta"].to_pylist(), strict=True)
        )
    ]
    return np.array(kinds, dtype=np.str_)
