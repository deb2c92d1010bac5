"""Taking an original state dict apart: every key is read, dropped with a reason, or left over."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from openblip.errors import CheckpointError
from openblip.interop.assembly import Shapes, check_shape
from openblip.interop.original_layout import POSITION_IDS, Momentum, NameMap, Place


@dataclass(frozen=True)
class OriginalQueues:
    """Contents of the original's feature queues, in our orientation."""

    image_embed: Tensor
    """(queue, embed), unit length."""
    text_embed: Tensor
    """(queue, embed), unit length."""
    pointer: int
    """Where the next batch is written."""
    image_ids: Tensor | None = None
    """int64 (queue,), of retrieval alone; -100 where no image has been."""


class Reader:
    """Takes keys out of an original state dict and notes which are left.

    Args:
        tensors: the state dict.
        source: what errors name.
    """

    unread: set[str]
    """Keys that nothing has asked for."""
    dropped: dict[str, str]
    """Keys that have no place in ours, with the reason."""

    def __init__(self, tensors: Mapping[str, Tensor], source: str) -> None:
        self.tensors = tensors
        self.source = source
        self.unread = set(tensors)
        self.dropped = {}

    def _take(self, key: str, shape: tuple[int, ...]) -> Tensor:
        if key not in self.tensors:
            raise CheckpointError(f"{self.source}: missing {key}; is the checkpoint complete?")
        tensor = self.tensors[key]
        check_shape(key, tuple(tensor.shape), shape, self.source)
        self.unread.discard(key)
        return tensor

    def state(self, shapes: Shapes, names: NameMap) -> dict[str, Tensor]:
        """Our state dict, without the weights that the original does not have.

        Raises:
            CheckpointError: if a key is missing, of another shape, or unequal to the one that it
                is tied to.
        """
        state = {}
        for name, shape in shapes.items():
            places = names.places(name)
            if not places:
                assert name == "temperature", f"no rule for {name}"
                continue
            parts = self._parts(places[0], shape)
            for copy in places[1:]:
                self._drop_tied(places[0], parts, copy, self._parts(copy, shape))
            state[name] = torch.cat(parts) if len(parts) > 1 else parts[0]
        return state

    def _parts(self, place: Place, shape: tuple[int, ...]) -> list[Tensor]:
        part_shape = (shape[0] // len(place), *shape[1:]) if len(place) > 1 else shape
        return [self._take(key, part_shape) for key in place]

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

    def drop_unused_teacher(self, shapes: Shapes, momentum: Momentum) -> None:
        """Leave out what the momentum model has and never runs; the student's shapes are its.

        Raises:
            CheckpointError: if a key is missing or of another shape.
        """
        names = NameMap(momentum.unused)
        for name, shape in shapes.items():
            for place in names.places(name):
                self._parts(place, shape)
                for key in place:
                    self.dropped[key] = "cross-attention of the teacher: updated, but never run"

    def drop_position_ids(self, max_positions: int) -> None:
        """Leave out the buffers that count positions; they may be absent.

        Raises:
            CheckpointError: if one does something else than count.
        """
        expected = torch.arange(max_positions)[None]
        for key in [key for key in self.unread if key.endswith(POSITION_IDS)]:
            if not _equal(self._take(key, (1, max_positions)), expected):
                raise CheckpointError(f"{self.source}: {key} is not 0, 1, 2, ...")
            self.dropped[key] = "the constant 0, 1, 2, ..."

    def queues(self, momentum: Momentum, embed_dim: int) -> OriginalQueues:
        """The queues, in our orientation.

        Raises:
            CheckpointError: if a key is missing or of another shape.
        """
        size = self.tensors["image_queue"].shape[-1] if "image_queue" in self.tensors else 0
        images = self._take("image_queue", (embed_dim, size))
        texts = self._take("text_queue", (embed_dim, size))
        pointer = self._take(momentum.queue_position, (1,))
        ids = self._take("idx_queue", (1, size))[0] if momentum.has_image_ids else None
        position = 0 if pointer.is_meta else int(pointer)
        return OriginalQueues(images.T.contiguous(), texts.T.contiguous(), position, ids)


def _equal(tensor: Tensor, other: Tensor) -> bool:
    if tensor.is_meta or other.is_meta or tensor.data_ptr() == other.data_ptr():
        return True
    return torch.equal(tensor, other)
