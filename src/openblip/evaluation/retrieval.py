"""Image-text retrieval: ranking by contrast, then by matching (BLIP, section 5.1).

What stands below the protocol is what classification and video share with it: the candidates that
contrast chooses, and the scores by which matching ranks them again.
"""

import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeGuard

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from openblip.batches.images import every_image
from openblip.batches.text import Cleaning
from openblip.batches.tokenizer import TokenBatch
from openblip.checkpoints.families import family_of
from openblip.evaluation.results import UnitScores, retrieval_units, save_json
from openblip.evaluation.settings import Ranking, RetrievalSettings
from openblip.inference.blip import Blip
from openblip.inference.embedder import Embedder
from openblip.inference.matching import match_logits
from openblip.metrics import retrieval
from openblip.model import ImageMemory
from openblip.runtime.errors import DataError, RecipeError, TextTruncated
from openblip.runtime.progress import Progress
from openblip.sources.row_images import check_reachable, stream_images
from openblip.table.table import PairTable
from openblip.table.views import split_rows

# Candidates of a list: as many as the largest k of a recall.
_LISTED = 10


@dataclass(frozen=True)
class Rankings:
    """The best texts of every image and the best images of every text, best first."""

    image_ids: list[str]
    """Row ids of the images."""
    texts: list[str]
    """All texts."""
    captions_of_image: list[list[int]]
    """For each image the positions of its captions in `texts`."""
    texts_of_image: Tensor
    """int64 (images, listed), positions in `texts`."""
    text_scores: Tensor
    """(images, listed)."""
    images_of_text: Tensor
    """int64 (texts, listed), positions in `image_ids`."""
    image_scores: Tensor
    """(texts, listed)."""

    def save(self, path: Path) -> None:
        """Write the lists as JSON, in the format of `docs/tasks/retrieval.md`; whole or not at all.

        Raises:
            OSError: if it cannot be written.
        """
        own = {text: image for image, texts in enumerate(self.captions_of_image) for text in texts}
        named = [
            {"text": text, "image_id": self.image_ids[own[number]]}
            for number, text in enumerate(self.texts)
        ]
        found_texts = [
            [named[text] | {"score": score} for text, score in row]
            for row in _pairs(self.texts_of_image, self.text_scores)
        ]
        found_images = [
            [{"image_id": self.image_ids[image], "score": score} for image, score in row]
            for row in _pairs(self.images_of_text, self.image_scores)
        ]
        values = {
            "texts_of_image": dict(zip(self.image_ids, found_texts, strict=True)),
            "images_of_text": [
                text | {"images": images} for text, images in zip(named, found_images, strict=True)
            ],
        }
        save_json(path, values)


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
    match_weight: float | None = None
    """What the log-odds of the match counted, where that was found on another split."""

    @property
    def rankings(self) -> Rankings:
        """The first candidates of every image and of every text."""
        return _rankings(self.pairs, _LISTED if self.pairs.itm is None else min(_LISTED, self.k))


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
    k: int = RetrievalSettings.k,
    batch_size: int = RetrievalSettings.batch_size,
    max_words: int = RetrievalSettings.max_words,
    ranking: Ranking = RetrievalSettings.ranking,
    weigh_on: str | None = RetrievalSettings.weigh_on,
    use_itm: bool = True,
) -> RetrievalResult:
    """Text and image recall on the protocol of COCO and Flickr30k (several captions an image).

    ITC ranks all pairs; the k best texts of each image and the k best images of each text are
    ranked again by ITM logit + cosine (of ALBEF by the logit alone), or as `ranking` says. Pairs
    are grouped by image, so that each image's cross-attention keys and values are computed once,
    however many texts it is paired with. Where the model does not match, contrast decides alone.

    The model is a `Blip` with an ITC head, and an ITM head if it is to re-rank, or another one that
    embeds images and texts; the table has human captions in the split. `use_itm=False` lets ITC
    decide alone, whatever the model can do. Other keywords are fields of `RetrievalSettings`.

    Raises:
        DataError: the split is empty or an image cannot be read.
        MissingExtra: an image lies in an object store, whose packages are not installed.
        MissingHead: the model has no ITC head.
        RecipeError: a number is too small, or `weigh_on` is the split itself.
    """
    settings = RetrievalSettings(
        k=k, batch_size=batch_size, max_words=max_words, ranking=ranking, weigh_on=weigh_on
    )
    if weigh_on == split:
        raise RecipeError(
            f"weigh_on is {split!r}, the split that is evaluated: its answers would choose the "
            "weight; give another one"
        )
    started = time.perf_counter()
    weight = None
    if weigh_on is not None and use_itm and can_match(model):
        plain = vars(replace(settings, weigh_on=None))
        other = evaluate_retrieval(model, table, split=weigh_on, **plain)
        weight = fit_match_weight(other.pairs, float(model.matcher.temperature.detach()))
    gallery = read_gallery(table, split, max_words, cleaning_of(model))
    check_reachable(table, gallery.rows)
    with torch.inference_mode():
        image_embeds = model.embed_images(stream_images(table, gallery.rows), batch_size)
        cosines = image_embeds @ embed_protocol_texts(model, gallery.texts).T
        contrastive = retrieval(cosines.numpy(), gallery.captions_of_image)
        if use_itm and ranking != "contrast" and can_match(model):
            pairs = _rerank(model, table, gallery, cosines, settings, weight)
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
        weight,
    )


