"""Image-text contrast: similarities, their targets, and the loss."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

UNKNOWN_ID = -1
"""The id of an image or a text of which nothing is known: equal to no other."""


def similarities(
    embed: Float[Tensor, "rows embed"],
    keys: Float[Tensor, "keys embed"],
    temperature: Float[Tensor, ""],
) -> Float[Tensor, "rows keys"]:
    """Cosines of unit vectors, divided by the temperature; in float32 under autocast too."""
    with torch.autocast(embed.device.type, enabled=False):
        return embed.float() @ keys.float().T / temperature.float()


def own_pairs(rows: int, keys: int, first: int, device: torch.device) -> Bool[Tensor, "rows keys"]:
    """True where row r meets the key of its own pair, which is key `first + r`."""
    own = torch.arange(first, first + rows, device=device)
    return own[:, None] == torch.arange(keys, device=device)


def same_id(
    row_ids: Int[Tensor, " rows"], key_ids: Int[Tensor, " keys"]
) -> Bool[Tensor, "rows keys"]:
    """True where row and key have the same known id."""
    return (row_ids[:, None] == key_ids) & (key_ids != UNKNOWN_ID)


def soft_targets(
    teacher_sims: Float[Tensor, "rows keys"], positives: Bool[Tensor, "rows keys"], alpha: float
) -> Float[Tensor, "rows keys"]:
    """The teacher's distribution with weight alpha, the positives' with 1 - alpha.

    ALBEF, section 3.2, as BLIP takes it over: what fits a text besides its own image shall not
    count as wrong.

    Args:
        teacher_sims: similarities of teacher features, divided by the temperature.
        positives: at least one per row; they share its weight equally.
        alpha: in [0, 1].

    Returns:
        Targets whose rows sum to 1.
    """
    hard = positives.float() / positives.sum(dim=1, keepdim=True)
    return alpha * teacher_sims.float().softmax(dim=1) + (1.0 - alpha) * hard


def itc_loss(
    image_sims: Float[Tensor, "rows keys"],
    text_sims: Float[Tensor, "rows keys"],
    image_targets: Float[Tensor, "rows keys"],
    text_targets: Float[Tensor, "rows keys"],
) -> Float[Tensor, ""]:
    """Cross-entropy of images against texts and texts against images, averaged.

    Args:
        image_sims: of images to texts, divided by the temperature.
        text_sims: of texts to images, likewise.
        image_targets: rows sum to 1.
        text_targets: rows sum to 1.

    Returns:
        Nats, mean over rows and both directions.
    """
    image_loss = -(image_sims.float().log_softmax(dim=1) * image_targets).sum(dim=1).mean()
    text_loss = -(text_sims.float().log_softmax(dim=1) * text_targets).sum(dim=1).mean()
    return (image_loss + text_loss) / 2


def ramped(value: float, epoch: float, ramp_epochs: float) -> float:
    """`value` after a linear rise from 0 over the first `ramp_epochs` epochs."""
    return value if epoch >= ramp_epochs else value * epoch / ramp_epochs
