"""Image-text contrast: similarities, their targets, the loss, the queue and the teacher.

The teacher is a slow copy of the student, whose features supervise the contrast; the queue has
those of recent batches, as further keys.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

UNKNOWN_ID = -1
"""The id of an image or a text of which nothing is known: equal to no other."""


def similarities(
    embed: Float[Tensor, "rows embed"],
    keys: Float[Tensor, "keys embed"],
    temperature: Float[Tensor, ""],
) -> Float[Tensor, "rows keys"]:
    """Cosines of unit vectors, divided by the temperature; in float32 under autocast too."""
    # Divided by a temperature of 0.07 or less, bfloat16's rounding (0.2 %) would show.
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


class FeatureQueue(nn.Module):
    """A ring of unit-length image and text features and their ids (MoCo; ALBEF, section 3.2).

    As in the original it begins full, of random directions. Its buffers are saved with a
    checkpoint.

    Args:
        size: pairs held; 0 holds none, and the batch alone gives the keys.
        embed_dim: dimensions of a feature.
        seed: of the random directions.
    """

    image_embed: Float[Tensor, "queue embed"]
    text_embed: Float[Tensor, "queue embed"]
    image_ids: Int[Tensor, " queue"]
    text_ids: Int[Tensor, " queue"]
    pointer: Int[Tensor, ""]

    def __init__(self, size: int, embed_dim: int, seed: int) -> None:
        super().__init__()
        self.size = size
        generator = torch.Generator().manual_seed(seed)
        for name in ("image_embed", "text_embed"):
            directions = torch.randn(size, embed_dim, generator=generator, device="cpu")
            self.register_buffer(name, F.normalize(directions, dim=1))
        for name in ("image_ids", "text_ids"):
            self.register_buffer(name, torch.full((size,), UNKNOWN_ID))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def push(
        self,
        image_embed: Float[Tensor, "batch embed"],
        text_embed: Float[Tensor, "batch embed"],
        image_ids: Int[Tensor, " batch"],
        text_ids: Int[Tensor, " batch"],
    ) -> None:
        """Replace the oldest pairs, wrapping around; of more than `size` the last ones stay."""
        if self.size == 0:
            return
        # Places differ from each other: `index_copy_` with equal ones would be in no order.
        pairs = image_embed.shape[0]
        kept = min(pairs, self.size)
        steps = torch.arange(pairs - kept, pairs, device=self.pointer.device)
        places = (self.pointer + steps) % self.size
        self.image_embed.index_copy_(0, places, image_embed[-kept:].to(self.image_embed.dtype))
        self.text_embed.index_copy_(0, places, text_embed[-kept:].to(self.text_embed.dtype))
        self.image_ids.index_copy_(0, places, image_ids[-kept:])
        self.text_ids.index_copy_(0, places, text_ids[-kept:])
        self.pointer.add_(pairs).remainder_(self.size)


@torch.no_grad()
def update_teacher(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """Move the teacher's parameters to `momentum * teacher + (1 - momentum) * student`.

    ALBEF, section 3.2 (there xi = 0.995), after MoCo.

    Args:
        teacher: changed in place; its parameters' names are among the student's.
        student: not changed.
        momentum: in [0, 1]; 0 copies the student.
    """
    # By name: the student has heads that the teacher lacks. There are hundreds: one call for all.
    online = dict(student.named_parameters())
    slow = dict(teacher.named_parameters())
    torch._foreach_lerp_(list(slow.values()), [online[name] for name in slow], 1.0 - momentum)
