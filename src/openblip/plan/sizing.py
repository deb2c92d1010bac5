"""What a run needs: memory of a process, time and price, before anything is rented.

Memory and arithmetic are counted on the run's own step (`openblip.plan.footprint`). Time is the
arithmetic over a device's peak and a utilisation, plus communication that does not hide behind the
backward pass. Assumptions stand here as constants, each with its reason;
`docs/scaling.md` tells which figures are measured. What devices can do is from data sheets.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import ceil
from pathlib import Path

import torch

from openblip.batches.tokenizer import TextTokenizer
from openblip.checkpoints.beginnings import text_tokenizer
from openblip.checkpoints.reading import find_model, read_outline
from openblip.model import MedConfig
from openblip.model.config import AlbefConfig
from openblip.plan.footprint import STATE, WEIGHTS, Footprint, TextLengths, step_footprint
from openblip.recipes import named_recipe
from openblip.recipes.pretrain import PRETRAIN_RECIPES
from openblip.runtime.errors import RecipeError
from openblip.runtime.references import is_reference
from openblip.training.build import begun_sizes, overridden, sized
from openblip.training.optimiser import RunSteps
from openblip.training.recipe import ModelConfig, Precision, Recipe
from openblip.training.recipe_file import RECIPE_FILE, read_recipe
from openblip.training.utilisation import measure_peak

_DIVIDED = ("--train.sharding full",)

CPU_UTILISATION = 0.69
"""Of the peak of matrix products, at base size: measured (`benchmarks/results/plan.md`)."""
GPU_UTILISATION = 0.4
"""An assumption, not measured: PaLM (Chowdhery et al., 2022, table 3) reports 21 to 46 % of the
peak for large language models; a run's own log tells its `utilisation`."""
PER_NODE = 8
"""Devices of a node, which their own links connect."""
NETWORK = 200e9
"""Bytes per second that a node sends to others: 200 Gbit/s for each device, as in a DGX A100."""
_LINK_EFFICIENCY = 0.7
# Of a processor's or accelerator's time, what gradients can be sent behind: the backward's share.
_BACKWARD_SHARE = 2 / 3
# CUDA's context and libraries, and NCCL's buffers where there are several processes.
_CONTEXT, _COMMUNICATOR = 0.6e9, 1.0e9
# Workspaces of kernels and fragmentation of the caching allocator, in parts of what is not state.
_FRAGMENTATION = 0.08

# A device so full is as full as the search for settings tries to make it.
_FULL = 0.85
# Part of a device's memory that a plan may fill.
_ROOM = 0.95
BUCKETS, GATHERED, ALLOWANCE = "gradient buckets", "gathered layers", "allowance"


@dataclass(frozen=True, kw_only=True)
class Device:
    """What a process of a run computes on."""

    name: str
    """As on the command line."""
    memory: int
    """Bytes, as sold."""
    bfloat16: float
    """Dense matrix products with sums in float32, in operations per second: the peak."""
    float32: float
    """The same in float32 without TF32, which PyTorch does not use unless it is asked to."""
    link: float
    """Bytes per second to the other devices of a node, one way."""
    is_accelerator: bool = True
    """False for a processor."""

    def peak(self, precision: Precision) -> float:
        """Operations per second in a run's precision."""
        return self.bfloat16 if precision == "bfloat16" else self.float32


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """What a run is planned for."""

    device: Device
    """Of every process."""
    devices: int = 1
    """How many; one process each."""
    utilisation: float | None = None
    """Part of the device's peak that the arithmetic of a step reaches; None takes
    `CPU_UTILISATION` or `GPU_UTILISATION`."""
    price_per_hour: float | None = None
    """Of one device."""

    @property
    def assumed_utilisation(self) -> float:
        """The one given, or the default of the kind of device."""
        default = GPU_UTILISATION if self.device.is_accelerator else CPU_UTILISATION
        return default if self.utilisation is None else self.utilisation

    network: float = NETWORK
    """Bytes per second that a node sends to other nodes."""

    @property
    def bandwidth(self) -> float:
        """Bytes per second of a ring through all devices.

        Rings leave a node through all of its network cards, each of them once; so a node's
        cards together, not each device's own, are what limits them.
        """
        within = self.devices <= PER_NODE
        return _LINK_EFFICIENCY * (
            self.device.link if within else min(self.network, self.device.link)
        )


