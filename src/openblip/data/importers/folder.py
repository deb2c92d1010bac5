"""Folders of images: with a `captions.jsonl`, or with a text file beside each image."""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from openblip.data.importers.source import (
    IMAGE_SUFFIXES,
    Cursor,
    Entry,
    Found,
    Refused,
    SourceOptions,
    UnsafePath,
    inside,
    parse_object,
    plain,
    texts_of,
    with_record,
)
from openblip.data.report import Reason

JSONL_NAMES = ("captions.jsonl", "metadata.jsonl")
_IMAGE_FIELDS = ("image", "file_name", "filename", "filepath", "path")
_CAPTION_FIELDS = ("captions", "caption", "text")
# A longer line is no caption record; reading it whole could exhaust the memory.
_MAX_LINE_BYTES = 16 << 20
_MAX_TEXT_BYTES = 4 << 20


class JsonlSource:
    """One JSON object per line, each with a path and texts.

    The image is in the first there is of `image`, `file_name`, `filename`, `filepath`, `path`
    (relative to the folder of the file, or `image_root`); the texts in `captions`, `caption` or
    `text`; `id` and `split` are optional, and everything else becomes metadata. The id is the
    path where there is none.
    """

    format = "jsonl"

    def __init__(self, file: Path, options: SourceOptions) -> None:
        """Reads nothing yet."""
        self._file = file
        self._root = options.image_root or file.parent

    def total(self) -> int:
        """Number of lines."""
        with self._file.open("rb") as stream:
            return sum(1 for _ in _lines(stream))

    def entries(self, cursor: Cursor | None) -> Iterator[Entry]:
        """Yields one entry for each line that is not blank."""
        start = cursor or {"offset": 0, "line": 0}
        number = int(start["line"])
        with self._file.open("rb") as stream:
            stream.seek(int(start["offset"]))
            for line in _lines(stream):
                number += 1
                if line.strip():
                    here: Cursor = {"offset": stream.tell(), "line": number}
                    yield self._entry(line, f"{self._file.name} line {number}", here)

    def _entry(self, line: bytes, where: str, cursor: Cursor) -> Entry:
        try:
            if len(line) >= _MAX_LINE_BYTES:
                raise ValueError(f"a line of more than {_MAX_LINE_BYTES} bytes")
            record = parse_object(line)
            name, captions = _pop_first(record, _IMAGE_FIELDS), _first(record, _CAPTION_FIELDS)
            if not isinstance(name, str):
                raise ValueError(f"no field {' or '.join(_IMAGE_FIELDS)} with a path")
            path = inside(self._root, name)
            texts = texts_of(captions)
        except UnsafePath as error:
            return Refused(where, cursor, Reason.UNSAFE_PATH, str(error))
        except ValueError as error:
            return Refused(where, cursor, Reason.BAD_RECORD, str(error))
        key, split = record.pop("id", None), record.pop("split", None)
        meta = {name: plain(v) for name, v in record.items() if name not in _CAPTION_FIELDS}
        return Found(
            where=f"{where}, {name}",
            cursor=cursor,
            image=path,
            captions=texts,
            key=name if key is None else str(key),
            split=None if split is None else str(split),
            place=self._file,
            image_folder=str(PurePosixPath(name).parent),
            meta=meta,
            may_lack_captions=captions == [],
        )


class SidecarSource:
    """Images in a folder and below it, each with a `.txt` of the same name: a text per line.

    A `.json` of the same name, as img2dataset writes it, becomes metadata, but for its `split`, and
    its `caption` where there is no `.txt`. The id is the path without its suffix.
    """

    format = "folder"

    def __init__(self, folder: Path) -> None:
        """Reads nothing yet."""
        self._folder = folder

    def total(self) -> None:
        """Unknown before the folders have been walked."""

    def entries(self, cursor: Cursor | None) -> Iterator[Entry]:
        """Yields one entry for each image, in the order of the paths."""
        after = tuple(str(cursor["path"]).split("/")) if cursor else ()
        for path in _walk(self._folder):
            parts = path.relative_to(self._folder).parts
            if parts > after:
                yield self._entry(path, "/".join(parts))

    def _entry(self, path: Path, name: str) -> Entry:
        cursor: Cursor = {"path": name}
        try:
            text = _small_text(path.with_suffix(".txt"))
            texts = None if text is None else text.decode("utf-8-sig").splitlines()
            captions, split, meta = with_record(texts, _small_text(path.with_suffix(".json")))
        except (OSError, ValueError) as error:
            return Refused(name, cursor, Reason.BAD_RECORD, f"the text beside it: {error}")
        return Found(
            where=name,
            cursor=cursor,
            image=path,
            captions=captions,
            key=name.removesuffix(path.suffix),
            split=split,
            place=path.parent,
            meta=meta,
        )


def has_images(folder: Path) -> bool:
    """Whether there is an image file in the folder or below it."""
    return next(_walk(folder), None) is not None


def _walk(folder: Path) -> Iterator[Path]:
    """Image files in the order of their path parts; one folder's names are held at a time."""
    for path in sorted(folder.iterdir(), key=lambda path: path.name):
        if path.name.startswith("."):
            continue
        # A link to a folder could lead in circles.
        if path.is_dir() and not path.is_symlink():
            yield from _walk(path)
        elif path.suffix.lower() in IMAGE_SUFFIXES:
            yield path


def _lines(stream: BinaryIO) -> Iterator[bytes]:
    """Lines, each cut to `_MAX_LINE_BYTES`; the rest of a longer one is passed over."""
    while line := stream.readline(_MAX_LINE_BYTES):
        rest = line
        while rest and len(rest) == _MAX_LINE_BYTES and not rest.endswith(b"\n"):
            rest = stream.readline(_MAX_LINE_BYTES)
        yield line


def _small_text(path: Path) -> bytes | None:
    if not path.is_file():
        return None
    if path.stat().st_size > _MAX_TEXT_BYTES:
        raise ValueError(f"{path.name} has more than {_MAX_TEXT_BYTES} bytes")
    return path.read_bytes()


def _first(record: dict[str, Any], names: tuple[str, ...]) -> Any:
    return next((record[name] for name in names if name in record), None)


def _pop_first(record: dict[str, Any], names: tuple[str, ...]) -> Any:
    return next((record.pop(name) for name in names if name in record), None)
