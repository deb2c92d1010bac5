"""The embedded world: pictures and captions whose truth is known, drawn from a seed."""

from openblip.world.build import RowTruth, build_world, create_world, open_or_create_world, truth_of
from openblip.world.claims import Claim, Mention, claim_errors, is_true_of
from openblip.world.drawing import draw_scene
from openblip.world.english import (
    caption_errors,
    is_true_caption,
    parse_caption,
    write_human_caption,
    write_web_caption,
)
from openblip.world.scene import (
    NOISE_KINDS,
    Background,
    NoiseRates,
    ObjectGroup,
    Scene,
    WorldConfig,
)

__all__ = [
    "NOISE_KINDS",
    "Background",
    "Claim",
    "Mention",
    "NoiseRates",
    "ObjectGroup",
    "RowTruth",
    "Scene",
    "WorldConfig",
    "build_world",
    "caption_errors",
    "claim_errors",
    "create_world",
    "draw_scene",
    "is_true_caption",
    "is_true_of",
    "open_or_create_world",
    "parse_caption",
    "truth_of",
    "write_human_caption",
    "write_web_caption",
]
