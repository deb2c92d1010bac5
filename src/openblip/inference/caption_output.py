"""Where captions of many images go: a stream, a file that can be resumed, a file beside each."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from openblip.atomic import force_to_disk, replace_file
from openblip.data.ids import IdSet
from openblip.data.image_formats import known_by_name
from openblip.data.importers.beside import bases_of, text_ending
from openblip.data.importers.side_texts import TEXT_ENDINGS
from openblip.errors import DataError, RecipeError
from openblip.inference.caption_formats import CaptionFormat, line_bytes, line_text
from openblip.inference.captions import Caption

Written = tuple[str, Path | None, Sequence[Caption]]
"""Name of an image, its own file if it has one, and its captions."""


class CaptionOutput(Protocol):
    """A place for captions."""

    def mark(self, name: str, file: Path | None) -> str:
        """What tells an image's captions from others; two images must not have the same."""

    def has(self, mark: str) -> bool:
        """Whether the captions of an image are there from an earlier run."""

    def write(self, results: Sequence[Written]) -> None:
        """Stores captions; once this returns they survive the end of the process."""

    def close(self, is_complete: bool) -> None:
        """Ends the output. `is_complete` tells that no image is left."""


class StreamOutput:
    """Captions on standard output, or on a device or pipe: nothing is resumed."""

    def __init__(self, stream: BinaryIO, name: str, lines: CaptionFormat) -> None:
        """Writes nothing yet; `name` is what errors call the stream."""
        self._stream, self._name, self._format = stream, name, lines
        self._is_begun = False

    def mark(self, name: str, file: Path | None) -> str:
        """What stands in the line of an image."""
        return self._format.mark(name)

    def has(self, mark: str) -> bool:
        """Never."""
        return False

    def write(self, results: Sequence[Written]) -> None:
        """Writes and flushes lines.

        Raises:
            DataError: if that fails; names the output.
            BrokenPipeError: if nobody reads any more.
        """
        with _writing(self._name):
            for name, _, captions in results:
                self._write_line(self._format.line(name, captions))
            self._stream.flush()

    def close(self, is_complete: bool) -> None:
        """Writes what ends the document, so that it is valid also when images are left."""
        with _writing(self._name):
            self._begin()
            if self._format.is_list:
                _write_all(self._stream, b"\n]\n")
            self._stream.flush()

    def copy(self, lines: Iterator[str]) -> None:
        """Writes lines that are in the format already."""
        for line in lines:
            self._write_line(line)

    def _write_line(self, line: str) -> None:
        is_first = self._begin()
        if self._format.is_list:
            _write_all(self._stream, (b"\n" if is_first else b",\n") + line_bytes(line))
        else:
            _write_all(self._stream, line_bytes(line) + b"\n")

    def _begin(self) -> bool:
        if self._is_begun:
            return False
        self._is_begun = True
        if self._format.is_list:
            _write_all(self._stream, b"[")
        elif self._format.head:
            _write_all(self._stream, line_bytes(self._format.head) + b"\n")
        return True


