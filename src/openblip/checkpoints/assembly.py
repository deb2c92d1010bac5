"""Stored weights, and modules that receive them: built without memory, checked, then filled.

State dicts go from one layout's names to another's by tables of names (`NameMap`), strictly. A
table maps our name to the other one, or to several that ours holds one below the other. A name
stands for everything below it (`.weight`, `.bias`); `*` is the number of a layer.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from openblip.runtime.errors import CheckpointError

ModuleT = TypeVar("ModuleT", bound=nn.Module)
Shapes = dict[str, tuple[int, ...]]

# Names listed in an error before it says how many more there are.
_LISTED = 5
# Characters of a name, and of a library's words.
_LONGEST_NAME = 80
_LONGEST_REASON = 120


class _NoRandomFill(TorchFunctionMode):
    """Leaves weights as they are where a module would draw them.

    They are about to be replaced, and drawing on the meta device would import the compiler (1 s).
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        named = kwargs or {}
        return named["tensor"] if func is nn.init.normal_ else func(*args, **named)


def build_empty(build: Callable[[], ModuleT]) -> ModuleT:
    """A module on the meta device: names and shapes without memory or random numbers."""
    with torch.device("meta"), _NoRandomFill():
        return build()


def copy_of(module: nn.Module, build: Callable[[], ModuleT]) -> ModuleT:
    """What `build` builds, with copies of the module's weights of the same names; no gradient."""
    copy = build_empty(build)
    weights = module.state_dict()
    copy.load_state_dict({name: weights[name].clone() for name in copy.state_dict()}, assign=True)
    return copy.requires_grad_(False)


def beside_state(module: nn.Module) -> dict[str, Tensor]:
    """What a module keeps that is in no state dict, as backbones of others do, by name.

    `nn.Module.to_empty` leaves anything in its place; `put_back` mends that.
    """
    state = module.state_dict()
    return {name: buffer for name, buffer in module.named_buffers() if name not in state}


def put_back(module: nn.Module, kept: Mapping[str, Tensor]) -> None:
    """Give a module what `beside_state` found in it, wherever it is by now."""
    for name, buffer in module.named_buffers():
        if name in kept:
            buffer.copy_(kept[name])


def shapes_of(module: nn.Module) -> Shapes:
    """Name and shape of everything in a module's state, in its order."""
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def fill(module: ModuleT, state: Mapping[str, Tensor], source: str) -> ModuleT:
    """The module with `state` as its weights, not copied: a memory-mapped file stays mapped.

    Args:
        module: may be on the meta device; changed in place.
        state: exactly the names and shapes of the module's own state.
        source: what errors name, usually a file.

    Raises:
        CheckpointError: if a key is missing, unknown, of another shape, or holds no floating-point
            numbers.
    """
    expected = module.state_dict()
    check_names(set(expected), set(state), source)
    for name, own in expected.items():
        check_shape(name, tuple(state[name].shape), tuple(own.shape), source)
        _check_numbers(name, state[name], own.dtype, source)
    module.load_state_dict(dict(state), assign=True)
    return module


def has_numbers(tensor: Tensor) -> bool:
    """Whether a tensor holds floating-point numbers, and not quantised ones of a byte."""
    return tensor.is_floating_point() and tensor.element_size() > 1


def _check_numbers(name: str, tensor: Tensor, expected: torch.dtype, source: str) -> None:
    # A backbone may count, as batch norms do.
    fits = has_numbers(tensor) if expected.is_floating_point else tensor.dtype == expected
    if tensor.layout is not torch.strided or not fits:
        kind = str(tensor.dtype if tensor.layout is torch.strided else tensor.layout)
        raise CheckpointError(
            f"{source}: {name} holds {kind.removeprefix('torch.')}, expected floating-point "
            "numbers of 16 bits or more; load the checkpoint that it was made from"
        )


