"""Captions of encoded images: prompt to ids, generation, ids to text."""

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Int
from torch import Tensor

from openblip.data.tokenizer import TextTokenizer
from openblip.inference.decoding import Decoding, Generated
from openblip.inference.encoded import EncodedImages
from openblip.inference.generation import generate


@dataclass(frozen=True)
class Caption:
    """A generated text about an image."""

    text: str
    """Without the prompt."""
    logprob: float
    """The model's log-probability of what follows the prompt, the end included."""
    token_ids: tuple[int, ...]
    """Prompt, text and, unless the longest length came first, `[SEP]`."""


def caption_encoded(
    encoded: EncodedImages,
    tokenizer: TextTokenizer,
    decoding: Decoding,
    prompt: str,
    seeds: Sequence[int] | None = None,
    num_captions: int = 1,
) -> list[list[Caption]]:
    """A list per image, of `num_captions`; arguments and errors as in `generate`."""
    start_ids = prompt_ids(tokenizer, prompt, encoded.med.config.text.max_positions)
    texts = generate(
        encoded.med.text,
        encoded.decoder_memory,
        start_ids.expand(len(encoded), -1),
        decoding,
        tokenizer.special,
        seeds,
        num_captions,
    )
    start = start_ids.shape[1]
    return [[_caption(tokenizer, text, start) for text in of_image] for of_image in texts]


def prompt_ids(tokenizer: TextTokenizer, prompt: str, most: int) -> Int[Tensor, "1 tokens"]:
    """`[DEC]` and the prompt, without an end."""
    tokens = tokenizer.encode([prompt], most + 1, first="dec")
    return tokens.ids[:, : int(tokens.mask.sum()) - 1]


def _caption(tokenizer: TextTokenizer, text: Generated, start: int) -> Caption:
    # Differs from BLIP: it cuts as many characters as the prompt has, which loses a character
    # where the tokenizer writes the prompt, or what is joined to it, more shortly.
    return Caption(tokenizer.decode(text.token_ids[start:]), text.logprob, text.token_ids)
