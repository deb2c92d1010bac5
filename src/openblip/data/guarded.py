"""Images decoded in a process of their own, whose death costs one image and not the job."""

import os
import select
import signal
import struct
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from PIL import Image

from openblip.data.images import open_image
from openblip.errors import DataError

TIMEOUT_SECONDS = 120.0
"""A decoder that takes longer for one image is ended."""
_HEADER = struct.Struct("<qq")


class GuardedDecoder:
    """Opens images as `open_image` does, in another process that is replaced when it dies."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end()

    def open(self, encoded: bytes, name: str) -> Image.Image:
        """The image as RGB, the same as from `open_image`.

        Raises:
            DataError: it is damaged, or decoding it ended the process or took too long.
        """
        process = self._process or self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            _send(process.stdin, name.encode(), encoded)
            if not select.select([process.stdout], [], [], TIMEOUT_SECONDS)[0]:
                raise DataError(f"{name}: decoding took over {TIMEOUT_SECONDS:.0f} s; leave it out")
            answer = _receive(process.stdout)
        except (BrokenPipeError, ConnectionResetError):
            answer = None
        except DataError:
            self._end()
            raise
        if answer is None:
            raise DataError(f"{name}: its decoder died ({self._end()}); leave the image out")
        size, content = answer
        if not size:
            raise DataError(content.decode())
        width, height = struct.unpack("<ii", size)
        return Image.frombytes("RGB", (width, height), content)

    def _start(self) -> "subprocess.Popen[bytes]":
        source = str(Path(__file__).resolve().parents[2])
        paths = [source, *filter(None, [os.environ.get("PYTHONPATH")])]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "openblip.data.guarded"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        )
        return self._process

    def _end(self) -> str:
        """Ends the process; what it died of."""
        process, self._process = self._process, None
        if process is None:
            return ""
        for stream in (process.stdin, process.stdout):
            assert stream is not None
            with suppress(BrokenPipeError):
                stream.close()
        try:
            code = process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
        return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def _send(stream: IO[bytes], first: bytes, second: bytes) -> None:
    stream.write(_HEADER.pack(len(first), len(second)) + first)
    stream.write(second)
    stream.flush()


def _receive(stream: IO[bytes]) -> tuple[bytes, bytes] | None:
    header = stream.read(_HEADER.size)
    if len(header) < _HEADER.size:
        return None
    first, second = _HEADER.unpack(header)
    content = stream.read(first + second)
    return (content[:first], content[first:]) if len(content) == first + second else None


def _serve(source: IO[bytes], sink: IO[bytes]) -> None:
    while (request := _receive(source)) is not None:
        name, encoded = request
        try:
            image = open_image(encoded, name.decode())
        except DataError as error:
            _send(sink, b"", str(error).encode())
            continue
        _send(sink, struct.pack("<ii", *image.size), image.tobytes())


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _serve(sys.stdin.buffer, sys.stdout.buffer)
