"""Generation of texts about images: greedy, beam search, nucleus sampling."""

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from openblip.data.tokenizer import SpecialTokens
from openblip.errors import RecipeError
from openblip.inference.beam import beam_search
from openblip.inference.decoding import Decoding, Generated
from openblip.inference.running import RunningDecoder
from openblip.inference.sampling import NucleusChoice, likeliest, sample
from openblip.model import ImageMemory
from openblip.model.config import TextConfig
from openblip.model.text import TextStack
from openblip.threads import threads_for

__all__ = ["Decoding", "Generated", "generate"]


@torch.inference_mode()
def generate(
    text: TextStack,
    memory: ImageMemory,
    prompt_ids: Int[Tensor, "images prompt"],
    decoding: Decoding,
    special: SpecialTokens,
    seeds: Sequence[int] | None = None,
    num_captions: int = 1,
) -> list[list[Generated]]:
    """Per image `num_captions` texts: of beam search the best, best first; of nucleus drawn ones.

    Args:
        text: the decoder's stack, in eval mode, with an LM head.
        memory: what the decoder attends to.
        prompt_ids: what the texts begin with, `[DEC]` first; the same length for all images.
        decoding: how tokens are chosen.
        special: `[SEP]` ends a text.
        seeds: one per image; needed by nucleus sampling alone.
        num_captions: texts per image.

    Raises:
        RecipeError: if the settings do not fit the prompt, the model or each other.
    """
    _check(prompt_ids.shape[1], decoding, seeds, num_captions)
    if prompt_ids.shape[0] == 0:
        return []
    decoder = RunningDecoder(text, memory, decoding.max_length)
    with threads_for(_largest_product(text.config, len(prompt_ids), decoding, num_captions)):
        if decoding.method == "nucleus":
            assert seeds is not None
            choice = NucleusChoice(decoding, seeds, num_captions)
            return sample(decoder, prompt_ids, decoding, special.sep, choice, num_captions)
        if decoding.method == "greedy" or decoding.num_beams == 1:
            return sample(decoder, prompt_ids, decoding, special.sep, likeliest)
        return beam_search(decoder, prompt_ids, decoding, special.sep, num_captions)


def _largest_product(
    config: TextConfig, num_images: int, decoding: Decoding, num_captions: int
) -> int:
    """Multiply-adds of a step's largest product, mostly that with the vocabulary."""
    rows = num_images * (decoding.num_beams if decoding.method == "beam" else num_captions)
    return rows * config.width * max(config.vocab_size, config.ffn_width)


def _check(
    prompt_tokens: int, decoding: Decoding, seeds: Sequence[int] | None, num_captions: int
) -> None:
    if num_captions < 1:
        raise RecipeError(f"num_captions is {num_captions}; give 1 or more")
    if decoding.max_length <= prompt_tokens:
        raise RecipeError(
            f"max_length {decoding.max_length} counts the prompt, which has {prompt_tokens} tokens "
            "with [DEC]; give more"
        )
    if decoding.method == "nucleus":
        if seeds is None:
            raise RecipeError("nucleus sampling needs a seed per image")
        return
    most = decoding.num_beams if decoding.method == "beam" else 1
    if num_captions > most:
        raise RecipeError(
            f"num_captions {num_captions} is more than the {most} that this method finds; "
            "raise num_beams with method beam, or use method nucleus"
        )
