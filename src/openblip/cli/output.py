"""How commands print results: aligned tables for people, JSON for programs."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from openblip.evaluation.dominance import Dominant


def print_json(value: object) -> None:
    """One line of JSON on standard output; a number that is none becomes null, JSON has no NaN."""
    print(json.dumps(_with_nulls(value), ensure_ascii=False, allow_nan=False))


def dominant_json(found: "Dominant | None") -> dict[str, object]:
    """What a model says of nearly everything, or null, as a field of a result."""
    return {"dominant": None if found is None else asdict(found)}


def _with_nulls(value: object) -> object:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: _with_nulls(item) for name, item in value.items()}
    return [_with_nulls(item) for item in value] if isinstance(value, list | tuple) else value


def print_dominant(found: "Dominant | None") -> None:
    """Where a model says the same of nearly everything, that comes first."""
    if found is not None:
        print(found)


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns as wide as their widest cell; the first flush left, the others flush right."""
    widths = [max(len(row[place]) for row in [header, *rows]) for place in range(len(header))]
    for row in [header, *rows]:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        print("  ".join(cells).rstrip())
