"""Fine-tuning a captioner and a filter from a pre-trained MED (BLIP, sections 3.3 and 4.3)."""

from collections.abc import Callable
from dataclasses import replace

from openblip.batches.augmentation import Augmentation
from openblip.objectives.settings import (
    CaptionerObjectives,
    FilterObjectives,
    NlvrObjectives,
    VqaObjectives,
)
from openblip.table.views import CaptionView
from openblip.training.recipe import (
    DataConfig,
    LoraConfig,
    ModelOverrides,
    OptimiserConfig,
    Recipe,
    ScheduleConfig,
    TrainConfig,
)

PROMPT = "a picture of "
_HUMAN = CaptionView(sources=("human",))
_CROPS = Augmentation(min_scale=0.5)


def captioner(table: str, init_from: str, image_size: int) -> Recipe:
    """LM on human captions behind the prompt; released settings of COCO captioning.

    The paper fine-tunes at 384 px what was pre-trained at 224 px; positions are interpolated.
    """
    return Recipe(
        task="captioner",
        data=DataConfig(
            table=table,
            view=_HUMAN,
            image_size=image_size,
            augmentation=_CROPS,
            max_tokens=40,
            max_words=50,
            prefix=PROMPT,
        ),
        objectives=CaptionerObjectives(),
        init_from=init_from,
        optimiser=OptimiserConfig(lr=1e-5, weight_decay=0.05),
        schedule=ScheduleConfig(kind="epoch_cosine", min_lr=0.0),
        train=TrainConfig(batch_size=256, epochs=5),
    )


def filter_(table: str, init_from: str, image_size: int) -> Recipe:
    """ITC and ITM on human captions; released settings of COCO retrieval."""
    return Recipe(
        task="filter",
        data=DataConfig(
            table=table,
            view=_HUMAN,
            image_size=image_size,
            augmentation=_CROPS,
            max_tokens=35,
            max_words=30,
        ),
        objectives=FilterObjectives(),
        init_from=init_from,
        optimiser=OptimiserConfig(lr=1e-5, weight_decay=0.05),
        schedule=ScheduleConfig(kind="epoch_cosine", min_lr=0.0),
        train=TrainConfig(batch_size=256, epochs=6),
    )


def retrieval(table: str, init_from: str, image_size: int) -> Recipe:
    """The filter's training as retrieval on COCO is released: 384 px, negatives of all ranks.

    Flickr30k differs by `objectives.negatives` "rank" alone, and in evaluation by k (section 5.1).
    """
    recipe = filter_(table, init_from, image_size)
    return replace(
        recipe,
        data=replace(recipe.data, image_size=384),
        objectives=FilterObjectives(negatives="all_ranks"),
    )


def shared(table: str, init_from: str, image_size: int) -> Recipe:
    """One model that retrieves and captions: the filter's training, and LM behind the prompt.

    Contrast and matching see the captions without the prompt. Table 4 of the paper, for CapFilt:
    the shared pair does worse, since a shared filter believes the captions that it wrote itself.
    """
    recipe = filter_(table, init_from, image_size)
    return replace(
        recipe,
        # Room for the three tokens of the prompt.
        data=replace(recipe.data, prefix=PROMPT, max_tokens=38),
        objectives=FilterObjectives(losses=("itc", "itm", "lm")),
    )


def vqa(table: str, init_from: str, image_size: int) -> Recipe:
    """Answers to questions; released settings of VQA v2 (section 5.3): 480 px, 256 questions.

    The base model's drop path of 0.1 and the questions of Visual Genome, if the table has them, are
    the original's.
    """
    return Recipe(
        task="vqa",
        data=DataConfig(
            table=table, image_size=480, augmentation=_CROPS, max_tokens=35, max_words=50
        ),
        objectives=VqaObjectives(),
        init_from=init_from,
        overrides=ModelOverrides(drop_path=0.1),
        optimiser=OptimiserConfig(lr=2e-5, weight_decay=0.05),
        schedule=ScheduleConfig(kind="epoch_cosine", min_lr=0.0),
        train=TrainConfig(batch_size=256, epochs=10),
    )


def nlvr(table: str, init_from: str, image_size: int) -> Recipe:
    """Sentences about two images; released settings of NLVR2 (section 5.4): 384 px, 256 pairs."""
    return Recipe(
        task="nlvr",
        data=DataConfig(
            table=table, image_size=384, augmentation=_CROPS, max_tokens=64, max_words=40
        ),
        objectives=NlvrObjectives(),
        init_from=init_from,
        overrides=ModelOverrides(drop_path=0.1),
        lora=LoraConfig(trained=("merge", "classifier")),
        optimiser=OptimiserConfig(lr=3e-5, weight_decay=0.05),
        schedule=ScheduleConfig(kind="epoch_cosine", min_lr=0.0),
        train=TrainConfig(batch_size=256, epochs=15),
    )


FINETUNE_RECIPES: dict[str, Callable[[str, str, int], Recipe]] = {
    "captioner": captioner,
    "filter": filter_,
    "retrieval": retrieval,
    "shared": shared,
    "vqa": vqa,
    "nlvr": nlvr,
}
