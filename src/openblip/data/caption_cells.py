"""Cells of CSV files that are written here: harmless to spreadsheets, and read as they were."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

CAPTION_COLUMNS = ("image", "caption", "logprob")
"""The first columns of what `openblip caption` writes; `caption_2`, `logprob_2`, ... follow."""
# What a spreadsheet takes for a formula; the quotes are those of `guarded` itself.
_FORMULA = re.compile(r"'*[=+\-@\t\r]")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_ESCAPES = {"\t": "\\t", "\n": "\\n", "\r": "\\r"}
_UNSAFE = re.compile(r"[\t\n\r]")
_ESCAPED = re.compile(r"\\[tnr]")


def guarded(text: str) -> str:
    """A cell that a spreadsheet shows and does not run: a quote stands before a formula."""
    is_risky = _FORMULA.match(text) and not _NUMBER.fullmatch(text)
    return f"'{text}" if is_risky else text


def unguarded(cell: str) -> str:
    """The text of which `guarded` made a cell."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell


def one_line(text: str) -> str:
    """A text without tabs and line breaks, as escapes."""
    return _UNSAFE.sub(lambda found: _ESCAPES[found[0]], text)


def captioned_row(names: Sequence[str], row: Mapping[str, str]) -> Mapping[str, Any]:
    """A row of a file that `openblip caption` wrote, all its captions in one list.

    Args:
        names: the columns of the file; a row of any other file stays as it is.
        row: its cells by column.
    """
    if tuple(names[:3]) != CAPTION_COLUMNS:
        return row
    captions = [name for name in names if name == "caption" or name.startswith("caption_")]
    others = {name: cell for name, cell in row.items() if name not in captions}
    meanings = {escape: character for character, escape in _ESCAPES.items()}
    image = _ESCAPED.sub(lambda found: meanings[found[0]], unguarded(row["image"]))
    return {**others, "image": image, "caption": [unguarded(row[name]) for name in captions]}
