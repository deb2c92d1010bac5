"""The page that shows what CapFilt kept and what it rejected."""

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from openblip.capfilt.job import METADATA_KEY
from openblip.capfilt.select import (
    DEFAULT_THRESHOLDS,
    TextScores,
    check_threshold,
    empty_sources,
    fit_report,
    keep_rates,
    noise_quality,
    read_scores,
    rejections,
    spreads,
    texts_of,
    weighed,
)
from openblip.runtime.charts import histogram
from openblip.runtime.errors import DataError
from openblip.runtime.page import CardText, Page
from openblip.sources.row_images import stream_images
from openblip.table.agreement import AgreedTexts
from openblip.table.columns import column_state
from openblip.table.scores import (
    AUTO_SCORE,
    PROBABILITIES,
    RIGHT,
    named_score,
    score_words,
    scores_of,
)
from openblip.table.table import PairTable

_PAIR_CARDS = 24
_NEAR_CARDS = 6
_CONFIDENT_CARDS = 24
_DIFFERING_CARDS = 12
# Texts among which equal ones are told once.
_CONFIDENT_TEXTS = 1000


def write_report(
    table: PairTable,
    path: Path,
    *,
    threshold: float | None = None,
    score: str = AUTO_SCORE,
    seed: int = 0,
    certificate: str | None = None,
    warn: Callable[[str], None] = lambda line: None,
) -> Path:
    """The report of a scored table as one self-contained HTML file.

    Args:
        table: scored by `run_capfilt`.
        path: where the page goes; whole or not at all.
        threshold: a text is kept when its score is above it; None is 0.5 for a probability, and
            what keeps half of the web texts for another score.
        score: which one: `itm`, the name of another that the table has, or `auto`: `right` where
            all scored texts have it, else `itm`.
        seed: which rows are shown as examples.
        certificate: what people's verdicts say of a threshold, in a sentence; None without any.
        warn: is told of each source of whose texts the threshold keeps none.

    Raises:
        DataError: if the table is not scored, or has no web row.
        RecipeError: if the threshold of a probability is not in [0, 1].
    """
    score = named_score(table, score)
    if threshold is not None:
        check_threshold(threshold, score)
    scores = read_scores(table, score)
    if threshold is None:
        values = scores["web"].itm if len(scores["web"]) else scores["synthetic"].itm
        middle = float(np.median(values)) if len(values) else 0.5
        # In so many digits, so that what the page says can be given again as it stands.
        threshold = 0.5 if score in PROBABILITIES else float(f"{middle:.4g}")
    if not len(scores["web"]) and not len(scores["synthetic"]):
        raise DataError(f"{table.uri} has no scored text from the web; nothing to report")
    page = Page(
        "CapFilt report",
        f"{table.uri}: {len(table):,} images. A text is kept when {_rule(score)} above "
        f"{threshold:g}{_OF_MATCHING if score == 'itm' else ''}; human captions always stay.",
    )
    for spread in (spread for spread in spreads(scores) if spread.is_narrow):
        page.warning(f"This filter separates nothing among the {spread.source} texts. {spread}.")
    for line in _rates(page, scores, threshold):
        warn(line)
    _histograms(page, scores, threshold)
    _all_scores(page, table, scores)
    if certificate is not None:
        page.section("Certificate", f"{certificate[0].upper()}{certificate[1:]}.")
    shown = _Shown(page, table, scores, threshold)
    shown.what_people_say()
    shown.near_the_threshold()
    shown.confident(
        "acceptances",
        f"Texts with the highest {_what(score)}. Wrong ones among them pass at any "
        "threshold: only a better filter rejects them.",
    )
    shown.confident(
        "rejections",
        f"Texts with the lowest {_what(score)}. True ones among them would be the filter's "
        "worst mistakes.",
    )
    shown.side_by_side(seed)
    _reasons(page, table, threshold, score)
    _as_weights(page, table)
    _combination(page, table)
    _noise(page, scores["web"], threshold)
    _settings(page, table)
    return page.save(path)


