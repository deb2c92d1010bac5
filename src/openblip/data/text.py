"""Cleaning of captions and questions, as the original BLIP does before tokenising."""

import re

_REMOVED = '.!"()*#:;~'
_REMOVED_TO_SPACE = str.maketrans(_REMOVED, " " * len(_REMOVED))
_REMOVED_TO_NOTHING = str.maketrans("", "", _REMOVED)
_WHITESPACE_RUN = re.compile(r"\s{2,}")
# Half of a surrogate pair, or what looks like the escape of one, each with the backslashes before.
_HALF_OR_ESCAPE = re.compile(
    r"(\\*)([\ud800-\udfff])|(\\+)(?=x[89a-f][0-9a-f]|ud[89a-f][0-9a-f]{2})"
)


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


def encodable(text: str) -> str:
    """`text` as UTF-8 can hold it; different texts stay different.

    A byte of a file name that is no UTF-8 becomes an escape such as `\\xe9`, any other half of a
    surrogate pair one such as `\\ud83d`. Where a text has such an escape already, the backslashes
    before it are doubled.
    """
    return _HALF_OR_ESCAPE.sub(_escaped, text)


def without_halves(text: str) -> str:
    """A text that UTF-8 cannot hold as `encodable` gives it, any other one as it is."""
    return encodable(text) if has_halves(text) else text


def has_halves(text: str) -> bool:
    """Whether UTF-8 cannot hold `text`, because it has halves of surrogate pairs."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def _escaped(found: re.Match[str]) -> str:
    if found[2] is None:
        return 2 * found[3]
    code = ord(found[2])
    is_byte = 0xDC80 <= code <= 0xDCFF
    return 2 * found[1] + (f"\\x{code - 0xDC00:02x}" if is_byte else f"\\u{code:04x}")


def _first_words(text: str, max_words: int) -> str:
    return " ".join(text.split(" ")[:max_words])
