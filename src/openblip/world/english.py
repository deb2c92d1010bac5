"""The sentences of the embedded world, and how a claim is put into words.

One set of templates serves writing and parsing (`parsing.py`). A body names the groups, `{A}`,
`{B}`, `{C}` in the order of the claim, and `{isA}` agrees with `{A}`. A frame adds the
background: `{on}` is a phrase such as "on a striped background", `{ground}` its noun phrase.

From the text of a caption back to what it asserts, so that its truth can be decided.
"""

import re
from dataclasses import dataclass
from functools import lru_cache

from openblip.batches.text import is_unspaced
from openblip.world import chinese
from openblip.world.claims import Claim, Mention, claim_errors, make_claim, one_of, spoken_order
from openblip.world.config import Language
from openblip.world.scene import COLOURS, GROUND_COLOURS, KINDS, PATTERNS, Dice, Scene

# (number of groups, relation) -> sentences, the plainest first.
BODIES: dict[tuple[int, str | None], tuple[str, ...]] = {
    (1, None): ("{A}", "there {isA} {A}"),
    (2, None): ("{A} and {B}", "there {isA} {A} and {B}", "{A} with {B}"),
    (2, "left_of"): (
        "{A} left of {B}",
        "{A} to the left of {B}",
        "{B} right of {A}",
        "{B} to the right of {A}",
        "{A} {isA} to the left of {B}",
        "{A} on the left and {B} on the right",
        "{B} on the right and {A} on the left",
        "there {isA} {A} to the left of {B}",
    ),
    (2, "above"): (
        "{A} above {B}",
        "{B} below {A}",
        "{A} over {B}",
        "{B} under {A}",
        "{A} {isA} above {B}",
        "{A} at the top and {B} at the bottom",
        "{B} at the bottom and {A} at the top",
        "there {isA} {A} above {B}",
    ),
    (2, "beside"): ("{A} beside {B}", "{A} next to {B}"),
    (3, None): ("{A}, {B} and {C}", "there {isA} {A}, {B} and {C}"),
    (3, "left_of"): ("{A}, {B} and {C} from left to right", "from left to right {A}, {B} and {C}"),
    (3, "above"): ("{A}, {B} and {C} from top to bottom", "from top to bottom {A}, {B} and {C}"),
    (3, "between"): ("{B} between {A} and {C}", "there {isB} {B} between {A} and {C}"),
}
FRAMES = ("{body} {on}", "{on} {body}")
# Takes noun phrases only: "a striped background with there is" is no English.
NOUN_FRAME = "{ground} with {body}"
TITLE_FRAMES = ("{body} {ground}", "{body} {on}")

ON_WORDS = ("on", "against")
GROUND_NOUNS = ("background", "backdrop")
SIZE_WORDS = {"large": "large", "big": "large", "small": "small", "little": "small"}
COUNT_WORDS = {"a": 1, "an": 1, "one": 1, "two": 2, "a couple of": 2, "three": 3}
PLURALS = {kind: "crosses" if kind == "cross" else f"{kind}s" for kind in KINDS}
DISC = "disc"

PREFIXES = ("buy", "free", "new", "hd")
SUFFIXES = ("clipart", "stock image", "icon", "vector", "free download", "for sale")
SEPARATORS = (" ", " - ", " | ", ", ")
BOILERPLATE = (
    "IMG_{number}.jpg",
    "DSC0{number}.jpg",
    "image {number}",
    "best price free shipping",
    "click to enlarge",
    "add to cart",
    "all rights reserved",
    "customers also viewed",
    "no description available",
    "sign up for our newsletter",
    "untitled",
)


@dataclass(frozen=True, slots=True)
class _Voice:
    """How to word a claim: with articles as sentences, or without as titles."""

    articles: bool
    plain: float  # probability of the plainest sentence


_HUMAN = _Voice(articles=True, plain=0.3)
_TITLE = _Voice(articles=False, plain=0.6)


def write_human_caption(claim: Claim, dice: Dice, language: Language = "en") -> str:
    """A sentence with exactly the meaning of a claim, in lower case without a full stop."""
    if language == "zh":
        return chinese.write_human(claim, dice)
    return _write(claim, dice, _HUMAN)


