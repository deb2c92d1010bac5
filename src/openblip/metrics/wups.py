"""WUPS: accuracy of answers that forgives similar words (Malinowski and Fritz 2014, section 4).

How similar two English nouns are says WordNet (Fellbaum 1998), by the measure of Wu and Palmer
(1994): its own database is read (its manual page wndb), numbers are those of nltk's
`wup_similarity`.
"""

import os
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import cache
from math import prod
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from openblip.runtime.errors import DataError

Key = TypeVar("Key", bound=Hashable)
Similarity = Callable[[str, str], float]

_WUPS_THRESHOLDS = (0.9, 0.0)
"""Those that are reported for DAQUAR."""

# What a similarity below the threshold counts.
_DISSIMILAR = 0.1


def items_of(answer: str) -> frozenset[str]:
    """The set that an answer names: "Chair, table" is {"chair", "table"}."""
    items = (" ".join(item.lower().split()) for item in answer.split(","))
    return frozenset(item for item in items if item)


def wups(
    answers: Mapping[Key, str],
    references: Mapping[Key, str],
    thresholds: Sequence[float] = _WUPS_THRESHOLDS,
    similarity: Similarity | None = None,
) -> dict[str, float]:
    """Returns "WUPS@t" for each threshold t, the mean over questions in per cent.

    An answer and its reference are sets of words A and T. The score of a question is

        min( prod_{a in A} max_{t in T} s(a, t),  prod_{t in T} max_{a in A} s(a, t) )

    where s is the similarity of two words (1 if they are equal), times 0.1 if it is below the
    threshold.

    Args:
        answers: one text per question; items are separated by commas.
        references: the right answer per question.
        thresholds: 0 to 1; "WUPS@0.0" has none.
        similarity: of two different words, 0 to 1; None takes Wu and Palmer's over WordNet,
            which must be there (`WordNet.find`).

    Raises:
        DataError: there is nothing to evaluate, answers and references are of other questions, or
            WordNet is not there.
    """
    scores = wups_scores(answers, references, thresholds, similarity)
    return {name: 100.0 * float(values.mean()) for name, values in scores.items()}


def wups_scores(
    answers: Mapping[Key, str],
    references: Mapping[Key, str],
    thresholds: Sequence[float] = _WUPS_THRESHOLDS,
    similarity: Similarity | None = None,
) -> dict[str, NDArray[np.float64]]:
    """Returns the score of each question in the order of the references, 0 to 1; see `wups`."""
    if not references:
        raise DataError("there are no answers to evaluate")
    unlike: set[Any] = set(references) ^ set(answers)
    if unlike:
        raise DataError(
            f"answers and references are of other questions: {len(unlike)} stand in one of them "
            f"alone, such as {next(iter(unlike))!r}"
        )
    of_words = _remembered(similarity or WordNet.find().similarity)
    pairs = [(items_of(answers[key]), items_of(text)) for key, text in references.items()]
    return {
        f"WUPS@{threshold}": np.array([_score(*pair, threshold, of_words) for pair in pairs])
        for threshold in thresholds
    }


def _score(
    answer: frozenset[str], reference: frozenset[str], threshold: float, of_words: Similarity
) -> float:
    if not answer or not reference:
        return float(answer == reference)

    def alike(first: str, second: str) -> float:
        value = of_words(first, second)
        return value if value >= threshold else _DISSIMILAR * value

    return min(
        prod(max(alike(item, other) for other in those) for item in these)
        for these, those in ((answer, reference), (reference, answer))
    )


def _remembered(similarity: Similarity) -> Similarity:
    """The similarity of two words, 1 for equal ones, computed once for a pair."""
    known: dict[tuple[str, str], float] = {}

    def of_words(first: str, second: str) -> float:
        pair = (min(first, second), max(first, second))
        if pair not in known:
            known[pair] = 1.0 if first == second else similarity(*pair)
        return known[pair]

    return of_words


# The variable of WordNet's own programs; where Debian, WordNet and nltk put the database.
_VARIABLE = "WNSEARCHDIR"
_PLACES = (
    "/usr/share/wordnet",
    "/usr/local/WordNet-3.0/dict",
    "~/nltk_data/corpora/wordnet",
    "/usr/share/nltk_data/corpora/wordnet",
)
_FILES = ("index.noun", "data.noun", "noun.exc")

# Endings of nouns and what they become (the manual page morphy).
_ENDINGS = {
    "s": "",
    "ses": "s",
    "ves": "f",
    "xes": "x",
    "zes": "z",
    "ches": "ch",
    "shes": "sh",
    "men": "man",
    "ies": "y",
}
# Pointers to what a noun is a kind of, and to what a name is an instance of.
_HYPERNYMS = ("@", "@i")


class _Sense(NamedTuple):
    """A meaning: a node of the hierarchy."""

    name: str
    """Its first word and which of that word's meanings it is, such as "chair.n.01"."""
    hypernyms: tuple[int, ...]
    """Keys of the more general meanings; none at the root."""


