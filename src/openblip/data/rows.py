"""What a row of the pair table is, and how rows become Arrow record batches."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openblip.data.text import encodable, has_halves
from openblip.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

ORIGINS = ("web", "human")
SPLITS = ("train", "val", "test")
BASE_COLUMNS = (
    "id",
    "image",
    "image_uri",
    "width",
    "height",
    "captions",
    "origin",
    "split",
    "meta",
)
# Rows and bytes that one record batch holds at most while rows are written.
_BATCH_ROWS, _BATCH_BYTES = 512, 16 << 20


@dataclass(frozen=True)
class PairRow:
    """One image and the texts that came with it."""

    id: str
    """Unique within the table: the key from the source, or the SHA-256 of the bytes. What UTF-8
    cannot hold is stored as `encodable` gives it."""
    image: bytes | None = None
    """Encoded bytes as received; None when they stay at `image_uri`."""
    image_uri: str | None = None
    """Path or URI of bytes that are not stored in the table; a path that is no UTF-8 is stored as
    a `file://` address."""
    width: int | None = None
    """Pixels."""
    height: int | None = None
    """Pixels."""
    captions: Sequence[str] = ()
    """The given texts."""
    origin: str = "web"
    """`web` (noisy) or `human` (annotated)."""
    split: str = "train"
    """`train`, `val` or `test`."""
    meta: Mapping[str, Any] = field(default_factory=dict)
    """What the source said besides; must be writable as JSON."""


def read_meta(row: str, meta: str | None) -> dict[str, Any]:
    """The object in a row's `meta`; empty where that is null.

    Args:
        row: what errors call the row: its id, or its number and table.
        meta: the column's text.

    Raises:
        DataError: it is no JSON object.
    """
    try:
        value = json.loads(meta or "{}")
    except (ValueError, RecursionError) as error:
        raise DataError(f"row {row}: its meta is no JSON ({error}); mend the column") from error
    if not isinstance(value, dict):
        raise DataError(f"row {row}: its meta is {meta!r:.60}, no JSON object; mend the column")
    return value


def row_batches(
    rows: Iterable[PairRow],
    is_new: Callable[[str], bool],
    on_duplicate: Callable[[PairRow], None] | None,
) -> "Iterator[pa.RecordBatch]":
    """Yields the rows whose id is new, in order, in batches of bounded size.

    Args:
        rows: taken as they are needed.
        is_new: whether an id, as it is stored, is not taken; it is taken afterwards.
        on_duplicate: is given each row whose id is known, at once; None makes it an error.

    Raises:
        DataError: a row is malformed, or has a known id and there is no `on_duplicate`.
    """
    import pyarrow as pa

    records: list[dict[str, Any]] = []
    num_bytes = 0
    for row in rows:
        record = _record(row)
        if is_new(record["id"]):
            records.append(record)
            num_bytes += len(row.image or b"")
        elif on_duplicate is not None:
            on_duplicate(row)
        else:
            raise DataError(f"the id {row.id!r} occurs twice: ids must be unique within a table")
        if len(records) >= _BATCH_ROWS or num_bytes >= _BATCH_BYTES:
            yield pa.RecordBatch.from_pylist(records, schema=row_schema())
            records, num_bytes = [], 0
    if records:
        yield pa.RecordBatch.from_pylist(records, schema=row_schema())


def row_schema() -> "pa.Schema":
    """The Arrow types of `BASE_COLUMNS`."""
    import pyarrow as pa

    text = pa.string()
    types = {
        "image": pa.large_binary(),
        "width": pa.int32(),
        "height": pa.int32(),
        "captions": pa.list_(text),
    }
    return pa.schema([(name, types.get(name, text)) for name in BASE_COLUMNS])


def _record(row: PairRow) -> dict[str, Any]:
    if not row.id:
        raise DataError("a row has an empty id")
    if row.image is None and row.image_uri is None:
        raise DataError(f"row {row.id!r} has neither image bytes nor an image_uri")
    if row.origin not in ORIGINS:
        raise DataError(f"row {row.id!r}: origin {row.origin!r} is none of {listed(ORIGINS)}")
    if row.split not in SPLITS:
        raise DataError(f"row {row.id!r}: split {row.split!r} is none of {listed(SPLITS)}")
    return {
        "id": encodable(row.id),
        "image": row.image,
        "image_uri": _address(row.image_uri),
        "width": row.width,
        "height": row.height,
        "captions": [text.encode("utf-8", "replace").decode() for text in row.captions],
        "origin": row.origin,
        "split": row.split,
        "meta": _meta_json(row.meta),
    }


def _address(place: str | None) -> str | None:
    if place is None or not has_halves(place):
        return place
    return Path(place).absolute().as_uri()


def _meta_json(meta: Mapping[str, Any]) -> str:
    text = json.dumps(dict(meta), ensure_ascii=False)
    return json.dumps(_without_halves(meta), ensure_ascii=False) if has_halves(text) else text


def _without_halves(value: Any) -> Any:
    if isinstance(value, str):
        return encodable(value)
    if isinstance(value, Mapping):
        return {_without_halves(key): _without_halves(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_halves(item) for item in value]
    return value


def listed(names: Iterable[str]) -> str:
    """The names with commas between them."""
    return ", ".join(names)
