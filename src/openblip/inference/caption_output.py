"""Where captions of many images go: a stream, a file that can be resumed, a file beside each.

Every format has one line per image, so that a file says itself what is done. What a crash leaves:
settings without a line (begun again), whole lines with half a one at the end (cut off when the file
is opened), or a list's `FILE.partial` beside `FILE`, with lines that are there already or not (both
are read; the next end makes one list of them).
"""

import csv
import io
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, Literal, Protocol, get_args

from openblip.inference.captions import Caption
from openblip.runtime.atomic import force_to_disk, replace_file
from openblip.runtime.documents import json_text
from openblip.runtime.errors import DataError, RecipeError
from openblip.sources.beside import TEXT_ENDINGS, bases_of, text_ending
from openblip.sources.coco import image_id
from openblip.sources.delimited import CAPTION_COLUMNS, guarded, one_line
from openblip.sources.image_formats import known_by_name
from openblip.sources.paths import PARTIAL_SUFFIX, SETTINGS_SUFFIX
from openblip.table.rows import IdSet

Written = tuple[str, Path | None, Sequence[Caption]]
"""Name of an image, its own file if it has one, and its captions."""


class CaptionOutput(Protocol):
    """A place for captions."""

    since: float | None
    """When the last of the captions that are there was written; None where that is not known."""
    num_before: int
    """Images whose captions are there from earlier runs; 0 where that is not known."""

    def mark(self, name: str, file: Path | None) -> str:
        """What tells an image's captions from others; two images must not have the same."""

    def has(self, mark: str) -> bool:
        """Whether the captions of an image are there from an earlier run."""

    def write(self, results: Sequence[Written]) -> None:
        """Stores captions; once this returns they survive the end of the process."""

    def close(self, is_complete: bool) -> None:
        """Ends the output. `is_complete` tells that no image is left."""


FormatName = Literal["jsonl", "csv", "coco", "txt"]


@dataclass(frozen=True)
class CaptionFormat:
    """How the captions of an image become a line, and how a line tells whose it is."""

    name: FormatName
    line: Callable[[str, Sequence[Caption]], str]
    """The line, without its end, of an image's name and captions."""
    mark: Callable[[str], str]
    """What stands in the line of an image with this name."""
    mark_of: Callable[[str], str]
    """What stands in a line; raises `ValueError`, `KeyError` or `TypeError` if it is none."""
    head: str = ""
    """First line of the file; empty if there is none."""

    @property
    def is_list(self) -> bool:
        """Whether the lines are the elements of one JSON list."""
        return self.name == "coco"


class StreamOutput:
    """Captions on standard output, or on a device or pipe: nothing is resumed."""

    since: float | None = None
    num_before = 0

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
        self._journal = file.with_name(f"{file.name}{PARTIAL_SUFFIX}") if lines.is_list else file
        self._settings = file.with_name(f"{file.name}{SETTINGS_SUFFIX}")
        self._done = IdSet()
        if file.is_dir():
            raise DataError(f"-o {file}: a folder; give the name of a file in it")
        with _writing(str(file)):
            if overwrite or not self._has_captions():
                for old in (file, self._journal, self._settings):
                    old.unlink(missing_ok=True)
            # Settings before lines: no line may be there of which nobody knows how it was made.
            self._check_settings(dict(settings))
            self._read_done()
            self.num_before = len(self._done)
            there = self._journal if self._journal.is_file() else file
            self.since = there.stat().st_mtime if there.is_file() else None
            # There from now on, whatever comes: `close` brings it to the disk.
            if not self._journal.exists():
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
                # Last: whoever is killed before has lines twice, of which the next list has one.
                self._journal.unlink()

    def _append(self, data: bytes) -> None:
        # Without a buffer, whose rest would be written at the exit, behind what was cut off.
        with self._journal.open("ab", buffering=0) as stream:
            end = stream.tell()
            try:
                _write_all(stream, data)
            except OSError:
                # Half a line would make the next one unreadable; whole ones are work that is done.
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
        with (
            replace_file(self._file) as unfinished,
            unfinished.open("wb") as stream,
            self._journal.open("rb") as journal,
        ):
            output = StreamOutput(stream, str(self._file), self._format)
            added = (line_text(data).rstrip("\n") for data in journal)
            marks = IdSet()
            lines = chain(self._list_lines(), added)
            output.copy(line for line in lines if marks.add(self._format.mark_of(line)))
            output.close(is_complete=True)


class SidecarOutput:
    """A text file beside each image, with a caption a line.

    An image that has a text, under any of the names that an import reads, is left alone: it may be
    anybody's.
    """

    since: float | None = None
    num_before = 0

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
            # It survives this process; forced to the disk, a file for each image, it would survive
            # a power cut.
            with _writing(str(path)), replace_file(path, durable=False) as unfinished:
                lines = "".join(f"{caption.text}\n" for caption in captions if caption.text)
                unfinished.write_text(lines, encoding="utf-8")

    def close(self, is_complete: bool) -> None:
        """Does nothing: every file is finished."""


