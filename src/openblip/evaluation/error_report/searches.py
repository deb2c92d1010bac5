"""A ranked gallery seen as searches: where the right one stands, and what stands above it."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from openblip.evaluation.matching import NOT_RANKED
from openblip.evaluation.metrics.retrieval import Ranks, image_ranks, text_ranks
from openblip.evaluation.retrieval import PairScores

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
