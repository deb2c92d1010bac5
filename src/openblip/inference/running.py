"""The decoder while texts grow: it holds what earlier tokens left behind."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from openblip.errors import RecipeError
from openblip.inference.finite import finite
from openblip.model import ImageMemory, KeyValueCache, TextPass
from openblip.model.text import TextStack


class RunningDecoder:
    """Next-token logits of texts that grow by one token a step.

    Rows are grouped by image, so that all texts of an image read one set of cross-attention keys
    and values. Texts that are finished leave with `select`.
    """

    def __init__(self, text: TextStack, memory: ImageMemory, max_length: int) -> None:
        """Prepares texts of up to `max_length` ids about the images of `memory`.

        Raises:
            RecipeError: if the model has no positions for such long texts.
        """
        limit = text.config.max_positions
        if max_length > limit:
            raise RecipeError(f"max_length is {max_length}; this model has {limit} positions")
        self._text = text
        self._memory = memory
        self._max_length = max_length
        self._cache: KeyValueCache | None = None
        self.device = memory.keys[0].device

    def start(
        self, prompt_ids: Int[Tensor, "images prompt"], texts_per_image: int
    ) -> Float[Tensor, "rows vocab"]:
        """Logits of the first token behind the prompt; the rows of an image are equal.

        The prompt is read in one pass, once per image, and its cache is then copied to the rows.
        """
        images = prompt_ids.shape[0]
        self._cache = KeyValueCache.empty(
            self._text.config, images, self._max_length, self.device, self._memory.keys[0].dtype
        )
        logits = self._logits(prompt_ids)
        if texts_per_image > 1:
            rows = torch.arange(images).repeat_interleave(texts_per_image).to(self.device)
            self._cache = self._cache.select(rows)
            logits = logits.index_select(0, rows)
        return logits

    def step(self, ids: Int[Tensor, " rows"]) -> Float[Tensor, "rows vocab"]:
        """Logits of the token behind these."""
        return self._logits(ids[:, None])

    def select(self, rows: Int[Tensor, " new_rows"], images: Int[Tensor, " new_images"]) -> None:
        """Go on with the texts `rows` about the images `images`, both counted as they stand."""
        assert self._cache is not None, "start comes before select"
        if not _is_everything(rows, self._cache.keys.shape[1]):
            self._cache = self._cache.select(rows.to(self.device))
        if not _is_everything(images, self._memory.images):
            self._memory = self._memory.select(images.to(self.device))

    def _logits(self, ids: Int[Tensor, "rows tokens"]) -> Float[Tensor, "rows vocab"]:
        texts = TextPass(ids.to(self.device), memory=self._memory, causal=True)
        (hidden,) = self._text(texts, cache=self._cache)
        # The vocabulary is the widest layer: only the last token needs it.
        return finite(self._text.logits(hidden[:, -1:])[:, 0].float(), "next-token logits")


def remaining(unfinished: Sequence[bool]) -> Int[Tensor, " kept"]:
    """Places of the images that stay in the batch: the unfinished ones, or for a while all.

    The keys and values of an image at 384 px take 42 MB in the base size. Copying those of the
    remaining images costs about as much as two steps for them, so that a few finished images among
    many are carried along until a quarter is finished.
    """
    leave = 4 * sum(unfinished) <= 3 * len(unfinished)
    return torch.tensor([place for place, stays in enumerate(unfinished) if stays or not leave])


def _is_everything(index: Tensor, size: int) -> bool:
    return len(index) == size and bool((index == torch.arange(size)).all())
