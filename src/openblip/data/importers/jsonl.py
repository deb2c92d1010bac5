"""Lists of images with their texts, a JSON object a line."""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from openblip.data.importers.source import (
    Cursor,
    Entry,
    Found,
    Refused,
    SourceOptions,
    UnsafePath,
    inside,
    name_below,
    parse_object,
    texts_of,
    unfolded,
)
from openblip.data.importers.splits import known_split, pop_split
from openblip.data.report import Reason

_IMAGE_FIELDS = ("image", "file_name", "filename", "filepath", "path")
_CAPTION_FIELDS = ("captions", "caption", "text")
_LIST_NAMES = ("captions", "metadata")
# A longer line is no caption record; reading it whole could exhaust the memory.
_MAX_LINE_BYTES = 16 << 20


def is_list_name(name: str) -> bool:
    """Whether a file of that name in a folder of images is taken for a list of them.

    It is `captions.jsonl`, `metadata.jsonl`, or has the name of a split.
    """
    stem, _, suffix = name.lower().rpartition(".")
    return suffix == "jsonl" and (stem in _LIST_NAMES or known_split(stem) is not None)


class JsonlSource:
    """One JSON object per line, each with a path and texts.

    The image is in the first there is of `image`, `file_name`, `filename`, `filepath`, `path`
    (relative to the folder of the file, or `image_root`); the texts in the first that has any of
    `captions`, `caption` or `text`; `id`, and `split` or `set_name`, are optional, and everything
    else becomes metadata. The id is the path where there is none.
    """

    format = "jsonl"

    def __init__(self, file: Path, options: SourceOptions, within: str = "") -> None:
        """Reads nothing yet.

        Args:
            file: the list.
            options: may name the folder of the images.
            within: folder of the list in a source of several, with a slash behind; begins ids that
                are paths.
        """
        self._file = file
        self._root = options.image_root or file.parent
        self._name, self._within = within + file.name, within if not options.image_root else ""

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
                    yield self._entry(line, f"{self._name} line {number}", here)

    def _entry(self, line: bytes, where: str, cursor: Cursor) -> Entry:
        path: Path | None = None
        try:
            if len(line) >= _MAX_LINE_BYTES:
                raise ValueError(f"a line of more than {_MAX_LINE_BYTES} bytes")
            record = parse_object(line)
            name, captions = _pop_first(record, _IMAGE_FIELDS), _pop_first(record, _CAPTION_FIELDS)
            if not isinstance(name, str):
                raise ValueError(f"no field {' or '.join(_IMAGE_FIELDS)} with a path")
            name = name_below(self._root, name)
            path = inside(self._root, name)
            texts = texts_of(captions)
        except UnsafePath as error:
            return Refused(where, cursor, Reason.UNSAFE_PATH, str(error))
        except ValueError as error:
            return Refused(where, cursor, Reason.BAD_RECORD, str(error), image=path)
        if not any(map(str.strip, texts)) and (why := _why_empty(captions)):
            return Refused(f"{where}, {name}", cursor, Reason.MISSING_CAPTION, why, image=path)
        key, split = record.pop("id", None), pop_split(record)
        return Found(
            where=f"{where}, {name}",
            cursor=cursor,
            image=path,
            captions=texts,
            key=self._within + name if key is None else str(key),
            split=split,
            place=self._file,
            image_folder=str(PurePosixPath(name).parent),
            meta=unfolded(record),
            may_lack_captions=captions == [],
        )


def _why_empty(captions: Any) -> str | None:
    """The reason that `openblip caption` writes beside an empty text."""
    items = captions if isinstance(captions, list) else []
    reasons = (item.get("reason") for item in items if isinstance(item, dict))
    return next((reason for reason in reasons if isinstance(reason, str)), None)


def _lines(stream: BinaryIO) -> Iterator[bytes]:
    """Lines, each cut to `_MAX_LINE_BYTES`; the rest of a longer one is passed over."""
    while line := stream.readline(_MAX_LINE_BYTES):
        rest = line
        while rest and len(rest) == _MAX_LINE_BYTES and not rest.endswith(b"\n"):
            rest = stream.readline(_MAX_LINE_BYTES)
        yield line


def _pop_first(record: dict[str, Any], names: tuple[str, ...]) -> Any:
    """Takes out the first field that has something in it, and those before, which have nothing."""
    empty = None
    for name in names:
        value = record.get(name)
        if value is None or value in ("", [], [None]):
            record.pop(name, None)
            empty = value if empty is None else empty
        else:
            return record.pop(name)
    return empty
