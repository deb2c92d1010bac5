"""The page of a retrieval: the worst searches, what stood above the right ones, calibration.

It sees a ranked gallery as searches in two directions: an image's for its texts, a text's for its
image.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from openblip.evaluation.error_report import PERFECT
from openblip.evaluation.retrieval import NOT_RANKED, Gallery, PairScores, RetrievalResult
from openblip.inference.calibration import ReliabilityBin, calibrate
from openblip.metrics.retrieval import Ranks, image_ranks, text_ranks
from openblip.runtime.charts import Curve, curves, histogram
from openblip.runtime.errors import DataError
from openblip.runtime.page import CardText, Page, Verdict
from openblip.sources.row_images import stream_images
from openblip.table.table import PairTable

_WORST_IMAGES = 24
_WORST_TEXTS = 12
_BROKEN = 6
_SHOWN_ABOVE = 3
_CURVE_TO = 100


def write_retrieval_report(
    result: RetrievalResult, table: PairTable, path: Path, *, subject: str
) -> Path:
    """The error analysis of a retrieval as one self-contained HTML file.

    It shows a result of `evaluate_retrieval` on the table, from which images are read. `subject`,
    for the title, says model and split.

    Raises:
        DataError: if an image that is shown cannot be read.
    """
    page = Page(
        f"Retrieval: {subject}",
        f"{table.uri}: {result.num_images} images, {result.num_texts} texts. ITC ranks all of "
        + (
            f"them; the {result.k} best are ranked again by ITM."
            if result.pairs.itm is not None
            else "them alone."
        ),
    )
    of_texts, of_images = text_searches(result.pairs), image_searches(result.pairs)
    _recalls(page, result, of_texts, of_images)
    shown = _Shown(page, table, result.pairs.gallery)
    if result.pairs.itm is not None:
        _disagreement(page, of_texts, of_images)
        shown.images(
            of_texts,
            of_texts.broken()[:_BROKEN],
            "ITC had it first, ITM put others above",
            "Images whose right text is first by contrast and not any more after matching.",
        )
        _calibration(page, result)
    shown.images(
        of_texts,
        of_texts.worst(_WORST_IMAGES),
        "Images that find their texts last",
        "The image, the wrong texts that stand first, and the best of its own texts.",
    )
    shown.texts(of_images)
    return page.save(path)


Matrix = NDArray[np.float32]


@dataclass(frozen=True)
class Searches:
    """All searches of one direction: a query, its candidates, and the right ones among them.

    Matrices are (queries, candidates).
    """

    scores: Matrix
    """By which candidates are ranked in the end."""
    cosines: Matrix
    """By which ITC ranks them."""
    itm: Matrix | None
    """Probability of a match; NaN where the pair was no candidate, None without matching."""
    right: list[list[int]]
    """The right candidates of each query, at least one."""
    ranks: Ranks
    """In the end."""
    contrast: Ranks
    """By ITC alone."""

    @property
    def num_candidates(self) -> int:
        """Candidates of each query."""
        return int(self.scores.shape[1])

    def worst(self, count: int) -> list[int]:
        """The queries whose best right candidate stands lowest, the lowest first."""
        order = np.argsort(-self.ranks.expected, kind="stable")
        return [int(query) for query in order[:count] if self.ranks.above[query] > 0]

    def best_right(self, query: int) -> int:
        """The right candidate that stands highest."""
        own = self.right[query]
        return int(own[int(np.argmax(self.scores[query, own]))])

    def above(self, query: int, count: int) -> list[int]:
        """The first candidates that stand above every right one."""
        order = np.argsort(-self.scores[query], kind="stable")[:count]
        best = self.scores[query, self.best_right(query)]
        return [int(candidate) for candidate in order if self.scores[query, candidate] > best]

    def was_candidate(self, query: int, candidate: int) -> bool:
        """Whether a pair was among those that matching ranked."""
        return bool(self.scores[query, candidate] > NOT_RANKED)

    def lost(self) -> int:
        """Queries of which no right candidate was among those that matching ranked."""
        return sum(
            not self.was_candidate(query, self.best_right(query))
            for query in range(len(self.scores))
        )

    def broken(self) -> list[int]:
        """Queries that ITC answers rightly and ITM does not, the lowest first."""
        changed = (self.contrast.hits(1) > 0.5) & (self.ranks.hits(1) <= 0.5)
        queries = np.flatnonzero(changed)
        order = np.argsort(-self.ranks.expected[queries], kind="stable")
        return [int(query) for query in queries[order]]

    def agreement(self) -> dict[tuple[bool, bool], int]:
        """Number of queries by whether ITC, and whether ITM, has a right candidate first."""
        first = self.contrast.hits(1) > 0.5, self.ranks.hits(1) > 0.5
        return {
            (by_itc, by_itm): int(((first[0] == by_itc) & (first[1] == by_itm)).sum())
            for by_itc in (True, False)
            for by_itm in (True, False)
        }


def _recalls(page: Page, result: RetrievalResult, texts: Searches, images: Searches) -> None:
    page.section("Recall", "TR: texts of an image; IR: images of a text; 95 % intervals.")
    names = [name for name in result.metrics if "@" in name]
    rows = [["ITC", *(f"{result.contrastive[name]:.1f}" for name in names)]]
    if result.pairs.itm is not None:
        rows.append(["ITM", *(f"{result.metrics[name]:.1f}" for name in names)])
    intervals = [result.units[name].interval() for name in names]
    rows.append(
        [f"interval of {rows[-1][0]}", *(f"{i.low:.1f} to {i.high:.1f}" for i in intervals)]
    )
    page.table(["per cent", *names], rows, strong=[len(rows) - 2])
    lines = {"texts, ITC": (texts, texts.contrast), "images, ITC": (images, images.contrast)}
    if result.pairs.itm is not None:
        lines |= {"texts, ITM": (texts, texts.ranks), "images, ITM": (images, images.ranks)}
    drawn = []
    for name, (searches, ranks) in lines.items():
        last = min(_CURVE_TO, searches.num_candidates)
        points = [(k, 100 * float(ranks.hits(k).mean())) for k in range(1, last + 1)]
        drawn.append(Curve(name=name, points=points))
    page.charts([curves("recall (%) among the first k", drawn, along="k =", legend=True)])
    if result.pairs.itm is not None:
        page.note(
            f"Lost before matching: {_share(texts.lost(), len(texts.right))} of the images have "
            f"none of their texts among the {result.k} candidates, and "
            f"{_share(images.lost(), len(images.right))} of the texts not their image."
        )


def _disagreement(page: Page, texts: Searches, images: Searches) -> None:
    page.section(
        "ITC against ITM", "Whether a right one stands first, by contrast and after matching."
    )
    names = {
        (True, True): "right by both",
        (False, True): "mended by ITM",
        (True, False): "broken by ITM",
        (False, False): "wrong by both",
    }
    counts = texts.agreement(), images.agreement()
    page.table(
        ["", "images", "", "texts", ""],
        [
            [
                name,
                *(
                    cell
                    for of_direction in counts
                    for cell in (
                        str(of_direction[key]),
                        _share(of_direction[key], sum(of_direction.values())),
                    )
                ),
            ]
            for key, name in names.items()
        ],
    )


def _calibration(page: Page, result: RetrievalResult) -> None:
    probabilities, labels = judged_pairs(result.pairs)
    page.section(
        "How far the matching probability can be trusted",
        f"On {int(labels.sum())} right pairs, and the {int((labels == 0).sum())} wrong pairs that "
        "stand highest, the hardest of the gallery: among them are texts that do describe the "
        "image but were written for another. So this is no statement on pairs at random.",
    )
    charts = [
        histogram(
            "ITM",
            {
                "right pairs": probabilities[labels == 1].tolist(),
                "hardest wrong pairs": probabilities[labels == 0].tolist(),
            },
            0.5,
            axis="match probability (ITM)",
        )
    ]
    try:
        found = calibrate(probabilities, labels)
    except DataError as error:
        page.charts(charts)
        page.note(f"No temperature can be fitted: {error}.")
        return
    scaled = f"with temperature {found.temperature:.2f}"
    charts.append(
        curves(
            "share that is right, by confidence",
            [
                _reliability_curve("as given", found.before),
                _reliability_curve(scaled, found.after),
                PERFECT,
            ],
            along="confidence",
            legend=True,
        )
    )
    page.charts(charts)
    page.note(
        f"Expected calibration error {found.ece_before:.3f}; {found.ece_after:.3f} {scaled}, which "
        "logits are divided by. The confidence is that of the likelier answer, match or no match."
    )


def _reliability_curve(name: str, bins: Sequence[ReliabilityBin]) -> Curve:
    points = [(each.confidence, each.accuracy) for each in bins if each.count]
    return Curve(name=name, points=points, dots=points)


class _Shown:
    """Searches as cards."""

    def __init__(self, page: Page, table: PairTable, gallery: Gallery) -> None:
        self._page, self._table, self._gallery = page, table, gallery

    def images(self, searches: Searches, chosen: Sequence[int], title: str, text: str) -> None:
        """A card for each image: the texts above the best right one, then that one."""
        if not chosen:
            return
        self._page.section(title, text)
        cards = []
        for image in chosen:
            listed = [
                CardText(self._gallery.texts[number], _tag(searches, image, number, place), "wrong")
                for place, number in enumerate(searches.above(image, _SHOWN_ABOVE), 1)
            ]
            best = searches.best_right(image)
            tag = _tag(searches, image, best, searches.ranks.expected[image])
            cards.append([*listed, CardText(self._gallery.texts[best], tag, "right")])
        rows = self._gallery.rows[np.asarray(chosen)]
        self._page.cards(zip(stream_images(self._table, rows), cards, strict=True))

    def texts(self, searches: Searches) -> None:
        """For each of the worst texts a row of images: the right one, then those above it."""
        worst = searches.worst(_WORST_TEXTS)
        if not worst:
            return
        self._page.section(
            "Texts that find their image last",
            "The right image, then those that stand first, each with a text of its own.",
        )
        for text in worst:
            best = searches.best_right(text)
            above = searches.above(text, _SHOWN_ABOVE)
            verdicts: list[Verdict] = ["right"]
            verdicts += ["wrong"] * len(above)
            places = [float(searches.ranks.expected[text]), *range(1, len(above) + 1)]
            images = [best, *above]
            cards = [
                [CardText(self._other_words(image, text), _tag(searches, text, image, at), verdict)]
                for at, image, verdict in zip(places, images, verdicts, strict=True)
            ]
            self._page.quote(self._gallery.texts[text])
            pictures = stream_images(self._table, self._gallery.rows[np.asarray(images)])
            self._page.cards(zip(pictures, cards, strict=True))

    def _other_words(self, image: int, text: int) -> str:
        """A text of an image, if it has several another than the one that was searched with."""
        own = self._gallery.captions_of_image[image]
        return self._gallery.texts[next((n for n in own if n != text), own[0])]


def _tag(searches: Searches, query: int, candidate: int, place: float) -> str:
    itc = f"ITC {searches.cosines[query, candidate]:.3f}"
    if searches.itm is None:
        return f"no. {place:,.0f} · {itc}"
    if not searches.was_candidate(query, candidate):
        return f"no candidate for ITM · {itc}"
    itm = f"ITM {searches.itm[query, candidate]:.3f}"
    return f"no. {place:,.0f} · {itm} · {itc}"


def _share(count: int, of: int) -> str:
    return f"{100 * count / of:.1f} %"


def text_searches(pairs: PairScores) -> Searches:
    """Each image searches its texts."""
    captions = pairs.gallery.captions_of_image
    return Searches(
        scores=pairs.of_texts,
        cosines=pairs.cosines,
        itm=pairs.itm,
        right=captions,
        ranks=text_ranks(pairs.of_texts, captions),
        contrast=text_ranks(pairs.cosines, captions),
    )


def image_searches(pairs: PairScores) -> Searches:
    """Each text searches its image."""
    captions = pairs.gallery.captions_of_image
    right: list[list[int]] = [[] for _ in pairs.gallery.texts]
    for image, texts in enumerate(captions):
        for text in texts:
            right[text].append(image)
    return Searches(
        scores=pairs.of_images.T,
        cosines=pairs.cosines.T,
        itm=None if pairs.itm is None else pairs.itm.T,
        right=right,
        ranks=image_ranks(pairs.of_images.T, captions),
        contrast=image_ranks(pairs.cosines.T, captions),
    )


def judged_pairs(pairs: PairScores) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Probabilities of a match and their labels, of the right pairs and of the hardest wrong ones.

    Right: every caption with its image, as far as the pair was a candidate. Wrong: of each image
    and of each text the wrong candidate that stands highest. None where nothing was matched.
    """
    if pairs.itm is None:
        return np.zeros(0), np.zeros(0, np.int64)
    every_image = np.arange(len(pairs.gallery.rows))
    every_text = np.arange(len(pairs.gallery.texts))
    belongs = np.zeros((len(every_image), len(every_text)), dtype=bool)
    for image, texts in enumerate(pairs.gallery.captions_of_image):
        belongs[image, texts] = True
    chosen = belongs.copy()
    chosen[every_image, np.where(belongs, -np.inf, pairs.of_texts).argmax(axis=1)] = True
    chosen[np.where(belongs, -np.inf, pairs.of_images).argmax(axis=0), every_text] = True
    known = chosen & ~np.isnan(pairs.itm)
    return pairs.itm[known].astype(np.float64), belongs[known].astype(np.int64)
