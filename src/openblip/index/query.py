"""What is looked for: texts and images that shall fit, and texts that shall not.

`Query` takes what a person gives; a `Term` is one of its parts with its vector.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from math import isfinite

import numpy as np
from numpy.typing import NDArray

from openblip.inference.embedder import Embedder
from openblip.runtime.errors import DataError
from openblip.sources.images import ImageSource

# Of a probability, so that its log-odds are finite.
_SMALLEST = 1e-9


@dataclass(frozen=True, eq=False)
class Query:
    """What the images that are found shall show.

    Raises:
        DataError: nothing is given that shall fit, a text is empty, or the weights are not as many
            as the texts, or not above zero.
    """

    texts: Sequence[str] = ()
    """Each shall fit."""
    images: Sequence[ImageSource] = ()
    """What is found shall look like each."""
    without: Sequence[str] = ()
    """None shall fit."""
    like: Sequence[str | int] = ()
    """Rows of the table, by id or number: what is found shall look like each, and is another."""
    weights: Sequence[float] = ()
    """How much each of `texts` counts, as the exponent of its probability; 1 by default."""

    def __post_init__(self) -> None:
        if not (self.texts or self.images or self.like):
            raise DataError("nothing to look for: give a text, --image or --like")
        if not all(text.strip() for text in chain(self.texts, self.without)):
            raise DataError("a text is empty; leave it out, or write one")
        if self.weights and len(self.weights) != len(self.texts):
            raise DataError(
                f"{len(self.weights)} weights for {len(self.texts)} texts: give one for each"
            )
        if not all(isfinite(weight) and weight > 0 for weight in self.weights):
            raise DataError("a weight must be above 0: to leave images out, give the text to --not")

    @property
    def all_texts(self) -> list[str]:
        """Those that shall fit, and behind them those that shall not."""
        return [*self.texts, *self.without]


@dataclass(frozen=True, eq=False)
class Terms:
    """The parts of a query as a model embeds them."""

    query: Query
    vectors: NDArray[np.float32]
    """(terms, width), unit length: the texts, then the images and rows, then what shall not fit."""
    weights: NDArray[np.float64]
    """(terms,)."""
    num_fitting: int = field(kw_only=True)
    """Terms that shall fit: the first ones."""

    @classmethod
    def of(cls, query: Query, model: Embedder, like: NDArray[np.float32]) -> "Terms":
        """The terms of a query.

        Args:
            query: what is looked for.
            model: embeds its texts and images; warns of words that it does not know.
            like: embeddings (rows, width) of the rows that it names.

        Raises:
            DataError: an image cannot be read.
        """
        # All in one call: words that the model does not know are warned of once.
        texts = model.embed_texts(query.all_texts).numpy() if query.all_texts else like[:0]
        shown = model.embed_images(query.images).numpy() if query.images else like[:0]
        count = len(query.texts)
        vectors = np.concatenate([texts[:count], shown, like, texts[count:]])
        weights = np.ones(len(vectors))
        weights[:count] = query.weights or 1.0
        fitting = len(vectors) - len(query.without)
        return cls(query, vectors.astype(np.float32), weights, num_fitting=fitting)

    def contrast(self, cosines: NDArray[np.float32], with_not: bool) -> NDArray[np.float64]:
        """By which candidates are ranked before they are matched: a weighted mean of cosines.

        Args:
            cosines: (candidates, terms).
            with_not: whether the mean of what shall not fit is subtracted: where no probability
                of a match comes after it.
        """
        fitting, weights = cosines[:, : self.num_fitting], self.weights[: self.num_fitting]
        score: NDArray[np.float64] = fitting @ weights / weights.sum()
        if with_not and self.query.without:
            score = score - cosines[:, self.num_fitting :].mean(axis=1)
        return score

    def probability(self, itm: NDArray[np.float64]) -> NDArray[np.float64]:
        """The probability that all texts fit and none that shall not, as if they were independent.

        A weight is the exponent of its text's probability: below 1 the text is asked for less
        strictly.

        Args:
            itm: (candidates, texts), in the order of `Query.all_texts`.
        """
        count = len(self.query.texts)
        fits = np.prod(itm[:, :count] ** self.weights[:count], axis=1)
        found: NDArray[np.float64] = fits * np.prod(1 - itm[:, count:], axis=1)
        return found

    def rank(
        self, itm: NDArray[np.float64], cosines: NDArray[np.float32], temperature: float
    ) -> NDArray[np.float64]:
        """By which matched candidates are ranked: the log-odds of the match, and the contrast's.

        Each head errs where the other does not. A filter that was trained for minutes ranks worse
        than contrast does, and both together better than either (`benchmarks/results/search.md`);
        of a filter that is sure its probabilities decide. The original's evaluation adds the
        cosine itself, which is too little beside a logit to matter.

        Args:
            itm: (candidates,), as `probability` gives them.
            cosines: (candidates, terms).
            temperature: of the contrast: cosines divided by it are its logits.
        """
        # Where float32 has rounded a logit away, contrast alone shall decide.
        odds = np.clip(itm * self.resemblance(cosines), _SMALLEST, 1 - _SMALLEST)
        count = len(self.query.texts)
        contrast = cosines[:, :count].astype(np.float64) @ self.weights[:count] / temperature
        ranked: NDArray[np.float64] = np.log(odds) - np.log1p(-odds) + contrast
        return ranked

    def resemblance(self, cosines: NDArray[np.float32]) -> NDArray[np.float64]:
        """How alike candidates are to the images and rows of a query, 0 to 1; 1 if it has none.

        Args:
            cosines: (candidates, terms).
        """
        of_images = cosines[:, len(self.query.texts) : self.num_fitting].astype(np.float64)
        # A cosine may be negative, and the product of two such would look like a likeness.
        found: NDArray[np.float64] = np.prod(np.clip(of_images, 0, 1), axis=1)
        return found
