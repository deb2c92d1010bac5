"""Text files that people bring: lists of answers, class names or words, and vocabularies."""

import json
import re
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from openblip.documents import read_text
from openblip.errors import DataError, OpenBlipWarning

_TABLES = (".csv", ".tsv", ".parquet")
# Not what Python's `splitlines` takes for one besides, such as U+2028.
_LINE_END = re.compile(r"\r\n|\r|\n")


def lines_of(text: str) -> list[str]:
    """The lines of a text without their ends, which are LF, CRLF or CR."""
    return _LINE_END.split(text)


def read_list(file: Path, what: str) -> list[str]:
    """The texts in a file, each once: a list in JSON, or one a line; blank lines do not count.

    Args:
        file: JSON if its name ends in `.json`, or if it is a list in JSON; in a `.jsonl` each line
            is a text in JSON.
        what: each text is, for errors.

    Raises:
        DataError: it cannot be read, is a table, or holds none.

    Warns:
        OpenBlipWarning: some are repeated, or empty in JSON.
    """
    text, source, suffix = read_text(file), f"{file}: ", file.suffix.lower()
    if suffix in _TABLES:
        raise DataError(f"{file}: a table, and no list: give the {what}s one a line, as .txt")
    lines = [line for line in lines_of(text) if line.strip()]
    try:
        found = [json.loads(line) for line in lines] if suffix == ".jsonl" else json.loads(text)
    except (ValueError, RecursionError) as error:
        if suffix not in (".json", ".jsonl"):
            return distinct(lines, what, source)
        raise DataError(f"{file}: the {what}s cannot be read as JSON ({error})") from error
    if suffix not in (".json", ".jsonl") and not isinstance(found, list):
        return distinct(lines, what, source)
    if not isinstance(found, list):
        raise DataError(f"{file}: the {what}s are no list of texts")
    for number, item in enumerate(found, 1):
        if not isinstance(item, str):
            shown = str(item)[:60]
            raise DataError(f"{file}: the {what}s are no list of texts: number {number} is {shown}")
    return distinct(found, what, source)


def distinct(texts: Sequence[str], what: str, source: str = "") -> list[str]:
    """The texts without white space at their ends, each once; empty ones are dropped.

    Args:
        texts: any.
        what: each of them is.
        source: begins messages.

    Raises:
        DataError: none is left.

    Warns:
        OpenBlipWarning: some are repeated or empty.
    """
    counts = Counter(text.strip() for text in texts)
    kept = [text for text in counts if text]
    if not kept:
        raise DataError(f"{source}there is no {what} in it; give at least one that is not empty")
    note_dropped(what, source, counts[""], [text for text in kept if counts[text] > 1])
    return kept


def note_dropped(what: str, source: str, num_empty: int, repeated: Sequence[str]) -> None:
    """Warn of texts that do not count, if there are such; arguments as in `distinct`."""
    notes = [f"{num_empty} empty, dropped"] if num_empty else []
    if repeated:
        notes.append(f"{len(repeated)} repeated, counted once (such as {repeated[0]!r})")
    if notes:
        warnings.warn(f"{source}{what}s: {'; '.join(notes)}", OpenBlipWarning, stacklevel=3)
