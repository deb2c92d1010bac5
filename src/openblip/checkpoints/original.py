"""Checkpoints of the original BLIP and ALBEF: to and from ours, strictly; their files.

Every key is either converted, or dropped with a reason that the result names, or an error. A file
is a `.pth` or a `.safetensors`. What the layout has no place for stands in a note beside the
weights: no shape shows how many heads attention has, and no key holds the vocabulary. The
originals' code reads `checkpoint["model"]` alone, and does not see it.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from openblip.batches.tokenizer import TextTokenizer
from openblip.checkpoints.assembly import (
    POSITION_IDS,
    NameMap,
    Shapes,
    StateReader,
    check_names,
    fill,
    read_metadata,
    read_safetensors,
    reason_of,
    shapes_of,
    write_safetensors,
    write_state,
)
from openblip.checkpoints.families import (
    AnyConfig,
    AnyModel,
    check_layout,
    check_vocabulary,
    empty_model,
    state_to_write,
)
from openblip.checkpoints.original_layout import (
    MODELS,
    Kind,
    Momentum,
    OriginalConfig,
    infer_config,
    kind_of_original,
    teacher_config,
)
from openblip.checkpoints.pickled import plain_names, read_pickle, read_state
from openblip.model import Med
from openblip.model.albef import Albef
from openblip.model.config import check_size
from openblip.runtime.atomic import replace_file
from openblip.runtime.errors import CheckpointError, RecipeError

ConfigT = TypeVar("ConfigT", bound=AnyConfig)

NOTE_KEY = "openblip"
"""Name of the note: beside "model" in a `.pth`, in the metadata of a `.safetensors` file."""
# What it says of either part's configuration.
_VISION = ("heads", "drop_path", "norm_eps")
_TEXT = ("heads", "dropout", "norm_eps")

# The original's class for matching has no temperature, and its scores use none.
_TEMPERATURE = 0.07
_QUEUES = ("image_queue", "text_queue", "idx_queue")
# As it is written, the first that fits the heads of a model.
_NATURAL_KINDS: tuple[Kind, ...] = (
    *("pretrain", "itm", "caption", "feature_extractor", "vqa", "nlvr"),
    *("albef_pretrain", "albef_retrieval"),
)
_REMEDY = "fetch the file again, or give a .pth or .safetensors file of the original BLIP"


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


@dataclass(frozen=True, kw_only=True)
class OriginalNote:
    """What a file in the original layout says besides its weights."""

    vision: Mapping[str, Any]
    """Fields of the image encoder's configuration that no weight shows."""
    text: Mapping[str, Any]
    """The same of the text stack."""
    temperature: float | None = None
    """Of the contrast, which some kinds do not store; None where there is none."""
    max_tokens: int | None = None
    """Longest text, special tokens included; None, as long as the kind's usually are."""
    tokenizer: str | None = None
    """What `tokenizer.json` holds; None, the vocabulary is elsewhere."""

    @staticmethod
    def of(
        model: AnyModel, tokenizer: TextTokenizer | None = None, max_tokens: int | None = None
    ) -> "OriginalNote":
        """The note of a model."""
        temperature = model.state_dict().get("temperature")
        return OriginalNote(
            vision={name: getattr(model.config.vision, name) for name in _VISION},
            text={name: getattr(model.config.text, name) for name in _TEXT},
            temperature=None if temperature is None else temperature.item(),
            max_tokens=max_tokens,
            tokenizer=None if tokenizer is None else tokenizer.to_json(),
        )

    @staticmethod
    def from_json(text: object, source: str) -> "OriginalNote":
        """The note that `to_json` wrote.

        Raises:
            CheckpointError: if it is damaged.
        """
        try:
            note = OriginalNote(**json.loads(cast("str", text)))
            note._check()
        except (RecipeError, TypeError, ValueError, RecursionError) as error:
            raise CheckpointError(
                f"{source}: its note {NOTE_KEY!r} is damaged ({error!s:.80}); convert the model "
                "again"
            ) from error
        return note

    def to_json(self) -> str:
        """The note as text."""
        return json.dumps(asdict(self))

    def added_to(self, config: ConfigT, source: str) -> ConfigT:
        """A configuration that was told from shapes, with what they do not show.

        Raises:
            CheckpointError: if the two contradict each other.
        """
        try:
            return replace(
                config,
                vision=replace(config.vision, **self.vision),
                text=replace(config.text, **self.text),
            )
        except (RecipeError, TypeError) as error:
            raise CheckpointError(f"{source}: {reason_of(error)}") from error

    def _check(self) -> None:
        for names, values in ((_VISION, self.vision), (_TEXT, self.text)):
            if set(values) != set(names):
                raise ValueError(f"expected the fields {', '.join(names)}")
            check_size("heads", values["heads"])
        if self.temperature is not None:
            float(self.temperature)
        if self.max_tokens is not None and not int(self.max_tokens) > 1:
            raise ValueError(f"max_tokens is {self.max_tokens}")
        if not isinstance(self.tokenizer, str | None):
            raise TypeError("the tokenizer is no text")


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
    kind = kind_of_original(tensors, source)
    if note is not None:
        vision_heads, text_heads = note.vision["heads"], note.text["heads"]
    config = infer_config(kind, tensors, source, vision_heads, text_heads)
    if note is not None:
        config = note.added_to(config, source)
    reader = StateReader(tensors, source)
    student_shapes = shapes_of(empty_model(config))
    student = reader.state(student_shapes, NameMap(MODELS[kind].sections))
    if kind == "itm":
        noted = note.temperature if note is not None else None
        student["temperature"] = torch.tensor(_TEMPERATURE if noted is None else noted)
    teacher, queues = None, None
    if momentum := MODELS[kind].momentum:
        sizes = teacher_config(config)
        # Many leave out what training alone needs.
        if any(key.split(".")[0].endswith("_m") for key in tensors):
            teacher = reader.state(shapes_of(empty_model(sizes)), NameMap(momentum.sections))
            # The original has one for both.
            teacher["temperature"] = student["temperature"]
            _drop_unused_teacher(reader, student_shapes, momentum)
        if {*_QUEUES, momentum.queue_position} & set(tensors):
            queues = _read_queues(reader, momentum, sizes.embed_dim)
    reader.drop_position_ids(config.text.max_positions)
    check_names(set(), reader.unread, source)
    return OriginalCheckpoint(kind, config, student, teacher, queues, reader.dropped, source)


