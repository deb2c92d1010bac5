"""What a pair table must be, whoever wrote it: columns, their types, and values of rows.

Tables come from other programs too. What is wrong with one is said once, here, by column and row,
and not by whatever would stumble over it later.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from openblip.data.rows import BASE_COLUMNS, ORIGINS, SPLITS, listed
from openblip.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

_TEXTS = ("captions", "synthetic")
_LISTS_OF_NUMBERS = ("synthetic_logprob", *(f"{t}_{s}" for t in _TEXTS for s in ("itm", "itc")))
_LISTS_OF_TEXTS = (
    *_TEXTS,
    "synthetic_captioner",
    *(f"{text}_{flag}_of" for text in _TEXTS for flag in ("duplicate", "leak")),
)
_WORDS = ("id", "image_uri", "origin", "split", "meta")
_MORE_WORDS = ("capfilt_error", "image_error", "duplicate_of", "leak_of")
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
