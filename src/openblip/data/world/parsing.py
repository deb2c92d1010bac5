"""From the text of a caption back to what it asserts, so that its truth can be decided."""

import re
from functools import lru_cache

from openblip.data.text import is_unspaced
from openblip.data.world import chinese
from openblip.data.world.claims import Claim, Mention, claim_errors, make_claim, one_of
from openblip.data.world.grammar import (
    BODIES,
    COUNT_WORDS,
    DISC,
    GROUND_NOUNS,
    ON_WORDS,
    PLURALS,
    PREFIXES,
    SIZE_WORDS,
    SUFFIXES,
)
from openblip.data.world.scene import COLOURS, GROUND_COLOURS, KINDS, PATTERNS, Scene

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
def _noun_phrase() -> re.Pattern[str]:
    return re.compile(
        f"(?:(?P<count>{one_of(COUNT_WORDS)}) )?"
        f"(?:(?P<size>{one_of(SIZE_WORDS)}) )?"
        f"(?:(?P<colour>{one_of(COLOURS)}) )?"
        f"(?P<noun>{one_of(_NOUNS)})"
    )


@lru_cache(maxsize=1)
def _sentences() -> tuple[tuple[str, str | None, re.Pattern[str]], ...]:
    """(slots, relation, pattern) of every body; a slot captures one noun phrase."""
    phrase = re.sub(r"\?P<\w+>", "?:", _noun_phrase().pattern)
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
    found = _noun_phrase().fullmatch(phrase)
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
