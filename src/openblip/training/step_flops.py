"""Arithmetic of a training step, counted from the model's sizes and the batch's shape."""

from openblip.data.loader import Batch
from openblip.model import MedConfig
from openblip.model.albef import AlbefConfig, AlbefHead
from openblip.model.config import Head
from openblip.model.flops import (
    image_encoder_flops,
    lm_head_flops,
    memory_flops,
    text_flops,
)
from openblip.tasks.albef import AlbefTask
from openblip.tasks.captioner import CaptionerTask
from openblip.tasks.clip import ClipTask
from openblip.tasks.pretrain import PretrainTask
from openblip.tasks.protocol import AnyTask

# A backward pass costs twice its forward.
_TRAINED = 3


def task_flops(task: AnyTask, batch: Batch) -> float:
    """Operations of a task's forward and backward on a batch, and of its teacher's forward."""
    match task:
        case AlbefTask():
            objectives = task.objectives
            return albef_step_flops(
                task.student.config, objectives.losses, batch, objectives.mask_probability
            )
        case ClipTask():
            # It has no teacher, whose forward counts as a third of the student's work.
            return step_flops(task.student.config, ("itc",), batch) * _TRAINED / (_TRAINED + 1)
        case PretrainTask():
            return step_flops(task.student.config, task.objectives.losses, batch)
        case CaptionerTask():
            return step_flops(task.student.config, ("lm",), batch)
        case _:
            raise TypeError(f"{type(task).__name__}: its arithmetic is not counted")


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


def albef_step_flops(
    config: AlbefConfig, losses: tuple[AlbefHead, ...], batch: Batch, mask_probability: float
) -> float:
    """The same of a step of ALBEF; of masked words there are as many as are expected."""
    rows, tokens = batch.tokens.shape
    side = batch.images.shape[-1]
    patches = (side // config.vision.patch_size) ** 2 + 1
    below, above = config.fusion_layer, config.text.depth - config.fusion_layer
    images = image_encoder_flops(config, rows, side)
    encoded = text_flops(config, rows, tokens, layers=below)
    fused = text_flops(config, rows, tokens, patches, above)
    memory = memory_flops(config, rows, side, above)
    both = _TRAINED + 1
    total = float(both * (images + encoded))
    if losses != ("itc",):
        total += _TRAINED * memory
    if "itm" in losses:
        # Positives, negative images and negative texts.
        total += _TRAINED * 3 * fused
    if "mlm" in losses:
        masked = round(mask_probability * (int(batch.mask.sum()) - rows))
        total += both * (encoded + fused + lm_head_flops(config, masked, 1)) + memory
    return total
