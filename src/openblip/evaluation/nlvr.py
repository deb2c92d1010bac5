"""Natural language visual reasoning: are sentences true of two images (BLIP, section 5.4)."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from openblip.batches.image_pairs import ImagePair, ImagePairIndex
from openblip.batches.images import every_image_of
from openblip.evaluation.results import UnitScores, summed_units
from openblip.evaluation.settings import NlvrSettings
from openblip.inference.blip import Blip
from openblip.inference.matching import compare_images
from openblip.metrics.accuracy import Dominant, consistent_sentences, dominant, image_set, nlvr
from openblip.runtime.atomic import replace_file
from openblip.runtime.errors import DataError
from openblip.runtime.progress import Progress
from openblip.sources.row_images import check_reachable
from openblip.table.table import PairTable


@dataclass(frozen=True)
class NlvrResult:
    """Judgements of the sentences of one split, and how many are right."""

    metrics: dict[str, float]
    """Per cent: "accuracy", and "consistency" where identifiers have the official form."""
    predictions: dict[str, float]
    """Probability that the sentence is true, by the pair's identifier."""
    units: dict[str, UnitScores] = field(repr=False)
    """`metrics` by what shares images: a set of NLVR2, or a first image elsewhere."""
    num_pairs: int
    seconds: float

    @property
    def dominant(self) -> Dominant | None:
        """The judgement of nearly all, if there is one."""
        return dominant(str(_is_true(value)) for value in self.predictions.values())

    def save_official(self, path: Path) -> None:
        """Write `identifier,prediction` lines, True or False, as NLVR2's evaluation reads them.

        Raises:
            OSError: it cannot be written.
        """
        with replace_file(path) as unfinished:
            lines = [f"{key},{_is_true(value)}\n" for key, value in self.predictions.items()]
            unfinished.write_text("".join(lines), encoding="utf-8")


def evaluate_nlvr(
    blip: Blip,
    table: PairTable,
    *,
    split: str = "test",
    batch_size: int = NlvrSettings.batch_size,
    max_words: int = NlvrSettings.max_words,
) -> NlvrResult:
    """Accuracy of telling whether sentences are true of two images.

    The images are shown in the order of the data set. (The original swaps some of them by chance
    here too.) Within a batch each image is encoded once, however many sentences are about it.

    The table has pairs in the metadata of the split's rows. Other keywords are fields of
    `NlvrSettings`.

    Raises:
        DataError: there are no pairs, two have one identifier, or an image cannot be read.
        MissingExtra: an image lies in an object store, whose packages are not installed.
        MissingHead: the model does not compare images.
        RecipeError: a number is too small.
    """
    settings = NlvrSettings(batch_size=batch_size, max_words=max_words)
    started = time.perf_counter()
    index = ImagePairIndex.resolve(table, split)
    _check_distinct(index.pairs, table.uri)
    check_reachable(table, np.union1d(index.first_rows, index.second_rows))
    clean = blip.tokenizer.cleaning.caption
    texts = [clean(pair.sentence, settings.max_words) for pair in index.pairs]
    parts: list[Tensor] = []
    with Progress("comparing", total=len(index), unit="pairs") as progress, torch.inference_mode():
        for part in _judged(blip, index, texts, settings.batch_size):
            parts.append(part)
            progress.update(len(part))
    keys = [pair.key for pair in index.pairs]
    predictions = dict(zip(keys, torch.cat(parts).tolist(), strict=True))
    labels = {pair.key: pair.label for pair in index.pairs}
    judged = {key: _is_true(value) for key, value in predictions.items()}
    return NlvrResult(
        nlvr(judged, labels),
        predictions,
        _units({key: judged[key] == label for key, label in labels.items()}, index),
        len(index),
        time.perf_counter() - started,
    )


def _is_true(probability: float) -> bool:
    return probability > 0.5


def _check_distinct(pairs: Sequence[ImagePair], uri: str) -> None:
    seen: set[str] = set()
    for pair in pairs:
        if pair.key in seen:
            raise DataError(
                f"{uri}: the pair_id {pair.key} occurs twice in the split; evaluate a table whose "
                "pairs come from one source"
            )
        seen.add(pair.key)


def _judged(
    blip: Blip, index: ImagePairIndex, texts: Sequence[str], batch_size: int
) -> Iterator[Tensor]:
    """Probabilities that the texts are true of their images, a batch of pairs at a time."""
    model = blip.nlvr
    blip.warn_of_unknown_words(texts, "sentences")
    sides = np.stack([index.first_rows, index.second_rows])
    starts = range(0, len(index), batch_size)
    # Each batch has every image of its pairs once.
    batches = [np.unique(sides[:, at : at + batch_size], return_inverse=True) for at in starts]
    read = every_image_of(index.table, (rows for rows, _ in batches), blip.image_size)
    for start, (_, places), images in zip(starts, batches, read, strict=True):
        # `places` leads from each pair's two sides to the images that were encoded once.
        hidden = model.encode_images(images.to(blip.device, blip.dtype))
        first, second = (hidden[torch.from_numpy(side)] for side in places.reshape(2, -1))
        tokens = blip.tokenizer.encode(
            texts[start : start + batch_size], model.config.text.max_positions, first="enc"
        )
        yield compare_images(model, first, second, tokens)


def _units(right: Mapping[str, bool], index: ImagePairIndex) -> dict[str, UnitScores]:
    consistent = consistent_sentences(right)
    if consistent is None:
        return {"accuracy": _summed(index.first_rows.tolist(), list(right.values()))}
    return {
        "accuracy": _summed([image_set(key) for key in right], list(right.values())),
        # A sentence is right where it is in all of its pairs; the set of images is what was drawn.
        "consistency": _summed([key for key, _ in consistent], list(consistent.values())),
    }


def _summed(owners: Sequence[object], hits: Sequence[bool]) -> UnitScores:
    """One unit for each owner, in the order in which they first occur."""
    number = {owner: place for place, owner in enumerate(dict.fromkeys(owners))}
    return summed_units(100.0 * np.asarray(hits), [number[owner] for owner in owners], len(number))
