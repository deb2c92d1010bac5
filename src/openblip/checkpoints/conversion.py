"""State dicts from one layout's names to another's, by tables of names, strictly.

A table maps our name to the other one, or to several that ours holds one below the other. A name
stands for everything below it (`.weight`, `.bias`); `*` is the number of a layer.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from openblip.checkpoints.assembly import Shapes, check_shape
from openblip.runtime.errors import CheckpointError

Table = Mapping[str, str | tuple[str, ...]]
Place = tuple[str, ...]
"""Names of the other layout that ours holds one below the other."""
POSITION_IDS = ".embeddings.position_ids"
"""Ending of the buffers 0, 1, 2, ... that others store for each text stack."""


@dataclass(frozen=True)
class Section:
    """A table and what stands before its names on either side."""

    ours: str
    theirs: str
    table: Table


class NameMap:
    """Where another layout stores a weight of ours."""

    def __init__(self, sections: tuple[Section, ...]) -> None:
        """Joins the tables of all sections."""
        self._places: dict[str, list[Place]] = {}
        for section in sections:
            for ours, theirs in section.table.items():
                parts = (theirs,) if isinstance(theirs, str) else theirs
                place = tuple(section.theirs + part for part in parts)
                self._places.setdefault(section.ours + ours, []).append(place)

    def places(self, name: str) -> list[Place]:
        """Every place of one of our weights, the trained one first; [] if no table names it."""
        components = name.split(".")
        number = next((c for c in components if c.isdigit()), "")
        components = ["*" if c == number else c for c in components]
        # The longest name goes first: a rule for `lm_head.bias` before one for `lm_head`.
        for length in range(len(components), 0, -1):
            rest = "".join(f".{component}" for component in components[length:])
            if places := self._places.get(".".join(components[:length])):
                return [
                    tuple(part.replace("*", number) + rest for part in place) for place in places
                ]
        return []


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
                # Some layouts keep it elsewhere; whoever calls this puts it in.
                assert name == "temperature", f"no rule for {name}"
                continue
            parts = self.parts(places[0], shape)
            # Ours holds a tied weight once: an unequal copy would be lost without a word.
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
    # Shapes alone have no numbers; and what `torch.save` found tied lies once in its file, so that
    # a word embedding of 90 MB need not be read to be compared with itself.
    if tensor.is_meta or other.is_meta or tensor.data_ptr() == other.data_ptr():
        return True
    return torch.equal(tensor, other)
