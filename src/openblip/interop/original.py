"""Conversion between the original BLIP's checkpoints and ours, both ways and strictly.

Every key is either converted, or dropped with a reason that the result names, or an error.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openblip.errors import CheckpointError
from openblip.interop.assembly import Shapes, check_names, fill, shapes_of
from openblip.interop.conversion import StateReader, split_parts, write_state
from openblip.interop.original_layout import (
    POSITION_IDS,
    QUEUE_POSITION,
    SECTIONS,
    TEACHER_SECTIONS,
    UNUSED_TEACHER_SECTION,
    Kind,
    NameMap,
)
from openblip.interop.original_sizes import (
    AnyConfig,
    detect_kind,
    empty_model,
    heads_of,
    infer_config,
)
from openblip.model import Med, MedConfig
from openblip.model.nlvr import Nlvr
from openblip.model.vqa import Vqa

# Queue length of the released checkpoints.
_QUEUE_SIZE = 57600
_SHARING = "all_but_self_attention"


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


@dataclass(frozen=True)
class OriginalCheckpoint:
    """An original checkpoint in our names."""

    kind: Kind
    """Which of the original's models it is."""
    config: AnyConfig
    """Sizes of the model."""
    student: dict[str, Tensor]
    """State of the model; not copied from the input where the names map one to one."""
    teacher: dict[str, Tensor] | None
    """State of the momentum model, a `Med` with the head itc; None where the kind has none."""
    queues: OriginalQueues | None
    """None where the kind has none."""
    dropped: dict[str, str]
    """Keys that have no place in ours, with the reason."""
    source: str
    """What errors name."""

    def model(self) -> nn.Module:
        """The `Med`, `Vqa` or `Nlvr`, whose weights are the tensors of `student` themselves."""
        return fill(empty_model(self.config), self.student, self.source)

    def med(self) -> Med:
        """The model, of a kind that is a `Med`.

        Raises:
            CheckpointError: for a question-answering or two-image checkpoint.
        """
        model = self.model()
        if not isinstance(model, Med):
            raise CheckpointError(
                f"{self.source}: a {self.kind} checkpoint; expected a pre-trained, caption, "
                "retrieval or itm one"
            )
        return model

    def teacher_med(self) -> Med:
        """The momentum model, whose weights are the tensors of `teacher` themselves.

        Raises:
            CheckpointError: if the kind has none.
        """
        if self.teacher is None or not isinstance(self.config, MedConfig):
            raise CheckpointError(
                f"{self.source}: a {self.kind} checkpoint has no momentum model; load a "
                "pre-trained or retrieval one"
            )
        teacher = empty_model(replace(self.config, heads=("itc",)))
        assert isinstance(teacher, Med)
        return fill(teacher, self.teacher, self.source)


def from_original(
    tensors: Mapping[str, Tensor],
    source: str = "the checkpoint",
    *,
    vision_heads: int | None = None,
    text_heads: int | None = None,
) -> OriginalCheckpoint:
    """The checkpoint in our names; tensors on the meta device are checked by shape alone.

    Args:
        tensors: the original's state dict.
        source: what errors name, usually the file.
        vision_heads: attention heads, which no shape shows; one per 64 channels by default.
        text_heads: the same for the text.

    Raises:
        CheckpointError: if a key is missing, unknown, of another shape, or unequal to the one
            that it is tied to; nothing is left out silently, positions of another image size
            neither.
    """
    kind = detect_kind(tensors, source)
    config = infer_config(kind, tensors, source, vision_heads, text_heads)
    reader = _Reader(tensors, source)
    student = reader.state(shapes_of(empty_model(config)), NameMap(SECTIONS[kind]))
    if kind == "itm":
        # The original's class for matching has no temperature, and its scores use none.
        student["temperature"] = torch.tensor(0.07)
    teacher, queues = None, None
    if kind in QUEUE_POSITION:
        assert isinstance(config, MedConfig)
        teacher_shapes = shapes_of(empty_model(replace(config, heads=("itc",))))
        teacher = reader.state(teacher_shapes, NameMap(TEACHER_SECTIONS))
        teacher["temperature"] = student["temperature"]
        reader.drop_unused_teacher(shapes_of(empty_model(config)))
        queues = reader.queues(kind, config.embed_dim)
    reader.drop_position_ids(config.text.max_positions)
    check_names(set(), reader.unread, source)
    return OriginalCheckpoint(kind, config, student, teacher, queues, reader.dropped, source)