class FileOutput:
    """Captions in a file to which each batch is appended, with its settings beside it.

    A line that a killed process left unfinished is cut off when the file is opened. A JSON list
    cannot be appended to: its elements stand in `FILE.partial` until all are there.
    """

    def __init__(
        self, file: Path, lines: CaptionFormat, settings: Mapping[str, Any], overwrite: bool
    ) -> None:
        """Opens the file for what is missing in it.

        Args:
            file: where the captions are to stand; `FILE.settings.json` comes beside it.
            lines: its format.
            settings: what decides the captions, plain JSON.
            overwrite: begin from nothing.

        Raises:
            RecipeError: the file was written with other settings.
            DataError: it cannot be written, or it is damaged in the middle.
        """
        self._file, self._format = file, lines
        self._journal = file.with_name(f"{file.name}.partial") if lines.is_list else file
        self._settings = file.with_name(f"{file.name}.settings.json")
        self._done = IdSet()
        if file.is_dir():
            raise DataError(f"-o {file}: a folder; give the name of a file in it")
        with _writing(str(file)):
            if overwrite or not self._has_captions():
                for old in (file, self._journal, self._settings):
                    old.unlink(missing_ok=True)
            self._check_settings(dict(settings))
            self._read_done()
            self._journal.touch()
            if lines.head and self._journal.stat().st_size == 0:
                self._append(line_bytes(lines.head) + b"\n")

    def _has_captions(self) -> bool:
        """Whether there is more than a job leaves that failed before its first caption."""
        head = len(line_bytes(self._format.head)) + 1 if self._format.head else 0
        least = head if self._settings.is_file() else 0
        files = (self._file, self._journal)
        return any(file.is_file() and file.stat().st_size > least for file in files)

    def mark(self, name: str, file: Path | None) -> str:
        """What stands in the line of an image."""
        return self._format.mark(self._told(name, file))

    def _told(self, name: str, file: Path | None) -> str:
        """The name of an image file as it leads to it from the folder of the output.

        There an import looks for it. One that lies elsewhere is named by its whole path.
        """
        if file is None:
            return name
        # Links stay: what a linked folder holds is below it.
        folder, where = (Path(os.path.normpath(p.absolute())) for p in (self._file.parent, file))
        if folder / name == where:
            return name
        return str(where.relative_to(folder) if where.is_relative_to(folder) else where)

    def has(self, mark: str) -> bool:
        """Whether a line of this image is there."""
        return mark in self._done

    def write(self, results: Sequence[Written]) -> None:
        """Appends lines with one write, so that a batch is there whole whenever that can be.

        Raises:
            DataError: if that fails, as on a full disk; whole lines stay.
        """
        lines = (self._format.line(self._told(name, file), texts) for name, file, texts in results)
        text = "".join(f"{line}\n" for line in lines)
        with _writing(str(self._journal)):
            self._append(line_bytes(text))

    def close(self, is_complete: bool) -> None:
        """Brings the lines to the disk; a list that is complete takes the place of its file.

        Raises:
            DataError: if that fails; the lines are kept.
        """
        with _writing(str(self._file)):
            force_to_disk(self._journal)
            if is_complete and self._format.is_list:
                self._write_list()
                self._journal.unlink()

    def _append(self, data: bytes) -> None:
        with self._journal.open("ab", buffering=0) as stream:
            end = stream.tell()
            try:
                _write_all(stream, data)
            except OSError:
                written = data[: stream.seek(0, os.SEEK_END) - end]
                stream.truncate(end + written.rfind(b"\n") + 1)
                raise

    def _check_settings(self, settings: dict[str, Any]) -> None:
        if self._has_captions():
            if not self._settings.is_file():
                raise RecipeError(
                    f"-o {self._file}: it exists, and no {self._settings.name} beside it says how "
                    "it was made; give --overwrite, or another name"
                )
            _compare(_stored(self._settings), settings, self._file)
        with replace_file(self._settings) as unfinished:
            unfinished.write_text(json.dumps(settings, indent=1, ensure_ascii=False) + "\n")

    def _read_done(self) -> None:
        if self._journal.is_file():
            with self._journal.open("r+b") as stream:
                stream.truncate(self._read_lines(stream))
        if self._format.is_list:
            for line in self._list_lines():
                self._done.add(self._format.mark_of(line))

    def _read_lines(self, stream: BinaryIO) -> int:
        """Notes whose lines there are; returns how many bytes are whole lines."""
        length = 0
        for number, data in enumerate(stream, 1):
            if not data.endswith(b"\n"):
                break
            length += len(data)
            line = line_text(data[:-1])
            if number == 1 and self._format.head:
                continue
            try:
                self._done.add(self._format.mark_of(line))
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(
                    f"{self._journal}, line {number}: not written by this command ({error}); "
                    "remove the line, or give --overwrite"
                ) from error
        return length

    def _list_lines(self) -> Iterator[str]:
        """The elements that the finished list has, which `StreamOutput` writes one a line."""
        if self._file.is_file():
            with self._file.open("rb") as stream:
                for data in stream:
                    if (line := line_text(data).strip().rstrip(",")) not in ("[", "]"):
                        yield line

    def _write_list(self) -> None:
        with replace_file(self._file) as unfinished, unfinished.open("wb") as stream:
            output = StreamOutput(stream, str(self._file), self._format)
            output.copy(self._list_lines())
            with self._journal.open("rb") as journal:
                output.copy(line_text(data).rstrip("\n") for data in journal)
            output.close(is_complete=True)


class SidecarOutput:
    """A text file beside each image, with a caption a line.

    An image that has a text, under any of the names that an import reads, is left alone.
    """

    def __init__(self, overwrite: bool) -> None:
        """`overwrite` replaces text files that are there, whoever wrote them."""
        self._overwrite = overwrite
        self._stems: dict[Path, set[str]] = {}

    def mark(self, name: str, file: Path | None) -> str:
        """Path of the text file."""
        return str((file or Path(name)).with_suffix(".txt"))

    def has(self, mark: str) -> bool:
        """Whether the image has a text, which stays."""
        path = Path(mark)
        return not self._overwrite and (path.exists() or path.stem in self._told(path.parent))

    def _told(self, folder: Path) -> set[str]:
        """Stems of the images that have a text in a folder when it is first looked at."""
        if folder not in self._stems:
            names = [file.name for file in folder.iterdir()] if folder.is_dir() else []
            texts = [name for name in names if text_ending(name) in TEXT_ENDINGS]
            bases = {base for text in texts for base in bases_of(text)}
            # Of `a.jpg.txt` the image is `a.jpg`, of `a.b.txt` it is not `a`.
            named = {Path(base).stem for base in bases if known_by_name(base)}
            self._stems[folder] = bases | named
        return self._stems[folder]

    def write(self, results: Sequence[Written]) -> None:
        """Writes text files, each there whole or not at all; none for an image without a text.

        Raises:
            DataError: if that fails; names the file.
        """
        for name, file, captions in results:
            if not any(caption.text for caption in captions):
                continue
            path = Path(self.mark(name, file))
            with _writing(str(path)), replace_file(path, durable=False) as unfinished:
                lines = "".join(f"{caption.text}\n" for caption in captions if caption.text)
                unfinished.write_text(lines, encoding="utf-8")

    def close(self, is_complete: bool) -> None:
        """Does nothing: every file is finished."""


def _write_all(stream: BinaryIO, data: bytes) -> None:
    """Unbuffered streams may take a part only."""
    rest = memoryview(data)
    while rest:
        rest = rest[stream.write(rest) :]


@contextmanager
def _writing(name: str) -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise DataError(
            f"{name}: cannot be written ({error.strerror or error}); what is finished is kept: "
            "make room, and run the same command again"
        ) from error


def _stored(file: Path) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{file}: damaged ({error}); give --overwrite") from error
    return dict(values) if isinstance(values, dict) else {}


def _compare(before: dict[str, Any], now: dict[str, Any], file: Path) -> None:
    names = [name for name in {**now, **before} if before.get(name) != now.get(name)]
    if names:
        listed = "; ".join(f"{name} {before.get(name)!r}, not {now.get(name)!r}" for name in names)
        raise RecipeError(
            f"-o {file}: it was written with {listed}; give the same settings to go on, "
            "--overwrite to begin again, or another name"
        )
