"""The embedded world: pictures and captions whose truth is known, drawn from a seed."""

from openblip.data.world.build import build_world, create_world, open_or_create_world
from openblip.data.world.claims import Claim, Mention, claim_errors, is_true_of
from openblip.data.world.config import NOISE_KINDS, NoiseRates, WorldConfig
from openblip.data.world.drawing import draw_scene
from openblip.data.world.grammar import write_human_caption, write_web_caption
from openblip.data.world.parsing import caption_errors, is_true_caption, parse_caption
from openblip.data.world.scene import Background, ObjectGroup, Scene
from openblip.data.world.truth import (
    RowTruth,
    truth_of,
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
