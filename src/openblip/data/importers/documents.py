"""JSON files as values: one in a file, or one a line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from openblip.data.importers.source import is_file, parse_json
from openblip.errors import DataError

Shorten = Callable[[dict[str, Any]], Any]
"""Is given every object while a file is parsed, and returns what stands for it."""


def read_document(file: Path, shorten: Shorten) -> Any:
    """The JSON value of a file; the list of them where each line has one, as in NLVR2.

    Raises:
        DataError: it is no regular file, or no JSON.
    """
    if not is_file(file):
        raise DataError(f"{file} is no regular file: give a JSON file on a disk")
    try:
        if file.suffix.lower() == ".jsonl":
            with file.open("rb") as lines:
                return [parse_json(line, shorten) for line in lines if line.strip()]
        content = file.read_bytes()
        try:
            return parse_json(content, shorten)
        except ValueError:
            lines_of_it = content.splitlines()
            # A line that is a whole object, and not the end: damage is told as that of the file.
            if len(lines_of_it) < 2 or not lines_of_it[0].rstrip().endswith(b"}"):
                raise
            return [parse_json(line, shorten) for line in lines_of_it if line.strip()]
    except json.JSONDecodeError as error:
        reason = (
            f"{error}; if it is cut off, copy it again" if file.stat().st_size else "it is empty"
        )
        raise DataError(f"{file} cannot be read as JSON: {reason}") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{file} cannot be read as JSON: {str(error)[:200]}") from error


def first_line(file: Path, most: int = 1 << 20) -> Any:
    """The JSON value of the first line of a file that has one a line; None if there is none."""
    try:
        with file.open("rb") as lines:
            return parse_json(lines.readline(most))
    except (OSError, ValueError):
        return None
