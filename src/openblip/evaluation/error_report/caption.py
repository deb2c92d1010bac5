"""The page of a captioning: worst and best captions, words used too often or too seldom."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from math import log, sqrt
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from openblip.evaluation.captioning import CaptionResult
from openblip.evaluation.error_report import by_confidence
from openblip.metrics.caption_tokens import caption_tokens
from openblip.runtime.charts import Curve, curves
from openblip.runtime.page import CardText, Page
from openblip.sources.row_images import stream_images
from openblip.table.table import PairTable

_WORST, _BEST = 24, 8
_NGRAMS = 20
_REPEATED = 8
_FIFTHS = 5


def write_caption_report(
    result: CaptionResult, table: PairTable, path: Path, *, subject: str
) -> Path:
    """The error analysis of a captioning as one self-contained HTML file.

    It shows a result of `evaluate_caption` on the table, from which images are read. `subject`, for
    the title, says model and split.

    Raises:
        DataError: if an image that is shown cannot be read.
    """
    page = Page(f"Captions: {subject}", f"{table.uri}: {result.num_images} images.")
    cider = result.units["CIDEr"].scores
    _metrics(page, result)
    _charts(page, result, cider)
    _words(page, result)
    _variety(page, result)
    order = np.argsort(cider, kind="stable")
    _cards(page, table, result, order[:_WORST], "Furthest from the references, by CIDEr")
    _cards(page, table, result, order[::-1][:_BEST], "Closest to the references, by CIDEr")
    return page.save(path)


def _metrics(page: Page, result: CaptionResult) -> None:
    page.section("Scores", "Times 100, with 95 % intervals over images where a mean has one.")
    rows = []
    for name, value in result.metrics.items():
        units = result.units.get(name)
        interval = units.interval() if units else None
        shown = f"{interval.low:.1f} to {interval.high:.1f}" if interval else ""
        rows.append([name, f"{100 * value:.1f}", shown])
    page.table(["metric", "value", "interval"], rows)


def _charts(page: Page, result: CaptionResult, cider: NDArray[np.float64]) -> None:
    page.section("Image by image")
    ordered = np.sort(cider)
    places = 100 * np.arange(1, len(ordered) + 1) / len(ordered)
    sorted_scores = Curve(name="CIDEr", points=list(zip(places, ordered, strict=True)))
    confidence = np.array([result.confidence[key] for key in result.captions])
    fifths = by_confidence(confidence, cider, _FIFTHS)
    human = chain.from_iterable(result.references.values())
    shares = {"model": lengths(result.captions.values()), "references": lengths(human)}
    by_length = [
        Curve(name=name, points=[(n, 100 * share) for n, share in enumerate(values)])
        for name, values in shares.items()
    ]
    page.charts(
        [
            curves("CIDEr of the images, from the worst", [sorted_scores], along="percentile"),
            curves(
                "mean CIDEr by the model's confidence, a fifth of the images each",
                [Curve(name="CIDEr", points=fifths, dots=fifths)],
                along="confidence",
            ),
            curves("share of captions (%) by length", by_length, along="words", legend=True),
        ]
    )
    page.note(
        "Confidence: geometric mean of the probabilities of a caption's words. Where the curve "
        "rises, it tells good captions from bad ones. Length: in words."
    )


def _words(page: Page, result: CaptionResult) -> None:
    human = list(chain.from_iterable(result.references.values()))
    uses = ngram_use(result.captions.values(), human)
    page.section(
        "Words that the model uses too often, and too seldom",
        "Runs of one to three words by the log-odds of the captions against the references "
        "(z: in standard deviations); counts per 100 captions.",
    )
    often = [use for use in uses[:_NGRAMS] if use.z > 0]
    seldom = [use for use in uses[::-1][:_NGRAMS] if use.z < 0]
    sizes = len(result.captions), len(human)
    parts = {"too often": often, "too seldom": seldom}
    page.tables(
        ["", "model", "references", "z"],
        {name: [_use_row(use, sizes) for use in part] for name, part in parts.items()},
    )


@dataclass(frozen=True)
class NgramUse:
    """How often an n-gram stands in the captions, and in the references."""

    words: str
    captions: int
    references: int
    z: float
    """Log-odds of the captions against the references, in its standard deviations."""


def _use_row(use: NgramUse, sizes: tuple[int, int]) -> list[str]:
    model, human = 100 * use.captions / sizes[0], 100 * use.references / sizes[1]
    return [use.words, f"{model:.1f}", f"{human:.1f}", f"{use.z:+.1f}"]


def _variety(page: Page, result: CaptionResult) -> None:
    repeated = Counter(result.captions.values())
    first = [references[0] for references in result.references.values()]
    page.section("Variety")
    page.table(
        ["", "different captions", "different words"],
        [
            ["model", _of(len(repeated), len(result.captions)), f"{vocabulary(repeated):,}"],
            ["first reference", _of(len(set(first)), len(first)), f"{vocabulary(first):,}"],
        ],
    )
    rows = [[text, str(count)] for text, count in repeated.most_common(_REPEATED) if count > 1]
    if rows:
        page.table(["most frequent captions", "images"], rows)


def _of(count: int, total: int) -> str:
    return f"{count:,} of {total:,}"


def _cards(
    page: Page,
    table: PairTable,
    result: CaptionResult,
    places: NDArray[np.int64],
    title: str,
) -> None:
    page.section(title, "The model's caption, then what people wrote.")
    images = stream_images(table, result.rows[places])
    keys: Sequence[str] = list(result.captions)
    cards = []
    for place in places.tolist():
        key = keys[place]
        scores = ", ".join(f"{n} {u.scores[place]:.1f}" for n, u in result.units.items())
        tag = f"model · {scores} · confidence {result.confidence[key]:.2f}"
        human = [CardText(text, "") for text in result.references[key]]
        cards.append([CardText(result.captions[key], tag), *human])
    page.cards(zip(images, cards, strict=True))


_LONGEST = 3
# Part of the pooled counts that every n-gram has beforehand on both sides.
_PRIOR = 0.1


def ngram_use(captions: Iterable[str], references: Iterable[str]) -> list[NgramUse]:
    """N-grams of 1 to 3 words, the most overused first and the most underused last.

    Compared by the log-odds ratio with an informative Dirichlet prior (Monroe, Colaresi and Quinn,
    2008, "Fightin' Words", section 3.3), which neither favours rare words nor common ones; the
    prior is a tenth of the pooled counts, order by order.
    """
    ours, theirs = (_counts(texts) for texts in (captions, references))
    found = []
    for counts, human in zip(ours, theirs, strict=True):
        prior = {ngram: _PRIOR * (counts[ngram] + human[ngram]) for ngram in {*counts, *human}}
        total = sum(prior.values())
        sizes = counts.total() + total, human.total() + total
        for ngram, beforehand in prior.items():
            a, b = counts[ngram] + beforehand, human[ngram] + beforehand
            odds = log(a) - log(sizes[0] - a or beforehand)
            odds -= log(b) - log(sizes[1] - b or beforehand)
            words = " ".join(ngram)
            found.append(NgramUse(words, counts[ngram], human[ngram], odds / sqrt(1 / a + 1 / b)))
    return sorted(found, key=lambda use: (-use.z, use.words))


def lengths(texts: Iterable[str]) -> list[float]:
    """Share of the texts that have 0, 1, 2, ... words."""
    counts = Counter(len(caption_tokens(text)) for text in texts)
    longest = max(counts, default=0)
    return [counts[length] / counts.total() for length in range(longest + 1)]


def vocabulary(texts: Iterable[str]) -> int:
    """Number of different words."""
    return len({word for text in texts for word in caption_tokens(text)})


def _counts(texts: Iterable[str]) -> Sequence[Counter[tuple[str, ...]]]:
    counts: list[Counter[tuple[str, ...]]] = [Counter() for _ in range(_LONGEST)]
    for text in texts:
        words = caption_tokens(text)
        for order, of_order in enumerate(counts, 1):
            of_order.update(words[at : at + order] for at in range(len(words) - order + 1))
    return counts
