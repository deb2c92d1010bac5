"""Web captions: true ones and the labelled kinds of false ones."""

from dataclasses import replace

from openblip.data.world.claims import Claim, describe, is_true_of, make_claim
from openblip.data.world.config import NOISE_KINDS, WorldConfig
from openblip.data.world.dice import Dice
from openblip.data.world.grammar import write_boilerplate, write_web_caption
from openblip.data.world.scene import (
    COLOURS,
    GROUND_COLOURS,
    KINDS,
    PATTERNS,
    SIZES,
    Scene,
    sample_scene,
)


def noisy_caption(scene: Scene, dice: Dice, config: WorldConfig) -> tuple[str, str]:
    """A web caption for a scene, and its kind (one of `NOISE_KINDS`).

    `wrong_attribute`, `wrong_object` and `other_image` are certain to be false of the scene.
    """
    kind = NOISE_KINDS[dice.weighted(config.noise.as_tuple())]
    if kind == "boilerplate":
        return write_boilerplate(dice, config.language), kind
    if kind == "other_image":
        claim = claim_of_other_image(scene, dice, config)
    else:
        claim = describe(scene, dice, config, config.web_partial)
        if kind == "wrong_attribute":
            claim = with_wrong_attribute(claim, scene, dice, config)
        elif kind == "wrong_object":
            claim = with_wrong_object(claim, scene, dice, config)
    return write_web_caption(claim, dice, config.language), kind


def claim_of_other_image(scene: Scene, dice: Dice, config: WorldConfig) -> Claim:
    """A true claim about another random scene that is false of this one."""
    # Most scenes differ, and one kind at least is always missing here: this ends soon.
    while True:
        other = sample_scene(dice, config)
        claim = describe(other, dice, config, config.web_partial)
        if not is_true_of(claim, scene):
            return claim


def with_wrong_object(claim: Claim, scene: Scene, dice: Dice, config: WorldConfig) -> Claim:
    """The claim with one group called by the name of a kind that the scene lacks."""
    present = {group.kind for group in scene.groups}
    absent = [kind for kind in KINDS[: config.num_kinds] if kind not in present]
    position = dice.below(len(claim.mentions))
    return _with_mention(claim, position, kind=dice.choose(absent))


def with_wrong_attribute(claim: Claim, scene: Scene, dice: Dice, config: WorldConfig) -> Claim:
    """The true claim with one false colour, size, count or background, all equally likely."""
    options = ["size", "background"]
    if config.num_colours > 1:
        options.append("colour")
    if config.num_counts > 1:
        options.append("count")
    attribute = dice.choose(options)
    if attribute == "background":
        return _with_wrong_background(claim, scene, dice)
    position = dice.below(len(claim.mentions))
    place = scene.group_of(claim.mentions[position].kind)
    assert place is not None, "the claim must be true of the scene"
    group = scene.groups[place]
    if attribute == "colour":
        others = [c for c in COLOURS[: config.num_colours] if c != group.colour]
        return _with_mention(claim, position, colour=dice.choose(others))
    if attribute == "size":
        return _with_mention(claim, position, size=SIZES[1 - SIZES.index(group.size)])
    counts = [count for count in range(1, config.num_counts + 1) if count != group.count]
    return _with_mention(claim, position, count=dice.choose(counts))


def _with_wrong_background(claim: Claim, scene: Scene, dice: Dice) -> Claim:
    # What the claim is silent about is stated, so that there is something wrong to see.
    if claim.ground is None or (claim.pattern is not None and dice.chance(0.5)):
        patterns = [pattern for pattern in PATTERNS if pattern != scene.background.pattern]
        return replace(claim, pattern=dice.choose(patterns))
    grounds = [ground for ground in GROUND_COLOURS if ground != scene.background.colour]
    return replace(claim, ground=dice.choose(grounds))


def _with_mention(claim: Claim, position: int, **changes: str | int) -> Claim:
    mentions = list(claim.mentions)
    mentions[position] = replace(mentions[position], **changes)  # type: ignore[arg-type]  # by name
    return make_claim(tuple(mentions), claim.relation, claim.pattern, claim.ground)
