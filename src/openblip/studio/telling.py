"""What the page is told of some rows: their texts with scores and fates, and all of one row.

Nothing here is kept: the rows of a page are read when they are asked for, without their images.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from openblip.runtime.errors import DataError
from openblip.studio.arrays import COLUMN_OF, FLAGS, TableArrays, beside, flags_of, row_flags
from openblip.table.columns import column_state
from openblip.table.judging import REJECTIONS, judge
from openblip.table.rows import read_meta
from openblip.table.vectors import rows_where
from openblip.table.views import CaptionView

if TYPE_CHECKING:
    import pyarrow as pa

_SHOWN_LETTERS = 300
"""Of a text in the grid; the rest is read with the row."""
_SHOWN_ROWS = ("id", "width", "height", "split", "origin")
_MOST_REPEATERS = 20


@dataclass(frozen=True)
class ToldText:
    """One text of a row, and what becomes of it."""

    source: str
    """`human`, `web` or `synthetic`."""
    place: int
    """Which of the row's texts of this source."""
    text: str
    itm: float | None
    """Match probability; None where there is none."""
    itc: float | None
    """Cosine; None where there is none."""
    fate: str
    """`counts`, or why it does not."""


def told_rows(
    arrays: TableArrays, rows: Sequence[int] | NDArray[np.integer[Any]], view: CaptionView
) -> list[dict[str, Any]]:
    """What the grid shows of some rows, in their order.

    Raises:
        DataError: a row has another number of scores than of texts; names it.
    """
    numbers = np.asarray(rows, dtype=np.int64)
    batch = _read(arrays, numbers, view, [*_SHOWN_ROWS, *row_flags(arrays.table)])
    if batch is None:
        return []
    texts = _texts(batch, view, numbers)
    flags = _flags(arrays, batch)
    facts = batch.select(list(_SHOWN_ROWS)).to_pylist()
    return [
        {
            "row": number,
            **fact,
            "flags": flags[place],
            "texts": [_shortened(text) for text in texts[place]],
        }
        for place, (number, fact) in enumerate(zip(numbers.tolist(), facts, strict=True))
    ]


def told_row(arrays: TableArrays, row: int, view: CaptionView) -> dict[str, Any]:
    """All that is known of a row: its texts in full, who wrote them, what repeats it, its meta.

    Raises:
        DataError: there is no such row, or it is damaged.
    """
    table = arrays.table
    errors = ("image_error", "capfilt_error", "synthetic_error")
    more = ("image_uri", "meta", *errors, "duplicate_of", "leak_of")
    written = ("synthetic_captioner", "synthetic_logprob")
    there = [name for name in (*more, *written) if name in table.columns]
    numbers = np.array([row], dtype=np.int64)
    batch = _read(arrays, numbers, view, [*_SHOWN_ROWS, *row_flags(table), *there])
    assert batch is not None
    values = batch.select(list(dict.fromkeys([*_SHOWN_ROWS, *there]))).to_pylist()[0]
    told = {name: values.get(name) for name in (*_SHOWN_ROWS, *more) if name != "meta"}
    texts = [asdict(text) for text in _texts(batch, view, numbers)[0]]
    for text in texts if values.get("synthetic_captioner") else ():
        if text["source"] == "synthetic":
            text |= _writer(values, text["place"])
    return {
        "row": row,
        **told,
        "flags": _flags(arrays, batch)[0],
        "texts": texts,
        "meta": read_meta(f"{row} of {table.uri}", values["meta"]),
        **_relatives(arrays, values),
    }


def models_of_scores(arrays: TableArrays) -> dict[str, Any]:
    """Captioners by fingerprint, and the filter, of the job that wrote a table's columns."""
    state = column_state(arrays.table, "capfilt")
    names, prints = (_several(state.get(key)) for key in ("captioner", "captioner_fingerprint"))
    return {
        "captioners": dict(zip(prints, names, strict=False)),
        "filter": ", ".join(_several(state.get("filter"))) or None,
        "filter_fingerprint": ", ".join(_several(state.get("filter_fingerprint"))) or None,
    }


