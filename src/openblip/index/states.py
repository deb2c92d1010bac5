"""Hidden states of images that were found, kept on disk: to match them again needs no encoder.

A bounded folder of files, one an image; whatever was not used for longest goes first. Several
processes may use it at once, and each may be killed at any moment: files appear whole, room is made
before they do, under a lock that ends with its process, and what cannot be read is computed again.
"""

import math
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from openblip.runtime.atomic import cache_folder, replace_file
from openblip.runtime.errors import RecipeError
from openblip.runtime.locks import try_lock

Precision = Literal["float16", "int8"]
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)b?", re.IGNORECASE)
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_SUFFIX, _UNFINISHED = ".states", ".unfinished"
# A process that writes for so long is dead.
_DEAD_SECONDS = 3600
_PATIENCE_SECONDS = 5.0
_GROUP = 32


def parse_size(text: str) -> int:
    """Bytes of a size such as `2GB`, `500 MB` or `0`.

    Raises:
        RecipeError: it is none.
    """
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        raise RecipeError(f"the size {text!r} is none; give one such as 2GB, 500MB or 0")
    return int(float(found[1]) * _UNITS[found[2].lower()])


def default_folder() -> Path:
    """`states` in `$OPENBLIP_CACHE`, or else in `~/.cache/openblip`."""
    return cache_folder() / "states"


@dataclass(frozen=True)
class StateCache:
    """States of images by their content, for one model at one size of images."""

    folder: Path
    """May be shared by caches of other models: the bound is of all files in it."""
    most_bytes: int
    """Of all files; 0 keeps nothing."""
    key: str
    """Says what the states depend on besides the image: the model's fingerprint and the size."""
    precision: Precision = "float16"
    """How they are stored: int8 takes half the room, with a scale for every 32 channels."""

    def load(self, digest: str) -> Tensor | None:
        """The states (patches, width) of an image in float32, which now count as used last.

        Args:
            digest: hash of the image's content, in hexadecimal digits.
        """
        path = self._path(digest)
        try:
            tensors = load_file(path)
            os.utime(path)
            return _restored(tensors)
        except FileNotFoundError:
            return None
        # Damaged, or of another version; or another process has just removed it.
        except (OSError, SafetensorError, KeyError, ValueError, RuntimeError):
            with suppress(OSError):
                path.unlink()
            return None

    def store(self, states: Mapping[str, Tensor]) -> int:
        """Number of images whose states were kept: as many as there is room for.

        A cache that cannot be written, or that another process holds for long, keeps none.

        Args:
            states: (patches, width) of images, by their digests.
        """
        if not self.most_bytes:
            return 0
        kept = 0
        with suppress(OSError), self._alone() as is_mine:
            if is_mine:
                contents = {
                    d: save(_compressed(value, self.precision)) for d, value in states.items()
                }
                kept = self._write(contents)
        return kept

    def _write(self, contents: Mapping[str, bytes]) -> int:
        fitting: dict[str, bytes] = {}
        for digest, content in contents.items():
            if sum(map(len, fitting.values())) + len(content) <= self.most_bytes:
                fitting[digest] = content
        # Before anything is written: so the bound holds at every moment.
        self._make_room(sum(map(len, fitting.values())))
        for digest, content in fitting.items():
            # Lost in a power cut, it is computed again: nothing waits for the disk.
            with replace_file(self._path(digest), durable=False) as unfinished:
                unfinished.write_bytes(content)
        return len(fitting)

    def _make_room(self, num_bytes: int) -> None:
        files: list[tuple[float, int, Path]] = []
        for path in self.folder.rglob("*"):
            with suppress(FileNotFoundError):
                status = path.stat()
                is_dead = path.name.endswith(_UNFINISHED)
                is_dead &= time.time() - status.st_mtime > _DEAD_SECONDS
                if is_dead:
                    path.unlink()
                elif path.suffix in (_SUFFIX, _UNFINISHED):
                    files.append((status.st_mtime, status.st_size, path))
        total = sum(size for _, size, _ in files) + num_bytes
        for _, size, path in sorted(files):
            if total <= self.most_bytes:
                return
            path.unlink(missing_ok=True)
            total -= size

    @contextmanager
    def _alone(self) -> Iterator[bool]:
        """Whether this process alone may write now; waits a few seconds for another one."""
        self.folder.mkdir(parents=True, exist_ok=True)
        until = time.monotonic() + _PATIENCE_SECONDS
        with (self.folder / ".lock").open("a") as file:
            while not (is_mine := try_lock(file.fileno())) and time.monotonic() < until:
                time.sleep(0.02)
            yield is_mine

    def _path(self, digest: str) -> Path:
        return self.folder / f"{self.key}-{self.precision}" / f"{digest}{_SUFFIX}"


def states_of(
    cache: StateCache | None,
    digests: Sequence[str],
    compute: Callable[[list[int]], Mapping[int, Tensor]],
) -> tuple[dict[int, Tensor], int]:
    """States by the places of images, and how many of them the cache had.

    Args:
        cache: None for none.
        digests: of the images' contents.
        compute: states of the images at some places; those that cannot be read are missing.
    """
    had = {n: None if cache is None else cache.load(digest) for n, digest in enumerate(digests)}
    found = {place: states for place, states in had.items() if states is not None}
    missing = [place for place in had if place not in found]
    computed = compute(missing) if missing else {}
    if cache is not None and computed:
        cache.store({digests[place]: states for place, states in computed.items()})
    return {**found, **computed}, len(found)


def _compressed(states: Tensor, precision: Precision) -> dict[str, Tensor]:
    states = states.detach().cpu().float()
    if precision == "float16":
        # Infinite would be NaN further on; hidden states are of the order of 1 to 100.
        most = torch.finfo(torch.float16).max
        return {"values": states.clamp(-most, most).half().contiguous()}
    # A few channels of a transformer are far larger than the others: one scale for a whole patch
    # would round all of these by the largest. Neighbours share one, at 6 % of the room.
    groups = _in_groups(states)
    scales = (groups.abs().amax(dim=2, keepdim=True) / 127).clamp_min(1e-7)
    # In float16 before the division, so that rounding makes up for what the scale loses.
    scales = scales.clamp_max(torch.finfo(torch.float16).max).half()
    values = (groups / scales.float()).round().clamp(-127, 127).to(torch.int8)
    return {"values": values.flatten(1).contiguous(), "scales": scales.squeeze(2).contiguous()}


def _restored(tensors: Mapping[str, Tensor]) -> Tensor:
    values = tensors["values"].float()
    if values.ndim != 2:
        raise ValueError("no states of an image")
    if "scales" not in tensors:
        return values
    return (_in_groups(values) * tensors["scales"].float().unsqueeze(2)).flatten(1)


def _in_groups(states: Tensor) -> Tensor:
    """(patches, groups, channels) of (patches, width): those that share a scale."""
    patches, width = states.shape
    group = math.gcd(width, _GROUP)
    return states.reshape(patches, width // group, group)
