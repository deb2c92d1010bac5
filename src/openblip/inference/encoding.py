"""Images and texts as a model reads them.

Images behind the image encoder, and what is derived from them, computed when first asked for.
Texts as tokens; what is cut off is said. Outputs that are no numbers are refused.
"""

import warnings
from collections.abc import Sequence
from functools import cached_property, partial
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from openblip.batches.tokenizer import FirstToken, TextTokenizer, TokenBatch
from openblip.model import ImageMemory, Med
from openblip.model.albef import Albef
from openblip.model.dual import DualEncoder
from openblip.runtime.errors import CheckpointError, MissingHead, RecipeError, TextTruncated

FirstTokenName = Literal["[ENC]", "[CLS]"]
"""First token of a text that a user gives: as BLIP was trained, or as `transformers` reads it."""

_FIRST_TOKENS: dict[str, FirstToken] = {"[ENC]": "enc", "[CLS]": "cls"}
_SHOWN = 30
# In these, encoder and decoder have one cross-attention (BLIP, table 3).
_SHARED_CROSS_ATTENTION = ("all", "all_but_self_attention")


class EncodedImages:
    """Patch tokens of some images, and their embeddings and cross-attention keys and values.

    Generation and scoring of any number of texts use the same keys and values: for an image of
    384 px in the base size they take 42 MB, and longer to compute than a caption's token. A short
    text or two that are scored read the patch tokens instead.
    """

    def __init__(self, model: Med | Albef, hidden: Float[Tensor, "images patches width"]) -> None:
        self.model = model
        self.hidden = hidden
        # By whether they are the decoder's.
        self._memories: dict[bool, ImageMemory] = {}

    def __len__(self) -> int:
        return len(self.hidden)

    @cached_property
    def embed(self) -> Float[Tensor, "images embed"] | None:
        """Unit-length embeddings; None where the model has no itc head."""
        return embed_images(self.model, self.hidden) if "itc" in self.model.config.heads else None

    @property
    def encoder_memory(self) -> ImageMemory:
        """What any number of texts that are matched attend to: keys and values.

        Raises:
            MissingHead: if the model cannot match.
        """
        return self.encoder_memory_for(None)

    def encoder_memory_for(self, num_tokens: int | None) -> ImageMemory:
        """What texts that are matched attend to: keys and values, or states if that is less work.

        Args:
            num_tokens: of the texts of an image; None is any number.

        Raises:
            MissingHead: if the model cannot match.
        """
        self.model.require("itm")
        config = self.model.config
        # Where both roles have the same weights, their keys and values are the same.
        if "lm" in config.heads and config.text.sharing in _SHARED_CROSS_ATTENTION:
            return self._remembered(num_tokens, causal=True)
        return self._remembered(num_tokens)

    @property
    def decoder_memory(self) -> ImageMemory:
        """What a text that is generated attends to.

        Raises:
            MissingHead: if the model cannot generate.
        """
        self.med.require("lm")
        return self._remembered(None, causal=True)

    @torch.no_grad()
    def _remembered(self, num_tokens: int | None, causal: bool = False) -> ImageMemory:
        if causal in self._memories:
            return self._memories[causal]
        remember = (
            partial(self.med.text.remember, causal=True) if causal else self.model.text.remember
        )
        memory = remember(self.hidden, num_tokens=num_tokens)
        # States are no work that could be lost.
        if memory.is_projected:
            self._memories[causal] = memory
        return memory

    @property
    def med(self) -> Med:
        """The model, which writes texts.

        Raises:
            MissingHead: if it cannot.
        """
        if not isinstance(self.model, Med):
            raise MissingHead("ALBEF writes no texts; load a pre-trained or captioner checkpoint")
        self.model.require("lm")
        return self.model


@torch.no_grad()
def embed_images(
    model: Med | Albef | DualEncoder, hidden: Float[Tensor, "images patches width"]
) -> Float[Tensor, "images embed"]:
    """Unit-length embeddings of encoded images, on the model's device.

    Raises:
        MissingHead: if the model has no itc head.
        CheckpointError: if a number is none.
    """
    return finite(model.embed_images(hidden), "image embeddings")


