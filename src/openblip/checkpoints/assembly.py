"""Stored weights, and modules that receive them: built without memory, checked, then filled."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
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
