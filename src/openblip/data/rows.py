"""What a row of the pair table is, and how rows become Arrow record batches."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from openblip.data.ids import IdSet
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
    """Unique within the table: the key from the source, or the SHA-256 of the bytes."""
    image: bytes | None = None
    """Encoded bytes as received; None when they stay at `image_uri`."""
    image_uri: str | None = None
    """Path or URI of bytes that are not stored in the table."""
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
    rows: Iterable[PairRow], known: IdSet, on_duplicate: Callable[[PairRow], None] | None
) -> "Iterator[pa.RecordBatch]":
    """Yields the rows whose id is new, in order, in batches of bounded size.

    Args:
        rows: taken as they are needed.
        known: ids that are taken; grows by those of the rows.
        on_duplicate: is given each row whose id is known, at once; None makes it an error.

    Raises:
        DataError: a row is malformed, or has a known id and there is no `on_duplicate`.
    """
    import pyarrow as pa

    records: list[dict[str, Any]] = []
    num_bytes = 0
    for row in rows:
        record = _record(row)
        if known.add(row.id):
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
        "id": _encodable(row.id),
        "image": row.image,
        "image_uri": row.image_uri,
        "width": row.width,
        "height": row.height,
        "captions": [_encodable(text) for text in row.captions],
        "origin": row.origin,
        "split": row.split,
        "meta": _encodable(json.dumps(dict(row.meta), ensure_ascii=False)),
    }


def _encodable(text: str) -> str:
    """`text` with lone surrogates (which JSON escapes can hold) replaced by question marks."""
    return text.encode("utf-8", "replace").decode("utf-8")


def listed(names: Iterable[str]) -> str:
    """The names with commas between them."""
    return ", ".join(names)
