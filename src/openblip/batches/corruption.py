"""Typed corruptions of human texts: what a filter must reject, and what a captioner must mend.

A corruption is decided by (seed, row id, kind, number) alone, so that every process, thread and
resumed run meets the same. The tables of words are English; where a table's texts are not, no
attribute is swapped, and a warning says so.
"""

import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from heapq import nsmallest
from itertools import combinations
from random import Random
from typing import Literal, NamedTuple, get_args

from openblip.batches.shuffle import named_seed
from openblip.batches.text import characters, is_unspaced
from openblip.runtime.errors import DataError, OpenBlipWarning
from openblip.table.judging import string_values
from openblip.table.table import PairTable

Kind = Literal["other_image", "attribute", "boilerplate", "truncated", "names"]
KINDS: tuple[Kind, ...] = get_args(Kind)
"""A text of another image; a true one with a wrong colour, number, size, direction, person or
object; one that says nothing of any image; the first words of a true one; a true one with a name
that the picture does not show."""
RIGHT_KINDS: tuple[Kind, ...] = ("names",)
"""Kinds whose texts are right."""

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
_GENERIC_BOILERPLATE = (
    "IMG_{number}.jpg",
    "DSC0{number}.jpg",
    "image {number}",
    "photo {number} of {number}",
    "click to enlarge",
    "no description available",
    "free shipping on all orders",
    "best price online",
    "add to cart",
    "all rights reserved",
    "stock photo royalty free",
    "see more like this",
    "related products",
    "subscribe to our newsletter",
    "untitled",
    "download wallpaper hd",
)
_GENERIC_NAMES = """
Alice Amara Bella Boris Carlos Chloe Dmitri Elena Farid Greta Hassan Ingrid Jamal Kenji Lucia Marco
Nadia Oscar Priya Quentin Rosa Sven Tariq Uma Viktor Wanda Yusuf Zoe
"""
_GENERIC_PLACES = """
Amsterdam Bergen Chicago Dublin Essen Florence Geneva Havana Istanbul Jaipur Kyoto Lisbon Madrid
Nairobi Oslo Prague Quito Riga Seattle Toronto Utrecht Venice Warsaw Yosemite Zurich
"""
_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)?")
_DIGITS = re.compile(r"\d+")
# What is remembered of a table of any size.
_MOST_ROWS, _MOST_TEXTS, _MOST_BOILERPLATE, _MOST_NAMES = 20_000, 200_000, 64, 2000
# Candidates among which a similar text of another image is sought.
_CANDIDATES = 24


class CorruptedText(NamedTuple):
    """A text for an image, and whether it is right."""

    text: str
    kind: Kind | None
    """None: a human text of the image as it is."""
    is_right: bool


class Name(NamedTuple):
    """A name that may stand in a text."""

    word: str
    is_place: bool
    """Of a place, else of somebody or something that the text mentions."""


