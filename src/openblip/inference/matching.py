"""Scores of texts against images: matching probability and cosine similarity.

And whether a sentence is true of two images (BLIP, section 5.4).
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from openblip.batches.tokenizer import TokenBatch
from openblip.inference.encoding import EncodedImages, finite
from openblip.model import ImageMemory, Med
from openblip.model.albef import Albef
from openblip.model.dual import DualEncoder
from openblip.model.vqa import Nlvr

# Rows of one pass: enough to keep the matrix products busy, few enough for the cache.
_MAX_ROWS = 64
# Multiples of 8 suit the tensor cores of GPUs, and give few different shapes.
_PAD_MULTIPLE = 8

COMPARED_WORDS = 40
"""A sentence about two images is cut to this many words, as in the original's NLVR2 data set."""


@dataclass(frozen=True)
class Match:
    """How well a text describes an image."""

    itm: float
    """Probability that they match, from the image-grounded encoder."""
    itc: float | None
    """Cosine of their embeddings; None where the model has no itc head."""


def memory_for(
    encoded: EncodedImages, texts: TokenBatch, texts_of_image: Sequence[Sequence[int]]
) -> ImageMemory:
    """What certain texts of some images attend to; arguments as of `match_logits`.

    Raises:
        MissingHead: if the model cannot match.
    """
    lengths = texts.mask.sum(dim=1)
    num_tokens = sum(int(lengths[list(rows)].sum()) for rows in texts_of_image)
    return encoded.encoder_memory_for(-(-num_tokens // max(len(encoded), 1)))


def match_probabilities(
    model: Med | Albef,
    memory: ImageMemory,
    texts: TokenBatch,
    texts_of_image: Sequence[Sequence[int]],
) -> list[Float[Tensor, " texts"]]:
    """Per image the probabilities that its texts match it; all else as in `match_logits`."""
    logits = match_logits(model, memory, texts, texts_of_image)
    return [of_image.softmax(dim=-1)[:, 1] for of_image in logits]


@torch.no_grad()
def match_logits(
    model: Med | Albef,
    memory: ImageMemory,
    texts: TokenBatch,
    texts_of_image: Sequence[Sequence[int]],
) -> list[Float[Tensor, "texts 2"]]:
    """Per image the float32 logits of (no match, match) of its texts, on the CPU.

    Images with equally many texts go together, so that every image's keys and values are those of
    `memory`, and no row is there only to fill a shape.

    Args:
        model: in eval mode.
        memory: of the images, for the encoder role.
        texts: all texts, `[ENC]` (or `[CLS]`) first; of an ALBEF `[CLS]`.
        texts_of_image: rows of `texts` that each image is compared with; an image may have none.

    Raises:
        MissingHead: if the model cannot match.
    """
    model.require("itm")
    lengths = texts.mask.sum(dim=1)
    # Neighbours of similar length waste little padding; the image's own order is restored below.
    orders = [lengths[list(rows)].argsort(stable=True).tolist() for rows in texts_of_image]
    results = [torch.zeros(len(rows), 2) for rows in texts_of_image]
    for images in _by_number_of_texts(texts_of_image):
        group = _selected(memory, images)
        count = len(texts_of_image[images[0]])
        width = max(_MAX_ROWS // len(images), 1)
        for start in range(0, count, width):
            places = [orders[image][start : start + width] for image in images]
            rows = [
                texts_of_image[image][place]
                for image, chosen in zip(images, places, strict=True)
                for place in chosen
            ]
            logits = model.match(*_trimmed(model, texts, rows), group).float().cpu()
            parts = finite(logits, "matching logits").view(len(images), -1, 2)
            for image, chosen, part in zip(images, places, parts, strict=True):
                results[image][chosen] = part
    return results


@torch.no_grad()
def embed_texts(model: Med | Albef | DualEncoder, texts: TokenBatch) -> Float[Tensor, "rows embed"]:
    """Unit-length embeddings of texts, `[CLS]` first, in passes of similar length.

    Raises:
        MissingHead: if the model has no itc head.
    """
    order: list[int] = texts.mask.sum(dim=1).argsort(stable=True).tolist()
    embed = torch.cat(
        [
            model.embed_texts(*_trimmed(model, texts, order[start : start + _MAX_ROWS]))
            for start in range(0, len(order), _MAX_ROWS)
        ]
    )
    return finite(embed, "text embeddings")[torch.tensor(order).argsort().to(embed.device)]


def score_texts(
    encoded: EncodedImages,
    texts_of_image: Sequence[Sequence[str]],
    tokens_to_match: Callable[[list[str]], TokenBatch],
    tokens_to_embed: Callable[[list[str]], TokenBatch],
) -> list[list[Match]]:
    """Per image how well its texts describe it; a text that several images have is read once.

    Args:
        encoded: the images.
        texts_of_image: per image any number, also none.
        tokens_to_match: the tokenizer, with the first token of matching.
        tokens_to_embed: the same with `[CLS]`.

    Raises:
        MissingHead: if the model cannot match.
    """
    assert len(texts_of_image) == len(encoded), (
        f"{len(texts_of_image)} lists, {len(encoded)} images"
    )
    texts = list(dict.fromkeys(text for own in texts_of_image for text in own))
    # A web text such as "image" stands with many images, and costs its tokens once.
    row_of = {text: row for row, text in enumerate(texts)}
    rows = [[row_of[text] for text in own] for own in texts_of_image]
    model, tokens = encoded.model, tokens_to_match(texts)
    itm = match_probabilities(model, memory_for(encoded, tokens, rows), tokens, rows)
    cosines: list[list[float]] | None = None
    if texts and encoded.embed is not None:
        cosines = (encoded.embed @ embed_texts(model, tokens_to_embed(texts)).T).tolist()
    return [
        [
            Match(probability, None if cosines is None else cosines[image][row])
            for probability, row in zip(itm[image].tolist(), own, strict=True)
        ]
        for image, own in enumerate(rows)
    ]


def _by_number_of_texts(texts_of_image: Sequence[Sequence[int]]) -> Iterator[list[int]]:
    buckets: dict[int, list[int]] = defaultdict(list)
    for image, rows in enumerate(texts_of_image):
        buckets[len(rows)].append(image)
    buckets.pop(0, None)
    yield from buckets.values()


def _selected(memory: ImageMemory, images: list[int]) -> ImageMemory:
    # Keys and values are the largest tensors here: whole batches are not copied.
    if images == list(range(memory.images)):
        return memory
    return memory.select(torch.tensor(images, device=memory.keys[0].device))


def _trimmed(
    model: Med | Albef | DualEncoder, texts: TokenBatch, rows: list[int]
) -> tuple[Int[Tensor, "rows tokens"], Tensor]:
    """Ids and mask of some texts on the model's device, no wider than the longest of them."""
    index = torch.tensor(rows)
    mask = texts.mask[index]
    longest = int(mask.sum(dim=1).max())
    device = next(model.parameters()).device
    # On a processor every token of padding that attends costs time, and no shape is dear.
    multiple = 1 if device.type == "cpu" else _PAD_MULTIPLE
    width = min(-(-longest // multiple) * multiple, mask.shape[1])
    return texts.ids[index, :width].to(device), mask[:, :width].to(device)


@torch.no_grad()
def compare_images(
    nlvr: Nlvr,
    first_hidden: Float[Tensor, "pairs patches width"],
    second_hidden: Float[Tensor, "pairs patches width"],
    sentences: TokenBatch,
) -> Float[Tensor, " pairs"]:
    """Float32 probability that each sentence is true of its pair of images, on the CPU.

    Args:
        nlvr: the model, in eval mode.
        first_hidden: encoded first images.
        second_hidden: encoded second images.
        sentences: one per pair, `[ENC]` first.
    """
    memory = nlvr.memory(first_hidden, second_hidden)
    device = first_hidden.device
    logits = nlvr.compare(sentences.ids.to(device), sentences.mask.to(device), memory)
    return finite(logits.float(), "comparing logits").softmax(dim=-1)[:, 1].cpu()
