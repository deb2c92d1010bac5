"""States of images, computed once by an encoder that is not trained, and kept on disk.

A folder belongs to one encoder at one size of images, and holds two files that only grow: the
states in float16, and an index with a record for each image. States are found by the content of an
image's file, never by its row: tables that share images share their states, and what is new or
was changed in a table is simply not known yet. Who has pixels and no file, as evaluation does,
finds them by the pixels.

Any number of processes may compute at once. Each writes under a lock, first the states and then
the record, so that a process may be killed at any moment; and each takes what is missing in an
order of its own, so that they share the work. A sum in the record tells what the disk has damaged.
"""

import hashlib
import json
import os
import struct
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from openblip.batches.transforms import eval_transform
from openblip.runtime.atomic import replace_file
from openblip.runtime.documents import read_json
from openblip.runtime.errors import DataError, one_line
from openblip.runtime.locks import in_turn
from openblip.runtime.progress import Progress
from openblip.runtime.threads import default_threads, ordered_map
from openblip.sources.images import open_image
from openblip.sources.row_images import encoded_image, image_rows
from openblip.table.table import PairTable

STATES_FOLDER = "OPENBLIP_STATES"
"""Environment variable: a folder of states that trainings share, and that every model which is
loaded looks its images up in."""
Encode = Callable[[Tensor], Tensor]
"""From images (batch, 3, height, width) to states (batch, patches, width)."""

# Another number where the pixels of an image, or the files here, become other ones.
_FORMAT = 1
_ABOUT, _INDEX, _STATES, _LOCK = "about.json", "index.bin", "states.f16", ".lock"
# Digest of the file's content, digest of the pixels, and a sum over the states.
_RECORD = struct.Struct("16s16sI")
_UNKNOWN = bytes(16)
_ENCODED_TOGETHER = 16
# Of the norm: float16 rounds to 0.0005, and another number of threads changes less.
_TOLERANCE = 0.01