class _Reader(StateReader):
    """Reads what is the original's alone: the teacher's unused part, and the queues."""

    def drop_unused_teacher(self, shapes: Shapes) -> None:
        names = NameMap((UNUSED_TEACHER_SECTION,))
        for name, shape in shapes.items():
            for place in names.places(name):
                self.parts(place, shape)
                for key in place:
                    self.dropped[key] = "cross-attention of the teacher: updated, but never run"

    def queues(self, kind: Kind, embed_dim: int) -> OriginalQueues:
        size = self.tensors["image_queue"].shape[-1] if "image_queue" in self.tensors else 0
        images = self.take("image_queue", (embed_dim, size))
        texts = self.take("text_queue", (embed_dim, size))
        pointer = self.take(QUEUE_POSITION[kind], (1,))
        ids = self.take("idx_queue", (1, size))[0] if kind == "retrieval" else None
        position = 0 if pointer.is_meta else int(pointer)
        return OriginalQueues(images.T.contiguous(), texts.T.contiguous(), position, ids)


def to_original(
    model: Med | Vqa | Nlvr,
    kind: Kind | None = None,
    *,
    teacher: Med | None = None,
    queues: OriginalQueues | None = None,
) -> dict[str, Tensor]:
    """The original's complete state dict of a model; tensors are shared with it, not copied.

    Args:
        model: what is written.
        kind: as which of the original's models; by default as the one with all its heads.
        teacher: momentum model; by default, and for its cross-attention always, the model's own
            weights, as where the original begins.
        queues: by default random unit vectors, as where the original begins.

    Raises:
        MissingHead: if the model lacks a head that the kind has.
        CheckpointError: if the kind is of another model, or the decoder shares other parts than
            in the original.
    """
    kind = kind or _natural_kind(model)
    _check_fits(model, kind)
    state = model.state_dict()
    written = write_state(state, NameMap(SECTIONS[kind]))
    if kind in QUEUE_POSITION:
        assert isinstance(model, Med)
        names = NameMap((*TEACHER_SECTIONS, UNUSED_TEACHER_SECTION))
        written |= write_state(state | (teacher.state_dict() if teacher else {}), names)
        written |= _write_queues(kind, queues or _initial_queues(model.config.embed_dim))
    positions = torch.arange(model.config.text.max_positions)[None]
    word_embeddings = ".embeddings.word_embeddings.weight"
    for key in [key for key in written if key.endswith(word_embeddings)]:
        written[key.removesuffix(word_embeddings) + POSITION_IDS] = positions
    return written


def export_gradients(
    gradients: Mapping[str, Tensor | None], kind: Kind
) -> dict[str, Tensor | None]:
    """Gradients by the original's parameter names; a tied parameter appears once, as there.

    Args:
        gradients: of a model's parameters by our names; None where there is none.
        kind: which of the original's models they are compared with.

    Raises:
        CheckpointError: if a name is not part of that model.
    """
    names = NameMap(SECTIONS[kind])
    exported: dict[str, Tensor | None] = {}
    for name, gradient in gradients.items():
        places = names.places(name)
        if not places:
            raise CheckpointError(f"{name} is not a parameter of the original's {kind} model")
        whole = dict.fromkeys(places[0]) if gradient is None else split_parts(gradient, places[0])
        exported.update(whole)
    return exported


def _write_queues(kind: Kind, queues: OriginalQueues) -> dict[str, Tensor]:
    written = {
        "image_queue": queues.image_embed.T.contiguous(),
        "text_queue": queues.text_embed.T.contiguous(),
        QUEUE_POSITION[kind]: torch.tensor([queues.pointer]),
    }
    if kind == "retrieval":
        unknown = torch.full((len(queues.image_embed),), -100)
        ids = unknown if queues.image_ids is None else queues.image_ids
        written["idx_queue"] = ids[None]
    return written


def _initial_queues(embed_dim: int) -> OriginalQueues:
    generator = torch.Generator().manual_seed(0)
    images, texts = (
        F.normalize(torch.randn(_QUEUE_SIZE, embed_dim, generator=generator), dim=1)
        for _ in range(2)
    )
    return OriginalQueues(images, texts, pointer=0)


def _natural_kind(model: Med | Vqa | Nlvr) -> Kind:
    if isinstance(model, Med):
        kinds: tuple[Kind, ...] = ("pretrain", "itm", "caption", "feature_extractor")
        fitting = [k for k in kinds if set(heads_of(k)) <= set(model.config.heads)]
        if not fitting:
            raise CheckpointError(
                f"the original has no model with the heads {', '.join(model.config.heads)} alone"
            )
        return fitting[0]
    return "vqa" if isinstance(model, Vqa) else "nlvr"


def _check_fits(model: Med | Vqa | Nlvr, kind: Kind) -> None:
    expected = {"vqa": Vqa, "nlvr": Nlvr}.get(kind, Med)
    if not isinstance(model, expected):
        raise CheckpointError(f"a {type(model).__name__} cannot be written as a {kind} checkpoint")
    if isinstance(model, Med):
        for head in heads_of(kind):
            if not (head == "multimodal" and "itm" in model.config.heads):
                model.require(head)
    if model.config.text.sharing != _SHARING:
        raise CheckpointError(
            f"text.sharing {model.config.text.sharing!r} has no place in the original layout, "
            f"which knows {_SHARING!r} alone"
        )
