"""Typed corruptions of human texts: what a filter must reject, and what a captioner must mend.

A corruption is decided by (seed, row id, kind, number) alone, so that every process, thread and
resumed run meets the same. The tables of words are English; where a table's texts are not, no
attribute is swapped, and a warning says so.
"""

import hashlib
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from heapq import nsmallest
from random import Random
from typing import Literal, NamedTuple, get_args

from openblip.batches.shuffle import named_seed
from openblip.batches.text import is_unspaced
from openblip.batches.tokenizer import TextTokenizer
from openblip.batches.word_swaps import (
    WORD,
    Swap,
    find_named,
    learnt_substitutes,
    named_nouns,
    other_meanings,
    vocabulary,
    words_of,
)
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
WRONG_KINDS: tuple[Kind, ...] = tuple(kind for kind in KINDS if kind not in RIGHT_KINDS)
"""Kinds whose texts a filter is to reject."""

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
_DIGITS = re.compile(r"\d+")
# What is remembered of a table of any size.
_MOST_ROWS, _MOST_TEXTS, _MOST_BOILERPLATE, _MOST_NAMES = 20_000, 200_000, 64, 2000
# How often a captioner in training is given a true text, a corrupted one, nothing.
_GIVEN_SHARES: dict[Kind | Literal["true", "nothing"], float] = {
    "nothing": 0.15,
    "true": 0.35,
    "other_image": 0.2,
    "attribute": 0.15,
    "boilerplate": 0.07,
    "truncated": 0.08,
}
# How often a given text has a name, and the name of a place besides; looks like a title; has
# boilerplate behind it.
_NAMED, _PLACED, _TITLED, _DECORATED = 0.7, 0.4, 0.6, 0.25
# What leads to a name in `with_name`.
_LEADING = ("named", "called", "in", "at")
_FILLERS = frozenset(("a", "an", "the", "is", "are", "there"))
# Candidates among which a similar text of another image is sought.
_CANDIDATES = 24


class CorruptedText(NamedTuple):
    """A text for an image, and whether it is right."""

    text: str
    kind: Kind | None
    """None: a human text of the image as it is."""
    is_right: bool