def _write_all(stream: BinaryIO, data: bytes) -> None:
    """Unbuffered streams may take a part only."""
    # Of which a slice copies nothing.
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


_OF_SUFFIX: dict[str, FormatName] = {
    ".jsonl": "jsonl",
    ".csv": "csv",
    ".json": "coco",
    ".txt": "txt",
}
# What a line says of a log-probability; the digits behind it change with the size of a batch.
_DECIMALS = 4


def format_name(suffix: str) -> FormatName:
    """The format of a file with this suffix.

    Raises:
        RecipeError: if no format has it.
    """
    if suffix.lower() not in _OF_SUFFIX:
        raise RecipeError(
            f"-o: no format has the suffix {suffix!r}; end the name in {', '.join(_OF_SUFFIX)}, "
            "or give --format"
        )
    return _OF_SUFFIX[suffix.lower()]


def caption_format(name: FormatName, num_captions: int) -> CaptionFormat:
    """The format of this name for so many captions an image.

    `jsonl` has objects `{"image": name, "captions": [{"text", "logprob"}]}`, and of an empty text
    its `reason`; `csv` the columns image, caption, logprob, and caption_2, logprob_2 and so on, a
    quote before what a spreadsheet would run; `txt` the name and the captions
    with tabs between them; `coco` the elements of a results file, `{"image_id", "caption"}`.

    Raises:
        RecipeError: if there is no such format, or it has room for one caption only.
    """
    if name not in get_args(FormatName):
        raise RecipeError(f"--format {name!r} is not one of {', '.join(get_args(FormatName))}")
    if name == "jsonl":
        return CaptionFormat(name, _jsonl_line, str, lambda line: str(json.loads(line)["image"]))
    if name == "csv":
        mark_of = partial(_csv_mark, columns=1 + 2 * num_captions)
        return CaptionFormat(name, _csv_line, _csv_name, mark_of, _csv_head(num_captions))
    if name == "txt":
        return CaptionFormat(name, _txt_line, one_line, _txt_mark)
    if num_captions > 1:
        raise RecipeError(
            f"--num-captions {num_captions}: a COCO results file has one caption an image; leave "
            "it out, or give --format jsonl"
        )
    return CaptionFormat(name, _coco_line, lambda image: json_text(image_id(image)), _coco_mark)


def line_bytes(line: str) -> bytes:
    """A line in UTF-8; a file name that is no Unicode keeps its bytes."""
    return line.encode("utf-8", "surrogateescape")


def line_text(data: bytes) -> str:
    """The inverse of `line_bytes`."""
    return data.decode("utf-8", "surrogateescape")


def _jsonl_line(name: str, captions: Sequence[Caption]) -> str:
    return json_text({"image": name, "captions": [_as_json(caption) for caption in captions]})


def _as_json(caption: Caption) -> dict[str, object]:
    """A text with its log-probability, and where it is empty the reason."""
    values = {"text": caption.text, "logprob": round(caption.logprob, _DECIMALS)}
    return values | ({} if caption.reason is None else {"reason": caption.reason})


def _coco_line(name: str, captions: Sequence[Caption]) -> str:
    return json_text({"image_id": image_id(name), "caption": captions[0].text})


def _coco_mark(line: str) -> str:
    return json_text(json.loads(line)["image_id"])


def _csv_line(name: str, captions: Sequence[Caption]) -> str:
    cells: list[str] = [_csv_name(name)]
    for caption in captions:
        cells += [guarded(one_line(caption.text)), f"{caption.logprob:.{_DECIMALS}f}"]
    return _csv(cells)


def _csv_name(name: str) -> str:
    return guarded(one_line(name))


def _csv_head(num_captions: int) -> str:
    cells = [*CAPTION_COLUMNS]
    for number in range(2, num_captions + 1):
        cells += [f"caption_{number}", f"logprob_{number}"]
    return _csv(cells)


def _csv(cells: Sequence[str]) -> str:
    stream = io.StringIO()
    csv.writer(stream, lineterminator="").writerow(cells)
    return stream.getvalue()


def _csv_mark(line: str, columns: int) -> str:
    cells = next(csv.reader([line]))
    if len(cells) != columns:
        raise ValueError(f"{len(cells)} columns where {columns} should be")
    return cells[0]


def _txt_line(name: str, captions: Sequence[Caption]) -> str:
    return "\t".join([one_line(name), *(one_line(caption.text) for caption in captions)])


def _txt_mark(line: str) -> str:
    name, _, _ = line.partition("\t")
    return name