@dataclass(frozen=True, kw_only=True)
class Sizing:
    """A run with some settings on a cluster."""

    recipe: Recipe
    """With the settings."""
    flags: tuple[str, ...]
    """What turns the planned recipe into this one, on the command line."""
    parts: dict[str, int]
    """Bytes of one process at the fullest moment, by part."""
    capacity: int
    """Bytes of its device."""
    compute_seconds: float | None
    """Arithmetic of a step, what checkpointing computes again included; None where it is not known
    (`missing`)."""
    communication_seconds: float
    """Sending and receiving of a step, if nothing hid it."""
    missing: str | None = None
    """Why the step of a task from outside could not be counted: `parts` lack its activations."""

    @property
    def memory(self) -> int:
        """Bytes of one process, as far as they are counted."""
        return sum(self.parts.values())

    @property
    def fits(self) -> bool | None:
        """Whether the device has them, and a little room besides; None where nobody knows."""
        if self.memory > _ROOM * self.capacity:
            return False
        return None if self.missing else True

    @property
    def step_seconds(self) -> float | None:
        """Seconds of a step: communication counts as far as the backward pass does not hide it."""
        if self.compute_seconds is None:
            return None
        hidden = _BACKWARD_SHARE * self.compute_seconds
        return self.compute_seconds + max(0.0, self.communication_seconds - hidden)