def _rates(page: Page, scores: dict[str, TextScores], threshold: float) -> list[str]:
    """Lines about sources of which nothing stays."""
    values = scores["web"].itm if len(scores["web"]) else scores["synthetic"].itm
    others: tuple[float, ...] = DEFAULT_THRESHOLDS
    if scores["web"].score not in PROBABILITIES:
        # Of what is no probability 0.1 and 0.9 mean nothing: shares of the texts in their place.
        others = tuple(float(f"{v:.3g}") for v in np.quantile(values, DEFAULT_THRESHOLDS))
    thresholds = sorted({*others, threshold})
    rates = keep_rates(scores, thresholds)
    empty = empty_sources([rate for rate in rates if rate.threshold == threshold])
    about = ["At other thresholds too; a threshold is a view, not a run", *empty]
    page.section("How much stays", "; ".join(about) + ".")
    rows = []
    for value in thresholds:
        cells = [f"{value:g}"]
        for rate in (r for r in rates if r.threshold == value):
            cells += [f"{rate.kept:,}", f"{100 * rate.rate:.1f} %"]
        rows.append(cells)
    page.table(
        ["threshold", "web kept", "of web", "synthetic kept", "of synthetic"],
        rows,
        strong=[thresholds.index(threshold)],
    )
    return empty


def _reasons(page: Page, table: PairTable, threshold: float, score: str) -> None:
    found = rejections(table, [threshold], score=score)
    if found:
        page.section("Why texts do not count", f"Training texts at the threshold {threshold:g}.")
        rows = [[r.source, r.reason, f"{r.count:,}"] for r in found]
        page.table(["source", "reason", "texts"], rows)


def _as_weights(page: Page, table: PairTable) -> None:
    """What a view that weighs texts makes of the table; nothing where none has a probability."""
    found = None
    # This page is not about it: where it cannot be said, the rest stands.
    with suppress(DataError):
        found = weighed(table)
    if found is None:
        return
    page.section(
        "As weights",
        "With --data.view.weights calibrated no text is cut. Each weighs as much as it is likely "
        f"right by its {score_words(found.score)}, and an image comes as often as its likeliest "
        f"text is right: an epoch shows {found.shown:,} of {found.images:,} images. In the long "
        "run these texts are drawn:",
    )
    page.table(
        ["source", "texts that count", "share of draws"],
        [
            [source, f"{found.texts.get(source, 0):,}", f"{100 * share:.1f} %"]
            for source, share in found.shares.items()
        ],
    )


def _noise(page: Page, web: TextScores, threshold: float) -> None:
    quality = noise_quality(web, threshold)
    if not quality:
        return
    page.section(
        "The filter against the known noise",
        "Here the kind of each web text is known. Precision: of the rejected texts of this kind "
        "and the rejected true ones, how many were noise. Recall: how much of this kind was "
        "rejected.",
    )
    page.table(
        ["kind of noise", "texts", "precision", "recall"],
        [[q.kind, f"{q.total:,}", f"{q.precision:.3f}", f"{q.recall:.3f}"] for q in quality],
        strong=[len(quality) - 1],
    )


_OF_MATCHING = " of matching its image (ITM)"


def _rule(score: str) -> str:
    """What is compared with the threshold, as a sentence about a text goes on."""
    if score == "itm":
        return "the filter gives it a probability"
    if score == RIGHT:
        return "its calibrated probability of being right (score right) is"
    return f"its {score_words(score)} is"


def _what(score: str) -> str:
    names = {"itm": "probability of matching", RIGHT: "probability of being right"}
    return names.get(score, score_words(score))


