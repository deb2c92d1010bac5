"""What a row of the pair table is, and how rows become Arrow record batches.

Tables come from other programs too. What is wrong with one (columns, their types, values of rows)
is said here once, by column and row, and not by whatever would stumble over it later. Ids are kept
apart by a set that stays small for a hundred million of them.
"""

import hashlib
import json
import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from openblip.runtime.documents import encodable, has_halves
from openblip.runtime.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

ORIGINS = ("web", "human")
TEXT_SOURCES = ("human", "web", "synthetic")
"""What a text of a table is: one of an annotated row, one of a web row, or a captioner's."""
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
        # Plain binary counts its bytes in int32, which a chunk of 2 GiB exceeds.
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
        "captions": [in_utf8(text) for text in row.captions],
        "origin": row.origin,
        "split": row.split,
        "meta": _meta_json(row.meta),
    }


def in_utf8(text: str) -> str:
    """A text of a row as a table holds it: halves of surrogate pairs become question marks."""
    return text.encode("utf-8", "replace").decode()


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


_RECENT = 1 << 16
# Without a dot: in a tar shard the key of a sample ends there.
_SAFE_KEY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,99}")


class IdSet:
    """Remembers strings by a 64-bit hash: 8 bytes for each, plus a buffer of recent ones.

    Hashes that have left the buffer lie in a few sorted arrays, merged when two have about the
    same length, so that adding costs O(log n) amortised. Two of 100 million different strings
    share a hash with a probability of about 0.0003; one of them would then count as known.
    """

    def __init__(self) -> None:
        self._recent: set[int] = set()
        self._sorted: list[np.ndarray] = []

    def __len__(self) -> int:
        return len(self._recent) + sum(len(part) for part in self._sorted)

    def __contains__(self, text: str) -> bool:
        return self._has(id_hash(text))

    def add(self, text: str) -> bool:
        """Whether `text` was not known before; it is known afterwards."""
        value = id_hash(text)
        if self._has(value):
            return False
        self._recent.add(value)
        if len(self._recent) >= _RECENT:
            self._settle()
        return True

    def add_hashes(self, values: np.ndarray) -> np.ndarray:
        """Which of some strings were not known before; all are known afterwards.

        Args:
            values: their hashes (`id_hash`), uint64, each once.
        """
        # A table of 100 million rows is too long for a loop over its ids.
        if self._recent:
            self._settle()
        # In order, so that what is looked up next lies beside what was looked up before.
        order = np.argsort(values)
        fresh = values[order]
        is_fresh = np.ones(len(fresh), dtype=bool)
        for part in self._sorted:
            places = np.minimum(np.searchsorted(part, fresh), len(part) - 1)
            is_fresh &= part[places] != fresh
        self._keep(fresh[is_fresh])
        is_new = np.empty_like(is_fresh)
        is_new[order] = is_fresh
        return is_new

    def _has(self, value: int) -> bool:
        if value in self._recent:
            return True
        for part in self._sorted:
            place = bisect_left(part, value)
            if place < len(part) and part[place] == value:
                return True
        return False

    def _settle(self) -> None:
        fresh = np.fromiter(self._recent, dtype=np.uint64, count=len(self._recent))
        fresh.sort()
        self._recent.clear()
        self._keep(fresh)

    def _keep(self, fresh: np.ndarray) -> None:
        """Adds sorted hashes that are new."""
        if not len(fresh):
            return
        while self._sorted and len(self._sorted[-1]) <= 2 * len(fresh):
            fresh = np.concatenate([self._sorted.pop(), fresh])
            # Two sorted runs, which NumPy's stable sort of 64 bits (timsort) merges in one pass.
            fresh.sort(kind="stable")
        self._sorted.append(fresh)


class KnownRows:
    """Whether rows have the image, texts and split that they have in a table: 16 bytes for each."""

    COLUMNS = ("id", "image", "captions", "split")
    """Those that it reads."""
    BATCH_ROWS = 256
    """Of which it has the images in memory."""

    def __init__(self, rows: "Iterable[pa.RecordBatch]") -> None:
        """Reads the `COLUMNS` of all rows of a table."""
        parts = [np.empty((2, 0), dtype=np.uint64)]
        for batch in rows:
            ids = [*map(id_hash, batch["id"].to_pylist())]
            told = (batch[name].to_pylist() for name in self.COLUMNS[1:])
            contents = [
                content_hash(image, captions or (), split or "")
                for image, captions, split in zip(*told, strict=True)
            ]
            parts.append(np.array([ids, contents], dtype=np.uint64))
        found = np.concatenate(parts, axis=1)
        # In the order of the ids, in which one is found by halving.
        self._ids, self._contents = found[:, np.argsort(found[0])]
        self._is_told = np.zeros(len(self._ids), dtype=bool)

    def differ(self, ids: np.ndarray, contents: np.ndarray) -> np.ndarray:
        """Which rows are in the table with others; False for a row that was asked for before.

        Args:
            ids: the hashes of their ids (`id_hash`), uint64, each once.
            contents: the hashes of what they hold (`content_hash`), uint64.
        """
        if not len(self._ids):
            return np.zeros(len(ids), dtype=bool)
        places = np.minimum(np.searchsorted(self._ids, ids), len(self._ids) - 1)
        is_first = (self._ids[places] == ids) & ~self._is_told[places]
        self._is_told[places[is_first]] = True
        is_other: np.ndarray = is_first & (self._contents[places] != contents)
        return is_other


