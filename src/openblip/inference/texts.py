"""Texts that people give to a model, as tokens; what is cut off is said.

Numbers that are none: a model whose weights or outputs are NaN or infinite says so.
"""

import warnings
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from openblip.batches.tokenizer import FirstToken, TextTokenizer, TokenBatch
from openblip.runtime.errors import CheckpointError, RecipeError, TextTruncated

FirstTokenName = Literal["[ENC]", "[CLS]"]
"""First token of a text that a user gives: as BLIP was trained, or as `transformers` reads it."""

_FIRST_TOKENS: dict[str, FirstToken] = {"[ENC]": "enc", "[CLS]": "cls"}
_SHOWN = 30


def encode_texts(
    tokenizer: TextTokenizer, texts: Sequence[str], max_tokens: int, first_token: FirstTokenName
) -> TokenBatch:
    """The texts as a model reads them, one row each; a longer one is cut to `max_tokens`.

    Raises:
        RecipeError: if `first_token` is another one.
    """
    if first_token not in _FIRST_TOKENS:
        raise RecipeError(f"first_token {first_token!r} is not one of [ENC], [CLS]")
    return tokenizer.encode(texts, max_tokens, first=_FIRST_TOKENS[first_token])


def tokens_for(
    tokenizer: TextTokenizer, texts: Sequence[str], max_tokens: int, first_token: FirstTokenName
) -> TokenBatch:
    """`encode_texts` for texts that a person gives: warns once if any had to be cut.

    Args:
        tokenizer: of the model.
        texts: any number, in any language; an empty one is a text without words.
        max_tokens: a longer text is cut to this, first and last token included.
        first_token: the first token.

    Raises:
        RecipeError: if `first_token` is another one.

    Warns:
        TextTruncated: names the first text that was cut, and the word from which on it was.
    """
    tokens = encode_texts(tokenizer, texts, max_tokens, first_token)
    # Only a row that is full may have been cut: the others need no second look.
    full = (tokens.mask.sum(dim=1) == max_tokens).nonzero().flatten().tolist()
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
    if not _all_finite(values):
        bad = int((~torch.isfinite(values)).sum())
        raise CheckpointError(
            f"{bad:,} of {values.numel():,} {what} of the model are NaN or infinite: its weights "
            "are damaged or have exploded in training (or float16 is too narrow for them: give "
            "float32); load another checkpoint"
        )
    return values


def check_weights(model: nn.Module, source: str) -> None:
    """Nothing, if all weights of a model are numbers.

    Raises:
        CheckpointError: some are NaN or infinite; names the first tensor that has such.
    """
    for name, weights in model.state_dict().items():
        if weights.is_floating_point() and not _all_finite(weights):
            bad = int((~torch.isfinite(weights)).sum())
            raise CheckpointError(
                f"{source}: {bad:,} of {weights.numel():,} weights of {name} are NaN or infinite; "
                "the checkpoint is damaged, or its training has diverged: load another one"
            )


def _all_finite(values: Tensor) -> bool:
    # A sum reads the values once and makes none; only one that overflows needs the second look.
    with torch.no_grad():
        return bool(torch.isfinite(values.sum())) or bool(torch.isfinite(values).all())
