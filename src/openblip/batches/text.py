"""Cleaning of captions and questions before they are tokenised, in any language."""

import re
import unicodedata
from dataclasses import dataclass

_REMOVED = '.!"()*#:;~'
_REMOVED_TO_SPACE = str.maketrans(_REMOVED, " " * len(_REMOVED))
_REMOVED_TO_NOTHING = str.maketrans("", "", _REMOVED)
_WHITESPACE_RUN = re.compile(r"\s{2,}")
# Letters (not marks) of scripts that put no space between words: Thai to Burmese, Khmer, Han with
# its radicals and rarer planes, kana, bopomofo.
_UNSPACED = re.compile(
    r"[\u0e01-\u0e3e\u0e40-\u0e4e\u0e80-\u0ece\u0edc-\u0fbc\u1000-\u109d\u1780-\u17d3\u1950-\u19df"
    r"\u2e80-\u2fdf\u3005-\u3007\u3021-\u3029\u3031-\u303b\u3041-\u312f\u31a0-\u31ff\u3400-\u4dbf"
    r"\u4e00-\u9fff\ua9e0-\ua9fe\uaa60-\uaa7f\uf900-\ufaff\uff66-\uff9f\U0001b000-\U0001b16f"
    r"\U00020000-\U0003ffff]"
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


@dataclass(frozen=True, kw_only=True)
class Cleaning:
    """What becomes of a text before it is tokenised: its tokenizer and its script decide.

    The original's cleaning is for English and a tokenizer in lower case. A tokenizer that keeps
    case gets the text as it is written, and where a script puts no spaces between words there are
    no words to count: such a text is as long as its tokens allow. White space is always cleaned.
    """

    lowercases: bool = True
    """Whether the tokenizer drops the difference between capital and small letters."""

    def caption(self, text: str, max_words: int = 50) -> str:
        """A caption as a model reads it, of at most `max_words` words where there are any."""
        if self.lowercases and has_words(text):
            return clean_caption(text, max_words)
        return self._kept(text, max_words)

    def question(self, text: str, max_words: int = 50) -> str:
        """A question as a model reads it, of at most `max_words` words where there are any."""
        if self.lowercases and has_words(text):
            return clean_question(text, max_words)
        return self._kept(text, max_words)

    def exceeds(self, text: str, max_words: int) -> bool:
        """Whether `caption` loses words that are behind `max_words`."""
        # Words are no more than characters.
        if len(text) <= max_words or not has_words(text):
            return False
        return len(self.caption(text, len(text)).split(" ")) > max_words

    def _kept(self, text: str, max_words: int) -> str:
        spaced = " ".join(text.split())
        if has_words(spaced):
            return _first_words(spaced, max_words)
        # Of letters among them the tokenizer drops the case anyway: equal texts shall be equal.
        return spaced.lower() if self.lowercases else spaced


def has_words(text: str) -> bool:
    """Whether spaces tell the words: not in Chinese, Japanese, Thai, Lao, Khmer, Burmese, Tibetan.

    Of a mixed text most of the letters decide.
    """
    # Most texts, in a hundredth of the time.
    if text.isascii():
        return True
    without = len(_UNSPACED.findall(text))
    return 2 * without <= without + sum(map(str.isalpha, _UNSPACED.sub("", text)))


def is_unspaced(text: str) -> bool:
    """Whether a text has a letter of a script without spaces between words."""
    return _UNSPACED.search(text) is not None


def characters(text: str) -> list[str]:
    """What stands for words where there are none: letters with their marks, in lower case.

    Words of other scripts in between stay whole; punctuation is left out.
    """
    found: list[str] = []
    is_word = False
    for character in text.lower():
        unspaced = is_unspaced(character)
        if found and unicodedata.category(character)[0] == "M":
            found[-1] += character
        elif unspaced or not character.isalnum():
            found += [character] if unspaced else []
            is_word = False
        else:
            found += [] if is_word else [""]
            found[-1] += character
            is_word = True
    return found


def _first_words(text: str, max_words: int) -> str:
    return " ".join(text.split(" ")[:max_words])