def check_content(path: Path) -> None:
    """Nothing, unless a file begins like something that is often saved in the place of weights.

    Raises:
        CheckpointError: if it is missing, empty, a web page, a pointer of git-lfs, or no file
            (a pipe would block).
    """
    if path.exists() and not path.is_file():
        raise CheckpointError(f"{path}: is no regular file")
    try:
        with path.open("rb") as file:
            start = file.read(200).lstrip().lower()
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such file; the weights are missing") from error
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({reason_of(error)})") from error
    if not start:
        raise CheckpointError(f"{path}: is empty, no checkpoint of tensors; fetch it again")
    if start.startswith((b"<!doctype", b"<html", b"<?xml", b"<head", b"<!--")):
        raise CheckpointError(
            f"{path}: is a web page, no checkpoint; download the file that the page is about"
        )
    if start.startswith(b"version https://git-lfs"):
        raise CheckpointError(
            f"{path}: is a pointer of git-lfs, not the weights; fetch them with `git lfs pull`"
        )


def reason_of(error: BaseException) -> str:
    """What a library says went wrong, short and on one line, without the colours of a terminal."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip()
    line = (text.splitlines() or [""])[0]
    return line[:_LONGEST_REASON] or type(error).__name__


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Every tensor of a file, memory-mapped: bytes are read when they are used.

    Raises:
        CheckpointError: if the file is missing, truncated or of another format.
    """
    from safetensors.torch import load_file

    with _safetensors_errors(path):
        return load_file(path)


def read_metadata(path: Path) -> dict[str, str]:
    """What a file says besides its tensors.

    Raises:
        CheckpointError: as `read_safetensors`.
    """
    from safetensors import safe_open

    with _safetensors_errors(path), safe_open(path, framework="pt") as file:
        return file.metadata() or {}


def write_safetensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors to a file that `read_safetensors` reads.

    Args:
        path: replaced if it exists.
        tensors: plain ones, of any device; no two may share memory.
        metadata: what the file says besides; see `read_metadata`.

    Raises:
        OSError: if it cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    # The library makes files that only their owner can read; this one is as readable as others.
    path.touch()
    mode = path.stat().st_mode
    contiguous = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    try:
        save_file(contiguous, path, metadata={"format": "pt", **(metadata or {})})
    except SafetensorError as error:
        # The library's own kind of error, for a full disk too.
        raise OSError(str(error)) from error
    path.chmod(mode)


@contextmanager
def _safetensors_errors(path: Path) -> Iterator[None]:
    check_content(path)
    try:
        yield
    # A damaged header makes the library raise more than its own kind of error.
    except Exception as error:
        raise CheckpointError(
            f"{path}: truncated, or no safetensors file ({reason_of(error)}); fetch or save it "
            "again"
        ) from error


def check_names(expected: set[str], found: set[str], source: str) -> None:
    """Nothing, if both hold the same names.

    Raises:
        CheckpointError: naming what is missing and what is unknown.
    """
    faults = [
        f"{what} {listed(names)}"
        for what, names in (("missing", expected - found), ("unknown", found - expected))
        if names
    ]
    if faults:
        raise CheckpointError(
            f"{source}: {'; '.join(faults)}; is it complete, and of the kind it is read as?"
        )


def check_shape(name: str, found: tuple[int, ...], expected: tuple[int, ...], source: str) -> None:
    """Nothing, if the shapes are equal.

    Raises:
        CheckpointError: naming the key and both shapes.
    """
    if found != expected:
        raise CheckpointError(
            f"{source}: {name:.{_LONGEST_NAME}} has shape {found}, expected {expected} by the "
            "model's other sizes"
        )


def listed(names: Iterable[str]) -> str:
    """The names in order, separated by commas; of many, the first few and how many more."""
    ordered = sorted(names)
    more = len(ordered) - _LISTED
    names = [name[:_LONGEST_NAME] for name in ordered[:_LISTED]]
    return ", ".join(names) + (f" and {more} more" if more > 0 else "")


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
