"""Pre-training from scratch (BLIP, section 4.1, and its released configuration)."""

from collections.abc import Callable
from dataclasses import replace

from openblip.batches.augmentation import Augmentation
from openblip.model import MedConfig
from openblip.objectives.settings import PretrainObjectives
from openblip.recipes.baselines import albef, clip
from openblip.table.views import CaptionView
from openblip.training.recipe import (
    DataConfig,
    OptimiserConfig,
    Recipe,
    ScheduleConfig,
    StabilityConfig,
    TrainConfig,
)

# Runs of days, which nobody watches at night.
_UNATTENDED = StabilityConfig(rewinds=3)
# Released configuration: crops from 0.2 of the image, texts of 30 words and 30 tokens.
_CROPS = Augmentation(min_scale=0.2)


def base(table: str) -> Recipe:
    """ViT-B/16 at 224 px, the paper's main model: 2880 pairs a step, 20 epochs.

    The released configuration decays the learning rate by 0.9 an epoch; the paper says 0.85. The
    paper starts from ImageNet and BERT weights: `init_image` and `init_text`; without them this
    starts from none.
    """
    return Recipe(
        task="pretrain",
        data=DataConfig(table=table, augmentation=_CROPS, num_threads=4),
        objectives=PretrainObjectives(),
        model=MedConfig.preset("base"),
        tokenizer="train:30524",
        optimiser=OptimiserConfig(lr=3e-4, weight_decay=0.05),
        schedule=ScheduleConfig(
            kind="step_decay", warmup_steps=3000, warmup_lr=1e-6, min_lr=1e-6, decay_rate=0.9
        ),
        train=TrainConfig(batch_size=2880, epochs=20, precision="bfloat16"),
        stability=_UNATTENDED,
    )


def large(table: str) -> Recipe:
    """ViT-L/16 at 224 px: 2400 pairs a step, learning rate 2e-4 (section 4.1); else as `base`.

    Divided among the processes: with teacher, gradients and moments it is 9 GB in each otherwise.
    """
    recipe = base(table)
    return replace(
        recipe,
        model=MedConfig.preset("large"),
        optimiser=replace(recipe.optimiser, lr=2e-4),
        train=replace(recipe.train, batch_size=2400, sharding="full"),
    )


def small(table: str) -> Recipe:
    """A ViT-S/16 at 224 px with 6 text layers, for one GPU and up to a few million pairs."""
    return Recipe(
        task="pretrain",
        data=DataConfig(table=table, augmentation=_CROPS, num_threads=4),
        objectives=PretrainObjectives(queue_size=4096, min_temperature=0.02),
        model=MedConfig.preset("small"),
        tokenizer="train:8192",
        optimiser=OptimiserConfig(lr=5e-4, weight_decay=0.05, clip_norm=1.0),
        schedule=ScheduleConfig(kind="warmup_cosine", warmup_steps=500),
        train=TrainConfig(batch_size=256, epochs=60, precision="bfloat16"),
        stability=_UNATTENDED,
    )


def tiny(table: str) -> Recipe:
    """A MED of 2 million parameters at 64 px, for a laptop: minutes to an hour on two cores."""
    return Recipe(
        task="pretrain",
        data=DataConfig(
            table=table,
            view=CaptionView(),
            image_size=64,
            augmentation=Augmentation(min_scale=0.8, flip=False, randaugment=False),
            max_tokens=30,
        ),
        objectives=PretrainObjectives(
            queue_size=512, momentum=0.99, alpha=0.2, min_temperature=0.05
        ),
        model=MedConfig.preset("tiny", image_size=64),
        tokenizer="train:2000",
        optimiser=OptimiserConfig(lr=1e-3, weight_decay=0.05, clip_norm=1.0),
        schedule=ScheduleConfig(kind="warmup_cosine", warmup_steps=50),
        train=TrainConfig(batch_size=32, steps=2000, checkpoint_every=500),
    )


PRETRAIN_RECIPES: dict[str, Callable[[str], Recipe]] = {
    "tiny": tiny,
    "small": small,
    "base": base,
    "large": large,
    "clip": clip,
    "albef": albef,
}