class ImageStates:
    """The states that a folder holds, of one encoder.

    Args:
        folder: made if it is absent.
        shape: tokens and channels of an image's states.

    Raises:
        DataError: the folder holds others.
        OSError: it cannot be written.
    """

    def __init__(self, folder: Path, shape: tuple[int, int]) -> None:
        self.folder, self.shape = folder, shape
        self._size = 2 * shape[0] * shape[1]
        self._of_content: dict[bytes, int] = {}
        self._of_pixels: dict[bytes, int] = {}
        self._sums: list[int] = []
        folder.mkdir(parents=True, exist_ok=True)
        with in_turn(folder / _LOCK):
            about = {"format": _FORMAT, "tokens": shape[0], "width": shape[1]}
            if not (folder / _ABOUT).exists():
                with replace_file(folder / _ABOUT) as unfinished:
                    unfinished.write_text(json.dumps(about), encoding="ascii")
            if (found := read_json(folder / _ABOUT)) != about:
                raise DataError(f"{folder} holds states of another form ({found}): remove it")
            for name in (_INDEX, _STATES):
                (folder / name).touch()
        self._states = os.open(folder / _STATES, os.O_RDONLY)
        self.refresh()

    def __len__(self) -> int:
        return len(self._sums)

    def refresh(self) -> None:
        """See what other processes have written."""
        with (self.folder / _INDEX).open("rb") as file:
            file.seek(len(self) * _RECORD.size)
            found = file.read()
        # A record that is being written, or that a kill has torn, is none.
        whole = len(found) - len(found) % _RECORD.size
        for content, pixels, total in _RECORD.iter_unpack(found[:whole]):
            number = len(self)
            if content != _UNKNOWN:
                self._of_content[content] = number
            self._of_pixels[pixels] = number
            self._sums.append(total)

    def of_content(self, digest: bytes) -> int | None:
        """The number of the states of an image by `digest` of its file; None if there are none."""
        return self._of_content.get(digest)

    def add(
        self,
        contents: Sequence[bytes | None],
        pixels: Sequence[bytes],
        states: Float[Tensor, "images patches width"],
    ) -> None:
        """Keep states of images, by digests of files (where there are any) and of pixels.

        Raises:
            DataError: a number is none, or too large for float16.
            OSError: they cannot be written.
        """
        values = states.detach().to("cpu", torch.float16).contiguous().numpy()
        if not np.isfinite(values).all():
            raise DataError(f"{self.folder}: states are not finite, or exceed float16's 65,504")
        with in_turn(self.folder / _LOCK):
            self.refresh()
            records, kept = [], []
            for content, of_image, value in zip(contents, pixels, values, strict=True):
                name = content or _UNKNOWN
                if name not in self._of_content and (content or of_image not in self._of_pixels):
                    stored = value.tobytes()
                    records.append(_RECORD.pack(name, of_image, zlib.crc32(stored)))
                    kept.append(stored)
            # At their places, whatever a killed process has left behind the last record.
            self._write(_STATES, len(self) * self._size, kept)
            self._write(_INDEX, len(self) * _RECORD.size, records)
            self.refresh()

    def _write(self, name: str, place: int, parts: Sequence[bytes]) -> None:
        with (self.folder / name).open("r+b") as file:
            file.truncate(place)
            file.seek(place)
            file.write(b"".join(parts))

    def read(self, numbers: Iterable[int]) -> Float[Tensor, "images patches width"]:
        """States in float16, by their numbers.

        Raises:
            DataError: they are damaged.
        """
        wanted = list(numbers)
        values = np.empty((len(wanted), *self.shape), np.float16)
        for place, number in enumerate(wanted):
            stored = os.pread(self._states, self._size, number * self._size)
            if zlib.crc32(stored) != self._sums[number]:
                raise DataError(f"{self.folder}: states of image {number} are damaged: remove it")
            values[place] = np.frombuffer(stored, np.float16).reshape(self.shape)
        return torch.from_numpy(values)

    def looked_up(self, encode: Encode) -> Encode:
        """As `encode`, for pixels: what is known is read, what is not is computed and kept."""

        def states(images: Tensor) -> Tensor:
            digests = [pixel_digest(image) for image in images]
            missing = [n for n, digest in enumerate(digests) if digest not in self._of_pixels]
            if missing:
                computed = encode(images[missing])
                self.add([None] * len(missing), [digests[n] for n in missing], computed)
            # Those that were just computed too: that they were not known makes no difference.
            found = self.read(self._of_pixels[digest] for digest in digests)
            return found.to(images.device, images.dtype)

        return states


@dataclass(frozen=True)
class RowStates:
    """Where the states of a table's rows are."""

    states: ImageStates
    number_of_row: dict[int, int]

    def read(self, rows: np.ndarray) -> Float[Tensor, "rows patches width"]:
        """States of rows, which may repeat, in float16.

        Raises:
            DataError: they are damaged.
        """
        return self.states.read(self.number_of_row[row] for row in rows.tolist())


def content_digest(encoded: bytes) -> bytes:
    """16 bytes that tell an image's file from every other."""
    return hashlib.blake2b(encoded, digest_size=16).digest()


def pixel_digest(image: Float[Tensor, "3 height width"]) -> bytes:
    """16 bytes that tell an image's normalised pixels from every other."""
    values = image.detach().to("cpu", torch.float32).contiguous().numpy()
    return hashlib.blake2b(values.tobytes(), digest_size=16).digest()


