"""Is a sentence true of two images (BLIP, section 5.4)."""

import torch
from jaxtyping import Float
from torch import Tensor

from openblip.data.tokenizer import TokenBatch
from openblip.inference.finite import finite
from openblip.model.nlvr import Nlvr


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
