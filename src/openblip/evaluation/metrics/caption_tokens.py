"""Caption words as the COCO caption metrics count them, without Java."""

import re
from functools import lru_cache

from openblip.data.text import characters, has_words
from openblip.evaluation.metrics.ptb_rules import KEEP_FULL_STOP, RULES, SPLIT_WORDS

# A word of letters between spaces, perhaps with a mark behind it: nine of ten words in captions.
_PLAIN_WORD = re.compile(r"([A-Za-z]+)([.,;]?)(?=\s|$)")


@lru_cache(maxsize=1 << 16)
def caption_tokens(caption: str) -> tuple[str, ...]:
    """Returns the lower-case words of a caption without punctuation.

    Equals pycocoevalcap's `PTBTokenizer` (Stanford CoreNLP with `-lowerCase`, then its list of
    punctuation) on a caption alone. What follows from it and may surprise: brackets stay, as
    "-lrb-" and "-rrb-", for that list names them in capitals; "!!" stays and "!" goes; a number of
    several words ("2 1/2", a telephone number) is one token holding no-break spaces; characters
    that the reference does not know, emoji for instance, vanish.

    Differs from pycocoevalcap: that one tokenises all captions as one text, so the first word of a
    caption can decide on the last full stop of the caption before it ("Fig." keeps it before a
    number, "J." loses it before "The"). Here no caption depends on its neighbour. And a text of a
    script without spaces between words (Chinese, Japanese, Thai) is one token there, so that every
    score is 0 unless all is equal; here each of its characters counts as a word.
    """
    if not has_words(caption):
        return tuple(characters(caption))
    text = caption.replace("\u00ad", "")
    tokens: list[str] = []
    position = 0
    while position < len(text):
        if text[position].isspace():
            position += 1
            continue
        plain = _PLAIN_WORD.match(text, position)
        if plain and _is_ordinary(plain[1].lower(), plain[2]):
            tokens.append(plain[1].lower())
            position = plain.end()
        else:
            position = _apply_rules(text, position, tokens)
    return tuple(tokens)


def _is_ordinary(word: str, mark: str) -> bool:
    if mark == "." and (len(word) == 1 or word in KEEP_FULL_STOP):
        return False
    return word not in SPLIT_WORDS


def _apply_rules(text: str, position: int, tokens: list[str]) -> int:
    """Appends the tokens of the longest rule; returns the position behind them."""
    longest, chosen = 0, None
    for rule in RULES:
        match = rule.pattern.match(text, position)
        if match and match.end() - position > longest:
            longest, chosen = match.end() - position, (rule, match)
    if chosen is None:
        return position + 1
    rule, match = chosen
    tokens.extend(rule.rewrite(match["token"]))
    return match.end("token")