class GivenPair(NamedTuple):
    """A text that a captioner reads, and the text that it is to write."""

    given: str | None
    """None: there is nothing to read."""
    target: str


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
    grounded: frozenset[str] = frozenset((*_GENERIC_NAMES.split(), *_GENERIC_PLACES.split()))
    """Those that are names for sure: a captioner writes them from a given text alone."""
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
            grounded=cls.grounded | web.sure_names(corruptions.frequencies),
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
        frequencies = Counter(word for _, texts in rows for word in vocabulary(texts))
        substitutes = learnt_substitutes(rows, frequencies)
        return cls(seed, tuple(rows), frequencies=frequencies, substitutes=substitutes)

    def digest(self) -> bytes:
        """Another one where other texts may be made of the same row."""
        content = repr((self.seed, self.rows, self.boilerplate, self.names))
        return hashlib.blake2b(content.encode("utf-8", "replace"), digest_size=8).digest()

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

    def given(
        self,
        row_id: str,
        text: str,
        texts: Sequence[str],
        number: int = 0,
        edited_from: str | None = None,
    ) -> GivenPair:
        """What a captioner is given to read, and what it learns to write of it.

        What is true of the image stays, a name among it; what is not is replaced by the human text.

        Args:
            row_id: of the row.
            text: a human text of the row.
            texts: all its human texts.
            number: another one gives another text.
            edited_from: what people have corrected to `text`.
        """
        random = self._random(row_id, "given", number)
        (kind,) = random.choices([*_GIVEN_SHARES], [*_GIVEN_SHARES.values()])
        if kind == "nothing":
            return GivenPair(None, text)
        # Another text of the image where there is one: to repeat what stands there is too easy.
        base = random.choice([own for own in texts if own != text] or [text])
        if edited_from is not None and kind in ("true", "attribute", "truncated"):
            return GivenPair(edited_from, text)
        corrupted = None if kind == "true" else self.corrupt(kind, row_id, base, texts, number)
        if corrupted is not None and kind in ("boilerplate", "truncated"):
            return GivenPair(corrupted, text)
        # What cannot be corrupted is given as it is.
        given, target = base if corrupted is None else corrupted, text
        is_true = corrupted is None or kind != "other_image"
        if random.random() < _NAMED:
            names = [self.name_for(row_id, (given, text), number)]
            if self.places and not names[0].is_place and random.random() < _PLACED:
                names.append(random.choice(self.places))
            # Who is named must be the same in both: what the true texts share, if they do.
            shared = [noun for noun in named_nouns(base) if noun in named_nouns(text)]
            for name in names:
                given = with_name(given, name, random.randrange(2), shared)
                target = with_name(target, name, nouns=shared) if is_true else target
        return GivenPair(self._as_web_text(random, given), target)

    def _as_web_text(self, random: Random, text: str) -> str:
        """A text as web pages have it: often a title, sometimes with boilerplate."""
        if random.random() < _TITLED:
            words = [word for word in text.split() if word.lower() not in _FILLERS]
            text = " ".join(words) or text
        if random.random() < _DECORATED:
            text = f"{text} {random.choice(self.boilerplate).replace('{number}', '')}".strip()
        return text

    def name_for(self, row_id: str, texts: Sequence[str], number: int = 0) -> Name:
        """The name that the corruption `names` of that number adds: one that all the texts allow.

        Args:
            row_id: of the row.
            texts: texts of the row. Where one of them mentions nothing that may have a name, the
                name is that of a place.
            number: as of `corrupt`.
        """
        may_be_anybody = all(find_named(text) for text in texts) or not self.places
        names = self.names if may_be_anybody else self.places
        return self._random(row_id, "name", number).choice(names)

    def name_tokens(self, tokenizer: TextTokenizer) -> tuple[set[int], set[int]]:
        """Tokens that names begin with within a text, and all of human texts and before names."""

        def pieces(texts: Iterable[str]) -> list[list[int]]:
            return tokenizer.pieces([tokenizer.cleaning.caption(text) for text in texts])

        (leader,) = pieces(_LEADING[2:3])
        # Behind a word: some tokenizers begin a word otherwise where it begins a text.
        behind = pieces(f"{_LEADING[2]} {word}" for word in sorted(self.grounded))
        begins = {own[len(leader)] for own in behind if len(own) > len(leader)}
        others = pieces([text for _, texts in self.rows for text in texts] + [*_LEADING])
        special = {*tokenizer.special.__dict__.values()}
        return begins - special, {token for own in others for token in own}

    @cached_property
    def places(self) -> tuple[Name, ...]:
        """The names of places."""
        return tuple(name for name in self.names if name.is_place)

    def _random(self, row_id: str, purpose: str, number: int) -> Random:
        # A generator for each purpose: no draw depends on what was drawn before it.
        return Random(named_seed(self.seed, f"{row_id}/{purpose}/{number}"))

    def _other_image(
        self, random: Random, row_id: str, own: Sequence[str], similar: bool
    ) -> str | None:
        known = vocabulary(own)
        found: list[tuple[int, str]] = []
        for _ in range(_CANDIDATES):
            other_id, texts = random.choice(self.rows)
            text = random.choice(texts)
            words = vocabulary([text])
            # What says nothing that the row's own texts do not say may well be true.
            if other_id != row_id and not words <= known:
                if not similar:
                    return text
                found.append((len(words & known), text))
        return max(found)[1] if found else None

    def _swaps(self, text: str, own: Sequence[str]) -> "list[Swap]":
        """Every word of a text that may be another, with those that it may be."""
        known = vocabulary(own)
        swaps = []
        for found in WORD.finditer(text):
            word = found[0].lower()
            # What any text of the row says may be true of it.
            others = [
                other
                for meaning in other_meanings().get(word, ())
                if known.isdisjoint(meaning)
                for other in [max(meaning, key=lambda word: self.frequencies.get(word, 0))]
            ]
            others = others or [o for o in self.substitutes.get(word, ()) if o not in known]
            usual = [other for other in others if other in self.frequencies]
            if usual or others:
                swaps.append(Swap(found.start(), found[0], tuple(usual or others)))
        return swaps


