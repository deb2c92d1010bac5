"""Words that a vocabulary lacks: a tokenizer reads each as `[UNK]`, whatever it says."""

import unicodedata
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from openblip.batches.tokenizer import TextTokenizer
from openblip.runtime.errors import UnknownWords

_NAMED = 3
_LONGEST_NAME = 30


@dataclass(frozen=True)
class TextCount:
    """What a tokenizer makes of some texts, cut to the longest that a model reads."""

    num_texts: int = 0
    num_tokens: int = 0
    """Without the special ones at both ends."""
    num_unknown: int = 0
    """Tokens that are `[UNK]`."""
    num_nameless: int = 0
    """Texts that have no word which the vocabulary has."""
    num_cut: int = 0
    """Texts that are longer."""
    words: Counter[str] = field(default_factory=Counter)
    """The words that become `[UNK]`, and how often; punctuation marks are no words."""

    @property
    def unknown_share(self) -> float:
        """Of the tokens, those that are `[UNK]`."""
        return self.num_unknown / max(self.num_tokens, 1)

    def __add__(self, other: "TextCount") -> "TextCount":
        return TextCount(
            self.num_texts + other.num_texts,
            self.num_tokens + other.num_tokens,
            self.num_unknown + other.num_unknown,
            self.num_nameless + other.num_nameless,
            self.num_cut + other.num_cut,
            self.words + other.words,
        )

    @property
    def named(self) -> str:
        """The most frequent unknown words: a few, "and n more"."""
        shown = [repr(_short(word)) for word, _ in self.words.most_common(_NAMED)]
        more = len(self.words) - len(shown)
        return ", ".join(shown) + (f" and {more:,} more" if more else "")


def count_texts(tokenizer: TextTokenizer, texts: Iterable[str], max_tokens: int) -> TextCount:
    """What a tokenizer makes of texts that are cut to `max_tokens`."""
    texts = list(texts)
    most = tokenizer.room(max_tokens)
    unknown = tokenizer.special.unk
    num_tokens = num_unknown = num_nameless = num_cut = 0
    words: Counter[str] = Counter()
    for text, pieces in zip(texts, tokenizer.pieces(texts), strict=True):
        kept = pieces[:most]
        num_tokens += len(kept)
        num_cut += len(pieces) > most
        # As of marks that are not seen, of which cleaning leaves nothing.
        num_nameless += not pieces and bool(text.strip())
        # Only such a text needs the slower second look.
        if unknown in kept:
            spans = tokenizer.spans(text)[:most]
            lost = [span for piece, span in spans if piece == unknown]
            num_unknown += len(lost)
            words.update(word for word in lost if not _is_mark(word))
            known = (span for piece, span in spans if piece != unknown)
            num_nameless += not any(letter.isalnum() for span in known for letter in span)
    return TextCount(len(texts), num_tokens, num_unknown, num_nameless, num_cut, words)


@dataclass(frozen=True)
class TextSample:
    """The texts of a training run, or of some of its examples."""

    count: TextCount
    num_examples: int
    """Whose texts were counted."""
    of_examples: int
    """That there are."""
    max_tokens: int
    max_words: int
    num_cut_words: int
    """Texts of more than `max_words` words, which are cut before they are tokenised."""

    def __str__(self) -> str:
        """One line: the share of `[UNK]`, and of the texts that are cut, with the settings."""
        count = self.count
        told = [f"{count.unknown_share:.1%} of the tokens are [UNK]"]
        if count.words:
            told[0] += f" ({count.named})"
        for number, limit, flag in (
            (count.num_cut, f"{self.max_tokens} tokens", "--data.max-tokens"),
            (self.num_cut_words, f"{self.max_words} words", "--data.max-words"),
        ):
            if number:
                told.append(f"{number:,} of {count.num_texts:,} texts are cut at {limit}: {flag}")
        if len(told) == 1:
            told.append(f"none of {count.num_texts:,} texts is cut")
        sampled = f"a sample of {self.num_examples:,} of {self.of_examples:,}"
        whose = "all" if self.num_examples == self.of_examples else sampled
        return f"{', '.join(told)} (counted over {whose} examples)"


def warn_of_unknown_words(
    tokenizer: TextTokenizer, texts: Sequence[str], max_tokens: int, what: str = "texts"
) -> bool:
    """Whether the model does not see words of the texts of a call or a job; says so once if so.

    The vocabulary may lack them, or the texts may be of marks alone.

    Args:
        tokenizer: of the model.
        texts: all texts of the call.
        max_tokens: what is behind is not read.
        what: the texts are, in the plural.

    Warns:
        UnknownWords: names some of the words and their share.
    """
    count = count_texts(tokenizer, texts, max_tokens)
    told = []
    if count.words:
        told.append(
            f"{count.num_unknown:,} of {count.num_tokens:,} tokens of the {what} "
            f"({count.unknown_share:.0%}) are [UNK]: the model's vocabulary lacks {count.named}"
        )
    if count.num_nameless:
        told.append(
            f"{count.num_nameless:,} of {count.num_texts:,} {what} have no word that it knows: "
            "the model sees only how long these are, and gives equally long ones equal scores"
        )
    if not told:
        return False
    warnings.warn("; ".join(told), UnknownWords, stacklevel=3)
    return True


def _is_mark(word: str) -> bool:
    return all(unicodedata.category(character).startswith("P") for character in word)


def _short(word: str) -> str:
    return word if len(word) <= _LONGEST_NAME else f"{word[:_LONGEST_NAME]}..."