def fit_match_weight(pairs: PairScores, temperature: float) -> float:
    """What the log-odds of the match should count beside the contrast's logit: 0 for nothing.

    Each image chooses among the texts that were matched with it, and each text among the images,
    by a softmax over a (cosine / temperature) + b (log-odds). Both factors are those by which the
    right ones are likeliest; told is b / a. A head that is surer than it should be has a small one.

    Args:
        pairs: of a split that is not evaluated, ranked by both heads (`combined`).
        temperature: the model's, of contrast.

    Raises:
        DataError: no right pair was matched.
    """
    assert pairs.itm is not None, "nothing was matched"
    images, texts = (~np.isnan(pairs.itm)).nonzero()
    cosines = torch.from_numpy(pairs.cosines[images, texts]).double() / temperature
    # A pair that was a candidate in one direction alone has its score there, and less elsewhere.
    scores = np.maximum(pairs.of_texts[images, texts], pairs.of_images[images, texts])
    odds = torch.from_numpy(scores).double() - cosines
    image_of_text = np.empty(len(pairs.gallery.texts), dtype=np.int64)
    for image, own in enumerate(pairs.gallery.captions_of_image):
        image_of_text[own] = image
    is_right = torch.from_numpy(image_of_text[texts] == images)
    if not is_right.any():
        raise DataError("no caption was among the candidates of its image: nothing to weigh by")
    choosers = [torch.from_numpy(images), torch.from_numpy(texts)]
    # Logarithms, so that neither factor is negative.
    factors = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    descent = torch.optim.LBFGS([factors], max_iter=100, line_search_fn="strong_wolfe")

    def surprise() -> Tensor:
        descent.zero_grad()
        of_contrast, of_match = factors.exp()
        logits = of_contrast * cosines + of_match * odds
        loss = torch.stack([_surprise(logits, chooser, is_right) for chooser in choosers]).sum()
        loss.backward()  # type: ignore[no-untyped-call]  # torch
        return loss

    with torch.enable_grad():
        descent.step(surprise)  # type: ignore[no-untyped-call]  # torch
    return float((factors[1] - factors[0]).detach().exp())


def _surprise(logits: Tensor, chooser: Tensor, is_right: Tensor) -> Tensor:
    """Mean of -log P(a right one) over the choosers that have one among their candidates.

    Args:
        logits: (pairs,).
        chooser: (pairs,), who chooses the pair.
        is_right: (pairs,).
    """
    count = int(chooser.max()) + 1

    def log_sums(logits: Tensor, chooser: Tensor) -> Tensor:
        most = logits.new_full((count,), -torch.inf).scatter_reduce(0, chooser, logits, "amax")
        shifted = (logits - most.detach()[chooser]).exp()
        return most.detach() + torch.zeros_like(most).index_add(0, chooser, shifted).log()

    right = chooser[is_right]
    able = torch.unique(right)
    return (log_sums(logits, chooser)[able] - log_sums(logits[is_right], right)[able]).mean()


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
    blip: Blip,
    table: PairTable,
    gallery: Gallery,
    cosines: Tensor,
    settings: RetrievalSettings,
    match_weight: float | None,
) -> PairScores:
    """The candidates of ITC ranked by ITM."""
    of_image, of_text = (candidates(cosines, settings.k, dim) for dim in (1, 0))
    # A pair that both directions want is matched once.
    wanted = of_image | of_text
    tokens = tokens_to_match(blip, gallery.texts)
    scores, itm = torch.empty_like(cosines), torch.empty_like(cosines)
    first = 0
    with Progress("matching", total=int(wanted.sum()), unit="pairs") as progress:
        for images in every_image(table, gallery.rows, settings.batch_size, blip.image_size):
            own = slice(first, first + len(images))
            memory = blip.encode(images).encoder_memory
            scores[own], itm[own] = matching_scores(
                blip,
                memory,
                tokens,
                cosines[own],
                wanted[own],
                settings.ranking,
                1.0 if match_weight is None else match_weight,
            )
            progress.update(int(wanted[own].sum()))
            first += len(images)
    # Of a low temperature logits may lie below any fixed number.
    unranked = min(NOT_RANKED, float(scores[wanted].min()) - 1.0)
    return PairScores(
        gallery,
        cosines.numpy(),
        # A pair may be matched for one direction alone: in the other it was no candidate.
        torch.where(of_image, scores, unranked).numpy(),
        torch.where(of_text, scores, unranked).numpy(),
        itm.numpy(),
    )


