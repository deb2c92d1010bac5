"""The caption metrics of the COCO evaluation, from texts to numbers."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from openblip.errors import DataError
from openblip.evaluation.metrics.bleu import bleu, bleu_statistics
from openblip.evaluation.metrics.caption_tokens import caption_tokens
from openblip.evaluation.metrics.cider import cider
from openblip.evaluation.metrics.ngrams import count_captions
from openblip.evaluation.metrics.rouge import rouge_l

# A mapping is invariant in its keys: without this {str: ...} would not be accepted.
Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True, kw_only=True)
class CaptionScores:
    """Scores per image, in the order of the candidates."""

    bleu_statistics: NDArray[np.int64]
    """Rows that `bleu` sums: BLEU is no mean over images."""

    rouge_l: NDArray[np.float64]
    """0 to 1."""

    cider: NDArray[np.float64]
    """0 to 10."""

    def summary(self) -> dict[str, float]:
        """Returns BLEU-1 to BLEU-4, ROUGE-L and CIDEr of the corpus."""
        result = {f"BLEU-{n}": score for n, score in enumerate(bleu(self.bleu_statistics), 1)}
        result["ROUGE-L"] = float(self.rouge_l.mean())
        result["CIDEr"] = float(self.cider.mean())
        return result


def caption(
    candidates: Mapping[Key, str], references: Mapping[Key, Sequence[str]]
) -> dict[str, float]:
    """Returns "BLEU-1" to "BLEU-4", "ROUGE-L" and "CIDEr" of captions against human ones.

    Values are as in pycocoevalcap (`Bleu(4)`, `Rouge()`, `Cider()` after `PTBTokenizer`): BLEU and
    ROUGE-L from 0 to 1, CIDEr from 0 to 10. Papers print them times 100.

    Args:
        candidates: one caption per image id.
        references: human captions of the same images. CIDEr takes its document frequencies from
            them, so its value depends on the whole set.

    Raises:
        DataError: an id is missing on one side, or an image has no reference.
    """
    return caption_scores(candidates, references).summary()


def caption_scores(
    candidates: Mapping[Key, str], references: Mapping[Key, Sequence[str]]
) -> CaptionScores:
    """Returns the scores of each image, for intervals and comparisons; see `caption`."""
    _check(candidates, references)
    ours = [caption_tokens(text) for text in candidates.values()]
    human = [[caption_tokens(text) for text in references[key]] for key in candidates]
    counts = count_captions(
        [_words(tokens) for tokens in ours],
        [[_words(tokens) for tokens in texts] for texts in human],
    )
    return CaptionScores(
        bleu_statistics=bleu_statistics(counts), rouge_l=rouge_l(ours, human), cider=cider(counts)
    )


def _words(tokens: tuple[str, ...]) -> Sequence[str]:
    # N-gram counts see the words inside a token like "2 1/2"; ROUGE-L sees the token.
    return " ".join(tokens).split()


def _check(candidates: Mapping[Key, str], references: Mapping[Key, Sequence[str]]) -> None:
    if not candidates:
        raise DataError("there are no captions to evaluate")
    for ours, theirs, what in (
        (candidates, references, "reference captions"),
        (references, candidates, "candidate caption"),
    ):
        missing = [key for key in ours if key not in theirs]
        if missing:
            raise DataError(f"{len(missing)} images have no {what}, first: {missing[0]!r}")
    for key, texts in references.items():
        if isinstance(texts, str) or not texts:
            raise DataError(f"image {key!r}: references must be a list of at least one caption")
