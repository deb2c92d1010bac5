"""What a caption asserts, and whether it is true of a scene."""

from collections.abc import Iterable
from dataclasses import dataclass

from openblip.world.config import WorldConfig
from openblip.world.scene import Dice, Scene


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


def spoken_order(claim: Claim, dice: Dice) -> tuple[Mention, ...]:
    """The mentions as a sentence may name them: where their order says nothing, in any order."""
    mentions = list(claim.mentions)
    if claim.relation is None or claim.relation == "beside":
        mentions = dice.sample(mentions, len(mentions))
    elif claim.relation == "between" and dice.chance(0.5):
        mentions.reverse()
    return tuple(mentions)


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
        return positions[1] == 1
    axis = "column" if relation == "above" else "row"
    if scene.axis != axis:
        return False
    if relation == "beside":
        return abs(positions[0] - positions[1]) == 1
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


def one_of(options: Iterable[str]) -> str:
    """A pattern of any of the words."""
    # Longer words first, lest "a" hide "a couple of".
    return "(?:" + "|".join(sorted(options, key=len, reverse=True)) + ")"
