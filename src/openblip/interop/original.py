"""Conversion between checkpoints of the original BLIP or ALBEF and ours, both ways and strictly.

Every key is either converted, or dropped with a reason that the result names, or an error.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from openblip.errors import CheckpointError
from openblip.interop.assembly import check_names, fill, shapes_of
from openblip.interop.conversion import split_parts, write_state
from openblip.interop.models import AnyModel, empty_model, state_to_write
from openblip.interop.original_layout import (
    MOMENTUM,
    POSITION_IDS,
    SECTIONS,
    Kind,
    Momentum,
    NameMap,
)
from openblip.interop.original_note import OriginalNote
from openblip.interop.original_reading import OriginalQueues, OriginalReader
from openblip.interop.original_sizes import (
    ALBEF_HEADS,
    MED_HEADS,
    OriginalConfig,
    detect_kind,
    infer_config,
    teacher_config,
)
from openblip.model import Med
from openblip.model.albef import Albef
from openblip.model.nlvr import Nlvr
from openblip.model.vqa import Vqa

_SHARING = "all_but_self_attention"
_TEMPERATURE = 0.07


@dataclass(frozen=True)
class OriginalCheckpoint:
    """An original checkpoint in our names."""

    kind: Kind
    """Which of the original's models it is."""
    config: OriginalConfig
    """Sizes of the model."""
    student: dict[str, Tensor]
    """State of the model; not copied from the input where the names map one to one."""
    teacher: dict[str, Tensor] | None
    """State of the momentum model, a `Med` with the head itc, or of ALBEF all but the itm head;
    None where there is none."""
    queues: OriginalQueues | None
    """None where there are none."""
    dropped: dict[str, str]
    """Keys that have no place in ours, with the reason."""
    source: str
    """What errors name."""

    def model(self) -> AnyModel:
        """The model of the kind, whose weights are the tensors of `student` themselves."""
        return fill(empty_model(self.config), self.student, self.source)

    def med(self) -> Med:
        """The model, of a kind that is a `Med`.

        Raises:
            CheckpointError: for a question-answering, two-image or ALBEF checkpoint.
        """
        model = self.model()
        if not isinstance(model, Med):
            raise CheckpointError(
                f"{self.source}: a checkpoint of the kind {self.kind}; expected a pre-trained, "
                "caption, retrieval or itm one of BLIP"
            )
        return model

    def teacher_model(self) -> Med | Albef:
        """The momentum model, whose weights are the tensors of `teacher` themselves.

        Raises:
            CheckpointError: if the kind has none.
        """
        if self.teacher is None:
            raise CheckpointError(
                f"{self.source}: this {self.kind} checkpoint has no momentum model; load a "
                "pre-trained or retrieval one with its parts *_m"
            )
        teacher = empty_model(teacher_config(self.config))
        assert isinstance(teacher, Med | Albef)
        return fill(teacher, self.teacher, self.source)


def from_original(
    tensors: Mapping[str, Tensor],
    source: str = "the checkpoint",
    *,
    vision_heads: int | None = None,
    text_heads: int | None = None,
    note: OriginalNote | None = None,
) -> OriginalCheckpoint:
    """The checkpoint in our names; tensors on the meta device are checked by shape alone.

    Args:
        tensors: the original's state dict.
        source: what errors name, usually the file.
        vision_heads: attention heads, which no shape shows; one per 64 channels by default.
        text_heads: the same for the text.
        note: what the file says that no shape shows; goes before the two above.

    Raises:
        CheckpointError: if a key is missing, unknown, of another shape, or unequal to the one
            that it is tied to; nothing is left out silently, positions of another image size
            neither.
    """
    kind = detect_kind(tensors, source)
    if note is not None:
        vision_heads, text_heads = note.vision["heads"], note.text["heads"]
    config = infer_config(kind, tensors, source, vision_heads, text_heads)
    if note is not None:
        config = note.added_to(config, source)
    reader = OriginalReader(tensors, source)
    student_shapes = shapes_of(empty_model(config))
    student = reader.state(student_shapes, NameMap(SECTIONS[kind]))
    if kind == "itm":
        # The original's class for matching has no temperature, and its scores use none.
        noted = note.temperature if note is not None else None
        student["temperature"] = torch.tensor(_TEMPERATURE if noted is None else noted)
    teacher, queues = None, None
    if momentum := MOMENTUM.get(kind):
        sizes = teacher_config(config)
        # Many leave out what training alone needs.
        if reader.has_teacher():
            teacher = reader.state(shapes_of(empty_model(sizes)), NameMap(momentum.sections))
            teacher["temperature"] = student["temperature"]
            reader.drop_unused_teacher(student_shapes, momentum)
        if reader.has_queues(momentum):
            queues = reader.queues(momentum, sizes.embed_dim)
    reader.drop_position_ids(config.text.max_positions)
    check_names(set(), reader.unread, source)
    return OriginalCheckpoint(kind, config, student, teacher, queues, reader.dropped, source)


