"""Captions of encoded images: prompt to ids, generation, ids to text."""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Int
from torch import Tensor

from openblip.data.tokenizer import TextTokenizer
from openblip.errors import RecipeError
from openblip.inference.decoding import Decoding, Generated
from openblip.inference.encoded import EncodedImages
from openblip.inference.generation import generate
from openblip.inference.words import find_words


@dataclass(frozen=True)
class WordConfidence:
    """A word of a caption, and how sure the model was of it."""

    text: str
    probability: float
    """The product of its pieces' probabilities, each given the image and what stands before."""


@dataclass(frozen=True)
class Caption:
    """A generated text about an image."""

    text: str
    """Without the prompt."""
    logprob: float
    """The model's log-probability of what follows the prompt, the end included."""
    token_ids: tuple[int, ...]
    """Prompt, text and, unless the longest length came first, `[SEP]`."""
    words: tuple[WordConfidence, ...] = field(default=(), compare=False)
    """The text's words in their order. The end has no word: the product of the probabilities is
    exp(`logprob`) but for the end's own."""
    reason: str | None = field(default=None, compare=False)
    """Why the text is empty; None where it is not."""


def caption_encoded(
    encoded: EncodedImages,
    tokenizer: TextTokenizer,
    decoding: Decoding,
    prompt: str | Sequence[str],
    seeds: Sequence[int] | None = None,
    num_captions: int = 1,
) -> list[list[Caption]]:
    """A list per image, of `num_captions`; arguments and errors as in `generate`.

    Args:
        encoded: the images.
        tokenizer: of prompt and text.
        decoding: how tokens are chosen; its lengths count each image's own prompt.
        prompt: of all images, or one per image. Images whose prompts have equally many tokens are
            captioned together, so that none is padded: a caption is that of its image and prompt
            alone.
        seeds: one per image.
        num_captions: per image.

    Raises:
        RecipeError: if there are not as many prompts as images.
    """
    prompts = [prompt] * len(encoded) if isinstance(prompt, str) else list(prompt)
    if len(prompts) != len(encoded):
        raise RecipeError(
            f"{len(prompts)} prompts for {len(encoded)} images; give one for all or one per image"
        )
    most = encoded.med.config.text.max_positions
    ids_of = {text: prompt_ids(tokenizer, text, most) for text in dict.fromkeys(prompts)}
    places_of_length: dict[int, list[int]] = defaultdict(list)
    for place, text in enumerate(prompts):
        places_of_length[ids_of[text].shape[1]].append(place)
    captions: list[list[Caption]] = [[] for _ in prompts]
    for start, places in places_of_length.items():
        memory = encoded.decoder_memory
        if len(places) < len(encoded):
            memory = memory.select(torch.tensor(places, device=memory.keys[0].device))
        texts = generate(
            encoded.med.text,
            memory,
            torch.cat([ids_of[prompts[place]] for place in places]),
            decoding,
            tokenizer.special,
            None if seeds is None else [seeds[place] for place in places],
            num_captions,
        )
        for place, of_image in zip(places, texts, strict=True):
            captions[place] = [_caption(tokenizer, text, start) for text in of_image]
    return captions


def prompt_ids(tokenizer: TextTokenizer, prompt: str, most: int) -> Int[Tensor, "1 tokens"]:
    """`[DEC]` and the prompt, without an end."""
    tokens = tokenizer.encode([prompt], most + 1, first="dec")
    return tokens.ids[:, : int(tokens.mask.sum()) - 1]


def caption_ids(tokenizer: TextTokenizer, prompt: str, text: str, most: int) -> list[int]:
    """A given caption as ids: `[DEC]`, prompt, text, `[SEP]`; cut to `most`."""
    start = prompt_ids(tokenizer, prompt, most)[0].tolist()
    tokens = tokenizer.encode([text], most, first="dec")
    return [*start, *tokens.row(0)[1:]][:most]


def _caption(tokenizer: TextTokenizer, text: Generated, start: int) -> Caption:
    # Differs from BLIP: it cuts as many characters as the prompt has, which loses a character
    # where the tokenizer writes the prompt, or what is joined to it, more shortly.
    ids = text.token_ids[start:]
    words = tuple(
        WordConfidence(
            word.text, math.exp(sum(text.token_logprobs[place] for place in word.places))
        )
        for word in find_words(tokenizer, ids)
    )
    written = tokenizer.decode(ids)
    reason = None if written else _why_empty(tokenizer, ids)
    return Caption(written, text.logprob, text.token_ids, words, reason)


def _why_empty(tokenizer: TextTokenizer, ids: Sequence[int]) -> str:
    if set(ids) <= {tokenizer.special.sep}:
        return "the model ended the caption at once"
    what = "[UNK]" if tokenizer.special.unk in ids else "tokens without a text"
    return f"the model wrote nothing but {what}"
