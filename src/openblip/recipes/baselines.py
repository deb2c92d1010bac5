"""CLIP and ALBEF on our parts, and what they become beside a BLIP recipe of equal means."""

from dataclasses import replace

from openblip.batches.augmentation import Augmentation
from openblip.model import MedConfig
from openblip.model.config import AlbefConfig
from openblip.objectives.settings import AlbefObjectives, ClipObjectives, PretrainObjectives
from openblip.training.recipe import (
    DataConfig,
    OptimiserConfig,
    Recipe,
    ScheduleConfig,
    TrainConfig,
)


def clip(table: str) -> Recipe:
    """A dual encoder trained as CLIP (Radford et al. 2021, section 2.5 and table 18).

    Our ViT-B/16 and BERT-base stand for its encoders, texts are of 30 tokens instead of 76, and
    one decay serves all weights; batch, schedule and optimiser are its own.
    """
    return Recipe(
        task="clip",
        data=DataConfig(
            table=table, augmentation=Augmentation(min_scale=0.9, flip=False, randaugment=False)
        ),
        objectives=ClipObjectives(),
        model=replace(MedConfig.preset("base"), embed_dim=512, heads=("itc",)),
        tokenizer="train:30524",
        optimiser=OptimiserConfig(lr=5e-4, weight_decay=0.2, betas=(0.9, 0.98), eps=1e-6),
        schedule=ScheduleConfig(kind="warmup_cosine", warmup_steps=2000, min_lr=0.0),
        train=TrainConfig(batch_size=32768, epochs=32, precision="bfloat16"),
    )


def albef(table: str) -> Recipe:
    """ALBEF's pre-training (Li et al. 2021, section 3.4 and its released configuration).

    512 pairs a step, 30 epochs at 256 px. The original warms up over the first 2000 steps in
    stages of 100; here the rise is linear. Its image encoder starts from DeiT and its text encoder
    from BERT: `init_image` and `init_text`; without them this starts from none.
    """
    return Recipe(
        task="albef",
        data=DataConfig(
            table=table,
            image_size=256,
            augmentation=Augmentation(min_scale=0.2),
            max_tokens=25,
        ),
        objectives=AlbefObjectives(),
        model=AlbefConfig(),
        tokenizer="train:30524",
        optimiser=OptimiserConfig(lr=1e-4, weight_decay=0.02, decay_norms_and_biases=False),
        schedule=ScheduleConfig(
            kind="warmup_cosine", warmup_steps=2000, warmup_lr=1e-5, min_lr=1e-5
        ),
        train=TrainConfig(batch_size=512, epochs=30, precision="bfloat16"),
    )


def as_clip(recipe: Recipe) -> Recipe:
    """The pre-training recipe of a BLIP as one of CLIP: same data, encoders and samples seen."""
    blip, objectives = _pretraining(recipe)
    return replace(
        recipe,
        task="clip",
        model=replace(blip, heads=("itc",)),
        objectives=ClipObjectives(min_temperature=max(0.01, objectives.min_temperature)),
    )


def as_unimodal(recipe: Recipe) -> Recipe:
    """The pre-training recipe of a BLIP with its contrast alone, momentum and queue included."""
    blip, objectives = _pretraining(recipe)
    return replace(
        recipe,
        model=replace(blip, heads=("itc",)),
        objectives=replace(objectives, losses=("itc",)),
    )


def as_albef(recipe: Recipe) -> Recipe:
    """The pre-training recipe of a BLIP as one of ALBEF: same data, image encoder and samples seen.

    The text stack has as many layers, of which the upper half fuse.
    """
    blip, objectives = _pretraining(recipe)
    return replace(
        recipe,
        task="albef",
        model=AlbefConfig(
            vision=blip.vision,
            text=blip.text,
            embed_dim=blip.embed_dim,
            fusion_layer=max(blip.text.depth // 2, 1),
        ),
        objectives=AlbefObjectives(
            queue_size=objectives.queue_size,
            momentum=objectives.momentum,
            alpha=objectives.alpha,
            alpha_ramp_epochs=objectives.alpha_ramp_epochs,
            min_temperature=objectives.min_temperature,
            max_temperature=objectives.max_temperature,
            negatives=objectives.negatives,
            negative_features=objectives.negative_features,
            negative_floor=objectives.negative_floor,
        ),
    )


def _pretraining(recipe: Recipe) -> tuple[MedConfig, PretrainObjectives]:
    assert isinstance(recipe.model, MedConfig), "a pre-training recipe with fresh weights"
    assert isinstance(recipe.objectives, PretrainObjectives)
    return recipe.model, recipe.objectives
