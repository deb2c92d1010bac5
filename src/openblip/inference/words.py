"""Token ids as the words that a reader sees."""

import unicodedata
from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

from openblip.data.text import is_unspaced
from openblip.data.tokenizer import TextTokenizer

# What BERT writes before a piece within a word, and decoding leaves at the beginning of a text.
_WITHIN = "##"
# What a piece of byte-level BPE is without the other bytes of its letter.
_PART_OF_LETTER = "\ufffd"


class Word(NamedTuple):
    """A word of a text, and which ids it is made of."""

    text: str
    places: tuple[int, ...]
    """Places of its pieces in the text's ids."""


def find_words(tokenizer: TextTokenizer, ids: Sequence[int]) -> list[Word]:
    """The words of a text in their order; special tokens belong to none.

    What decoding writes without white space between is one word ("do", "n", "'", "t": "don't"),
    but punctuation at its ends stands alone, and so does each piece of a script without spaces, in
    which nothing tells the words (of Han that is a character). `[UNK]` is a word of that name.
    """
    special = set(tokenizer.special.__dict__.values())
    unknown = tokenizer.special.unk
    words: list[Word] = []
    # A run of pieces ends at a special token, which decoding leaves out.
    for kind, run in groupby(enumerate(ids), lambda item: _kind(item[1], special, unknown)):
        places = [place for place, _ in run]
        if kind == "unknown":
            words += [Word("[UNK]", (place,)) for place in places]
        elif kind == "text":
            words += _words_of_run(tokenizer, ids, places)
    return words


def _kind(token_id: int, special: set[int], unknown: int) -> str:
    if token_id == unknown:
        return "unknown"
    return "special" if token_id in special else "text"


def _words_of_run(
    tokenizer: TextTokenizer, ids: Sequence[int], places: Sequence[int]
) -> list[Word]:
    """The words of pieces that follow each other."""
    split = tokenizer.decode([ids[place] for place in places]).split()
    if len(split) == len(places):
        # Common, and a fiftieth of the time: every piece is a word.
        return [Word(word, (place,)) for word, place in zip(split, places, strict=True)]
    pieces = _visible_pieces(tokenizer, ids, places)
    number_of_word = []
    for end in range(1, len(pieces) + 1):
        so_far = [ids[place] for piece in pieces[:end] for place in piece.places]
        number_of_word.append(len(tokenizer.decode(so_far).split()))
    # A later piece may draw earlier ones together: "do n '" becomes "don't".
    for index in range(len(pieces) - 2, -1, -1):
        number_of_word[index] = min(number_of_word[index], number_of_word[index + 1])
    words = []
    for _, group in groupby(zip(number_of_word, pieces, strict=True), lambda item: item[0]):
        for part in _separated([piece for _, piece in group]):
            own = tuple(place for piece in part for place in piece.places)
            text = tokenizer.decode([ids[place] for place in own])
            words.append(Word(text.removeprefix(_WITHIN) if is_unspaced(text) else text, own))
    return words


def _visible_pieces(
    tokenizer: TextTokenizer, ids: Sequence[int], places: Sequence[int]
) -> list[Word]:
    """Each piece with its text; a word mark or a part of a letter goes with the piece behind it."""
    pieces: list[Word] = []
    held: list[int] = []
    for place in places:
        held.append(place)
        text = tokenizer.decode([ids[own] for own in held])
        is_part = _PART_OF_LETTER in text and place != places[-1]
        if text and not is_part:
            pieces.append(Word(text, tuple(held)))
            held = []
    return pieces


def _separated(pieces: list[Word]) -> list[list[Word]]:
    """A word's pieces without the punctuation at its ends, which stands alone."""
    lettered = [index for index, piece in enumerate(pieces) if not _is_punctuation(piece.text)]
    parts: list[list[Word]] = []
    continues = False
    for index, piece in enumerate(pieces):
        is_at_an_end = not lettered or not lettered[0] <= index <= lettered[-1]
        stands_alone = is_at_an_end or is_unspaced(piece.text)
        if continues and not stands_alone:
            parts[-1].append(piece)
        else:
            parts.append([piece])
        continues = not stands_alone
    return parts


def _is_punctuation(piece: str) -> bool:
    return all(unicodedata.category(character)[0] in "PS" for character in piece)