def _drop_unused_teacher(reader: StateReader, shapes: Shapes, momentum: Momentum) -> None:
    """Leave out what the momentum model has and never runs; the student's shapes are its."""
    names = NameMap(momentum.unused)
    for name, shape in shapes.items():
        for place in names.places(name):
            reader.parts(place, shape)
            for key in place:
                reader.dropped[key] = "cross-attention of the teacher: updated, but never run"


def _read_queues(reader: StateReader, momentum: Momentum, embed_dim: int) -> OriginalQueues:
    size = reader.tensors["image_queue"].shape[-1] if "image_queue" in reader.tensors else 0
    images = reader.take("image_queue", (embed_dim, size))
    texts = reader.take("text_queue", (embed_dim, size))
    pointer = reader.take(momentum.queue_position, (1,))
    ids = reader.take("idx_queue", (1, size))[0] if momentum.has_image_ids else None
    # NaN, which a damaged file may hold, is no whole number.
    position = 0 if pointer.is_meta else int(pointer.nan_to_num())
    return OriginalQueues(images.T.contiguous(), texts.T.contiguous(), position, ids)


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
    check_layout(model, "the original layout")
    kind = kind or _natural_kind(model)
    _check_fits(model, kind)
    state = state_to_write(model)
    written = write_state(state, NameMap(MODELS[kind].sections))
    if momentum := MODELS[kind].momentum:
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


def _write_queues(momentum: Momentum, queues: OriginalQueues) -> dict[str, Tensor]:
    written = {
        "image_queue": queues.image_embed.T.contiguous(),
        "text_queue": queues.text_embed.T.contiguous(),
        momentum.queue_position: torch.tensor([queues.pointer]),
    }
    if momentum.has_image_ids:
        # What the original fills an empty queue with: the id of no image.
        unknown = torch.full((len(queues.image_embed),), -100)
        ids = unknown if queues.image_ids is None else queues.image_ids
        written["idx_queue"] = ids[None]
    return written


def _initial_queues(size: int, embed_dim: int) -> OriginalQueues:
    # Always the same ones: a model that is written twice gives equal files.
    generator = torch.Generator().manual_seed(0)
    images, texts = (
        F.normalize(torch.randn(size, embed_dim, generator=generator), dim=1) for _ in range(2)
    )
    return OriginalQueues(images, texts, pointer=0)


