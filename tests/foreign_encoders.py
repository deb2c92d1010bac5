"""Image encoders that are not ours, as anybody might write them."""

from functools import partial

import torch
from torch import Tensor, nn


class Convolutions(nn.Module):
    """Images to a grid of states, with batch norms, and layers that it shows."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 8, stride=8)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.GELU())
            for _ in range(2)
        )
        # Kept besides the state: whoever builds this without memory must not lose it.
        self.register_buffer("scale", torch.full((1,), 2.0), persistent=False)
        self.output = nn.Linear(width, width)

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.stem(images)
        for block in self.blocks:
            hidden = hidden + block(hidden)
        states: Tensor = self.output(hidden.flatten(2).transpose(1, 2) * self.scale)
        return states


class FixedSize(nn.Module):
    """Takes images of 32 px alone, and shows no layers."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(3 * 32 * 32, 2 * 12)

    def forward(self, images: Tensor) -> Tensor:
        states: Tensor = self.map(images.flatten(1)).view(-1, 2, 12)
        return states


def wide() -> Convolutions:
    """A wider one."""
    return Convolutions(32)


def unannotated():  # type: ignore[no-untyped-def]  # on purpose
    """Nobody sees what this makes."""
    return Convolutions()


narrow = partial(Convolutions, 8)