class Planner:
    """Sizes a recipe, and finds settings with which it fits.

    Args:
        recipe: as the training commands take it; its table is not opened.
        cluster: what it shall run on.
        mean_tokens: of a text without padding; texts are padded to the recipe's longest.

    Raises:
        RecipeError: the batch cannot be divided over the devices.
    """

    def __init__(self, recipe: Recipe, cluster: Cluster, mean_tokens: float = 16.0) -> None:
        self.cluster = cluster
        self.recipe, self.tokenizer = resolved(recipe)
        self.recipe.train.part_size(cluster.devices)
        longest = -(-recipe.data.longest // 8) * 8
        self.lengths = TextLengths(longest=longest, mean=min(mean_tokens, recipe.data.max_tokens))
        self._footprints: dict[Recipe, Footprint] = {}

    @cached_property
    def as_given(self) -> Sizing:
        """The recipe as it is."""
        return self.size(self.recipe)

    def size(self, recipe: Recipe, flags: tuple[str, ...] = ()) -> Sizing:
        """Memory and time of a step with other settings of the recipe."""
        return Sizing(
            recipe=recipe,
            flags=flags,
            parts=self._parts(recipe),
            capacity=self.cluster.device.memory,
            compute_seconds=self.compute_seconds(recipe),
            communication_seconds=self.communication_seconds(recipe),
            missing=self._footprint(recipe).missing,
        )

    def remedies(self) -> Iterator[Sizing]:
        """Settings to try when the recipe does not fit, those that change least first.

        Checkpointing and sharding change no result. Accumulation does: what a batch contrasts and
        where negatives come from is then one part. bfloat16 changes rounding.
        """
        if self.recipe.train.precision == "float32" and self.cluster.device.is_accelerator:
            lighter = replace(self.recipe, train=replace(self.recipe.train, precision="bfloat16"))
            yield self.size(lighter, flags=("--train.precision bfloat16",))
        yield self._checkpointed(self.recipe, self.as_given)
        if self.cluster.devices > 1 and self.recipe.train.sharding == "replicate":
            sharded = self.size(_divided(self.recipe), _DIVIDED)
            yield sharded
            if not sharded.fits:
                yield self._checkpointed(sharded.recipe, sharded)
        yield self._accumulated()

    def compute_seconds(self, recipe: Recipe) -> float | None:
        """Seconds of a step's arithmetic; None where it is not known."""
        useful = self.useful_operations(recipe)
        if useful is None:
            return None
        operations = useful + self._footprint(recipe).recomputed
        peak = self.cluster.device.peak(recipe.train.precision)
        return operations / (peak * self.cluster.assumed_utilisation)

    def useful_operations(self, recipe: Recipe) -> float | None:
        """Operations of one process in a step, without what checkpointing computes again."""
        return self._footprint(recipe).operations

    def communication_seconds(self, recipe: Recipe) -> float:
        """Seconds in which a process sends what a step makes it send.

        Ring all-reduce sends twice the gradients. Sharding gathers weights before the forward and
        again before the backward pass of every part, and scatters gradients; the teacher's
        weights are gathered once for each part.
        """
        n = self.cluster.devices
        if n == 1:
            return 0.0
        state = self._footprint(recipe).parts
        weights = state[WEIGHTS]
        if recipe.train.sharding == "replicate":
            sent = 2 * weights
        else:
            sent = recipe.train.accumulate * (3 * weights + state.get("teacher", 0))
        return sent * (n - 1) / n / self.cluster.bandwidth

    def _parts(self, recipe: Recipe) -> dict[str, int]:
        footprint, n = self._footprint(recipe), self.cluster.devices
        parts = dict(footprint.parts)
        if n > 1 and recipe.train.sharding == "full":
            parts |= {name: -(-parts[name] // n) for name in STATE if name in parts}
            parts[GATHERED] = footprint.gathered
        elif n > 1:
            # DistributedDataParallel sends gradients from buckets of its own.
            parts[BUCKETS] = parts[WEIGHTS]
        if self.cluster.device.is_accelerator:
            passing = sum(size for name, size in parts.items() if name not in STATE)
            communicator = _COMMUNICATOR if n > 1 else 0.0
            parts[ALLOWANCE] = round(_CONTEXT + communicator + _FRAGMENTATION * passing)
        return parts

    def _footprint(self, recipe: Recipe) -> Footprint:
        # One process computes the same however the others divide its state with it.
        recipe = replace(recipe, train=replace(recipe.train, sharding="replicate"))
        if recipe not in self._footprints:
            self._footprints[recipe] = step_footprint(
                recipe,
                self.tokenizer,
                self.lengths,
                pairs=self._pairs(recipe),
                world_size=self.cluster.devices,
                accelerator=self.cluster.device.is_accelerator,
            )
        return self._footprints[recipe]

    def _pairs(self, recipe: Recipe) -> int:
        return recipe.train.part_size(self.cluster.devices)

    def _checkpointed(self, recipe: Recipe, without: Sizing) -> Sizing:
        """With the fewest checkpointed layers that fit; with all where even they do not."""
        config = _configuration(recipe)
        depth = config.vision.depth

        def with_layers(count: int) -> Sizing:
            vision, text = min(count, depth), max(0, count - depth)
            overrides = replace(
                recipe.overrides, vision_checkpoint_layers=vision, text_checkpoint_layers=text
            )
            flags = [f"--overrides.vision-checkpoint-layers {vision}"]
            flags += [f"--overrides.text-checkpoint-layers {text}"] if text else []
            flags += _DIVIDED if recipe != self.recipe else ()
            return self.size(replace(recipe, overrides=overrides), tuple(flags))

        return _first_that_fits(with_layers, range(1, depth + config.text.depth + 1), without)

    def _accumulated(self) -> Sizing:
        """With all layers checkpointed and sharded, in the fewest parts that fit."""
        config = _configuration(self.recipe)
        overrides = replace(
            self.recipe.overrides,
            vision_checkpoint_layers=config.vision.depth,
            text_checkpoint_layers=config.text.depth,
        )
        base = _divided(self.recipe) if self.cluster.devices > 1 else self.recipe
        own = self.recipe.train.batch_size // self.cluster.devices

        def in_parts(count: int) -> Sizing:
            train = replace(base.train, accumulate=count)
            flags = [
                f"--train.accumulate {count}",
                f"--overrides.vision-checkpoint-layers {config.vision.depth}",
                f"--overrides.text-checkpoint-layers {config.text.depth}",
            ]
            flags += _DIVIDED if base != self.recipe else ()
            return self.size(replace(base, train=train, overrides=overrides), tuple(flags))

        more = [n for n in range(self.recipe.train.accumulate + 1, own + 1) if own % n == 0]
        return _first_that_fits(in_parts, more or [self.recipe.train.accumulate], self.as_given)


@dataclass(frozen=True, kw_only=True)
class RunCost:
    """A whole run."""

    steps: int
    """Optimiser steps."""
    pairs: int
    """Pairs that it learns from, every epoch's counted."""
    operations: float
    """Useful operations of all devices; what checkpointing computes again is not useful."""
    hours: float
    """From the first to the last step."""
    device_hours: float
    """Of all devices together."""
    price: float | None
    """In the unit of `Cluster.price_per_hour`; None where that is None."""


def run_cost(planner: Planner, sizing: Sizing, images: int | None) -> RunCost | None:
    """Time and price of a run; None where those of a step are not known.

    Args:
        planner: that made the sizing.
        sizing: of the run's step.
        images: of the training data; needed where the recipe counts in epochs.

    Raises:
        RecipeError: they are needed and not given, or fewer than a batch.
    """
    train = sizing.recipe.train
    if train.steps is None and (images is None or images < train.batch_size):
        raise RecipeError(
            f"--images is {images}: the recipe trains for {train.epochs} epochs of batches of "
            f"{train.batch_size}, so give the number of training images, at least one batch"
        )
    seconds, operations = sizing.step_seconds, planner.useful_operations(sizing.recipe)
    if seconds is None or operations is None:
        return None
    parts_per_epoch = (images or 0) * train.accumulate / train.batch_size
    steps = RunSteps.of(train, parts_per_epoch).total_steps
    hours = steps * seconds / 3600
    device_hours = hours * planner.cluster.devices
    rate = planner.cluster.price_per_hour
    return RunCost(
        steps=steps,
        pairs=steps * train.batch_size,
        operations=steps * planner.cluster.devices * operations,
        hours=hours,
        device_hours=device_hours,
        price=None if rate is None else rate * device_hours,
    )


def _configuration(recipe: Recipe) -> ModelConfig:
    assert recipe.model is not None, "`resolved` gives one"
    return overridden(recipe.model, recipe.overrides)


def _first_that_fits(
    size: Callable[[int], Sizing], values: Sequence[int], without: Sizing
) -> Sizing:
    """About the first value's sizing that fits; the last one's where none does.

    Args:
        size: memory falls with the value, about linearly.
        values: rising.
        without: does not fit.
    """
    low, high = -1, len(values) - 1
    below, best = without, size(values[high])
    while best.fits and high - low > 1 and best.memory < _FULL * best.capacity:
        share = (below.memory - _ROOM * best.capacity) / (below.memory - best.memory)
        middle = min(max(low + ceil(share * (high - low)), low + 1), high - 1)
        found = size(values[middle])
        if found.fits:
            high, best = middle, found
        else:
            low, below = middle, found
    return best


def _divided(recipe: Recipe) -> Recipe:
    """The recipe with weights, gradients, moments and teacher divided among the processes."""
    return replace(recipe, train=replace(recipe.train, sharding="full"))


_GB = 10**9
_TERA = 10**12


def _gpu(name: str, gigabytes: int, bfloat16: float, float32: float, link: float) -> Device:
    return Device(
        name=name,
        memory=gigabytes * _GB,
        bfloat16=bfloat16 * _TERA,
        float32=float32 * _TERA,
        link=link * _GB,
    )


DEVICES = {
    device.name: device
    for device in (
        # NVIDIA A100 Tensor Core GPU data sheet: SXM, NVLink 600 GB/s both ways together.
        _gpu("a100-40g", 40, 312.0, 19.5, 300),
        _gpu("a100-80g", 80, 312.0, 19.5, 300),
        # NVIDIA H100 and H200 data sheets: SXM, half of the figures with sparsity; 900 GB/s.
        _gpu("h100-80g", 80, 989.4, 66.9, 450),
        _gpu("h200", 141, 989.4, 66.9, 450),
        # NVIDIA L4 data sheet, half of the figures with sparsity; PCIe 4.0 x16.
        _gpu("l4", 24, 121.0, 30.3, 32),
        # NVIDIA Ada GPU architecture white paper, appendix A; PCIe 4.0 x16.
        _gpu("rtx4090", 24, 165.2, 82.6, 32),
        # AMD Instinct MI300X data sheet: seven links of 128 GB/s both ways together.
        _gpu("mi300x", 192, 1307.4, 163.4, 448),
    )
}
"""By name. What they reach in practice is the plan's `utilisation`."""


def find_device(name: str) -> Device:
    """The device of that name; "cpu" is this machine, whose products are measured now.

    Raises:
        RecipeError: if there is none.
    """
    if name == "cpu":
        return _this_processor()
    if name not in DEVICES:
        raise RecipeError(f"--gpu {name!r}: choose one of {', '.join([*DEVICES, 'cpu'])}")
    return DEVICES[name]


def _this_processor() -> Device:
    cpu = torch.device("cpu")
    return Device(
        name="cpu",
        memory=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        bfloat16=measure_peak(cpu, torch.bfloat16),
        float32=measure_peak(cpu, torch.float32),
        # Processes of one machine exchange gradients in its memory.
        link=10 * _GB,
        is_accelerator=False,
    )


# The smallest tokenizer that has the special tokens.
_ANY_VOCABULARY = 60


def find_recipe(name: str) -> Recipe:
    """The recipe of a preset, of `module:recipe`, of a YAML file, or of a run directory.

    Raises:
        RecipeError: there is none, or the file is no recipe.
    """
    if name in PRETRAIN_RECIPES or is_reference(name):
        return named_recipe(name, PRETRAIN_RECIPES, "not opened")
    path = Path(name)
    if path.is_dir():
        path = path / RECIPE_FILE
    if path.suffix in (".yaml", ".yml"):
        return read_recipe(path)
    raise RecipeError(
        f"{name}: no recipe. Give {', '.join(PRETRAIN_RECIPES)}, a recipe.yaml, a run directory or "
        "module:recipe"
    )


def resolved(recipe: Recipe) -> tuple[Recipe, TextTokenizer]:
    """The recipe with the model that it will train, and a tokenizer with its special tokens.

    What a tokenizer learns from captions is not looked at here: only its size counts.

    Raises:
        RecipeError: it trains neither a MED nor an ALBEF, or changes of low rank.
    """
    if recipe.lora.rank:
        raise RecipeError(
            f"lora.rank is {recipe.lora.rank}, and changes of low rank cannot be planned for: plan "
            "with --lora.rank 0 for all weights, which need more of everything"
        )
    if recipe.init_from is not None:
        outline = read_outline(find_model(recipe.init_from))
        config: object = outline.config
        tokenizer, vocab_size = outline.tokenizer, outline.tokenizer.vocab_size
    else:
        tokenizer, vocab_size = _tokenizer(recipe)
        config = recipe.model
    if recipe.needs.model is None or not isinstance(config, MedConfig | AlbefConfig):
        raise RecipeError(
            f"the task {recipe.task!r} from {recipe.init_from or 'fresh weights'} cannot be "
            "planned for; what can: tasks that learn from pairs, from a MED or an ALBEF"
        )
    whole = replace(
        recipe,
        model=begun_sizes(recipe, sized(config, recipe.data.image_size, vocab_size)),
        init_from=None,
        init_image=None,
        init_text=None,
        tokenizer=recipe.tokenizer or f"train:{vocab_size}",
    )
    return whole, tokenizer


def _tokenizer(recipe: Recipe) -> tuple[TextTokenizer, int]:
    """A tokenizer, and how many tokens that of the run will have."""
    if recipe.init_text is not None:
        tokenizer = text_tokenizer(recipe.init_text)
        return tokenizer, tokenizer.vocab_size
    size = recipe.trained_vocabulary
    if size is not None:
        return TextTokenizer.train(["a b"], _ANY_VOCABULARY), size
    assert recipe.tokenizer is not None, "a recipe with a model has a tokenizer"
    tokenizer = TextTokenizer.from_file(recipe.tokenizer)
    return tokenizer, tokenizer.vocab_size