def _combination(page: Page, table: PairTable) -> None:
    """What the score `right` is made of, and how good it is; nothing where it was not fitted."""
    report = fit_report(table)
    if report is None:
        return
    for fit in report["fits"]:
        told = fit["told"]
        page.section(
            f"The score right of {fit['source']} texts",
            f"A {told['model']} of {len(told['importance'])} scores, {told['calibration']} "
            f"calibration, fitted on {told['texts']:,} texts whose fate is known "
            f"({told['reviewed']:,} reviewed). On images that it had not seen its area under the "
            f"curve is {told['auc']:.3f}; that of the best single score, {told['single']}, is "
            f"{told['single_auc']:.3f} (difference {told['gain']:+.3f}, 95 % interval "
            f"{told['gain_low']:+.3f} to {told['gain_high']:+.3f}). Its probabilities are off by "
            f"{told['error']:.3f} on average. Estimated share of right texts in the table: "
            f"{100 * fit['share']:.0f} % (by {fit['share_from']}).",
        )
        page.table(
            ["score", "AUC lost without it", "weight in the logistic regression"],
            [
                [name, f"{lost:.4f}", "" if weight is None else f"{weight:+.2f}"]
                for name, lost, weight in told["importance"]
            ],
        )
        page.table(
            ["kind of noise", "texts", f"precision at recall {told['recall']:g}", told["single"]],
            [
                [k["kind"], f"{k['texts']:,}", f"{k['combination']:.3f}", f"{k['single']:.3f}"]
                for k in told["kinds"]
            ],
        )
        page.table(
            ["told probability", "share that is right", "texts"],
            [[f"{p:.2f}", f"{s:.2f}", f"{n:,}"] for p, s, n in told["reliability"]],
        )
    if left_out := report.get("left_out"):
        page.section("Scores that the fit has left out")
        page.table(["score", "why"], [line.split(": ", 1) for line in left_out])


def _histograms(page: Page, scores: dict[str, TextScores], threshold: float) -> None:
    page.section("Scores", ". ".join(map(str, spreads(scores))) + ".")
    itm = {name: of.itm.tolist() for name, of in scores.items()}
    itc = {n: o.itc.tolist() for n, o in scores.items() if np.isfinite(o.itc).all()}
    score = next(iter(scores.values())).score
    title, axis = _what(score).capitalize(), _what(score)
    if score == "itm":
        title, axis = "Match probability", "match probability (ITM)"
    charts = [histogram(title, itm, threshold, axis=axis)]
    # Only where all texts have one: a chart of some would look as if it were of all.
    if score != "itc" and len(itc) == len(scores):
        charts.append(histogram("Similarity", itc, axis="cosine of image and text (ITC)"))
    page.charts(charts)


def _all_scores(page: Page, table: PairTable, scores: dict[str, TextScores]) -> None:
    """Where the texts lie by each score that the table has; nothing where one is all there is."""
    names = scores_of(table)
    if set(names) <= {"itm", "itc"}:
        return
    rows = []
    for name in names:
        # Some columns of a score may be lost; this page is not about it.
        found: dict[str, TextScores] = {}
        with suppress(DataError):
            found = read_scores(table, name)
        if not any(map(len, found.values())):
            rows.append([score_words(name), "", "none that can be read", "", "", "", ""])
        for source, own in found.items():
            if len(own):
                spread = [f"{v:.3g}" for v in np.quantile(own.itm, (0.05, 0.5, 0.95))]
                agreed = _rank_correlation(own, scores[source])
                told = "" if agreed is None else f"{agreed:+.2f}"
                rows.append([score_words(name), source, f"{len(own):,}", *spread, told])
    decides = score_words(next(iter(scores.values())).score)
    page.section(
        "All scores of the texts",
        f"5, 50 and 95 % of the texts lie below these values. The last column says how far a score "
        f"puts texts in the order of the one that decides on this page ({decides}): 1 as it does, "
        "0 as chance does, -1 the other way round (Spearman's rank correlation).",
    )
    page.table(["score", "source", "texts", "5 %", "median", "95 %", "agrees"], rows)


