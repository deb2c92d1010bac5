"""Which columns of a table have a meaning, and the entry that a row makes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openblip.runtime.errors import DataError
from openblip.sources.records import ImageFolder
from openblip.sources.report import Reason
from openblip.sources.source import (
    TEXT_FIELDS,
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
from openblip.sources.splits import pop_split, says_split

# The first of these that a table has is taken, whatever its case.
BYTES_COLUMNS = ("image", "image_bytes", "bytes", "jpg", "jpeg", "png", "webp", "img")
PATH_COLUMNS = (
    *("image", "image_path", "file_name", "filename", "filepath", "file_path", "path"),
    *("img_path", "image_file", "image_name", "img", "file"),
)
# Of these, the first in which a row has a text.
CAPTION_COLUMNS = (
    *("captions", "caption", "text", "texts", "txt", "sentences", "sentence", "raw"),
    *("title", "description", "alt_text", "alt", "comment"),
)
ID_COLUMNS = ("id", "key", "uid", "image_id")
# By these a table of img2dataset says why it has no image.
_ERROR_COLUMNS = ("error_message", "status")


class NoColumn(DataError):  # noqa: N818 - says what it is
    """A table lacks a column that it needs, or that the user names."""


@dataclass(frozen=True)
class Columns:
    """Names of the columns that have a meaning."""

    image: str
    captions: tuple[str, ...]
    """The first in which a row has a text is that row's."""
    keys: tuple[str, ...]
    splits: tuple[str, ...]


@dataclass(frozen=True)
class Place:
    """Where rows come from."""

    path: Path
    """File, shard or split, the name of which may tell the split."""
    images: ImageFolder
    """Folder below which paths of images lie."""
    within: str = ""
    """Folder of the table in a source of several, with a slash behind; begins ids that are
    paths."""


def find_columns(kinds: Mapping[str, str], told: SourceOptions, name: str) -> Columns:
    """The columns by their names and kinds, unless the user names them.

    Args:
        kinds: `binary`, `text` or the name of another type for each column.
        told: what the user says.
        name: of the table, for errors.

    Raises:
        NoColumn: no column can be the one of the images, or of the texts, or none has the name
            that the user gives.
    """
    binary = [column for column, kind in kinds.items() if kind == "binary"]
    text = [column for column, kind in kinds.items() if kind == "text"]
    image = (
        _named(told.image_column, kinds, name)
        or _known(binary, BYTES_COLUMNS)
        or _known(text, PATH_COLUMNS)
    )
    if not image:
        raise NoColumn(_no_image(name, kinds))
    captions = _named(told.caption_column, kinds, name) or _known(
        [column for column in text if column != image[0]], CAPTION_COLUMNS
    )
    if not captions:
        others = _known(kinds, CAPTION_COLUMNS)
        of_type = f" ({others[0]} is {kinds[others[0]]})" if others else ""
        raise NoColumn(
            f"{name}: no column of texts among {_some(kinds)}{of_type}: name it (--caption-column)"
        )
    keys = _named(told.id_column, kinds, name) or _known(kinds, ID_COLUMNS)[:1]
    splits = tuple(column for column in kinds if says_split(column) and column != image[0])
    return Columns(image[0], captions, keys, splits)