NOT_RANKED = -100.0
"""Score of a pair that is not matched, below every matched one (as the original)."""


def can_match(model: Embedder) -> TypeGuard[Blip]:
    """Whether the model has an ITM head; one of others has contrast alone."""
    return isinstance(model, Blip) and model.can_match


def cleaning_of(model: Embedder) -> Cleaning:
    """How texts are cleaned for a model: as its tokenizer says; for one of others as for BLIP."""
    return model.tokenizer.cleaning if isinstance(model, Blip) else Cleaning()


def embed_protocol_texts(model: Embedder, texts: Sequence[str]) -> Tensor:
    """Embeddings (texts, embed); a text is cut to what the model reads without a warning."""
    with warnings.catch_warnings():
        # The protocol cuts texts anyway, to `max_words`.
        warnings.simplefilter("ignore", TextTruncated)
        return model.embed_texts(texts)


def tokens_to_match(blip: Blip, texts: Sequence[str]) -> TokenBatch:
    """Texts as the model matches them: `[ENC]` first, of ALBEF `[CLS]`."""
    blip.require("itm")
    fuses = family_of(blip.model).fuses
    return blip.tokenizer.encode(texts, blip.max_tokens, first="cls" if fuses else "enc")


def candidates(cosines: Tensor, k: int, dim: int) -> Tensor:
    """Which pairs are among the k best along a dimension, bool like `cosines`."""
    # Places instead of a threshold: with equal scores a threshold would let in more than k.
    best = cosines.topk(min(k, cosines.shape[dim]), dim=dim).indices
    return torch.zeros_like(cosines, dtype=torch.bool).scatter_(dim, best, True)


def unmatched_scores(cosines: Tensor) -> Tensor:
    """Scores of pairs that are not matched, float64: behind all others, in the order of ITC."""
    return cosines.double() + NOT_RANKED


def matching_scores(
    blip: Blip,
    memory: ImageMemory,
    tokens: TokenBatch,
    cosines: Tensor,
    wanted: Tensor,
    ranking: Ranking = "original",
    match_weight: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Scores by which wanted pairs are ranked again, and their probabilities of a match.

    Both are (images, texts) like `cosines`, and NaN where a pair is not wanted. A score is the ITM
    logit + cosine, as the original ranks (of ALBEF the logit alone), or the sum of the logits of
    both heads.

    Negatives are drawn in proportion to exp(cosine / temperature): what tells matches from them is
    what contrast does not know. So log-odds and cosine / temperature add up to how much likelier
    a text is given the image; the cosine itself is next to nothing beside a logit.

    Args:
        blip: with an ITM head.
        memory: keys and values of the images.
        tokens: all texts, from `tokens_to_match`.
        cosines: (images, texts), on the CPU.
        wanted: bool (images, texts), which pairs are matched.
        ranking: "original" or "combined".
        match_weight: what the log-odds count, "combined".

    Raises:
        MissingHead: the model cannot match.
    """
    scores = torch.full_like(cosines, torch.nan)
    probabilities = scores.clone()
    chosen = [row.nonzero()[:, 0].tolist() for row in wanted]
    adds_cosine = not family_of(blip.model).fuses
    temperature = float(blip.matcher.temperature) if ranking == "combined" else 1.0
    for image, logits in enumerate(match_logits(blip.matcher, memory, tokens, chosen)):
        texts = chosen[image]
        # ALBEF ranks by its logit alone; BLIP's original adds the cosine to the logit.
        if ranking == "combined":
            odds = logits[:, 1] - logits[:, 0]
            scores[image, texts] = match_weight * odds + cosines[image, texts] / temperature
        else:
            scores[image, texts] = logits[:, 1] + (cosines[image, texts] if adds_cosine else 0.0)
        probabilities[image, texts] = logits.softmax(dim=-1)[:, 1]
    return scores, probabilities


def _rankings(pairs: PairScores, listed: int) -> Rankings:
    """The first candidates of every image and of every text, `listed` if there are so many."""
    gallery = pairs.gallery
    of_texts, of_images = torch.from_numpy(pairs.of_texts), torch.from_numpy(pairs.of_images)
    text_scores, texts = of_texts.topk(min(listed, len(gallery.texts)), dim=1)
    image_scores, images = of_images.T.topk(min(listed, len(gallery.ids)), dim=1)
    return Rankings(
        gallery.ids,
        gallery.texts,
        gallery.captions_of_image,
        texts,
        text_scores,
        images,
        image_scores,
    )


def _pairs(places: Tensor, scores: Tensor) -> Iterator[list[tuple[int, float]]]:
    """For every row its places with their scores."""
    for row in zip(places.tolist(), scores.tolist(), strict=True):
        yield list(zip(*row, strict=True))
