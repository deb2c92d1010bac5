"""What the batches of all tasks have in common."""

from dataclasses import fields, replace
from typing import Any, Self, cast

import torch
from torch import Tensor


class Examples:
    """A batch of some task; each kind is a dataclass of tensors."""

    ids: tuple[str, ...]
    """Ids of the rows or examples, which errors name."""
    step: int
    """Number of the global batch that this is (a part of), from 0."""

    def to(self, device: torch.device) -> Self:
        """The batch on a device; itself if that is the CPU, where batches are made."""
        if device.type == "cpu":
            return self
        values = {f.name: getattr(self, f.name) for f in fields(cast("Any", self))}
        moved = {
            name: value.to(device, non_blocking=True)
            for name, value in values.items()
            if isinstance(value, Tensor)
        }
        return cast("Self", replace(cast("Any", self), **moved))
