"""The room Collection: all rows of the table, as a person wants to see them."""

from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import numpy as np

from openblip.runtime.errors import RecipeError
from openblip.studio.arrays import FLAGS, TableArrays, is_scored, view_of
from openblip.studio.routes import Asked, Refused, Route, check_row, get
from openblip.studio.selection import FATES, JUDGED, ORDERS, Choice, Choices
from openblip.studio.telling import models_of_scores, told_row, told_rows
from openblip.table.flags import DUPLICATES, LEAKS, what_is_unchecked
from openblip.table.rows import TEXT_SOURCES
from openblip.table.table import SPLITS
from openblip.table.views import WITHOUT

if TYPE_CHECKING:
    from openblip.studio.app import Studio

_FIRST_ROWS = 60
"""Of the grid, as `static/grid.js` asks for them."""
MOST_ROWS = 200
"""That one request is answered with."""
# Up to here JavaScript tells whole numbers apart.
_MOST = 2**53
_WORDS = ("split", "flag", "where", "source", "fate", "words", "verdict")
_NUMBERS = ("itm_from", "itm_to", "itc_from", "itc_to")
_PAGE = ("start", "count", "threshold", "without", "sort", "desc")


def routes(studio: "Studio") -> list[Route]:
    """`/api/rows`, `/api/rows/{row}` and `/api/rows/about`."""

    def row(asked: Asked) -> dict[str, Any]:
        looked = latest_choices(studio)
        arrays = looked.arrays
        number = check_row(asked.whole("row", 0, _MOST), len(arrays.table))
        view = view_of(arrays.table, _threshold(asked), without=without_of(asked))
        told = told_row(arrays, number, view)
        return {
            **table_told(arrays),
            **told,
            "verdicts": looked.judged.of_row(told["id"], told["texts"]),
            "models": models_of_scores(arrays),
        }

    # Starlette takes the first that fits, and `{row}` would fit `about` as well.
    return [
        get("/api/rows/about", lambda asked: _about(studio)),
        get("/api/rows/{row}", row),
        get("/api/rows", lambda asked: _rows(studio, asked)),
    ]


def first_answers(studio: "Studio") -> dict[str, Any]:
    """What this room asks as soon as it is opened, by address: the page brings the answers along.

    Asked for later, they would wait for a browser that is still at work on the page itself.
    """
    first = {"start": "0", "count": str(_FIRST_ROWS)}
    return {
        "/api/rows/about": _about(studio),
        f"/api/rows?{urlencode(first)}": _rows(studio, Asked(values=first)),
    }


def _rows(studio: "Studio", asked: Asked) -> dict[str, Any]:
    # A misspelt condition would otherwise be none, and all rows be shown.
    unknown = set(asked.values) - {*_WORDS, *_NUMBERS, *_PAGE}
    if unknown:
        raise Refused(400, f"{min(unknown)!r} is nothing that rows can be chosen by")
    choice = choice_of(asked)
    start, count = asked.whole("start", 0, _MOST, 0), asked.whole("count", 0, MOST_ROWS, 60)
    looked = latest_choices(studio)
    chosen = looked.rows(choice)
    if start > len(chosen):
        raise Refused(400, f"start is {start}, but there are {len(chosen)} such rows")
    view = view_of(looked.arrays.table, choice.threshold, without=choice.without)
    some = np.asarray(chosen[start : start + count])
    return {
        **table_told(looked.arrays),
        "start": start,
        "total": len(chosen),
        "stale_verdicts": looked.judged.latest().num_stale if choice.verdict else 0,
        "rows": told_rows(looked.arrays, some, view),
    }


def _about(studio: "Studio") -> dict[str, Any]:
    arrays = latest_choices(studio).arrays
    return {
        **table_told(arrays),
        "columns": list(arrays.table.columns),
        "is_scored": is_scored(arrays.table),
        "has_synthetic": "synthetic" in arrays.table.columns,
        "splits": SPLITS,
        "sources": TEXT_SOURCES,
        "fates": FATES,
        "flags": list(FLAGS),
        "verdicts": JUDGED,
        "orders": ORDERS,
        "without": _leavable(arrays),
    }


def latest_choices(studio: "Studio") -> Choices:
    """What is known of the collection as it is now; an answer is made of this object alone.

    Raises:
        Refused: no collection is open.
        DataError: it is gone.
    """
    place = studio.need_place()
    studio.refresh()
    return place.choices


def choice_of(asked: Asked) -> Choice:
    """Which rows somebody asks for.

    Raises:
        Refused: a number is none.
        RecipeError: a word is none of those that there are.
    """
    values: dict[str, Any] = {name: asked.text(name, "") or None for name in _WORDS}
    given = [name for name in _NUMBERS if asked.values.get(name, "") != ""]
    values |= {name: asked.number(name, -1.0, 1.0) for name in given}
    desc = asked.text("desc", "0")
    if desc not in ("0", "1"):
        raise RecipeError(f"desc is {desc!r:.40}; give 1 for the largest first, or 0")
    return Choice(
        **values,
        threshold=_threshold(asked),
        without=without_of(asked),
        sort=asked.text("sort", "row"),
        desc=desc == "1",
    )


def _threshold(asked: Asked) -> float:
    return asked.number("threshold", 0.0, 1.0, 0.5)


def without_of(asked: Asked) -> tuple[str, ...]:
    """What the view leaves out, from names with commas between them."""
    return tuple(name for name in asked.text("without", "").split(",") if name)


def table_told(arrays: TableArrays) -> dict[str, Any]:
    """Of which table, at which version, an answer is: all of it is of this one."""
    return {
        "mark": arrays.mark,
        "version": arrays.table.version,
        "rows_in_table": len(arrays.table),
    }


def _leavable(arrays: TableArrays) -> list[str]:
    """What a view of this table can leave out: what has been looked for in all of it."""
    unchecked = {check: what_is_unchecked(arrays.table, check) for check in (DUPLICATES, LEAKS)}
    return [name for name in WITHOUT if unchecked[LEAKS if name == "leaks" else DUPLICATES] is None]