def _rank_correlation(one: TextScores, other: TextScores) -> float | None:
    """Spearman's, of two scores of the same texts; None of others, and of equal scores."""
    if not (np.array_equal(one.rows, other.rows) and np.array_equal(one.places, other.places)):
        return None
    ranks = [_ranks(scores.itm) for scores in (one, other)]
    if any(np.ptp(own) == 0 for own in ranks):
        return None
    return float(np.asarray(np.corrcoef(ranks))[0, 1])


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The rank of each value; equal ones share the mean of theirs."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(counts) - (counts - 1) / 2)[places])


class _Shown:
    """Texts with their images, as cards."""

    def __init__(
        self, page: Page, table: PairTable, scores: dict[str, TextScores], threshold: float
    ) -> None:
        self._page, self._table, self._scores = page, table, scores
        self._threshold = threshold

    def what_people_say(self) -> None:
        """The verdicts on scored texts beside the filter's opinion, and where they differ."""
        judged = self._judged()
        if not judged:
            return
        counts = Counter((said, text.verdict) for said, _, _, text in judged)
        self._page.section(
            "What people say",
            "Texts that reviewers have judged, and agree on. They are those that somebody looked "
            "at, so their numbers are no rates of the whole table.",
        )
        self._page.table(
            ["people say", "kept", "rejected"],
            [
                [said, *(f"{counts[said, opinion]:,}" for opinion in ("kept", "rejected"))]
                for said in ("right", "partly", "wrong")
            ],
        )
        for title, is_right, opinion in (
            ("People found these right, and the filter rejects them", True, "rejected"),
            ("People found these wrong, and the filter keeps them", False, "kept"),
        ):
            differ = [
                (abs(itm - self._threshold), row, text)
                for said, itm, row, text in judged
                if (said == "right") == is_right and text.verdict == opinion
            ]
            if differ:
                # The furthest from the threshold: there the filter is most wrong.
                differ.sort(key=lambda entry: -entry[0])
                self._page.quote(title)
                self._cards([(row, [text]) for _, row, text in differ[:_DIFFERING_CARDS]])

    def _judged(self) -> list[tuple[str, float, int, CardText]]:
        """Of each scored text that people agree on: their verdict, its score, its row, its card."""
        agreed, first = AgreedTexts.of(self._table), 0
        said: dict[tuple[str, int, int], str] = {}
        for batch in self._table.scan(["id"]):
            for place in agreed.places_in(batch["id"]).tolist():
                for text in agreed.of_row(batch["id"][place].as_py()):
                    if text.verdict is not None:
                        said[text.source, first + place, text.place] = text.verdict
            first += batch.num_rows
        judged = []
        for source, scores in self._scores.items():
            # By rows first, all at once: verdicts are few, texts may be millions.
            rows = [row for of_source, row, _ in said if of_source == source]
            picked = np.flatnonzero(np.isin(scores.rows, rows))
            for place, words in zip(picked, texts_of(self._table, scores, picked), strict=True):
                row = int(scores.rows[place])
                verdict = said.get((source, row, int(scores.places[place])))
                if verdict is not None:
                    card = self._text(scores, place, words)
                    judged.append((verdict, float(scores.itm[place]), row, card))
        return judged

    def near_the_threshold(self) -> None:
        """The texts on both sides of it, of each source equally many."""
        near: list[tuple[float, int, CardText]] = []
        for scores in self._scores.values():
            # Stable: equal scores come in the order of the table, each time.
            order = np.argsort(-scores.itm, kind="stable")
            cut = int((scores.itm > self._threshold).sum())
            # Below 0 a slice would count from the end.
            chosen = order[max(cut - _NEAR_CARDS, 0) : cut + _NEAR_CARDS]
            for place, words in zip(chosen, texts_of(self._table, scores, chosen), strict=True):
                text = self._text(scores, place, words)
                near.append((float(scores.itm[place]), int(scores.rows[place]), text))
        near.sort(key=lambda entry: -entry[0])
        self._page.section(
            "Around the threshold",
            "The texts whose probability lies closest to it, the highest first. Where most of the "
            "kept ones are wrong, a higher threshold is better; where most of the rejected ones "
            "are right, a lower one.",
        )
        self._cards([(row, [text]) for _, row, text in near])

    def confident(self, what: str, about: str) -> None:
        """The texts furthest from the threshold; equal ones once."""
        accepts = what == "acceptances"
        found: dict[tuple[str, str], list[tuple[float, int, CardText]]] = {}
        for source, scores in self._scores.items():
            inside = np.flatnonzero((scores.itm > self._threshold) == accepts)
            key = -scores.itm[inside] if accepts else scores.itm[inside]
            chosen = inside[np.argsort(key, kind="stable")][:_CONFIDENT_TEXTS]
            for place, words in zip(chosen, texts_of(self._table, scores, chosen), strict=True):
                text = self._text(scores, place, words)
                entry = float(scores.itm[place]), int(scores.rows[place]), text
                # By source too: the same words of the web and of a captioner are two findings.
                found.setdefault((source, words), []).append(entry)
        groups = sorted(found.values(), key=lambda own: -own[0][0] if accepts else own[0][0])
        shown = groups[:_CONFIDENT_CARDS]
        self._page.section(f"The {len(shown)} most confident {what}", f"{about} Equal texts once.")
        self._cards([(own[0][1], [_with_count(own[0][2], len(own))]) for own in shown])

    def side_by_side(self, seed: int) -> None:
        """Images drawn at random with all of their texts."""
        rows = np.unique(np.concatenate([s.rows for s in self._scores.values()]))
        # In the order of the table, whatever order they were drawn in.
        chosen = np.sort(
            np.random.default_rng(seed).choice(rows, min(_PAIR_CARDS, len(rows)), replace=False)
        )
        self._page.section(
            "Web and synthetic texts side by side",
            f"{len(chosen)} images drawn at random: what the web said, and what the captioner "
            "wrote.",
        )
        texts: dict[int, list[CardText]] = {int(row): [] for row in chosen}
        for scores in self._scores.values():
            picked = np.flatnonzero(np.isin(scores.rows, chosen))
            for place, words in zip(picked, texts_of(self._table, scores, picked), strict=True):
                texts[int(scores.rows[place])].append(self._text(scores, place, words))
        self._cards(list(texts.items()))

    def _text(self, scores: TextScores, place: np.int64, words: str) -> CardText:
        itm, itc = float(scores.itm[place]), float(scores.itc[place])
        kind = f" · really: {scores.kinds[place]}" if scores.kinds[place] else ""
        cosine = f" · ITC {itc:.2f}" if np.isfinite(itc) and scores.score != "itc" else ""
        told = scores.score if scores.score not in ("itm", "itc") else scores.score.upper()
        tag = f"{scores.source} · {told} {itm:.3f}{cosine}{kind}"
        return CardText(words, tag, "kept" if itm > self._threshold else "rejected")

    def _cards(self, cards: Sequence[tuple[int, list[CardText]]]) -> None:
        images = stream_images(self._table, [row for row, _ in cards])
        self._page.cards(zip(images, (texts for _, texts in cards), strict=True))


def _with_count(text: CardText, count: int) -> CardText:
    """The text of several images, which says how many."""
    more = f" · and of {count - 1} more of the {_CONFIDENT_TEXTS:,} furthest" if count > 1 else ""
    return replace(text, tag=text.tag + more)


def _settings(page: Page, table: PairTable) -> None:
    page.section("Settings and fingerprints")
    stored = column_state(table, METADATA_KEY)
    decoding = stored.pop("decoding", {})
    page.facts({**stored, **{f"decoding.{name}": value for name, value in decoding.items()}})
