"""What a model said of each example, for tables and programs."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from openblip.atomic import replace_file
from openblip.data.caption_cells import guarded
from openblip.data.text import encodable, json_text
from openblip.errors import RecipeError

_SUFFIXES = (".csv", ".json")


def check_results_path(path: Path) -> None:
    """Nothing, if `save_records` can write there: asked before the work begins.

    Raises:
        RecipeError: the name has another ending.
    """
    if path.suffix.lower() not in _SUFFIXES:
        raise RecipeError(f"results {path}: give a name that ends in {' or '.join(_SUFFIXES)}")


def save_records(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Write a row of a CSV file, or an object of a JSON list, for each record; whole or not at all.

    In CSV the fields of the first record are the header, the items of a list are joined by "; ",
    and a quote stands before what a spreadsheet would run.

    Args:
        path: ends in `.csv` or `.json`.
        records: with equal fields.

    Raises:
        RecipeError: the name has another ending.
        OSError: it cannot be written.
    """
    check_results_path(path)
    if path.suffix.lower() == ".json":
        save_json(path, records)
        return
    with (
        replace_file(path) as unfinished,
        unfinished.open("w", encoding="utf-8", newline="") as stream,
    ):
        writer = csv.writer(stream)
        writer.writerow(records[0] if records else ())
        writer.writerows([[_cell(value) for value in record.values()] for record in records])


def save_json(path: Path, value: object) -> None:
    """Write a value as JSON; whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    with replace_file(path) as unfinished:
        unfinished.write_text(json_text(value), encoding="utf-8")


def official_id(key: str) -> int | str:
    """An id as evaluation servers want it: one that is a number is written as a number."""
    return int(key) if key.isdecimal() else key


def _cell(value: Any) -> Any:
    if isinstance(value, list):
        value = "; ".join(map(str, value))
    return guarded(encodable(value)) if isinstance(value, str) else value
