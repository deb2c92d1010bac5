"""Lists of images with their texts, a JSON object a line."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from openblip.data.importers.captions import IMAGE_FIELDS
from openblip.data.importers.image_folders import ImageFolder, folder_told
from openblip.data.importers.json_records import END, json_records, num_records
from openblip.data.importers.neighbours import merged
from openblip.data.importers.source import (
    Cursor,
    Entry,
    Found,
    Refused,
    SourceOptions,
    UnsafePath,
    first_texts,
    id_text,
    unfolded,
)
from openblip.data.importers.splits import known_split, pop_split
from openblip.data.importers.text_files import plain_name
from openblip.data.report import Reason

_CAPTION_FIELDS = ("captions", "caption", "text")
_IMAGE = f"{', '.join(IMAGE_FIELDS[:-1])} or {IMAGE_FIELDS[-1]}"
_LIST_NAMES = ("captions", "metadata")
_NUM_TRIED = 100


def is_list_name(name: str) -> bool:
    """Whether a file of that name in a folder of images is taken for a list of them.

    It is `captions.jsonl`, `metadata.jsonl`, or has the name of a split.
    """
    stem, _, suffix = plain_name(Path(name)).rpartition(".")
    return suffix == "jsonl" and (stem in _LIST_NAMES or known_split(stem) is not None)


class JsonlSource:
    """One JSON object per line, or an array of them, each with a path and texts.

    The image is in the first there is of `openblip.data.importers.captions.IMAGE_FIELDS` (relative
    to the folder of the file, or `image_root`); the texts in the first that has any of `captions`,
    `caption` or `text`; `id`, and `split` or `set_name`, are optional, and everything
    else becomes metadata. The id is the path where there is none. Neighbours of one image (lists
    with a record for each caption) become one row with several captions.
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
        self._file, self._encoding = file, options.encoding
        self._folder = ImageFolder(file.parent)
        self._within_source, self._within = within, within if not options.image_root else ""
        if options.image_root is not None:
            names = islice(self._names(), _NUM_TRIED)
            self._folder = folder_told(options.image_root, names)

    def total(self) -> int | None:
        """Number of lines; None where counting them means reading everything."""
        return num_records(self._file, self._encoding)

    def entries(self, cursor: Cursor | None) -> Iterator[Entry]:
        """Yields one entry for each image of neighbouring lines, or records of an array."""
        yield from merged(self._records(cursor))

    def listed(self) -> Iterator[Entry]:
        """All entries."""
        return self.entries(None)

    def _records(self, cursor: Cursor | None) -> Iterator[Entry]:
        is_empty = cursor is None
        for where, here, record in json_records(self._file, self._encoding, cursor):
            is_empty = False
            yield self._entry(record, self._within_source + where, here)
        if is_empty:
            where = self._within_source + self._file.name
            yield Refused(where, END, Reason.EMPTY_FILE, "it has no records")

    def _names(self) -> Iterator[str]:
        for _, _, record in json_records(self._file, self._encoding, None):
            name = None if isinstance(record, ValueError) else _pop_image(record)
            if isinstance(name, str):
                yield name

    def _entry(self, record: dict[str, Any] | ValueError, where: str, cursor: Cursor) -> Entry:
        path: Path | None = None
        try:
            if isinstance(record, ValueError):
                raise record
            fields = ", ".join(list(record)[:12])
            name = _pop_image(record)
            if not isinstance(name, str):
                raise ValueError(f"none of its fields ({fields}) is {_IMAGE} with a path")
            name = self._folder.below(name)
            path = self._folder.path(name)
            texts, captions = _pop_texts(record)
            key, split = id_text(record.pop("id", None)), pop_split(record)
            meta = unfolded(record)
        except UnsafePath as error:
            return Refused(where, cursor, Reason.UNSAFE_PATH, str(error))
        except ValueError as error:
            return Refused(where, cursor, Reason.BAD_RECORD, str(error), image=path)
        if not texts and (why := _why_empty(captions)):
            return Refused(f"{where}, {name}", cursor, Reason.MISSING_CAPTION, why, image=path)
        return Found(
            where=f"{where}, {name}",
            cursor=cursor,
            image=path,
            captions=texts,
            key=self._within + name if key is None else key,
            split=split,
            place=self._file,
            image_folder=self._folder.folder_of(name),
            meta=meta,
            may_lack_captions=captions == [],
        )


def _pop_image(record: dict[str, Any]) -> Any:
    """Takes out the first field of the image that says anything, and the empty ones before."""
    for name in IMAGE_FIELDS:
        if value := record.pop(name, None):
            return value
    return None


def _pop_texts(record: dict[str, Any]) -> tuple[list[str], Any]:
    """Takes out the texts of the first field that has any; without them, what the fields hold."""
    texts, used = first_texts(record, _CAPTION_FIELDS)
    told = None
    for name in _CAPTION_FIELDS:
        value = record.pop(name, None)
        told = value if told is None else told
        if name == used:
            break
    return texts, told


def _why_empty(captions: Any) -> str | None:
    """The reason that `openblip caption` writes beside an empty text."""
    items = captions if isinstance(captions, list) else []
    reasons = (item.get("reason") for item in items if isinstance(item, dict))
    return next((reason for reason in reasons if isinstance(reason, str)), None)
