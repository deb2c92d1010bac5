"""Texts that people give to a model, as tokens; what is cut off is said."""

import warnings
from collections.abc import Sequence
from typing import Literal

from openblip.data.tokenizer import FirstToken, TextTokenizer, TokenBatch
from openblip.errors import RecipeError, TextTruncated

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
