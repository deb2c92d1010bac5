"""Image-text matching: which negatives are hard, how one is drawn, and the loss."""

import hashlib

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor


def negative_weights(
    sims: Float[Tensor, "rows candidates"],
    excluded: Bool[Tensor, "rows candidates"],
    floor: float = 0.0,
) -> Float[Tensor, "rows candidates"]:
    """How likely each candidate is as a row's negative: the more similar, the likelier.

    Args:
        sims: similarities of the contrast, divided by the temperature.
        excluded: candidates that are no negative of the row; they get 0.
        floor: added to every other weight (1e-4 in BLIP's pre-training).

    Returns:
        Weights, not normalised; all 0 in a row without a permitted candidate.
    """
    return (sims.float().softmax(dim=1) + floor).masked_fill(excluded, 0.0)


def hard_negatives(
    weights: Float[Tensor, "rows candidates"], uniforms: Float[Tensor, " rows"]
) -> Int[Tensor, " rows"]:
    """One candidate per row, with probability in proportion to its weight (inverse CDF).

    A candidate of weight 0 is never drawn; a row that has no other gets 0, for the caller to
    leave out.

    Args:
        weights: not negative; rows need not sum to 1.
        uniforms: in [0, 1).
    """
    # Weights may be as small as subnormal numbers; their ratios are what counts.
    largest = weights.amax(dim=1, keepdim=True).clamp_min(torch.finfo(weights.dtype).tiny)
    scaled = weights / largest
    # A parallel sum may rise over a zero, hence the second condition.
    reach = scaled.cumsum(dim=1).masked_fill(scaled <= 0, 0.0)
    # Below 1 by half a unit in the last place, so that the product stays below the total.
    below_one = 1.0 - torch.finfo(weights.dtype).eps / 2
    point = uniforms.to(weights.dtype).clamp_max(below_one)[:, None] * reach.amax(1, keepdim=True)
    return (reach > point).to(torch.uint8).argmax(dim=1)


def keyed_uniforms(count: int, *key: int | str) -> Float[Tensor, " count"]:
    """Numbers in [0, 1) that depend on the key alone; on the CPU."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)
    return torch.rand(count, generator=generator)


def itm_loss(
    logits: Float[Tensor, "rows 2"],
    matched: Bool[Tensor, " rows"],
    counted: Bool[Tensor, " rows"],
) -> Float[Tensor, ""]:
    """Cross-entropy of (no match, match), in nats, mean over the counted rows.

    Args:
        logits: of class 0, no match, and class 1, match.
        matched: True for a positive pair.
        counted: False leaves a row out: it stands for a negative that does not exist.
    """
    losses = F.cross_entropy(logits.float(), matched.long(), reduction="none")
    return losses.masked_fill(~counted, 0.0).sum() / counted.sum()
