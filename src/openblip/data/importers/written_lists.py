"""Lists of texts that are written as one text, as in the cells of a CSV file."""

import ast
import json
import re
import warnings
from typing import Any

_MAX_CHARACTERS = 1 << 18
_QUOTED_TEXT = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|None""", re.DOTALL)
_QUOTED_TEXTS = re.compile(rf"\[(?:(?:{_QUOTED_TEXT.pattern})[\s,]*)+\]", re.DOTALL)


def written_list(text: str) -> Any:
    """The list that a text is written as, in JSON, Python or as NumPy prints it; else the text.

    Raises:
        ValueError: it is a list, and too long to be read.
    """
    bare = text.strip()
    if not (bare.startswith("[") and bare.endswith("]")):
        return text
    if len(bare) > _MAX_CHARACTERS:
        raise ValueError(f"a list of texts of more than {_MAX_CHARACTERS} characters")
    try:
        return json.loads(bare, strict=False, parse_constant=lambda _: None)
    except (ValueError, RecursionError):
        pass
    with warnings.catch_warnings():
        # An unknown escape, as in 'a \d', is what it is.
        warnings.simplefilter("ignore")
        try:
            if _QUOTED_TEXTS.fullmatch(bare):
                # One by one: Python would join texts that have no comma between them.
                return [ast.literal_eval(found[0]) for found in _QUOTED_TEXT.finditer(bare)]
            return ast.literal_eval(bare)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            return text
