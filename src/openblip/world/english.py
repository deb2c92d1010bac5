"""The English captions of the embedded world, and captions in any of its languages.

`{isA}` in a body agrees with the group `{A}`. `{on}` in a frame is a phrase such as "on a striped
background", `{ground}` its noun phrase.
"""

import re

from openblip.batches.text import is_unspaced
from openblip.world.chinese import CHINESE
from openblip.world.claims import Claim, Grammar, Mention, claim_errors, one_of, pick
from openblip.world.scene import COLOURS, GROUND_COLOURS, KINDS, PATTERNS, Dice, Language, Scene

_BODIES: dict[tuple[int, str | None], tuple[str, ...]] = {
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
_ON_WORDS = ("on", "against")
_GROUND_NOUNS = ("background", "backdrop")
_SIZE_WORDS = {"large": "large", "big": "large", "small": "small", "little": "small"}
_COUNT_WORDS = {"a": 1, "an": 1, "one": 1, "two": 2, "a couple of": 2, "three": 3}
_PLURALS = {kind: "crosses" if kind == "cross" else f"{kind}s" for kind in KINDS}
_DISC = "disc"
# noun -> (kind, is it a plural)
_NOUNS = {kind: (kind, False) for kind in KINDS}
_NOUNS |= {plural: (kind, True) for kind, plural in _PLURALS.items()}
_NOUNS |= {_DISC: ("circle", False), f"{_DISC}s": ("circle", True)}
_BOILERPLATE = (
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


def write_human_caption(claim: Claim, dice: Dice, language: Language = "en") -> str:
    """A sentence with exactly the meaning of a claim, in lower case without a full stop."""
    return GRAMMARS[language].write(claim, dice)


def write_web_caption(claim: Claim, dice: Dice, language: Language = "en") -> str:
    """The same meaning as an alt text: mostly a title, often with shop words around."""
    return GRAMMARS[language].write_web(claim, dice)


def write_boilerplate(dice: Dice, language: Language = "en") -> str:
    """A text that says nothing of any image."""
    return GRAMMARS[language].write_nothing(dice)


def parse_caption(text: str) -> Claim | None:
    """The claim of a caption of either grammar, human or web style; None where it is none.

    Case and punctuation do not matter. Text outside the grammar is None as a whole: unknown
    words, a plural without a number, a number that disagrees with its noun.
    """
    return (CHINESE if is_unspaced(text) else ENGLISH).parse(text)


def caption_errors(text: str, scene: Scene) -> tuple[str, ...] | None:
    """What is false in a caption (see `claim_errors`), empty when true, None when unparsable."""
    claim = parse_caption(text)
    return None if claim is None else claim_errors(claim, scene)


def is_true_caption(text: str, scene: Scene) -> bool | None:
    """Whether a caption is true of a scene; None when it is no sentence of the grammar."""
    errors = caption_errors(text, scene)
    return None if errors is None else not errors


def _noun_phrase(mention: Mention, dice: Dice, is_title: bool) -> str:
    words = []
    if mention.size is not None:
        synonyms = [word for word, size in _SIZE_WORDS.items() if size == mention.size]
        words.append(pick((synonyms[0], synonyms[1]), 0.3, dice))
    if mention.colour is not None:
        words.append(mention.colour)
    # No other kind has a synonym: one is enough to see whether a model learns it.
    noun = mention.kind if mention.count == 1 else _PLURALS[mention.kind]
    if mention.kind == "circle" and dice.chance(0.15):
        noun = _DISC if mention.count == 1 else f"{_DISC}s"
    words.append(noun)
    counted = _count_word(mention.count, words[0], dice, is_title)
    return " ".join([*counted, *words])


def _count_word(count: int, next_word: str, dice: Dice, is_title: bool) -> list[str]:
    if count == 3:
        return ["three"]
    if count == 2:
        return ["a couple of" if not is_title and dice.chance(0.15) else "two"]
    if is_title:
        return []
    return [pick(("an" if next_word[0] in "aeiou" else "a", "one"), 0.1, dice)]


def _ground(claim: Claim, dice: Dice, is_title: bool) -> dict[str, str]:
    words = [word for word in (claim.ground, claim.pattern) if word is not None]
    if len(words) == 2 and dice.chance(0.5):
        words.reverse()
    article = [] if is_title else ["a"]
    ground = " ".join([*article, *words, pick(_GROUND_NOUNS, 0.15, dice)])
    return {"ground": ground, "on": f"{pick(_ON_WORDS, 0.15, dice)} {ground}"}


def _read(found: re.Match[str]) -> Mention | None:
    kind, plural = _NOUNS[found["noun"]]
    count_word = found["count"]
    if count_word is None and plural:
        return None
    count = 1 if count_word is None else _COUNT_WORDS[count_word]
    if (count > 1) != plural:
        return None
    size = None if found["size"] is None else _SIZE_WORDS[found["size"]]
    return Mention(kind, found["colour"], size, count)


_COLOUR, _PATTERN, _ON = one_of(GROUND_COLOURS), one_of(PATTERNS), one_of(_ON_WORDS)
# At least one adjective: "on a background" says nothing.
_GROUND = (
    f"(?:a )?(?P<ground>{_COLOUR}(?: {_PATTERN})?|{_PATTERN}(?: {_COLOUR})?) "
    f"{one_of(_GROUND_NOUNS)}"
)

ENGLISH = Grammar(
    bodies=_BODIES,
    is_sentence=lambda body: "{is" in body,
    frames=("{body} {on}", "{on} {body}"),
    # "A striped background with there is" is no English.
    noun_frame="{ground} with {body}",
    noun_frame_takes_relations=True,
    title_frames=("{body} {ground}", "{body} {on}"),
    space=" ",
    word="[a-z0-9]+",
    noun_phrase=_noun_phrase,
    ground=_ground,
    prefixes=("buy", "free", "new", "hd"),
    suffixes=("clipart", "stock image", "icon", "vector", "free download", "for sale"),
    separators=(" ", " - ", " | ", ", "),
    dressed=str.title,
    boilerplate=_BOILERPLATE,
    phrase=(
        f"(?:(?P<count>{one_of(_COUNT_WORDS)}) )?"
        f"(?:(?P<size>{one_of(_SIZE_WORDS)}) )?"
        f"(?:(?P<colour>{one_of(COLOURS)}) )?"
        f"(?P<noun>{one_of(_NOUNS)})"
    ),
    read=_read,
    backgrounds=(
        f"(?P<body>.+?) (?:{_ON} )?{_GROUND}",
        f"{_ON} {_GROUND} (?P<body>.+)",
        f"{_GROUND} with (?P<body>.+)",
    ),
    patterns={word: word for word in PATTERNS},
    grounds={word: word for word in GROUND_COLOURS},
)

GRAMMARS: dict[Language, Grammar] = {"en": ENGLISH, "zh": CHINESE}
"""By the language of a world."""
