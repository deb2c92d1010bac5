"""Text files that people bring: lists of answers, class names or words, and vocabularies."""

import re

# Not what Python's `splitlines` takes for one besides, such as U+2028.
_LINE_END = re.compile(r"\r\n|\r|\n")


def lines_of(text: str) -> list[str]:
    """The lines of a text without their ends, which are LF, CRLF or CR."""
    return _LINE_END.split(text)
