"""Cleaning of captions and questions, as the original BLIP does before tokenising."""

import json
import re

_REMOVED = '.!"()*#:;~'
_REMOVED_TO_SPACE = str.maketrans(_REMOVED, " " * len(_REMOVED))
_REMOVED_TO_NOTHING = str.maketrans("", "", _REMOVED)
_WHITESPACE_RUN = re.compile(r"\s{2,}")
_HALF = re.compile(r"[\ud800-\udfff]")


def clean_caption(text: str, max_words: int = 50) -> str:
    """Returns the caption in lower case, without `.!"()*#:;~`, and of at most `max_words` words.

    Each removed character becomes a space, runs of white space become one space, and the ends are
    stripped. A single tab or line break inside the text stays, as in the original; the tokenizer
    takes it for a space. Pre-training uses 30 words, fine-tuning 50, NLVR2 40.
    """
    spaced = text.lower().translate(_REMOVED_TO_SPACE)
    return _first_words(_WHITESPACE_RUN.sub(" ", spaced).rstrip("\n").strip(" "), max_words)


def clean_question(text: str, max_words: int = 50) -> str:
    """Returns the question in lower case, without `.!"()*#:;~`, and of at most `max_words` words.

    Unlike captions, removed characters vanish (`10:30` becomes `1030`), runs of spaces stay, and
    only the right end is stripped. An empty word between two spaces counts as a word.
    """
    return _first_words(text.lower().translate(_REMOVED_TO_NOTHING).rstrip(" "), max_words)


def exceeds(text: str, max_words: int) -> bool:
    """Returns whether `clean_caption` loses words of a caption that are behind `max_words`."""
    # Words are no more than characters.
    return len(text) > max_words and len(clean_caption(text, len(text)).split(" ")) > max_words


def encodable(text: str) -> str:
    r"""`text` as UTF-8 can hold it; any other text stays as it is.

    A byte of a file name that is no UTF-8 becomes an escape such as `\xe9`, any other half of a
    surrogate pair one such as `\ud83d`, so that names that differ in these stay different.
    """
    return _HALF.sub(_escaped, text)


def json_text(value: object) -> str:
    """`value` as JSON that UTF-8 can hold: halves of surrogate pairs stay escapes."""
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "backslashreplace").decode()


def has_halves(text: str) -> bool:
    """Whether UTF-8 cannot hold `text`, because it has halves of surrogate pairs."""
    return _HALF.search(text) is not None


def _escaped(half: re.Match[str]) -> str:
    code = ord(half[0])
    return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"\\u{code:04x}"


def _first_words(text: str, max_words: int) -> str:
    return " ".join(text.split(" ")[:max_words])