def _several(value: object) -> list[str]:
    values = value if isinstance(value, list) else [value] if value else []
    return [str(one) for one in values]


def _read(
    arrays: TableArrays, numbers: NDArray[np.int64], view: CaptionView, columns: Sequence[str]
) -> "pa.RecordBatch | None":
    """Rows in one batch, with what the view needs; None where none is asked for."""
    table = arrays.table
    cosines = [f"{COLUMN_OF[source]}_itc" for source in view.sources]
    names = dict.fromkeys([*columns, *view.columns_in(table), *cosines])
    found = table.take(numbers, [name for name in names if name in table.columns])
    batches = found.combine_chunks().to_batches()
    return batches[0] if batches else None


def _texts(
    batch: "pa.RecordBatch", view: CaptionView, numbers: NDArray[np.int64]
) -> list[list[ToldText]]:
    try:
        return _judged(batch, view, int(numbers[0]))
    except DataError:
        # It counts from the first row, and these are not one after the other: the right name.
        for place, number in enumerate(numbers.tolist()):
            _judged(batch.slice(place, 1), view, number)
        raise


def _judged(batch: "pa.RecordBatch", view: CaptionView, start: int) -> list[list[ToldText]]:
    told: list[list[ToldText]] = [[] for _ in range(batch.num_rows)]
    for source in view.sources:
        judged = judge(batch, view, source, start)
        itc = beside(batch, f"{COLUMN_OF[source]}_itc", judged.lengths)
        words = judged.texts.to_pylist()
        for at, row in enumerate(judged.rows.tolist()):
            code = int(judged.codes[at])
            told[row].append(
                ToldText(
                    source=source,
                    place=sum(text.source == source for text in told[row]),
                    text=words[at] or "",
                    itm=number_or_none(judged.scores[at]),
                    itc=number_or_none(itc[at]),
                    fate=REJECTIONS[code - 1].value if code else "counts",
                )
            )
    return told


def number_or_none(value: float) -> float | None:
    """A score as JSON can hold it, to the digits that a float32 has."""
    return None if np.isnan(value) else float(f"{value:.7g}")


def _shortened(text: ToldText) -> dict[str, Any]:
    words = text.text
    if len(words) > _SHOWN_LETTERS:
        words = words[:_SHOWN_LETTERS] + "…"
    return {**asdict(text), "text": words}


def _flags(arrays: TableArrays, batch: "pa.RecordBatch") -> list[list[str]]:
    bits = flags_of(batch, row_flags(arrays.table))
    return [[name for name, bit in FLAGS.items() if bit & row] for row in bits.tolist()]


def _writer(values: dict[str, Any], place: int) -> dict[str, Any]:
    """Who wrote a synthetic text, and how likely it was to them."""
    told = {}
    for name in ("captioner", "logprob"):
        column = values.get(f"synthetic_{name}")
        if column is not None and place < len(column):
            told[name] = column[place]
    return told


def _relatives(arrays: TableArrays, values: dict[str, Any]) -> dict[str, Any]:
    """Row numbers of what a row's image repeats, and of images that repeat it."""
    first, table = values.get("duplicate_of"), arrays.table
    number = arrays.rows_of_ids({first}).get(first) if first else None
    repeaters: list[int] = []
    if "duplicate_of" in table.columns:
        # As SQL writes a quote in a text.
        quoted = values["id"].replace("'", "''")
        # An id that Lance's SQL cannot hold costs this list, not the row.
        with suppress(DataError):
            repeaters = rows_where(table, f"duplicate_of = '{quoted}'").tolist()
    return {
        "duplicate_of_row": number,
        "repeaters": repeaters[:_MOST_REPEATERS],
        "num_repeaters": len(repeaters),
    }
