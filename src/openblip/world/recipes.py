"""The embedded world that a small model learns in minutes, and the recipes for it."""

from collections.abc import Callable
from dataclasses import replace

from openblip.batches.augmentation import Augmentation
from openblip.model import MedConfig, TextConfig, VisionConfig
from openblip.objectives.settings import CaptionerObjectives, FilterObjectives, PretrainObjectives
from openblip.recipes.finetune import PROMPT
from openblip.table.views import CaptionView
from openblip.training.recipe import (
    DataConfig,
    OptimiserConfig,
    Recipe,
    ScheduleConfig,
    TrainConfig,
)
from openblip.world import WorldConfig

# Few enough kinds and colours that a model of 0.8 million parameters learns them in minutes, and
# enough scenes that 120 test images are all different, whatever the seed.
WORLD = WorldConfig(
    web_rows=6000,
    human_rows=1500,
    val_rows=10,
    test_rows=120,
    num_kinds=5,
    num_colours=6,
    group_weights=(0.3, 0.7),
    count_weights=(1.0,),
    mention_size=0.0,
    mention_background=0.3,
    web_partial=0.0,
)


def world_pretrain(table: str) -> Recipe:
    """A MED of 0.8 million parameters at 64 px, 1000 steps of 32 pairs."""
    return Recipe(
        task="pretrain",
        data=_data(table, CaptionView(sources=("human", "web"))),
        objectives=PretrainObjectives(
            queue_size=256, momentum=0.99, alpha=0.2, min_temperature=0.05
        ),
        model=MedConfig(
            vision=VisionConfig(image_size=64, patch_size=16, width=96, depth=3, heads=4),
            text=TextConfig(
                vocab_size=1000,
                width=96,
                depth=2,
                heads=4,
                ffn_width=384,
                max_positions=64,
                dropout=0.0,
            ),
            embed_dim=64,
        ),
        tokenizer="train:600",
        optimiser=OptimiserConfig(lr=1e-3, clip_norm=1.0),
        schedule=ScheduleConfig(warmup_steps=50),
        train=TrainConfig(batch_size=32, steps=1000, checkpoint_every=400),
    )


def world_captioner(table: str, init_from: str, image_size: int) -> Recipe:
    """A captioner on the world's human captions, 400 steps."""
    return Recipe(
        task="captioner",
        data=_data(table, CaptionView(sources=("human",)), PROMPT, image_size),
        objectives=CaptionerObjectives(),
        init_from=init_from,
        optimiser=OptimiserConfig(lr=5e-4, clip_norm=1.0),
        schedule=ScheduleConfig(warmup_steps=20),
        train=TrainConfig(batch_size=32, steps=400, checkpoint_every=400),
    )


def world_filter(table: str, init_from: str, image_size: int) -> Recipe:
    """A filter on the world's human captions, 600 steps."""
    captioner = world_captioner(table, init_from, image_size)
    return replace(
        captioner,
        task="filter",
        data=replace(captioner.data, prefix=""),
        objectives=FilterObjectives(queue_size=128, momentum=0.99, min_temperature=0.05),
        train=replace(captioner.train, steps=600),
    )


def world_given_captioner(table: str, init_from: str, image_size: int) -> Recipe:
    """A captioner that reads the web text first, 3000 steps: to copy takes longer to learn."""
    captioner = world_captioner(table, init_from, image_size)
    return replace(
        captioner,
        # With 31 tokens and a [SEP] before them, 64 in all.
        data=replace(captioner.data, given="web", given_tokens=31),
        train=replace(captioner.train, steps=3000, checkpoint_every=1000),
    )


def _data(table: str, view: CaptionView, prefix: str = "", image_size: int = 64) -> DataConfig:
    # Words such as "left" and "red" leave no room for flips, colour changes and crops.
    augmentation = Augmentation(min_scale=1.0, flip=False, randaugment=False)
    return DataConfig(
        table=table,
        view=view,
        image_size=image_size,
        augmentation=augmentation,
        max_tokens=32,
        prefix=prefix,
        num_threads=1,
    )


WORLD_PRETRAIN_RECIPES: dict[str, Callable[[str], Recipe]] = {"world": world_pretrain}
WORLD_FINETUNE_RECIPES: dict[str, Callable[[str, str, int], Recipe]] = {
    "world_captioner": world_captioner,
    "world_filter": world_filter,
    "world_given_captioner": world_given_captioner,
}