def as_texts(texts: str | Sequence[str]) -> Sequence[str]:
    """The texts; a single one is a list of one."""
    return [texts] if isinstance(texts, str) else texts


def text_batches(texts: str | Sequence[str], batch_size: int) -> list[Sequence[str]]:
    """The texts, so many at a time.

    Raises:
        RecipeError: if that is none.
    """
    check_batch_size(batch_size)
    every = as_texts(texts)
    return [every[start : start + batch_size] for start in range(0, len(every), batch_size)]


def check_batch_size(batch_size: int) -> None:
    """Nothing, if a batch holds something.

    Raises:
        RecipeError: if not.
    """
    if batch_size < 1:
        raise RecipeError(f"batch_size is {batch_size}; give 1 or more")


def tokens_for(
    tokenizer: TextTokenizer,
    texts: Sequence[str],
    max_tokens: int,
    first_token: FirstTokenName,
    warns: bool = True,
) -> TokenBatch:
    """The texts as a model reads them, one row each.

    Args:
        tokenizer: of the model.
        texts: any number, in any language; an empty one is a text without words.
        max_tokens: a longer text is cut to this, first and last token included.
        first_token: the first token.
        warns: whether something is said of a text that is cut.

    Raises:
        RecipeError: if `first_token` is another one.

    Warns:
        TextTruncated: once, naming the first text that was cut, and the word from which on it was.
    """
    if first_token not in _FIRST_TOKENS:
        raise RecipeError(f"first_token {first_token!r} is not one of [ENC], [CLS]")
    tokens = tokenizer.encode(texts, max_tokens, first=_FIRST_TOKENS[first_token])
    # Only a row that is full may have been cut: the others need no second look.
    full = (tokens.mask.sum(dim=1) == max_tokens).nonzero().flatten().tolist() if warns else []
    cuts = [(row, at) for row in full if (at := tokenizer.cut(texts[row], max_tokens)) is not None]
    if cuts:
        row, at = cuts[0]
        warnings.warn(_told(texts[row], at, row, len(cuts), max_tokens), TextTruncated, 2)
    return tokens


def _told(text: str, at: int, row: int, num_cut: int, max_tokens: int) -> str:
    before = text[:at].split()
    # A word whose beginning was read counts as the one at which the text is cut.
    is_inside = at > 0 and not text[at - 1].isspace() and not text[at].isspace()
    # What a tokenizer takes for a piece may be white space to Python, also the only one.
    words = text.split() or [text]
    number = min(len(before) + (not is_inside), len(words))
    word = words[number - 1]
    shown = word if len(word) <= _SHOWN else f"{word[:_SHOWN]}..."
    others = f", and {num_cut - 1} more" if num_cut > 1 else ""
    return (
        f"text {row + 1} is cut at its word {number}, {shown!r}{others}: the model reads "
        f"{max_tokens} tokens; make the text shorter if the rest matters"
    )


def finite(values: Tensor, what: str) -> Tensor:
    """The values themselves, if all of them are numbers.

    Args:
        values: outputs of a model, of any shape.
        what: they are, in the plural.

    Raises:
        CheckpointError: some are NaN or infinite.
    """
    if not all_finite(values):
        bad = int((~torch.isfinite(values)).sum())
        raise CheckpointError(
            f"{bad:,} of {values.numel():,} {what} of the model are NaN or infinite: its weights "
            "are damaged or have exploded in training (or float16 is too narrow for them: give "
            "float32); load another checkpoint"
        )
    return values


def all_finite(values: Tensor) -> bool:
    """Whether none of the values is NaN or infinite."""
    # A sum reads the values once and makes none; only one that overflows needs the second look.
    with torch.no_grad():
        return bool(torch.isfinite(values.sum())) or bool(torch.isfinite(values).all())
