"""Everything that decides what a run computes."""

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

from openblip.batches.augmentation import Augmentation
from openblip.model import MedConfig
from openblip.model.config import AlbefConfig, check_rate
from openblip.objectives.named import TaskNeeds, task_name, task_needs
from openblip.runtime.errors import RecipeError
from openblip.runtime.ignored import changed_fields
from openblip.table.views import CaptionView

ScheduleKind = Literal["step_decay", "epoch_cosine", "warmup_cosine"]
Precision = Literal["float32", "bfloat16"]
Sharding = Literal["replicate", "full"]
TrackerName = Literal["wandb", "mlflow", "trackio"]
FrozenPart = Literal["image_encoder"]
GivenText = Literal["web"]
ModelConfig = MedConfig | AlbefConfig
# Files and flags know the name alone, which is what a recipe keeps.
if TYPE_CHECKING:
    from openblip.objectives.task import AnyTask

    TaskName = str | type[AnyTask]
else:
    TaskName = str

_TRAINED_TOKENIZER = "train:"


@dataclass(frozen=True, kw_only=True)
class MixedTable:
    """A further table that is learnt from."""

    table: str
    """Path or URI of the pair table."""
    view: CaptionView = field(default_factory=CaptionView)
    """Which of its texts count."""
    weight: float = 1.0
    """Passes over its admitted rows in one epoch: 0.5 shows half of them in each, 2 all twice."""

    def __post_init__(self) -> None:
        _check_weight(f"data.mix: weight of {self.table}", self.weight)


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What is learnt from, and how it is prepared."""

    table: str
    """Path or URI of the pair table."""
    view: CaptionView = field(default_factory=CaptionView)
    """Which of its texts count."""
    weight: float = 1.0
    """Passes over its admitted rows in one epoch: 0.5 shows half of them in each, 2 all twice."""
    mix: tuple[MixedTable, ...] = ()
    """Further tables, whose pairs come between those of `table`."""
    validation_split: str | None = None
    """Split whose loss is taken at each checkpoint; None takes none."""
    image_size: int = 224
    """Side of the square that images are brought to, in pixels."""
    augmentation: Augmentation = field(default_factory=Augmentation)
    """Random changes of training images."""
    scaled_decoding: bool = False
    """Decode a JPEG at a half, a quarter or an eighth of its size where the crop still has
    `image_size` pixels then: faster, and slightly other pixels. Takes no part in validation."""
    max_tokens: int = 30
    """Longer texts are cut, the first token and [SEP] included."""
    max_words: int = 30
    """Longer captions are cut before they are tokenised."""
    max_unknown: float = 0.5
    """A run does not begin if a larger share of its tokens is `[UNK]`: words that the vocabulary
    lacks are learnt as one and the same. 1 begins whatever there is."""
    given: GivenText | None = None
    """`web` trains a captioner that reads a text about the image before it writes: corrupted human
    texts, which it mends, and true ones with a name, which it keeps (docs/capfilt.md)."""
    given_tokens: int = 32
    """Longer given texts are cut; they stand before the `max_tokens` of the caption."""
    prefix: str = ""
    """Put before every caption that is learnt to be written, such as "a picture of "; it is given
    and no part of the loss, and contrast and matching see captions without it."""
    num_threads: int | None = None
    """Threads that read, decode and augment; None for one for each core, 2 to 16."""
    states: str | None = None
    """Folder for the states of images under `train.freeze`; may be shared by any tables and
    models. By default that of the environment variable OPENBLIP_STATES, or `TABLE.states`."""

    def __post_init__(self) -> None:
        _check_at_least("data", self, 1, "image_size", "max_words", "num_threads")
        _check_at_least("data", self, 1, "given_tokens")
        if self.given not in (None, *get_args(GivenText)):
            raise RecipeError(f"data.given is {self.given!r}; there is web, or nothing")
        # The first, special token, one of the text, and `[SEP]`.
        _check_at_least("data", self, 3, "max_tokens")
        _check_weight("data.weight", self.weight)
        if not 0.0 <= self.max_unknown <= 1.0:
            raise RecipeError(f"data.max_unknown is {self.max_unknown}; give a share from 0 to 1")

    @property
    def longest(self) -> int:
        """Most tokens of a row: of a caption and what is given before it."""
        # A given text ends with a `[SEP]` of its own.
        return self.max_tokens + (self.given_tokens + 1 if self.given else 0)

    @property
    def mixture(self) -> tuple[MixedTable, ...]:
        """All tables that are learnt from, the first included."""
        first = MixedTable(table=self.table, view=self.view, weight=self.weight)
        return (first, *self.mix)


@dataclass(frozen=True, kw_only=True)
class ModelOverrides:
    """Changes to the model's configuration that leave its weights as they are; None keeps."""

    drop_path: float | None = None
    """Stochastic depth of the image encoder."""
    dropout: float | None = None
    """Dropout of the text stack."""
    vision_checkpoint_layers: int | None = None
    """The last so many blocks of the image encoder recompute their activations."""
    text_checkpoint_layers: int | None = None
    """The last so many layers of the text stack recompute their activations."""

    def __post_init__(self) -> None:
        for name, rate in (("drop_path", self.drop_path), ("dropout", self.dropout)):
            check_rate(f"overrides.{name}", rate or 0.0)
        layers = ("vision_checkpoint_layers", "text_checkpoint_layers")
        _check_at_least("overrides", self, 0, *layers)


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Low-rank adaptation (Hu et al., 2021): weights are frozen, changes of low rank are learnt."""

    rank: int = 0
    """Rank of the changes; 0 trains all weights instead. The saved model has the changes in its
    weights and is like any other."""
    alpha: float = 16.0
    """A change counts alpha / rank times."""
    targets: tuple[str, ...] = ("qkv", "query", "key_value")
    """Linear layers that are changed, by a part of their names: `qkv`, `cross_attention`, `text`,
    `image_encoder.blocks.11`. The default is queries, keys and values of all attention."""
    trained: tuple[str, ...] = ()
    """Weights that are trained in full besides, likewise: heads that are new."""

    def __post_init__(self) -> None:
        _check_at_least("lora", self, 0, "rank")
        _check_above_zero("lora", self, "alpha")
        if self.rank and not self.targets:
            raise RecipeError("lora.targets is empty; name layers, or give no lora.rank")


@dataclass(frozen=True, kw_only=True)
class OptimiserConfig:
    """AdamW (Loshchilov and Hutter, 2019)."""

    lr: float = 3e-4
    """Peak learning rate."""
    weight_decay: float = 0.05
    """Decoupled decay per step, in units of the learning rate."""
    decay_norms_and_biases: bool = True
    """Whether one-dimensional parameters decay too, as they do in the original code."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of the running mean and of the running square of the gradient."""
    eps: float = 1e-8
    """Added to the root of the running square."""
    clip_norm: float | None = None
    """Longest gradient; None does not clip, as the original code does not."""

    def __post_init__(self) -> None:
        _check_at_least("optimiser", self, 0, "lr", "weight_decay", "eps")
        _check_above_zero("optimiser", self, "clip_norm")
        for beta in self.betas:
            check_rate("optimiser.betas", beta)


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """How the learning rate changes (see `openblip.training.optimiser`)."""

    kind: ScheduleKind = "warmup_cosine"
    """`step_decay` (pre-training) and `epoch_cosine` (fine-tuning) change once per epoch, as in
    the original code; `warmup_cosine` changes at every step and suits short runs."""
    min_lr: float = 1e-6
    """Lowest learning rate."""
    warmup_steps: int = 0
    """Steps of linear rise, in the first epoch; unused by `epoch_cosine`."""
    warmup_lr: float = 1e-6
    """Learning rate at the beginning of the rise."""
    decay_rate: float = 0.9
    """Factor per epoch of `step_decay`."""

    @property
    def depends_on_length(self) -> bool:
        """Whether a step's rate depends on how many come after it: a longer run is another one."""
        return self.kind != "step_decay"

    def __post_init__(self) -> None:
        _check_at_least("schedule", self, 0, "min_lr", "warmup_steps", "warmup_lr")
        _check_above_zero("schedule", self, "decay_rate")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The loop. Give either `steps` or `epochs`."""

    batch_size: int = 64
    """Pairs per optimiser step: over all processes and all accumulated parts."""
    steps: int | None = None
    """Optimiser steps of the whole run."""
    epochs: int | None = None
    """Passes over the data of the whole run."""
    accumulate: int = 1
    """Parts of a batch whose gradients are added up before the optimiser's step."""
    precision: Precision = "float32"
    """bfloat16: matrix products in bfloat16, weights and losses in float32."""
    sharding: Sharding = "replicate"
    """What each of several processes holds of weights, teacher, gradients and moments. `replicate`
    (DDP): all; `full` (FSDP2): its part, and of one layer at a time the whole. `full` needs less
    memory and sends more (`docs/training.md`)."""
    freeze: tuple[FrozenPart, ...] = ()
    """Parts that are not trained. `image_encoder`: the states of all images are computed once,
    without augmentation, and kept (`data.states`); a step costs its text stack alone."""
    compile: bool = False
    """Compile the blocks of image encoder and text stack; the first steps take minutes."""
    checkpoint_every: int = 1000
    """Steps from one checkpoint to the next; the last step makes one in any case."""
    validation_batches: int = 16
    """Batches of the validation split that a validation takes at most."""
    log_every: int = 20
    """Steps from one line of metrics to the next."""
    seed: int = 0
    """Decides initial weights, order, augmentation, dropout and negatives."""
    device: str = "auto"
    """`auto` takes an accelerator if there is one."""
    threads: int | None = None
    """Threads that compute on a CPU; None for one where the layers' products are too small to be
    divided, else for PyTorch's choice."""
    trackers: tuple[TrackerName, ...] = ()
    """Experiment trackers that get the metrics too, besides `metrics.jsonl` and TensorBoard."""

    def __post_init__(self) -> None:
        counts = ("batch_size", "accumulate", "checkpoint_every", "validation_batches", "log_every")
        _check_at_least("train", self, 1, *counts, "steps", "epochs", "threads")
        _check_at_least("train", self, 0, "seed")
        if (self.steps is None) == (self.epochs is None):
            raise RecipeError(
                f"train.steps is {self.steps} and train.epochs is {self.epochs}: a run counts in "
                "one of them; give it, and None for the other"
            )
        if self.freeze and self.sharding == "full":
            raise RecipeError(
                "train.freeze leaves nothing to divide of the part that is largest: leave "
                "train.sharding at 'replicate'"
            )
        if self.compile and self.sharding == "full":
            raise RecipeError(
                "train.compile is for whole stacks of layers, which train.sharding 'full' takes "
                "apart to fetch each layer's weights: set one of them"
            )

    def part_size(self, world_size: int) -> int:
        """Pairs of one accumulated part on one process.

        Raises:
            RecipeError: if the batch cannot be divided so.
        """
        # All parts of one size: the gradient is a mean of the parts' means, which is the batch's
        # only then.
        size, rest = divmod(self.batch_size, world_size * self.accumulate)
        if rest:
            raise RecipeError(
                f"train.batch_size {self.batch_size} is not a multiple of {world_size} processes x "
                f"train.accumulate {self.accumulate}; choose one that is"
            )
        return size