def write_web_caption(claim: Claim, dice: Dice, language: Language = "en") -> str:
    """The same meaning as an alt text: mostly without articles, often with shop words around."""
    if language == "zh":
        return chinese.write_web(claim, dice)
    voice = _TITLE if dice.chance(0.7) else _HUMAN
    text = _write(claim, dice, voice)
    # "buy there is" is not even shop English.
    if not voice.articles and dice.chance(0.25):
        text = f"{dice.choose(PREFIXES)} {text}"
    if dice.chance(0.3):
        text = f"{text}{dice.choose(SEPARATORS)}{dice.choose(SUFFIXES)}"
    return text.title() if dice.chance(0.25) else text


def write_boilerplate(dice: Dice, language: Language = "en") -> str:
    """A text that says nothing of any image."""
    if language == "zh":
        return chinese.write_nothing(dice)
    return dice.choose(BOILERPLATE).format(number=dice.between(1000, 9999))


def _write(claim: Claim, dice: Dice, voice: _Voice) -> str:
    mentions = spoken_order(claim, dice)
    bodies = BODIES[len(mentions), claim.relation]
    if not voice.articles:
        bodies = tuple(body for body in bodies if "{is" not in body)
    body = bodies[0] if dice.chance(voice.plain) else dice.choose(bodies)
    slots: dict[str, str] = {}
    for letter, mention in zip("ABC", mentions, strict=False):
        slots[letter] = _noun_phrase(mention, dice, voice)
        slots[f"is{letter}"] = "is" if mention.count == 1 else "are"
    text = body.format_map(slots)
    if claim.pattern is None and claim.ground is None:
        return text
    frames: tuple[str, ...] = FRAMES if voice.articles else TITLE_FRAMES
    if voice.articles and "{is" not in body:
        frames += (NOUN_FRAME,)
    # Two times in three the background comes last, as in most captions.
    frame = frames[0] if dice.chance(0.5) else dice.choose(frames)
    ground = _ground_phrase(claim, dice, voice)
    return frame.format(body=text, ground=ground, on=f"{_pick(ON_WORDS, 0.15, dice)} {ground}")


def _noun_phrase(mention: Mention, dice: Dice, voice: _Voice) -> str:
    words = []
    if mention.size is not None:
        synonyms = [word for word, size in SIZE_WORDS.items() if size == mention.size]
        words.append(_pick((synonyms[0], synonyms[1]), 0.3, dice))
    if mention.colour is not None:
        words.append(mention.colour)
    # No other kind has a synonym: one is enough to see whether a model learns it.
    noun = mention.kind if mention.count == 1 else PLURALS[mention.kind]
    if mention.kind == "circle" and dice.chance(0.15):
        noun = DISC if mention.count == 1 else f"{DISC}s"
    words.append(noun)
    counted = _count_word(mention.count, words[0], dice, voice)
    return " ".join([*counted, *words])


def _count_word(count: int, next_word: str, dice: Dice, voice: _Voice) -> list[str]:
    if count == 3:
        return ["three"]
    if count == 2:
        return ["a couple of" if voice.articles and dice.chance(0.15) else "two"]
    if not voice.articles:
        return []
    return [_pick(("an" if next_word[0] in "aeiou" else "a", "one"), 0.1, dice)]


def _ground_phrase(claim: Claim, dice: Dice, voice: _Voice) -> str:
    words = [word for word in (claim.ground, claim.pattern) if word is not None]
    if len(words) == 2 and dice.chance(0.5):
        words.reverse()
    article = ["a"] if voice.articles else []
    return " ".join([*article, *words, _pick(GROUND_NOUNS, 0.15, dice)])


def _pick(pair: tuple[str, str], probability_of_second: float, dice: Dice) -> str:
    return pair[1] if dice.chance(probability_of_second) else pair[0]


# noun -> (kind, is it a plural)
_NOUNS = {kind: (kind, False) for kind in KINDS}
_NOUNS |= {plural: (kind, True) for kind, plural in PLURALS.items()}
_NOUNS |= {DISC: ("circle", False), f"{DISC}s": ("circle", True)}