class WordNet:
    """The nouns of WordNet. A meaning's key is its place in the database.

    Attributes:
        folder: where the database is.
    """

    def __init__(self, folder: Path) -> None:
        """Reads the database, 20 MB.

        Raises:
            DataError: it is not there.
        """
        try:
            index, data, exceptions = ((folder / name).read_bytes() for name in _FILES)
        except OSError as error:
            raise DataError(f"{folder} is no database of WordNet: {error}") from error
        self.folder = folder
        self._data = data
        self._index: dict[str, tuple[int, ...]] = {}
        for line in index.decode("utf-8").splitlines():
            # The licence at the top is indented.
            if not line.startswith(" "):
                word, _, count, *rest = line.split()
                self._index[word] = tuple(int(key) for key in rest[-int(count) :])
        lines = (line.split() for line in exceptions.decode("utf-8").splitlines() if line)
        self._irregular = {plural: singular for plural, *singular in lines}
        self._senses: dict[int, _Sense] = {}
        self._depths: dict[int, tuple[int, int]] = {}

    @classmethod
    def find(cls) -> "WordNet":
        """The database in the folder named by WNSEARCHDIR, or in one of the usual places.

        Raises:
            DataError: there is none.
        """
        told = os.environ.get(_VARIABLE)
        if told:
            return _opened(Path(told))
        for folder in (Path(place).expanduser() for place in _PLACES):
            if all((folder / name).is_file() for name in _FILES):
                return _opened(folder)
        raise DataError(
            "WordNet is not there: install it (Debian: apt install wordnet-base; nltk: python -m "
            f"nltk.downloader wordnet, unpacked), or set {_VARIABLE} to the folder of its "
            f"data.noun. Looked in {', '.join(_PLACES)}"
        )

    def senses(self, word: str) -> list[int]:
        """Meanings of a noun, in the singular or plural; spaces may join words. Maybe none."""
        written = "_".join(word.lower().split())
        forms = self._irregular.get(written) or [
            written.removesuffix(ending) + singular
            for ending, singular in _ENDINGS.items()
            if written.endswith(ending)
        ]
        known = dict.fromkeys(form for form in (written, *forms) if form in self._index)
        return [key for form in known for key in self._index[form]]

    def similarity(self, first: str, second: str) -> float:
        """Of two nouns' closest meanings, 0 to 1; 0 where one of them is not in WordNet."""
        pairs = ((a, b) for a in self.senses(first) for b in self.senses(second))
        return max((self.sense_similarity(a, b) for a, b in pairs), default=0.0)

    def sense_similarity(self, first: int, second: int) -> float:
        """Wu and Palmer's: twice the depth of what both are, over the sum of their depths.

        What both are is their deepest common generalisation by the shortest path from the root,
        and counts as deep as the longest one says. Depth counts nodes. 0 without a common root.
        """
        above_first, above_second = self._above(first), self._above(second)
        common = above_first.keys() & above_second.keys()
        if not common:
            return 0.0
        lowest = max(self._depth(key)[0] for key in common)
        deepest = [key for key in common if self._depth(key)[0] == lowest]
        shared = first if first in deepest else min(deepest, key=lambda key: self._sense(key).name)
        depth = self._depth(shared)[1] + 1
        above_shared = self._above(shared)
        # A way past the common generalisation may be shorter than the way to it.
        lengths = (
            min(above[key] + steps for key, steps in above_shared.items() if key in above)
            for above in (above_first, above_second)
        )
        return 2 * depth / (2 * depth + sum(lengths))

    def _above(self, key: int) -> dict[int, int]:
        """A meaning and all more general ones, with the fewest steps up to each."""
        steps: dict[int, int] = {}
        level = [key]
        while level:
            new = dict.fromkeys(other for other in level if other not in steps)
            steps |= dict.fromkeys(new, max(steps.values(), default=-1) + 1)
            level = [upper for other in new for upper in self._sense(other).hypernyms]
        return steps

    def _depth(self, key: int) -> tuple[int, int]:
        """Steps to the root, on the shortest path and on the longest."""
        if key not in self._depths:
            depths = [self._depth(upper) for upper in self._sense(key).hypernyms]
            shortest = 1 + min((depth[0] for depth in depths), default=-1)
            longest = 1 + max((depth[1] for depth in depths), default=-1)
            self._depths[key] = shortest, longest
        return self._depths[key]

    def _sense(self, key: int) -> _Sense:
        if key not in self._senses:
            end = self._data.index(b"\n", key)
            # Key, file, kind, number of words (in base 16), and for each the word and a digit;
            # number of pointers, and for each its symbol, the other key, kind, and words.
            fields = self._data[key:end].decode("utf-8").split("|")[0].split()
            word, pointers = fields[4].lower(), fields[4 + 2 * int(fields[3], 16) :]
            targets = zip(pointers[1::4], pointers[2::4], strict=False)
            hypernyms = tuple(int(to) for symbol, to in targets if symbol in _HYPERNYMS)
            number = self._index[word].index(key) + 1
            self._senses[key] = _Sense(f"{word}.n.{number:02d}", hypernyms)
        return self._senses[key]


@cache
def _opened(folder: Path) -> WordNet:
    return WordNet(folder)
