"""Words that exclude each other: English tables, and what a table's own texts put in one place.

Besides, the nouns that may have a name of their own, and what counts as a word at all.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import combinations
from random import Random
from typing import NamedTuple

from openblip.batches.text import characters, is_unspaced

# Of each group, words of one meaning stand together; words of two meanings exclude each other.
_GROUPS = """
red; blue navy; yellow; green teal; black; orange; purple; pink; white; brown tan beige; gray grey
two; three; four; five; six; several many
big large huge giant; small little tiny
tall; short
young; old elderly
left; right
above over; below under beneath underneath
inside; outside
up; down
top; bottom
man guy; woman lady; boy; girl; baby toddler
men guys; women ladies; boys; girls; babies toddlers
he; she
his; her
father dad; mother mom; brother; sister
dog puppy; cat kitten; horse pony; bird; cow; sheep; elephant; bear; fish; duck; rabbit
dogs puppies; cats kittens; horses ponies; birds; cows; elephants; bears; ducks; rabbits
car; bike bicycle; motorcycle motorbike; truck; bus; boat; train; airplane plane; skateboard
cars; bikes bicycles; motorcycles; trucks; buses; boats; trains; airplanes planes; skateboards
beach; street road; forest woods; field; mountain; pool; park; kitchen; desert; river
snow; sand; grass
ball; frisbee; stick; rope; toy; umbrella; camera; guitar; phone
shirt; jacket coat; dress; hat cap; pants jeans; shorts; uniform; sweater
pizza; cake; sandwich; salad; fruit; bread
running; sitting; jumping; sleeping; swimming; climbing; standing
runs; sits; jumps; sleeps; swims; climbs; stands
circle disc; square; star; triangle; cross; heart; ring; diamond
circles discs; squares; stars; triangles; crosses; hearts; rings; diamonds
striped; checkered; gradient; speckled; plain
"""
# Nouns of living things and of the shapes of the drawn world: what may have a name of its own.
_NAMED_GROUPS = ("man", "dog", "circle")
_NO_SUBSTITUTES = """
about along another around away back beside from front have holding into like looking near next onto
other some something that their them there these they this through towards toward very wearing what
where which while with being person people someone across against among behind between during making
taking using getting going doing each both
"""
WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)?")


def words_of(text: str) -> list[str]:
    """The words of a text in lower case; characters, where no spaces tell words."""
    return characters(text) if is_unspaced(text) else WORD.findall(text.lower())


def vocabulary(texts: Sequence[str]) -> set[str]:
    """All words of some texts."""
    return {word for text in texts for word in words_of(text)}


class Swap(NamedTuple):
    """A word of a text that may be another."""

    start: int
    word: str
    others: tuple[str, ...]

    def apply(self, random: Random, text: str) -> str:
        """The text, of which this is a word, with another in its place."""
        other = random.choice(self.others)
        if self.word[0].isupper():
            other = other.upper() if self.word.isupper() and len(self.word) > 1 else other.title()
        before, after = text[: self.start], text[self.start + len(self.word) :]
        # "a orange dress" would tell that something was swapped.
        article = re.search(r"(^|\s)(an?)\s$", before, re.IGNORECASE)
        if article:
            right = "an" if other[0].lower() in "aeiou" else "a"
            right = right.capitalize() if article[2][0].isupper() else right
            before = before[: article.start(2)] + right + " "
        return before + other + after


def find_named(text: str, nouns: Sequence[str] = ()) -> re.Match[str] | None:
    """The first noun of a text that may have a name of its own; one of `nouns` goes first."""
    may_have = nouns_with_names()
    found = [word for word in WORD.finditer(text) if word[0].lower() in may_have]
    preferred = [word for word in found if word[0].lower() in nouns[:1]]
    return next(iter([*preferred, *found]), None)


def named_nouns(text: str) -> list[str]:
    """The nouns of a text that may have a name of their own."""
    return [word for word in words_of(text) if word in nouns_with_names()]


def learnt_substitutes(
    rows: Sequence[tuple[str, tuple[str, ...]]], frequencies: Mapping[str, int]
) -> dict[str, tuple[str, ...]]:
    """For common words, others that stand between the same neighbours.

    Two words for one thing stand between the same neighbours too. They also come together in
    texts of one image, more often than chance, and are left out for that.
    """
    never = {*_NO_SUBSTITUTES.split(), *other_meanings()}
    usual = {
        word
        for word, _ in Counter(frequencies).most_common(400)
        if len(word) > 3
        and word.isascii()
        and 5 <= frequencies[word] < 0.3 * len(rows)
        and word not in never
    }
    contexts: defaultdict[tuple[str, str], set[str]] = defaultdict(set)
    together: Counter[tuple[str, str]] = Counter()
    for _, texts in rows:
        for text in texts:
            words = ["", *words_of(text), ""]
            for before, word, after in zip(words, words[1:], words[2:], strict=False):
                if word in usual:
                    contexts[before, after].add(word)
        together.update(combinations(sorted(usual & vocabulary(texts)), 2))
    shared: Counter[tuple[str, str]] = Counter()
    places: Counter[str] = Counter()
    for words_there in contexts.values():
        places.update(words_there)
        # Neighbours between which anything stands say nothing.
        if len(words_there) <= 30:
            shared.update(combinations(sorted(words_there), 2))
    found: defaultdict[str, list[tuple[float, str]]] = defaultdict(list)
    for (first, second), count in shared.items():
        alike = count / (places[first] * places[second]) ** 0.5
        chance = frequencies[first] * frequencies[second] / len(rows)
        if count >= 5 and alike >= 0.15 and together[first, second] <= 2 * chance:
            found[first].append((alike, second))
            found[second].append((alike, first))
    return {
        word: tuple(other for _, other in sorted(others, reverse=True)[:6])
        for word, others in found.items()
    }


@cache
def other_meanings() -> dict[str, tuple[tuple[str, ...], ...]]:
    """For each word of the tables, the other meanings of its group."""
    others = {}
    for line in _GROUPS.strip().splitlines():
        meanings = tuple(tuple(meaning.split()) for meaning in line.split(";"))
        for meaning in meanings:
            rest = tuple(other for other in meanings if other is not meaning)
            others.update(dict.fromkeys(meaning, rest))
    return others


@cache
def nouns_with_names() -> frozenset[str]:
    """Nouns that may have a name of their own, one of them alone."""
    words = {"child", "person", "kid", "player", "rider", "skateboarder", "surfer"}
    for line in _GROUPS.strip().splitlines():
        group = line.replace(";", " ").split()
        words |= set(group) if group[0] in _NAMED_GROUPS else set()
    return frozenset(words)