@dataclass(frozen=True, kw_only=True)
class StabilityConfig:
    """What a run does about a loss that is not finite, or that jumps (docs/watching.md)."""

    rewinds: int = 0
    """How often the run may go back to a good checkpoint by itself, and leave out the steps that
    led to a loss or gradient that is not finite; 0 stops at the first."""
    skip_steps: int = 8
    """Steps that a rewind leaves out: the last is the one that failed. Failing again within as
    many steps doubles them."""
    spike_window: int = 100
    """Steps whose losses the next one is compared with."""
    spike_deviations: float | None = 10.0
    """A loss that is so many standard deviations (estimated robustly) above the median of the
    window raises an alarm; None raises none."""

    def __post_init__(self) -> None:
        _check_at_least("stability", self, 0, "rewinds")
        _check_at_least("stability", self, 1, "skip_steps", "spike_deviations")
        _check_at_least("stability", self, 16, "spike_window")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One run: a model, what it learns, from which data, and how.

    `objectives` are the settings of the task's losses, of the type that the task needs. In Python a
    `task` may be the class itself; its name is what is kept.
    """

    task: TaskName
    """What is trained: pretrain, captioner, filter, clip, albef, vqa, nlvr, or module:Class."""
    data: DataConfig
    """What it is trained on."""
    objectives: Any
    model: ModelConfig | None = None
    """A model with fresh weights; vocabulary and image size become those of tokenizer and data."""
    init_from: str | None = None
    """A model to start from, with its tokenizer, instead of `model`: a folder (ours or of
    `transformers`), a run, an original file or its address, or a name of the Hugging Face hub."""
    init_image: str | None = None
    """Image weights that `model` begins with: a folder or hub name of `transformers` (ViT, DeiT,
    DINOv2, CLIP, SigLIP) or timm, a file in timm's names, or `timm:NAME`. The image encoder takes
    the source's sizes, or becomes a backbone (`docs/training.md`)."""
    init_text: str | None = None
    """A BERT that encoder and decoder of `model` begin with: a folder or hub name of
    `transformers`. Its sizes and its tokenizer are taken too."""
    tokenizer: str | None = None
    """File or folder of a tokenizer, or "train:N": N tokens learnt from the captions of the view.
    Needed with `model`, unless `init_text` has one."""
    overrides: ModelOverrides = field(default_factory=ModelOverrides)
    """Changes to the configuration of either."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    """What of a model to start from is trained, if not all."""
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    """The optimiser."""
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    """The learning rate."""
    train: TrainConfig
    """The loop."""
    stability: StabilityConfig = field(default_factory=StabilityConfig)
    """Losses that are not finite, or jump."""

    def __post_init__(self) -> None:
        # Nobody has seen the recipe yet, so that it may still change.
        object.__setattr__(self, "task", task_name(self.task))
        if (self.model is None) == (self.init_from is None):
            raise RecipeError("give either model (fresh weights) or init_from (a model folder)")
        if self.model is None and (self.init_image or self.init_text):
            raise RecipeError(
                "init_image and init_text begin a model with fresh weights: give model, and no "
                "init_from"
            )
        if [self.tokenizer, self.init_from, self.init_text].count(None) != 2:
            raise RecipeError(
                "tokenizer: give a file or train:N with model, and none with init_from or "
                "init_text, whose tokenizer is used"
            )
        self._check_task()
        self._check_examples()
        self._check_texts()
        # Else a cosine would rise towards the lowest rate, all run long.
        if self.schedule.min_lr > self.optimiser.lr:
            raise RecipeError(
                f"schedule.min_lr {self.schedule.min_lr} is above optimiser.lr "
                f"{self.optimiser.lr}; lower it"
            )

    def _check_task(self) -> None:
        needs = self.needs
        # Not `isinstance`: a filter's settings are pre-training's too, and its defaults are others.
        if type(self.objectives) is not needs.settings:
            raise RecipeError(
                f"objectives are {type(self.objectives).__name__}, but the task {self.task!r} "
                f"needs {needs.settings.__name__}"
            )
        if self.model is not None and needs.model is None:
            raise RecipeError(
                f"the task {self.task!r} starts from a pre-trained model: give init_from, no model"
            )
        heads, losses = getattr(self.model, "heads", ()), getattr(self.objectives, "losses", ())
        if self.task == "pretrain" and self.model is not None and not set(losses) <= set(heads):
            raise RecipeError(
                f"objectives.losses are {', '.join(losses)}, but model.heads are "
                f"{', '.join(heads)}: give each loss its head"
            )
        if self.lora.rank and self.init_from is None:
            raise RecipeError("lora.rank is for a model to start from: give init_from, no model")
        if needs.examples != "pairs" and len(self.data.mixture) > 1:
            raise RecipeError(
                f"the task {self.task!r} learns from one table: import all its sources into one"
            )
        if self.model is not None and type(self.model) is not needs.model:
            wanted = "none" if needs.model is None else needs.model.__name__
            raise RecipeError(
                f"model is {type(self.model).__name__}, but the task {self.task!r} needs {wanted}"
            )

    def _check_examples(self) -> None:
        """What chooses or prepares captions would change nothing of questions without a word."""
        needs, data = self.needs, self.data
        if needs.examples == "pairs":
            return
        ignored = [f"view.{name}" for name in changed_fields(data.view) if name != "split"]
        of_captions = ("weight", "scaled_decoding", "given", "given_tokens", "prefix")
        ignored += [name for name in changed_fields(data) if name in of_captions]
        if ignored:
            flags = ", ".join(f"--data.{name.replace('_', '-')}" for name in ignored)
            raise RecipeError(
                f"{flags}: the task {self.task!r} learns from {needs.examples} of all rows of "
                "--data.view.split, and nothing else of a view, nor what concerns captions, counts "
                "there: leave it out; for some rows alone import these into a table of their own"
            )

    def _check_texts(self) -> None:
        """A rule for a reader that the task does not have would change nothing without a word."""
        known = {"captioner": ("lm",), "clip": ("itc",)}
        # A task from outside may read what it likes.
        losses = known.get(task_name(self.task)) or getattr(self.objectives, "losses", None)
        readers = {"contrast_text": {"itc", "itm"}, "decoder_text": {"lm"}}
        for name, reading in readers.items():
            asked = any(getattr(part.view, name) != "any" for part in self.data.mixture)
            if asked and losses is not None and not reading & set(losses):
                raise RecipeError(
                    f"data.view.{name}: the task {self.task!r} with the losses "
                    f"{', '.join(losses)} has none that reads it ({', '.join(sorted(reading))})"
                )
        # Contrast and matching see captions without it, and CLIP and ALBEF know of none.
        if self.data.prefix and losses is not None and "lm" not in losses:
            raise RecipeError(
                f"data.prefix is {self.data.prefix!r}, but the task {self.task!r} with the losses "
                f"{', '.join(losses)} learns to write no caption (lm): leave it out"
            )

    @property
    def needs(self) -> TaskNeeds:
        """What the task needs."""
        return task_needs(task_name(self.task))

    @property
    def trained_vocabulary(self) -> int | None:
        """Tokens that a tokenizer shall learn from the captions; None if it is given as a file.

        Raises:
            RecipeError: if what follows "train:" is not a number.
        """
        if self.tokenizer is None or not self.tokenizer.startswith(_TRAINED_TOKENIZER):
            return None
        number = self.tokenizer.removeprefix(_TRAINED_TOKENIZER)
        if not number.isdigit():
            raise RecipeError(f"tokenizer is {self.tokenizer!r}; write train:N with a number N")
        return int(number)


def _check_weight(name: str, weight: float) -> None:
    if not (math.isfinite(weight) and weight > 0):
        raise RecipeError(f"{name} is {weight}; give more than 0, or leave the table out")


def _check_at_least(part: str, config: object, least: float, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        # A comparison with NaN is False.
        if value is not None and not least <= value < math.inf:
            raise RecipeError(f"{part}.{name} is {value}; give at least {least}")


def _check_above_zero(part: str, config: object, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if value is not None and not 0 < value < math.inf:
            raise RecipeError(f"{part}.{name} is {value}; give more than 0")