def to_original(
    model: AnyModel,
    kind: Kind | None = None,
    *,
    teacher: Med | Albef | None = None,
    queues: OriginalQueues | None = None,
) -> dict[str, Tensor]:
    """The original's complete state dict of a model; tensors are shared with it, not copied.

    Args:
        model: what is written.
        kind: as which of the original's models; by default as the one with all its heads.
        teacher: momentum model; by default, and for what it lacks of the original's always, the
            model's own weights, as where the original begins.
        queues: by default random unit vectors, as where the original begins.

    Raises:
        MissingHead: if the model lacks a head that the kind has.
        CheckpointError: if the kind is of another model, the decoder shares other parts than in
            the original, or the model's configuration does not describe it.
    """
    kind = kind or _natural_kind(model)
    _check_fits(model, kind)
    state = state_to_write(model)
    written = write_state(state, NameMap(SECTIONS[kind]))
    if momentum := MOMENTUM.get(kind):
        assert isinstance(model, Med | Albef)
        names = NameMap((*momentum.sections, *momentum.unused))
        written |= write_state(state | (teacher.state_dict() if teacher else {}), names)
        queues = queues or _initial_queues(momentum.queue_size, model.config.embed_dim)
        written |= _write_queues(momentum, queues)
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


def _write_queues(momentum: Momentum, queues: OriginalQueues) -> dict[str, Tensor]:
    written = {
        "image_queue": queues.image_embed.T.contiguous(),
        "text_queue": queues.text_embed.T.contiguous(),
        momentum.queue_position: torch.tensor([queues.pointer]),
    }
    if momentum.has_image_ids:
        unknown = torch.full((len(queues.image_embed),), -100)
        ids = unknown if queues.image_ids is None else queues.image_ids
        written["idx_queue"] = ids[None]
    return written


def _initial_queues(size: int, embed_dim: int) -> OriginalQueues:
    generator = torch.Generator().manual_seed(0)
    images, texts = (
        F.normalize(torch.randn(size, embed_dim, generator=generator), dim=1) for _ in range(2)
    )
    return OriginalQueues(images, texts, pointer=0)


def _natural_kind(model: AnyModel) -> Kind:
    if isinstance(model, Albef):
        return "albef_pretrain" if "mlm" in model.config.heads else "albef_retrieval"
    if isinstance(model, Med):
        kinds: tuple[Kind, ...] = ("pretrain", "itm", "caption", "feature_extractor")
        fitting = [k for k in kinds if set(MED_HEADS[k]) <= set(model.config.heads)]
        if not fitting:
            raise CheckpointError(
                f"the original has no model with the heads {', '.join(model.config.heads)} alone"
            )
        return fitting[0]
    return "vqa" if isinstance(model, Vqa) else "nlvr"


def _check_fits(model: AnyModel, kind: Kind) -> None:
    expected = Albef if kind in ALBEF_HEADS else {"vqa": Vqa, "nlvr": Nlvr}.get(kind, Med)
    if not isinstance(model, expected):
        raise CheckpointError(
            f"{type(model).__name__} cannot be written as a checkpoint of the kind {kind}; it is "
            "another model"
        )
    if isinstance(model, Albef):
        for albef_head in ALBEF_HEADS[kind]:
            model.require(albef_head)
        return
    if isinstance(model, Med):
        for head in MED_HEADS[kind]:
            if not (head == "multimodal" and "itm" in model.config.heads):
                model.require(head)
    if model.config.text.sharing != _SHARING:
        raise CheckpointError(
            f"text.sharing {model.config.text.sharing!r} has no place in the original layout, "
            f"which knows {_SHARING!r} alone"
        )