def parse_caption(text: str) -> Claim | None:
    """The claim of a caption of either grammar, human or web style; None where it is none.

    Case and punctuation do not matter. Text outside the grammar is None as a whole: unknown
    words, a plural without a number, a number that disagrees with its noun.
    """
    if is_unspaced(text):
        return chinese.parse(text)
    words = " ".join(re.findall("[a-z0-9]+", text.lower()))
    words = _decoration().sub("", words)
    body, pattern, ground = _split_background(words)
    for slots, relation, sentence in _sentences():
        found = sentence.fullmatch(body)
        if found is not None:
            mentions = tuple(_parse_mention(found[slot]) for slot in slots)
            known = tuple(mention for mention in mentions if mention is not None)
            if len(known) < len(mentions):
                return None
            return make_claim(known, relation, pattern, ground)
    return None


def caption_errors(text: str, scene: Scene) -> tuple[str, ...] | None:
    """What is false in a caption (see `claim_errors`), empty when true, None when unparsable."""
    claim = parse_caption(text)
    return None if claim is None else claim_errors(claim, scene)


def is_true_caption(text: str, scene: Scene) -> bool | None:
    """Whether a caption is true of a scene; None when it is no sentence of the grammar."""
    errors = caption_errors(text, scene)
    return None if errors is None else not errors


@lru_cache(maxsize=1)
def _decoration() -> re.Pattern[str]:
    return re.compile(f"^{one_of(PREFIXES)} | {one_of(SUFFIXES)}$")


@lru_cache(maxsize=1)
def _read_noun_phrase() -> re.Pattern[str]:
    return re.compile(
        f"(?:(?P<count>{one_of(COUNT_WORDS)}) )?"
        f"(?:(?P<size>{one_of(SIZE_WORDS)}) )?"
        f"(?:(?P<colour>{one_of(COLOURS)}) )?"
        f"(?P<noun>{one_of(_NOUNS)})"
    )


@lru_cache(maxsize=1)
def _sentences() -> tuple[tuple[str, str | None, re.Pattern[str]], ...]:
    """(slots, relation, pattern) of every body; a slot captures one noun phrase."""
    phrase = re.sub(r"\?P<\w+>", "?:", _read_noun_phrase().pattern)
    compiled = []
    for (num_groups, relation), bodies in BODIES.items():
        slots = "ABC"[:num_groups]
        for body in bodies:
            pattern = body.replace(",", "")
            for slot in slots:
                pattern = pattern.replace(f"{{is{slot}}}", "(?:is|are)")
                pattern = pattern.replace(f"{{{slot}}}", f"(?P<{slot}>{phrase})")
            compiled.append((slots, relation, re.compile(pattern)))
    return tuple(compiled)


@lru_cache(maxsize=1)
def _backgrounds() -> tuple[re.Pattern[str], ...]:
    colour, pattern = one_of(GROUND_COLOURS), one_of(PATTERNS)
    # At least one adjective: "on a background" says nothing.
    adjectives = f"(?P<adjectives>{colour}(?: {pattern})?|{pattern}(?: {colour})?)"
    ground = f"(?:a )?{adjectives} {one_of(GROUND_NOUNS)}"
    shapes = (
        f"(?P<body>.+?) (?:{one_of(ON_WORDS)} )?{ground}",
        f"{one_of(ON_WORDS)} {ground} (?P<body>.+)",
        f"{ground} with (?P<body>.+)",
    )
    return tuple(re.compile(shape) for shape in shapes)


def _split_background(words: str) -> tuple[str, str | None, str | None]:
    for shape in _backgrounds():
        found = shape.fullmatch(words)
        if found is not None:
            adjectives = found["adjectives"].split()
            pattern = next((word for word in adjectives if word in PATTERNS), None)
            ground = next((word for word in adjectives if word in GROUND_COLOURS), None)
            return found["body"], pattern, ground
    return words, None, None


def _parse_mention(phrase: str) -> Mention | None:
    found = _read_noun_phrase().fullmatch(phrase)
    assert found is not None, phrase
    kind, plural = _NOUNS[found["noun"]]
    count_word = found["count"]
    if count_word is None and plural:
        return None
    count = 1 if count_word is None else COUNT_WORDS[count_word]
    if (count > 1) != plural:
        return None
    size = None if found["size"] is None else SIZE_WORDS[found["size"]]
    return Mention(kind, found["colour"], size, count)