def encoder_fingerprint(encoder: nn.Module, image_size: int) -> str:
    """16 hexadecimal digits that tell an encoder's weights, code by name and size of images."""
    digest = hashlib.blake2b(f"{_FORMAT} {image_size}".encode(), digest_size=8)
    config: Any = getattr(encoder, "config", None)
    digest.update(repr((type(encoder).__name__, config and config.backbone)).encode())
    for name, tensor in sorted(encoder.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        # As bytes, since not every type of numbers is one of numpy's.
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def states_of_rows(
    states: ImageStates, table: PairTable, rows: np.ndarray, image_size: int, encode: Encode
) -> RowStates:
    """The states of rows; those that are missing are computed, with progress.

    Every file is read to see what it is: no row's states are taken for another's, whatever happened
    to the table. Of one image that was known, the states are computed again and compared: the code
    of an encoder may have changed where its weights have not.

    Args:
        states: of the encoder.
        table: has the images.
        rows: row numbers, which may repeat.
        image_size: pixels of a side.
        encode: the encoder.

    Raises:
        DataError: an image cannot be read; names the row. Or what is kept is not what the encoder
            gives.
    """
    wanted = np.unique(rows)
    threads = default_threads()
    digests = ordered_map(_digest_of, image_rows(table, wanted), threads, 4 * threads)
    of_row = dict(zip(wanted.tolist(), digests, strict=True))
    known = [row for row, digest in of_row.items() if states.of_content(digest) is not None]
    if known:
        _check(states, _Images(table, image_size, encode), known[0], of_row)
    missing = {digest: row for row, digest in of_row.items() if states.of_content(digest) is None}
    if missing:
        _compute(states, missing, _Images(table, image_size, encode))
    numbers = {row: states.of_content(digest) for row, digest in of_row.items()}
    changed = [row for row, number in numbers.items() if number is None]
    if changed:
        raise DataError(f"row {changed[0]} of {table.uri} was changed meanwhile: start again")
    return RowStates(states, {row: n for row, n in numbers.items() if n is not None})


@dataclass(frozen=True)
class _Images:
    """Images of a table's rows, for the encoder."""

    table: PairTable
    image_size: int
    encode: Encode

    def read(self, rows: Sequence[int]) -> tuple[list[bytes], Tensor]:
        """Digests of the files, and the images (rows, 3, size, size)."""
        digests, images = [], []
        for number, row in zip(rows, image_rows(self.table, rows), strict=True):
            try:
                encoded = encoded_image(row["image"], row["image_uri"])
                images.append(eval_transform(open_image(encoded), self.image_size))
            except (DataError, OSError, ValueError) as error:
                where = f"row {number} (id {row['id']!r}) of {self.table.uri}"
                raise DataError(f"{where}: {one_line(error)}") from error
            digests.append(content_digest(encoded))
        return digests, torch.stack(images)


def _compute(states: ImageStates, missing: dict[bytes, int], source: _Images) -> None:
    left = list(missing)
    # Each process begins elsewhere: what one has finished, the others need not do.
    order = np.random.default_rng(os.getpid()).permutation(len(left))
    left = [left[place] for place in order.tolist()]
    with Progress(
        f"states of images ({states.folder})", total=len(left), unit="images"
    ) as progress:
        for start in range(0, len(left), _ENCODED_TOGETHER):
            part = left[start : start + _ENCODED_TOGETHER]
            states.refresh()
            own = [missing[digest] for digest in part if states.of_content(digest) is None]
            if own:
                digests, images = source.read(own)
                pixels = [pixel_digest(image) for image in images]
                states.add(digests, pixels, source.encode(images))
            progress.update(len(part))


def _check(states: ImageStates, source: _Images, row: int, of_row: dict[int, bytes]) -> None:
    number = states.of_content(of_row[row])
    assert number is not None, "a row that is known"
    _, images = source.read([row])
    now, before = source.encode(images).cpu().float(), states.read([number]).float()
    difference = float((now - before).norm() / now.norm().clamp_min(1e-12))
    # NaN compares as False.
    if not difference <= _TOLERANCE:
        raise DataError(
            f"{states.folder}: the encoder gives other states today than were kept (row {row} of "
            f"{source.table.uri}, by {difference:.1%}): its code has changed; remove the folder"
        )


def _digest_of(row: dict[str, Any]) -> bytes:
    try:
        return content_digest(encoded_image(row["image"], row["image_uri"]))
    except (DataError, OSError) as error:
        raise DataError(f"row {row['id']!r}: {one_line(error)}") from error