def row_entry(
    record: Mapping[str, Any], columns: Columns, place: Place, where: str, cursor: Cursor
) -> Entry:
    """What a row is: an image with its texts, or the reason why it is none."""
    image: bytes | Path | None = None
    try:
        image, name = _image(record[columns.image], place)
        captions, used = first_texts(record, columns.captions)
        others = {field: value for field, value in record.items() if field != columns.image}
        split = pop_split(others)
        # A column of texts of which another one was taken is metadata.
        read = (used, *columns.keys)
        meta = unfolded({field: value for field, value in others.items() if field not in read})
    except UnsafePath as error:
        return Refused(where, cursor, Reason.UNSAFE_PATH, str(error), image_name=error.name)
    except ValueError as error:
        path = image if isinstance(image, Path) else None
        return Refused(where, cursor, Reason.BAD_RECORD, str(error), image=path)
    if image is None:
        detail = f"{columns.image} is empty"
        said = [str(record[field]) for field in _ERROR_COLUMNS if record.get(field)]
        return Refused(where, cursor, Reason.MISSING_IMAGE, ": ".join((detail, *said[:1])))
    keys = (id_text(record[field]) for field in columns.keys)
    return Found(
        where=f"{where}, {name}" if name else where,
        cursor=cursor,
        image=image,
        captions=captions,
        key=next(keys, None) or (name and place.within + name),
        split=split,
        place=place.path,
        image_folder=place.images.folder_of(name) if name else "",
        meta=meta,
    )


def arrow_kinds(schema: Any) -> list[str]:
    """`binary`, `text` or the name of another type for each column of an Arrow schema."""
    return [_arrow_kind(field.type) for field in schema]


def _arrow_kind(column: Any) -> str:
    from pyarrow import types

    # As pandas writes its categories.
    if types.is_dictionary(column):
        column = column.value_type
    # An image as `datasets` stores it.
    if types.is_struct(column) and column.get_field_index("bytes") >= 0:
        return "binary"
    # Texts that are all missing in a file give a column of the type null.
    is_text = types.is_string(column) or types.is_large_string(column)
    if is_text or types.is_string_view(column) or types.is_null(column):
        return "text"
    is_binary = types.is_binary(column) or types.is_large_binary(column)
    if is_binary or types.is_binary_view(column) or types.is_fixed_size_binary(column):
        return "binary"
    is_list = types.is_list(column) or types.is_large_list(column)
    is_view = types.is_list_view(column) or types.is_large_list_view(column)
    if is_list or is_view or types.is_fixed_size_list(column):
        return "text" if _arrow_kind(column.value_type) == "text" else str(column)
    if types.is_struct(column):
        names = [name for name in TEXT_FIELDS if column.get_field_index(name) >= 0]
        kinds = [_arrow_kind(column.field(name).type) for name in names]
        return "text" if "text" in kinds[:1] else str(column)
    return str(column)


def _image(value: Any, place: Place) -> tuple[bytes | Path | None, str | None]:
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, str) and value:
        return place.images.path(value), place.images.below(value)
    return (value, None) if isinstance(value, bytes) and value else (None, None)


def _known(names: Sequence[str] | Mapping[str, str], wanted: Sequence[str]) -> tuple[str, ...]:
    # Reversed, so that of names that differ in case alone the first one stays.
    by_lower = {name.lower(): name for name in reversed(list(names))}
    return tuple(by_lower[name] for name in wanted if name in by_lower)


def _named(column: str | None, kinds: Mapping[str, str], name: str) -> tuple[str, ...]:
    if column is None:
        return ()
    if column not in kinds:
        raise NoColumn(f"{name} has no column {column!r}; it has {_some(kinds)}")
    return (column,)


def _no_image(name: str, kinds: Mapping[str, str]) -> str:
    if {"key", "status"} <= kinds.keys():
        return (
            f"{name} has no images: where it is img2dataset's table of those that it fetched, "
            "import the folder that it lies in"
        )
    if any("url" in column.lower() for column in kinds):
        return (
            f"{name} holds addresses of images, not images: download them first (img2dataset "
            "does that well) and import its output"
        )
    return (
        f"{name}: no column of images among {_some(kinds)}: name it (--image-column), or all "
        "columns of a file without header (--columns image caption)"
    )


def _some(names: Mapping[str, str]) -> str:
    """Names for a message that stays short."""
    shown = [name if len(name) <= 40 else f"{name[:39]}…" for name in list(names)[:12]]
    return ", ".join(shown) + (f" and {len(names) - 12} more" if len(names) > 12 else "")