@dataclass(frozen=True, eq=False)
class Corruptions:
    """What the human texts of a table are corrupted with; `of` reads it from the table."""

    seed: int
    """Decides every draw, together with the row's id."""
    rows: tuple[tuple[str, tuple[str, ...]], ...]
    """Ids and human texts of rows whose texts may stand for other images."""
    boilerplate: tuple[str, ...] = _GENERIC_BOILERPLATE
    """Texts that say nothing; `{number}` is any."""
    names: tuple[Name, ...] = (
        *(Name(word, False) for word in _GENERIC_NAMES.split()),
        *(Name(word, True) for word in _GENERIC_PLACES.split()),
    )
    """What texts are given as names."""
    frequencies: Mapping[str, int] = field(default_factory=dict)
    """In how many of `rows` a word stands."""
    substitutes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Words that stand in the same places as a word, and seldom beside it in texts of one image."""

    @classmethod
    def of(cls, table: PairTable, seed: int = 0, split: str = "train") -> "Corruptions":
        """What a table offers, found in one scan without images.

        Boilerplate is what its web rows repeat most often and human texts would not say. Names are
        words of web texts that are always capital and stand in no human text, besides common ones.

        Raises:
            DataError: the split has no human texts of at least two images.
        """
        human: list[tuple[str, tuple[str, ...]]] = []
        web = _WebTexts()
        for batch in table.scan(["id", "captions", "origin", "split"]):
            inside = string_values(batch["split"]) == split
            origins, ids = string_values(batch["origin"]), string_values(batch["id"])
            for number, texts in enumerate(batch["captions"].to_pylist()):
                told = tuple(text for text in texts or () if text)
                if not inside[number] or not told:
                    continue
                if origins[number] == "human":
                    human.append((str(ids[number]), told))
                else:
                    web.add(told)
            if len(human) > 2 * _MOST_ROWS:
                human = _kept(human, seed)
        if len(human) < 2:
            raise DataError(
                f"{table.uri}: the split {split!r} has human texts of {len(human)} images; "
                "corruptions are made of those of at least two"
            )
        rows = tuple(_kept(human, seed))
        corruptions = cls.of_rows(rows, seed)
        corruptions = replace(
            corruptions,
            boilerplate=web.boilerplate(corruptions.frequencies) or _GENERIC_BOILERPLATE,
            names=(*cls.names, *web.names(corruptions.frequencies)),
        )
        swapped = sum(corruptions._swaps(texts[0], texts) != [] for _, texts in rows)
        if swapped < 0.05 * len(rows):
            warnings.warn(
                f"{table.uri}: only {swapped:,} of {len(rows):,} human texts have a word that "
                "the English tables of corruptions know: hardly any get a wrong attribute",
                OpenBlipWarning,
                stacklevel=2,
            )
        return corruptions

    @classmethod
    def of_rows(cls, rows: Sequence[tuple[str, tuple[str, ...]]], seed: int = 0) -> "Corruptions":
        """What ids with their human texts offer, where there are no web texts."""
        frequencies = Counter(word for _, texts in rows for word in _vocabulary(texts))
        substitutes = _substitutes(rows, frequencies)
        return cls(seed, tuple(rows), frequencies=frequencies, substitutes=substitutes)

    def of_row(self, row_id: str, texts: Sequence[str], number: int = 0) -> Iterator[CorruptedText]:
        """The human texts of a row as they are, and one corruption of each kind that they allow.

        Args:
            row_id: of the row.
            texts: its human texts, at least one.
            number: another one gives other corruptions.
        """
        yield from (CorruptedText(text, None, True) for text in texts)
        for kind in KINDS:
            text = texts[self._random(row_id, "text", number).randrange(len(texts))]
            corrupted = self.corrupt(kind, row_id, text, texts, number)
            if corrupted is not None:
                yield CorruptedText(corrupted, kind, kind in RIGHT_KINDS)

    def draw(
        self, kinds: Sequence[Kind], row_id: str, text: str, texts: Sequence[str], number: int = 0
    ) -> CorruptedText | None:
        """One corruption of a text, of any of the kinds that it allows; None where it allows none.

        Args:
            kinds: all equally likely; one that stands there twice is twice as likely.
            row_id: of the row.
            text: a human text of the row.
            texts: all its human texts: none of them is wrong.
            number: another one gives another corruption.
        """
        random = self._random(row_id, "kind", number)
        for kind in random.sample(kinds, len(kinds)):
            corrupted = self.corrupt(kind, row_id, text, texts, number)
            if corrupted is not None:
                return CorruptedText(corrupted, kind, kind in RIGHT_KINDS)
        return None

    def corrupt(
        self,
        kind: Kind,
        row_id: str,
        text: str,
        texts: Sequence[str] = (),
        number: int = 0,
        similar: bool = False,
    ) -> str | None:
        """The corruption of a text, None where it has nothing to corrupt.

        Args:
            kind: one of `KINDS`.
            row_id: of the row.
            text: a human text of the row.
            texts: all its human texts: what they say is not wrong.
            number: another one gives another corruption.
            similar: of `other_image`: of some texts the one with most words in common.
        """
        random = self._random(row_id, kind, number)
        own = [*texts, text]
        match kind:
            case "other_image":
                return self._other_image(random, row_id, own, similar)
            case "attribute":
                swaps = self._swaps(text, own)
                return random.choice(swaps).apply(random, text) if swaps else None
            case "boilerplate":
                return random.choice(self.boilerplate).replace(
                    "{number}", str(random.randint(1000, 9999))
                )
            case "truncated":
                return _first_words(random, text)
            case "names":
                return with_name(text, self.name_for(row_id, own, number), random.randrange(2))

    def name_for(self, row_id: str, texts: Sequence[str], number: int = 0) -> Name:
        """The name that the corruption `names` of that number adds: one that all the texts allow.

        Args:
            row_id: of the row.
            texts: texts of the row. Where one of them mentions nothing that may have a name, the
                name is that of a place.
            number: as of `corrupt`.
        """
        random = self._random(row_id, "name", number)
        may_be_anybody = all(find_named(text) for text in texts)
        name = random.choice(self.names)
        while not (may_be_anybody or name.is_place):
            name = random.choice(self.names)
        return name

    def _random(self, row_id: str, purpose: str, number: int) -> Random:
        # Of `Random`, not of NumPy: its draws for a seed have not changed since Python 3.2.
        return Random(named_seed(self.seed, f"{row_id}/{purpose}/{number}"))

    def _other_image(
        self, random: Random, row_id: str, own: Sequence[str], similar: bool
    ) -> str | None:
        known = _vocabulary(own)
        found: list[tuple[int, str]] = []
        for _ in range(_CANDIDATES):
            other_id, texts = random.choice(self.rows)
            text = random.choice(texts)
            words = _vocabulary([text])
            # What says nothing that the row's own texts do not say may well be true.
            if other_id != row_id and not words <= known:
                if not similar:
                    return text
                found.append((len(words & known), text))
        return max(found)[1] if found else None

    def _swaps(self, text: str, own: Sequence[str]) -> "list[_Swap]":
        """Every word of a text that may be another, with those that it may be."""
        known = _vocabulary(own)
        swaps = []
        for found in _WORD.finditer(text):
            word = found[0].lower()
            # What any text of the row says may be true of it.
            others = [
                other
                for meaning in _other_meanings().get(word, ())
                if known.isdisjoint(meaning)
                for other in [max(meaning, key=lambda word: self.frequencies.get(word, 0))]
            ]
            others = others or [o for o in self.substitutes.get(word, ()) if o not in known]
            usual = [other for other in others if other in self.frequencies]
            if usual or others:
                swaps.append(_Swap(found.start(), found[0], tuple(usual or others)))
        return swaps


def with_name(text: str, name: Name, form: int = 0) -> str:
    """A text with a name: of a place at the end, of somebody behind what may have one.

    Args:
        text: of any language; only English nouns are known.
        name: what is added.
        form: which of the ways to say it, any number.
    """
    noun = None if name.is_place else find_named(text)
    if noun is not None:
        joined = ("named", "called")[form % 2]
        return f"{text[: noun.end()]} {joined} {name.word}{text[noun.end() :]}"
    stripped = text.rstrip()
    end = re.search(r"[\s.!?。]*$", stripped)
    body = stripped[: end.start()] if end else stripped
    return f"{body} {('in', 'at')[form % 2]} {name.word}{stripped[len(body) :]}"


def find_named(text: str) -> re.Match[str] | None:
    """The first noun of a text that may have a name of its own."""
    nouns = _nouns_with_names()
    return next((found for found in _WORD.finditer(text) if found[0].lower() in nouns), None)


class _Swap(NamedTuple):
    """A word of a text that may be another."""

    start: int
    word: str
    others: tuple[str, ...]

    def apply(self, random: Random, text: str) -> str:
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


class _WebTexts:
    """What web rows say, as far as it is needed to know what they repeat and what they name."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._examples: dict[str, str] = {}
        self._capital: Counter[str] = Counter()
        self._small: set[str] = set()

    def add(self, texts: Sequence[str]) -> None:
        for text in texts:
            # IMG_2041.jpg and IMG_2042.jpg are one text.
            template = _DIGITS.sub("{number}", text.strip())
            self._counts[template.lower()] += 1
            self._examples.setdefault(template.lower(), template)
            for word in _WORD.findall(text):
                if word[:1].isupper() and not word.isupper():
                    self._capital[word] += 1
                else:
                    self._small.add(word.lower())
        if len(self._counts) > _MOST_TEXTS:
            # What was seen once in so many texts is hardly among the most frequent.
            self._counts = Counter({k: n for k, n in self._counts.items() if n > 1})
            self._examples = {k: self._examples[k] for k in self._counts}
        if len(self._capital) > _MOST_TEXTS:
            self._capital = Counter({k: n for k, n in self._capital.items() if n > 1})

    def boilerplate(self, human: Mapping[str, int]) -> tuple[str, ...]:
        """Texts seen at least three times, most of whose words no human text has."""
        found = []
        for template, count in self._counts.most_common():
            if count < 3 or len(found) == _MOST_BOILERPLATE:
                break
            words = _words(template.replace("{number}", " "))
            if 2 * sum(word in human for word in words) < max(len(words), 1):
                found.append(self._examples[template])
        return tuple(found)

    def names(self, human: Mapping[str, int]) -> list[Name]:
        """Capital words that nowhere stand in small letters; half are used as places."""
        words = [
            word
            for word, _ in self._capital.most_common()
            if word.isalpha() and len(word) > 2
            # Of a title all words are capital: a name is one that stays so elsewhere.
            if word.lower() not in self._small and word.lower() not in human
            if word.lower() not in _other_meanings()
        ]
        return [Name(word, named_seed(0, word) % 2 == 0) for word in sorted(words[:_MOST_NAMES])]


