"""What a caption asserts: whether it is true of a scene, and how a language puts it into words."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from openblip.world.scene import Dice, Scene, WorldConfig


@dataclass(frozen=True, slots=True)
class Mention:
    """A group as a caption names it; None where the caption is silent."""

    kind: str
    colour: str | None
    size: str | None
    count: int


@dataclass(frozen=True, slots=True)
class Claim:
    """The meaning of a caption: the groups it names, how they lie, and the background.

    `left_of` and `above` order the mentions from left to right and from top to bottom,
    `between` puts the second of three between the others, `beside` joins two neighbours in a
    row. `make_claim` brings mentions whose order says nothing into one order, so that equal
    meanings are equal values.
    """

    mentions: tuple[Mention, ...]
    relation: str | None
    pattern: str | None
    ground: str | None


def make_claim(
    mentions: tuple[Mention, ...],
    relation: str | None = None,
    pattern: str | None = None,
    ground: str | None = None,
) -> Claim:
    """A claim in canonical form."""
    if relation is None or relation == "beside":
        mentions = tuple(sorted(mentions, key=_mention_key))
    elif relation == "between":
        first, middle, last = mentions
        first, last = sorted((first, last), key=_mention_key)
        mentions = (first, middle, last)
    return Claim(mentions, relation, pattern, ground)


def _mention_key(mention: Mention) -> tuple[str, str, str, int]:
    return (mention.kind, mention.colour or "", mention.size or "", mention.count)


def claim_errors(claim: Claim, scene: Scene) -> tuple[str, ...]:
    """What is false in a claim: any of object, colour, size, count, relation, background.

    Empty when the claim is true. A claim may leave things out: silence is never an error.
    """
    errors: set[str] = set()
    positions: list[int] = []
    for mention in claim.mentions:
        position = scene.group_of(mention.kind)
        # Naming one group twice says that there are two.
        if position is None or position in positions:
            errors.add("object")
            continue
        positions.append(position)
        errors.update(_mention_errors(mention, scene, position))
    complete = len(positions) == len(claim.mentions)
    if complete and not _relation_holds(claim.relation, positions, scene):
        errors.add("relation")
    if claim.pattern not in (None, scene.background.pattern):
        errors.add("background")
    if claim.ground not in (None, scene.background.colour):
        errors.add("background")
    return tuple(sorted(errors))


def _mention_errors(mention: Mention, scene: Scene, position: int) -> list[str]:
    group = scene.groups[position]
    errors = []
    if mention.colour not in (None, group.colour):
        errors.append("colour")
    if mention.size not in (None, group.size):
        errors.append("size")
    if mention.count != group.count:
        errors.append("count")
    return errors


def _relation_holds(relation: str | None, positions: list[int], scene: Scene) -> bool:
    if relation is None:
        return True
    if relation == "between":
        # Of at most three groups that are all named, the one at 1 is in the middle.
        return positions[1] == 1
    axis = "column" if relation == "above" else "row"
    if scene.axis != axis:
        return False
    if relation == "beside":
        return abs(positions[0] - positions[1]) == 1
    # Groups stand in a scene from left to right, or from top to bottom.
    return positions == sorted(positions)


def is_true_of(claim: Claim, scene: Scene) -> bool:
    """Whether everything that the claim states holds in the scene."""
    return not claim_errors(claim, scene)


def describe(scene: Scene, dice: Dice, config: WorldConfig, partial: float = 0.0) -> Claim:
    """A random true claim: every kind, colour and count, and some of the rest.

    Args:
        scene: what is described.
        dice: chooses what is mentioned.
        config: probabilities of the mentions.
        partial: probability that some groups of several are left out.
    """
    kept = list(range(len(scene.groups)))
    if len(kept) > 1 and dice.chance(partial):
        kept = sorted(dice.sample(kept, dice.between(1, len(kept) - 1)))
    mentions = tuple(
        Mention(
            kind=group.kind,
            colour=group.colour,
            size=group.size if dice.chance(config.mention_size) else None,
            count=group.count,
        )
        for group in (scene.groups[position] for position in kept)
    )
    relation = None
    if len(kept) > 1 and dice.chance(config.mention_relation):
        relation = _choose_relation(scene, kept, dice)
    pattern, ground = _mention_background(scene, dice, config.mention_background)
    return make_claim(mentions, relation, pattern, ground)


def _choose_relation(scene: Scene, kept: list[int], dice: Dice) -> str:
    ordered = "left_of" if scene.axis == "row" else "above"
    if len(kept) == 3:
        return "between" if dice.chance(0.3) else ordered
    neighbours = scene.axis == "row" and kept[1] - kept[0] == 1
    return "beside" if neighbours and dice.chance(0.15) else ordered


def _mention_background(
    scene: Scene, dice: Dice, probability: float
) -> tuple[str | None, str | None]:
    if not dice.chance(probability):
        return None, None
    part = dice.choose(("pattern", "ground", "both"))
    pattern = None if part == "ground" else scene.background.pattern
    ground = None if part == "pattern" else scene.background.colour
    return pattern, ground


@dataclass(frozen=True, kw_only=True)
class Grammar:
    """The sentences of a language. One set of templates serves writing and reading.

    A body names the groups, `{A}`, `{B}`, `{C}` in the order of the claim. A frame adds the
    background to `{body}`, by the words that `ground` gives. A title has noun phrases alone.
    """

    bodies: Mapping[tuple[int, str | None], tuple[str, ...]]
    """By the number of groups and the relation; the plainest first."""
    is_sentence: Callable[[str], bool]
    """Whether a body is more than noun phrases, and so stands in no title."""
    frames: tuple[str, ...]
    noun_frame: str
    """A frame of a sentence that takes noun phrases only."""
    noun_frame_takes_relations: bool
    title_frames: tuple[str, ...]
    space: str
    """What stands between words."""
    word: str
    """Pattern of what counts of a text in lower case when it is read."""
    noun_phrase: Callable[[Mention, Dice, bool], str]
    """Of a group, in a title or not."""
    ground: Callable[[Claim, Dice, bool], dict[str, str]]
    """The words for the background in a frame, in a title or not."""
    prefixes: tuple[str, ...]
    suffixes: tuple[str, ...]
    separators: tuple[str, ...]
    """Before a suffix."""
    dressed: Callable[[str], str]
    """How some alt texts look."""
    boilerplate: tuple[str, ...]
    """Texts that say nothing of any image; `{number}` is any."""
    phrase: str
    """Pattern of what `noun_phrase` writes."""
    read: Callable[[re.Match[str]], Mention | None]
    """What a match of `phrase` means; None where its number disagrees with its noun."""
    backgrounds: tuple[str, ...]
    """Patterns of a whole text with a background: `body`, and `ground` with the adjectives."""
    patterns: Mapping[str, str]
    """Meanings of adjectives."""
    grounds: Mapping[str, str]

    def write(self, claim: Claim, dice: Dice, is_title: bool = False) -> str:
        """A sentence with exactly the meaning of a claim, without a full stop."""
        mentions = _spoken_order(claim, dice)
        bodies = self.bodies[len(mentions), claim.relation]
        if is_title:
            bodies = tuple(body for body in bodies if not self.is_sentence(body))
        body = bodies[0] if dice.chance(0.6 if is_title else 0.3) else dice.choose(bodies)
        slots: dict[str, str] = {}
        for letter, mention in zip("ABC", mentions, strict=False):
            slots[letter] = self.noun_phrase(mention, dice, is_title)
            slots[f"is{letter}"] = "is" if mention.count == 1 else "are"
        text = body.format_map(slots)
        if claim.pattern is None and claim.ground is None:
            return text
        frames = self.title_frames if is_title else self.frames
        is_plain = self.noun_frame_takes_relations or claim.relation is None
        if not is_title and is_plain and not self.is_sentence(body):
            frames += (self.noun_frame,)
        # Two times in three the background comes last, as in most captions.
        frame = frames[0] if dice.chance(0.5) else dice.choose(frames)
        return frame.format(body=text, **self.ground(claim, dice, is_title))

    def write_web(self, claim: Claim, dice: Dice) -> str:
        """The same meaning as an alt text: mostly a title, often with shop words around."""
        is_title = dice.chance(0.7)
        text = self.write(claim, dice, is_title)
        # "buy there is" is not even shop English.
        if is_title and dice.chance(0.25):
            text = f"{dice.choose(self.prefixes)}{self.space}{text}"
        if dice.chance(0.3):
            text = f"{text}{dice.choose(self.separators)}{dice.choose(self.suffixes)}"
        return self.dressed(text) if dice.chance(0.25) else text

    def write_nothing(self, dice: Dice) -> str:
        """A text that says nothing of any image."""
        return dice.choose(self.boilerplate).format(number=dice.between(1000, 9999))

    def parse(self, text: str) -> Claim | None:
        """The claim of a caption of this grammar, human or web style; None where it is none."""
        words = self.space.join(re.findall(self.word, text.lower()))
        body, pattern, ground = self._split_background(self._decoration.sub("", words))
        for slots, relation, sentence in self._sentences:
            if (found := sentence.fullmatch(body)) is not None:
                phrases = [re.fullmatch(self.phrase, found[slot]) for slot in slots]
                read = [self.read(phrase) for phrase in phrases if phrase is not None]
                mentions = tuple(mention for mention in read if mention is not None)
                is_whole = len(mentions) == len(slots)
                return make_claim(mentions, relation, pattern, ground) if is_whole else None
        return None

    def _split_background(self, words: str) -> tuple[str, str | None, str | None]:
        """The rest of a text, and the pattern and the colour of its background."""
        for shape in self.backgrounds:
            if (found := re.fullmatch(shape, words)) is not None:
                pattern, ground = (
                    next((meant for word, meant in known.items() if word in found["ground"]), None)
                    for known in (self.patterns, self.grounds)
                )
                return found["body"], pattern, ground
        return words, None, None

    @cached_property
    def _decoration(self) -> re.Pattern[str]:
        before, after = one_of(self.prefixes), one_of(self.suffixes)
        return re.compile(f"^{before}{self.space}|{self.space}{after}$")

    @cached_property
    def _sentences(self) -> tuple[tuple[str, str | None, re.Pattern[str]], ...]:
        """(slots, relation, pattern) of every body; a slot captures one noun phrase."""
        phrase = re.sub(r"\?P<\w+>", "?:", self.phrase)
        compiled = []
        for (num_groups, relation), bodies in self.bodies.items():
            slots = "ABC"[:num_groups]
            for body in bodies:
                # Marks do not count when a text is read.
                pattern = re.sub("[,、]", "", body)
                for slot in slots:
                    pattern = pattern.replace(f"{{is{slot}}}", "(?:is|are)")
                    pattern = pattern.replace(f"{{{slot}}}", f"(?P<{slot}>{phrase})")
                compiled.append((slots, relation, re.compile(pattern)))
        return tuple(compiled)


def _spoken_order(claim: Claim, dice: Dice) -> tuple[Mention, ...]:
    """The mentions as a sentence may name them: where their order says nothing, in any order."""
    mentions = list(claim.mentions)
    if claim.relation is None or claim.relation == "beside":
        mentions = dice.sample(mentions, len(mentions))
    elif claim.relation == "between" and dice.chance(0.5):
        mentions.reverse()
    return tuple(mentions)


def pick(words: Sequence[str], probability_of_second: float, dice: Dice) -> str:
    """The first word, or its synonym if there is one."""
    return words[1] if len(words) > 1 and dice.chance(probability_of_second) else words[0]


def one_of(options: Iterable[str]) -> str:
    """A pattern of any of the words."""
    # Longer words first, lest "a" hide "a couple of".
    return "(?:" + "|".join(sorted(options, key=len, reverse=True)) + ")"
