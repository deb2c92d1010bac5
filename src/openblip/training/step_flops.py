"""Arithmetic of a training step, counted from the model's sizes and the batch's shape."""

from openblip.data.loader import Batch
from openblip.model import MedConfig
from openblip.model.config import Head
from openblip.model.flops import (
    image_encoder_flops,
    lm_head_flops,
    memory_flops,
    text_flops,
)

# A backward pass costs twice its forward.
_TRAINED = 3


def step_flops(config: MedConfig, losses: tuple[Head, ...], batch: Batch) -> float:
    """Operations of forward and backward on a batch, and of the teacher's forward.

    What activation checkpointing computes twice counts once: the share of the machine that this
    gives is that of useful work.

    Args:
        config: sizes of the student.
        losses: the step's losses; the teacher takes part where "itc" is among them.
        batch: pairs; the images may have another size than the configured one.
    """
    rows, tokens = batch.tokens.shape
    side = batch.images.shape[-1]
    patches = (side // config.vision.patch_size) ** 2 + 1
    images = image_encoder_flops(config, rows, side)
    total = float(_TRAINED * images)
    if "itc" in losses:
        total += (_TRAINED + 1) * text_flops(config, rows, tokens) + images
    roles = len({"itm", "lm"} & set(losses))
    if roles:
        shared = config.text.sharing in ("all_but_self_attention", "all")
        memories = memory_flops(config, rows, side)
        total += _TRAINED * memories * (1 if shared else roles)
    if "itm" in losses:
        # Positives, negative images and negative texts.
        total += _TRAINED * text_flops(config, 3 * rows, tokens, patches)
    if "lm" in losses:
        labelled = int(batch.mask.sum()) - rows
        total += _TRAINED * text_flops(config, rows, tokens, patches)
        total += _TRAINED * lm_head_flops(config, labelled, 1)
    return total