def with_name(text: str, name: Name, form: int = 0, nouns: Sequence[str] = ()) -> str:
    """A text with a name: of a place at the end, of somebody behind what may have one.

    Args:
        text: of any language; only English nouns are known.
        name: what is added.
        form: which of the ways to say it, any number.
        nouns: behind the first of these, where the text has it, rather than behind another.
    """
    noun = None if name.is_place else find_named(text, nouns)
    if noun is not None:
        joined = _LEADING[form % 2]
        return f"{text[: noun.end()]} {joined} {name.word}{text[noun.end() :]}"
    stripped = text.rstrip()
    end = re.search(r"[\s.!?。]*$", stripped)
    body = stripped[: end.start()] if end else stripped
    return f"{body} {_LEADING[2 + form % 2]} {name.word}{stripped[len(body) :]}"


class _WebTexts:
    """What web rows say, as far as it is needed to know what they repeat and what they name."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._examples: dict[str, str] = {}
        self._capital: Counter[str] = Counter()
        # Capital though it neither begins a text nor stands in a title.
        self._inside: set[str] = set()
        self._small: set[str] = set()

    def add(self, texts: Sequence[str]) -> None:
        for text in texts:
            # IMG_2041.jpg and IMG_2042.jpg are one text.
            template = _DIGITS.sub("{number}", text.strip())
            self._counts[template.lower()] += 1
            self._examples.setdefault(template.lower(), template)
            words = WORD.findall(text)
            is_title = 2 * sum(word[:1].isupper() for word in words) > len(words)
            for place, word in enumerate(words):
                if word[:1].isupper() and not word.isupper():
                    self._capital[word] += 1
                    if place and not is_title:
                        self._inside.add(word)
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
        found: list[str] = []
        for template, count in self._counts.most_common():
            if count < 3 or len(found) == _MOST_BOILERPLATE:
                break
            words = words_of(template.replace("{number}", " "))
            if 2 * sum(word in human for word in words) < max(len(words), 1):
                found.append(self._examples[template])
        return tuple(found)

    def sure_names(self, human: Mapping[str, int]) -> set[str]:
        """Those of `names` that are capital for no other reason."""
        return {name.word for name in self.names(human)} & self._inside

    def names(self, human: Mapping[str, int]) -> list[Name]:
        """Capital words that nowhere stand in small letters; half are used as places."""
        words = [
            word
            for word, _ in self._capital.most_common()
            if word.isalpha() and len(word) > 2
            # Of a title all words are capital: a name is one that stays so elsewhere.
            if word.lower() not in self._small and word.lower() not in human
            if word.lower() not in other_meanings()
        ]
        return [Name(word, named_seed(0, word) % 2 == 0) for word in sorted(words[:_MOST_NAMES])]


def _kept(rows: list[tuple[str, tuple[str, ...]]], seed: int) -> list[tuple[str, tuple[str, ...]]]:
    """At most so many rows as are remembered, whatever their order in the table."""
    return nsmallest(_MOST_ROWS, rows, key=lambda row: (named_seed(seed, row[0]), row[0]))


def _first_words(random: Random, text: str) -> str | None:
    """At most a third of a text."""
    units = list(text.strip()) if is_unspaced(text) else text.split()
    if len(units) < 3:
        return None
    count = random.randint(1, max(len(units) // 3, 1))
    return ("" if is_unspaced(text) else " ").join(units[:count])
