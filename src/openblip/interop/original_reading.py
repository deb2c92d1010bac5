"""What is read of an original checkpoint besides its model."""

from dataclasses import dataclass

from torch import Tensor

from openblip.interop.assembly import Shapes
from openblip.interop.conversion import StateReader
from openblip.interop.original_layout import Momentum, NameMap

_QUEUES = ("image_queue", "text_queue", "idx_queue")


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


class OriginalReader(StateReader):
    """Reads what the originals alone store: a momentum model's idle parts, and queues."""

    def has_teacher(self) -> bool:
        """Whether there is anything of a momentum model."""
        return any(key.split(".")[0].endswith("_m") for key in self.tensors)

    def has_queues(self, momentum: Momentum) -> bool:
        """Whether there is anything of the queues."""
        return bool({*_QUEUES, momentum.queue_position} & set(self.tensors))

    def drop_unused_teacher(self, shapes: Shapes, momentum: Momentum) -> None:
        """Leave out what the momentum model has and never runs; the student's shapes are its.

        Raises:
            CheckpointError: if a key is missing or of another shape.
        """
        names = NameMap(momentum.unused)
        for name, shape in shapes.items():
            for place in names.places(name):
                self.parts(place, shape)
                for key in place:
                    self.dropped[key] = "cross-attention of the teacher: updated, but never run"

    def queues(self, momentum: Momentum, embed_dim: int) -> OriginalQueues:
        """The queues, in our orientation.

        Raises:
            CheckpointError: if a key is missing or of another shape.
        """
        size = self.tensors["image_queue"].shape[-1] if "image_queue" in self.tensors else 0
        images = self.take("image_queue", (embed_dim, size))
        texts = self.take("text_queue", (embed_dim, size))
        pointer = self.take(momentum.queue_position, (1,))
        ids = self.take("idx_queue", (1, size))[0] if momentum.has_image_ids else None
        position = 0 if pointer.is_meta else int(pointer.nan_to_num())
        return OriginalQueues(images.T.contiguous(), texts.T.contiguous(), position, ids)