def content_hash(image: bytes | None, texts: Iterable[str], split: str) -> int:
    """64 bits that tell a row's image, if it holds one, its texts as stored, and its split."""
    # Of an image that stays where it is the row has nothing that could be out of date.
    digest = hashlib.blake2b(image or b"", digest_size=8).hexdigest()
    return id_hash("\0".join([digest, split, *map(in_utf8, texts)]))


def file_key(row_id: str) -> str:
    """A name for files of a row: its id, or the SHA-256 of an id that is unsafe as a name."""
    if _SAFE_KEY.fullmatch(row_id):
        return row_id
    return hashlib.sha256(row_id.encode("utf-8", "surrogatepass")).hexdigest()


def id_hash(text: str) -> int:
    """The 64 bits by which `IdSet` remembers a string."""
    # Names of files that are no UTF-8 come as halves of surrogates.
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little")


_TEXTS = ("captions", "synthetic")
_LISTS_OF_NUMBERS = ("synthetic_logprob", *(f"{t}_{s}" for t in _TEXTS for s in ("itm", "itc")))
_LISTS_OF_TEXTS = (
    *_TEXTS,
    "synthetic_captioner",
    *(f"{text}_{flag}_of" for text in _TEXTS for flag in ("duplicate", "leak")),
)
_WORDS = ("id", "image_uri", "origin", "split", "meta")
_MORE_WORDS = ("capfilt_error", "synthetic_error", "image_error", "duplicate_of", "leak_of")
_ALLOWED = {"origin": ORIGINS, "split": SPLITS}


def check_schema(uri: str, schema: "pa.Schema") -> None:
    """Check that the columns that OpenBLIP reads are there and of their types.

    Raises:
        DataError: names the column, what it is, and what it should be.
    """
    if missing := [name for name in BASE_COLUMNS if name not in schema.names]:
        raise DataError(
            f"{uri} is a Lance table, but no pair table: it has no column {listed(missing)}; "
            "`openblip data import` makes pair tables"
        )
    for name in schema.names:
        wanted = _wrong_type(name, schema.field(name).type)
        if wanted is not None:
            raise DataError(
                f"{uri}: the column {name} is {schema.field(name).type}, and must be {wanted} in a "
                "pair table; convert it, or import its source with `openblip data import`"
            )


def check_rows(
    uri: str, batch: "pa.RecordBatch | pa.Table", numbers: Sequence[int] | np.ndarray
) -> None:
    """Check values that every reader relies on, of those columns that were read.

    Args:
        uri: of the table.
        batch: rows of it.
        numbers: of the rows.

    Raises:
        DataError: names the row.
    """
    import pyarrow.compute as pc

    names = set(batch.schema.names)
    if "id" in names and batch["id"].null_count:
        place = int(np.flatnonzero(_array(pc.is_null(batch["id"])))[0])
        raise DataError(f"row {numbers[place]} of {uri} has no id: give each row one of its own")
    for name in names & _ALLOWED.keys():
        known = _array(pc.is_in(batch[name], _set_of(name)))
        if not known.all():
            place = int(np.flatnonzero(~known)[0])
            raise DataError(
                f"row {numbers[place]} of {uri}: {name} is {batch[name][place].as_py()!r}, none of "
                f"{listed(_ALLOWED[name])}; mend the column"
            )
    for name in names & set(_TEXTS):
        if pc.list_flatten(batch[name]).null_count:
            rows = _array(pc.list_parent_indices(batch[name]))
            nulls = _array(pc.is_null(pc.list_flatten(batch[name])))
            raise DataError(
                f"row {numbers[int(rows[nulls][0])]} of {uri}: a text in {name} is null; mend the "
                "column (an empty list where there is no text)"
            )


def _wrong_type(name: str, kind: "pa.DataType") -> str | None:
    """What a column should be, in words, where it is something else."""
    import pyarrow.types as types

    if name in _WORDS or name in _MORE_WORDS:
        return None if _is_text(kind) else "string"
    if name == "image":
        is_bytes = types.is_binary(kind) or types.is_large_binary(kind)
        return None if is_bytes else "large_binary"
    if name in ("width", "height"):
        return None if types.is_integer(kind) else "int32"
    is_list = types.is_list(kind) or types.is_large_list(kind)
    if name in _LISTS_OF_TEXTS:
        return None if is_list and _is_text(kind.value_type) else "list<string>"
    if name in _LISTS_OF_NUMBERS:
        return None if is_list and _is_number(kind.value_type) else "list<float>"
    return None


def _is_text(kind: "pa.DataType") -> bool:
    import pyarrow.types as types

    return bool(types.is_string(kind) or types.is_large_string(kind))


def _is_number(kind: "pa.DataType") -> bool:
    import pyarrow.types as types

    return bool(types.is_floating(kind) or types.is_integer(kind))


def _array(column: Any) -> np.ndarray:
    return np.asarray(column.to_numpy(zero_copy_only=False) if _is_array(column) else column)


def _is_array(column: Any) -> bool:
    import pyarrow as pa

    return isinstance(column, pa.Array)


def _set_of(name: str) -> Any:
    import pyarrow as pa

    return pa.array(_ALLOWED[name])
