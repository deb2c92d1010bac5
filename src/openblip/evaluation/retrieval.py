"""Image-text retrieval: ranking by contrast, then by matching (BLIP, section 5.1)."""

import time
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from openblip.data.loader import every_image
from openblip.data.reading import stream_images
from openblip.data.table import PairTable
from openblip.data.text import Cleaning
from openblip.data.views import split_rows
from openblip.errors import DataError, RecipeError
from openblip.evaluation.matching import (
    NOT_RANKED,
    can_match,
    candidates,
    cleaning_of,
    embed_protocol_texts,
    matching_scores,
    tokens_to_match,
)
from openblip.evaluation.metrics import retrieval
from openblip.evaluation.rankings import LISTED, Rankings, rankings
from openblip.evaluation.units import UnitScores, retrieval_units
from openblip.inference import Blip, Embedder
from openblip.progress import Progress

MAX_WORDS = 30
"""Captions are cut to so many, as in the original's evaluation."""


@dataclass(frozen=True)
class RetrievalResult:
    """Recalls of one split, per cent."""

    metrics: dict[str, float]
    """After re-ranking by matching: TR@k (texts of an image), IR@k (images of a text)."""
    contrastive: dict[str, float]
    """Ranking by ITC alone."""
    units: dict[str, UnitScores] = field(repr=False)
    """TR@k and IR@k of `metrics`, image by image."""
    num_images: int
    num_texts: int
    k: int
    seconds: float
    pairs: "PairScores" = field(repr=False)
    """What the recalls were computed from."""

    @property
    def rankings(self) -> Rankings:
        """The first candidates of every image and of every text."""
        gallery = self.pairs.gallery
        return rankings(
            gallery.ids,
            gallery.texts,
            gallery.captions_of_image,
            torch.from_numpy(self.pairs.of_texts),
            torch.from_numpy(self.pairs.of_images),
            LISTED if self.pairs.itm is None else min(LISTED, self.k),
        )


@dataclass(frozen=True)
class PairScores:
    """The scores of a gallery's pairs; each matrix is float32 (images, texts)."""

    gallery: "Gallery"
    cosines: NDArray[np.float32]
    """By which ITC ranks."""
    of_texts: NDArray[np.float32]
    """By which the texts of an image are ranked in the end."""
    of_images: NDArray[np.float32]
    """By which the images of a text are ranked in the end."""
    itm: NDArray[np.float32] | None
    """Probability of a match; NaN where the pair was no candidate, None without matching."""


@dataclass(frozen=True)
class Gallery:
    """The images and texts of a split."""

    rows: np.ndarray
    """Row numbers of the images."""
    ids: list[str]
    """Ids of these rows."""
    texts: list[str]
    captions_of_image: list[list[int]]
    """For each image the positions of its captions in `texts`."""


def evaluate_retrieval(
    model: Embedder,
    table: PairTable,
    *,
    split: str = "test",
    k: int = 128,
    batch_size: int = 32,
    max_words: int = MAX_WORDS,
    use_itm: bool = True,
) -> RetrievalResult:
    """Text and image recall on the protocol of COCO and Flickr30k (several captions an image).

    ITC ranks all pairs; the k best texts of each image and the k best images of each text are
    ranked again by ITM logit + cosine (of ALBEF by the logit alone). Pairs are grouped by image,
    so that each image's cross-attention keys and values are computed once, however many texts it
    is paired with. Where the model does not match, contrast decides alone.

    Args:
        model: a `Blip` with an ITC head, and an ITM head if it is to re-rank; or another model
            that embeds images and texts.
        table: with human captions in the split.
        split: which rows.
        k: how many candidates are re-ranked: 256 on COCO, 128 on Flickr30k in the paper.
        batch_size: images that are encoded together.
        max_words: captions are cut to this many.
        use_itm: without it ITC decides alone, whatever the model can do.

    Raises:
        DataError: the split is empty or an image cannot be read.
        MissingHead: the model has no ITC head.
    """
    if k < 1:
        raise RecipeError(f"k is {k}; give at least 1 candidate to re-rank")
    started = time.perf_counter()
    gallery = read_gallery(table, split, max_words, cleaning_of(model))
    with torch.inference_mode():
        image_embeds = model.embed_images(stream_images(table, gallery.rows), batch_size)
        cosines = image_embeds @ embed_protocol_texts(model, gallery.texts).T
        contrastive = retrieval(cosines.numpy(), gallery.captions_of_image)
        if use_itm and can_match(model):
            pairs = _rerank(model, table, gallery, cosines, k, batch_size)
        else:
            scores = cosines.numpy()
            pairs = PairScores(gallery, scores, scores, scores, None)
    ranked = pairs.of_texts, gallery.captions_of_image, pairs.of_images.T
    return RetrievalResult(
        retrieval(*ranked),
        contrastive,
        retrieval_units(*ranked),
        len(gallery.rows),
        len(gallery.texts),
        k,
        time.perf_counter() - started,
        pairs,
    )


def read_gallery(
    table: PairTable, split: str, max_words: int, cleaning: Cleaning | None = None
) -> Gallery:
    """The images of a split that have captions, and their captions as a model reads them.

    Args:
        table: with captions in the split.
        split: which rows.
        max_words: captions are cut to this many.
        cleaning: that of the model's tokenizer; by default the original's.

    Raises:
        DataError: if there is none.
    """
    rows = split_rows(table, split)
    known = table.take(rows, ["id", "captions"])
    captions = known["captions"].to_pylist()
    kept = [number for number, texts in enumerate(captions) if texts]
    if not kept:
        raise DataError(f"{table.uri}: no row of the split {split!r} has a caption")
    clean = (cleaning or Cleaning()).caption
    texts: list[str] = []
    captions_of_image = []
    for number in kept:
        first = len(texts)
        texts += [clean(text, max_words) for text in captions[number]]
        captions_of_image.append(list(range(first, len(texts))))
    ids = known["id"].to_pylist()
    return Gallery(rows[kept], [ids[number] for number in kept], texts, captions_of_image)


def _rerank(
    blip: Blip, table: PairTable, gallery: Gallery, cosines: Tensor, k: int, batch_size: int
) -> PairScores:
    """The candidates of ITC ranked by ITM."""
    of_image, of_text = candidates(cosines, k, dim=1), candidates(cosines, k, dim=0)
    wanted = of_image | of_text
    tokens = tokens_to_match(blip, gallery.texts)
    scores, itm = torch.empty_like(cosines), torch.empty_like(cosines)
    first = 0
    with Progress("matching", total=int(wanted.sum()), unit="pairs") as progress:
        for images in every_image(table, gallery.rows, batch_size, blip.image_size):
            own = slice(first, first + len(images))
            memory = blip.encode(images).encoder_memory
            scores[own], itm[own] = matching_scores(blip, memory, tokens, cosines[own], wanted[own])
            progress.update(int(wanted[own].sum()))
            first += len(images)
    return PairScores(
        gallery,
        cosines.numpy(),
        torch.where(of_image, scores, NOT_RANKED).numpy(),
        torch.where(of_text, scores, NOT_RANKED).numpy(),
        itm.numpy(),
    )