def _natural_kind(model: AnyModel) -> Kind:
    heads = getattr(model.config, "heads", ())
    for kind in _NATURAL_KINDS:
        known = MODELS[kind]
        if isinstance(model.config, known.config) and set(known.heads) <= set(heads):
            return kind
    if isinstance(model, Albef):
        # The least that there is of it: what it lacks of that is told next.
        return "albef_retrieval"
    raise CheckpointError(
        f"the original has no model with the heads {', '.join(heads)} alone"
        if heads
        else f"the original has no model like {type(model).__name__}"
    )


def _check_fits(model: AnyModel, kind: Kind) -> None:
    if not isinstance(model.config, MODELS[kind].config):
        raise CheckpointError(
            f"{type(model).__name__} cannot be written as a checkpoint of the kind {kind}; it is "
            "another model"
        )
    for head in MODELS[kind].heads:
        # A matching model gives the states of a text with an image, too.
        if not (head == "multimodal" and "itm" in cast("Any", model.config).heads):
            cast("Any", model).require(head)


def read_original(path: Path) -> dict[str, Tensor]:
    """The state dict of an original checkpoint, memory-mapped; see `original.from_original`.

    No code of the file is run: a pickle of anything but tensors and plain values is refused.

    Args:
        path: a `.safetensors` file, or one by `torch.save` that holds the state dict, or holds it
            under "model" as the original's training scripts do, or wrapped as others do.

    Raises:
        CheckpointError: if the file is missing, damaged, or holds no tensors.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    if path.suffix == ".safetensors":
        return plain_names(read_safetensors(path), str(path))
    return plain_names(read_state(path, _REMEDY, "the file, which has no 'model',"), str(path))


def read_note(path: Path) -> OriginalNote | None:
    """What a file says besides its weights; None of one that OpenBLIP has not written.

    Raises:
        CheckpointError: if the file or its note is damaged.
    """
    if path.suffix == ".safetensors":
        text = read_metadata(path).get(NOTE_KEY)
    else:
        text = read_pickle(path, _REMEDY).get(NOTE_KEY)
    return None if text is None else OriginalNote.from_json(text, str(path))


def write_original(
    path: Path, tensors: Mapping[str, Tensor], note: OriginalNote | None = None
) -> None:
    """Write a state dict, whole or not at all: `.safetensors` by its ending, else for `torch.load`.

    A `.pth` has the state dict under "model", and stores tied weights once.

    Args:
        path: replaced if it exists.
        tensors: see `original.to_original`.
        note: what they do not show; without it, whoever reads the file has to know.

    Raises:
        CheckpointError: if the file cannot be written, or what is read with its note would be
            another model.
    """
    # Before anything is written, and without the numbers: names and shapes are what may not fit.
    if note is not None:
        from_original({k: t.to("meta") for k, t in tensors.items()}, str(path), note=note)
    metadata = {} if note is None else {NOTE_KEY: note.to_json()}
    detached = {key: tensor.detach() for key, tensor in tensors.items()}
    try:
        with replace_file(path) as temporary:
            if path.suffix == ".safetensors":
                # The format stores no tensor twice, so that each key needs bytes of its own.
                clones = {key: tensor.clone() for key, tensor in detached.items()}
                write_safetensors(temporary, clones, metadata)
            else:
                _save({"model": detached, **metadata}, temporary)
    except OSError as error:
        raise CheckpointError(str(error)) from error


def save_original(
    path: Path,
    model: AnyModel,
    tokenizer: TextTokenizer,
    kind: Kind | None = None,
    max_tokens: int | None = None,
) -> None:
    """Write a model with a note of what the layout has no place for, whole or not at all.

    Args:
        path: replaced if it exists; `.pth` or `.safetensors`.
        model: what is written.
        tokenizer: the one that it was trained with.
        kind: as for `to_original`.
        max_tokens: longest text, special tokens included.

    Raises:
        MissingHead: if the model lacks a head that the kind has.
        CheckpointError: if the layout has no place for the model, the tokenizer is of another
            one, or the file cannot be written.
    """
    check_vocabulary(model, tokenizer, max_tokens)
    note = OriginalNote.of(model, tokenizer, max_tokens)
    write_original(path, to_original(model, kind), note)


def _save(document: Mapping[str, object], path: Path) -> None:
    try:
        torch.save(document, path)
    except RuntimeError as error:
        # Its own kind of error, for a full disk too; it does not say which.
        raise OSError("the disk is full, or fails") from error
