"""State dicts from one layout's names to another's, by a `NameMap`, strictly."""

from collections.abc import Mapping

import torch
from torch import Tensor

from openblip.checkpoints.assembly import Shapes, check_shape
from openblip.checkpoints.original_layout import POSITION_IDS, NameMap, Place
from openblip.runtime.errors import CheckpointError


class StateReader:
    """Takes keys out of a foreign state dict, and notes which are left and which are dropped."""

    def __init__(self, tensors: Mapping[str, Tensor], source: str) -> None:
        """Begins with every key unread."""
        self.tensors = tensors
        self.source = source
        self.unread = set(tensors)
        self.dropped: dict[str, str] = {}

    def take(self, key: str, shape: tuple[int, ...]) -> Tensor:
        """The tensor of a key, which counts as read.

        Raises:
            CheckpointError: if it is missing or of another shape.
        """
        if key not in self.tensors:
            raise CheckpointError(f"{self.source}: missing {key}; is the checkpoint complete?")
        tensor = self.tensors[key]
        check_shape(key, tuple(tensor.shape), shape, self.source)
        self.unread.discard(key)
        return tensor

    def state(self, shapes: Shapes, names: NameMap) -> dict[str, Tensor]:
        """Our state dict, without the weights that the other layout does not have.

        Raises:
            CheckpointError: if a weight is missing, of another shape, or unequal to its tied copy.
        """
        state = {}
        for name, shape in shapes.items():
            places = names.places(name)
            if not places:
                assert name == "temperature", f"no rule for {name}"
                continue
            parts = self.parts(places[0], shape)
            for copy in places[1:]:
                self._drop_tied(places[0], parts, copy, self.parts(copy, shape))
            state[name] = torch.cat(parts) if len(parts) > 1 else parts[0]
        return state

    def parts(self, place: Place, shape: tuple[int, ...]) -> list[Tensor]:
        """What a weight of the shape consists of; all of it counts as read.

        Raises:
            CheckpointError: if a part is missing or of another shape.
        """
        part_shape = (shape[0] // len(place), *shape[1:]) if len(place) > 1 else shape
        return [self.take(key, part_shape) for key in place]

    def _drop_tied(
        self, kept: Place, tensors: list[Tensor], copies: Place, copied: list[Tensor]
    ) -> None:
        for key, tensor, copy, other in zip(kept, tensors, copies, copied, strict=True):
            if not _equal(tensor, other):
                raise CheckpointError(
                    f"{self.source}: {copy} differs from {key}, but the original ties them; the "
                    "checkpoint is not from the original's code as released"
                )
            self.dropped[copy] = f"tied to {key}"

    def drop_position_ids(self, max_positions: int) -> None:
        """Drop the buffers 0, 1, 2, ... of every text stack.

        Raises:
            CheckpointError: if one holds anything else.
        """
        expected = torch.arange(max_positions)[None]
        for key in [key for key in self.unread if key.endswith(POSITION_IDS)]:
            if not _equal(self.take(key, (1, max_positions)), expected):
                raise CheckpointError(f"{self.source}: {key} is not 0, 1, 2, ...")
            self.dropped[key] = "the constant 0, 1, 2, ..."


def write_state(state: Mapping[str, Tensor], names: NameMap) -> dict[str, Tensor]:
    """The weights that the other layout has, under its names; memory is shared, not copied."""
    written: dict[str, Tensor] = {}
    for name, tensor in state.items():
        for place in names.places(name):
            written.update(split_parts(tensor, place))
    return written


def split_parts(tensor: Tensor, place: Place) -> dict[str, Tensor]:
    """The parts of one of our weights by their names in the other layout."""
    parts = tensor.chunk(len(place)) if len(place) > 1 else (tensor,)
    return dict(zip(place, parts, strict=True))


def _equal(tensor: Tensor, other: Tensor) -> bool:
    if tensor.is_meta or other.is_meta or tensor.data_ptr() == other.data_ptr():
        return True
    return torch.equal(tensor, other)