def _kept(rows: list[tuple[str, tuple[str, ...]]], seed: int) -> list[tuple[str, tuple[str, ...]]]:
    """At most so many rows as are remembered, whatever their order in the table."""
    return nsmallest(_MOST_ROWS, rows, key=lambda row: (named_seed(seed, row[0]), row[0]))


def _substitutes(
    rows: Sequence[tuple[str, tuple[str, ...]]], frequencies: Mapping[str, int]
) -> dict[str, tuple[str, ...]]:
    """For common words, others that stand between the same neighbours.

    Two words for one thing stand between the same neighbours too. They also come together in
    texts of one image, more often than chance, and are left out for that.
    """
    never = {*_NO_SUBSTITUTES.split(), *_other_meanings()}
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
            words = ["", *_words(text), ""]
            for before, word, after in zip(words, words[1:], words[2:], strict=False):
                if word in usual:
                    contexts[before, after].add(word)
        together.update(combinations(sorted(usual & _vocabulary(texts)), 2))
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


def _words(text: str) -> list[str]:
    return characters(text) if is_unspaced(text) else _WORD.findall(text.lower())


def _vocabulary(texts: Sequence[str]) -> set[str]:
    return {word for text in texts for word in _words(text)}


def _first_words(random: Random, text: str) -> str | None:
    """At most a third of a text."""
    units = list(text.strip()) if is_unspaced(text) else text.split()
    if len(units) < 3:
        return None
    count = random.randint(1, max(len(units) // 3, 1))
    return ("" if is_unspaced(text) else " ").join(units[:count])


@cache
def _other_meanings() -> dict[str, tuple[tuple[str, ...], ...]]:
    """For each word of the tables, the other meanings of its group."""
    others = {}
    for line in _GROUPS.strip().splitlines():
        meanings = tuple(tuple(meaning.split()) for meaning in line.split(";"))
        for meaning in meanings:
            rest = tuple(other for other in meanings if other is not meaning)
            others.update(dict.fromkeys(meaning, rest))
    return others


@cache
def _nouns_with_names() -> frozenset[str]:
    words = {"child", "person", "kid", "player", "rider", "skateboarder", "surfer"}
    for noun in _NAMED_GROUPS:
        words |= {noun, *(word for meaning in _other_meanings()[noun] for word in meaning)}
    return frozenset(words)
