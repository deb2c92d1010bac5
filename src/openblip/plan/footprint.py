"""The memory of a training step, counted on the step itself, which runs on fake tensors.

What is counted is the program: state, what autograd saves, what is alive beside it at the fullest
moment. Not seen is what a library allocates within one operation; for accelerators
`openblip.plan.sizing` adds an allowance for that, for their context, and for fragmentation.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from openblip.batches.loader import Batch
from openblip.batches.tokenizer import TextTokenizer
from openblip.checkpoints.assembly import beside_state, put_back
from openblip.checkpoints.families import family_of
from openblip.model import Med, TextPass
from openblip.model.albef import Albef
from openblip.objectives.albef import AlbefTask, MaskSampler
from openblip.objectives.contrastive import ContrastiveTask
from openblip.objectives.lm import MaskDraws
from openblip.objectives.named import is_own
from openblip.objectives.task import AnyTask, StepPosition, Student
from openblip.plan.simulation import Simulation, accelerator_kernels, unsimulated
from openblip.runtime.errors import one_line
from openblip.training.build import assemble_task, overridden
from openblip.training.loop import Trainer
from openblip.training.optimiser import build_optimiser, trained_parameters
from openblip.training.parallelism import Processes
from openblip.training.recipe import Recipe

WEIGHTS, GRADIENTS, MOMENTS = "weights", "gradients", "optimiser moments"
TEACHER, QUEUES, BATCH = "teacher", "queues", "batch"
IMAGES, TEXT_ALONE, MEMORY = "image encoder", "text alone", "keys and values"
TEXT_WITH_IMAGE, VOCABULARY, LOSSES = "text with image", "vocabulary logits", "losses"
TEACHER_PASS, BACKWARD, UPDATE = "teacher's pass", "backward", "update"

STATE = (WEIGHTS, GRADIENTS, MOMENTS, TEACHER)
"""Parts that sharding divides among the processes."""
PARTS = (
    *STATE,
    QUEUES,
    BATCH,
    IMAGES,
    TEXT_ALONE,
    MEMORY,
    TEXT_WITH_IMAGE,
    VOCABULARY,
    LOSSES,
    TEACHER_PASS,
    BACKWARD,
    UPDATE,
)
"""All parts, in the order in which they are shown."""
# Once both are there, gradients of earlier parts are alive while later parts are computed.
_MOST_PARTS = 2


@dataclass(frozen=True, kw_only=True)
class TextLengths:
    """Tokens of a batch's texts, the first token and [SEP] included."""

    longest: int
    """To which all are padded."""
    mean: float
    """Of a text without padding."""


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """Bytes that a process holds at the fullest moment of a step."""

    parts: Mapping[str, int]
    """By part (`PARTS`)."""
    operations: float | None
    """Useful operations of the process in the step, all accumulated parts together; None where it
    did not run."""
    recomputed: float
    """Operations besides, which checkpointing computes again in the step."""
    gathered: int
    """Bytes that a sharded run puts together for a time: what is in no layer, two layers, and the
    gradients of a layer and of what is in none."""
    missing: str | None = None
    """Why the step of a task from outside does not run on fake tensors: then `parts` are its state
    alone."""

    @property
    def total(self) -> int:
        """All parts together."""
        return sum(self.parts.values())


class _Simulated(Processes):
    """One process of a run of several, whose others hold the same tensors."""

    def gather(self, tensor: Tensor) -> Tensor:
        return torch.cat([tensor.detach()] * self.world_size)

    def gather_with_gradient(self, tensor: Tensor) -> Tensor:
        return torch.cat([tensor] * self.world_size)

    def mean(self, tensor: Tensor) -> Tensor:
        return tensor.detach().clone()

    def gather_objects(self, value: Any) -> list[Any]:
        return [value] * self.world_size

    def replicate(self, task: AnyTask, *, find_unused: bool) -> nn.Module:
        return task


def step_footprint(
    recipe: Recipe,
    tokenizer: TextTokenizer,
    lengths: TextLengths,
    *,
    pairs: int,
    world_size: int = 1,
    accelerator: bool = False,
) -> Footprint:
    """The memory of one process in a step, after the optimiser's first.

    Args:
        recipe: resolved, with `model`; its device is not used, and no data are read.
        tokenizer: says where the special tokens are, and how long a prompt is.
        lengths: of the texts.
        pairs: of one accumulated part on one process.
        world_size: processes of the run.
        accelerator: count the kernels that an accelerator takes, not those of a processor.
    """
    assert recipe.model is not None, "a resolved recipe"
    config = overridden(recipe.model, recipe.overrides)
    empty: Student = family_of(config).empty(config)
    with ExitStack() as stack:
        simulation = stack.enter_context(Simulation())
        if accelerator:
            stack.enter_context(accelerator_kernels())
        kept = beside_state(empty)
        student = empty.to_empty(device="cpu")
        put_back(student, kept)
        if recipe.train.freeze:
            student.freeze_images()
        processes = _Simulated(world_size=world_size)
        task = assemble_task(recipe, student, tokenizer, processes).train()
        if isinstance(task, AlbefTask):
            task.mask_sampler = _with_values(task.mask_sampler)
        optimiser = build_optimiser(trained_parameters(task), recipe.optimiser)
        trainer = Trainer(
            task,
            optimiser,
            processes,
            seed=recipe.train.seed,
            precision=recipe.train.precision,
            clip_norm=recipe.optimiser.clip_norm,
        )
        # A run's first step has no moments yet, every other has.
        _make_moments(task, optimiser)
        _label(simulation, task, optimiser)
        for module in task.modules():
            simulation.watch(module)
        simulation.stage(BATCH)
        batches, ahead = _batches(recipe, student, lengths, pairs, accelerator)
        simulation.forget_peak()
        try:
            # Past the ramp of alpha: with alpha 0 the teacher's guesses would not be made.
            trainer.step(StepPosition(1, 10.0), batches, recipe.optimiser.lr)
        except Exception as why:
            if not is_own(recipe.task):
                raise
            reason = f"{type(why).__name__}: {one_line(why)}"
            return Footprint(
                parts=_state_alone(task),
                operations=None,
                recomputed=0.0,
                gathered=_gathered(task),
                missing=reason,
            )
        del ahead
        in_whole = recipe.train.accumulate / len(batches)
        return Footprint(
            parts={part: simulation.peak[part] for part in PARTS if simulation.peak[part]},
            operations=in_whole * (simulation.operations - simulation.recomputed),
            recomputed=in_whole * simulation.recomputed,
            gathered=_gathered(task),
        )


def _batches(
    recipe: Recipe, student: Student, lengths: TextLengths, pairs: int, accelerator: bool
) -> tuple[list[Batch], list[Batch]]:
    """The parts of a step, `_MOST_PARTS` at most, and what is there besides when it begins."""
    vision, side = student.config.vision, recipe.data.image_size
    # Of a frozen encoder a batch has the states.
    states = (vision.num_patches, vision.width) if recipe.train.freeze else None
    parts = min(recipe.train.accumulate, _MOST_PARTS)
    # On an accelerator all parts are there when a step begins, and one of the next.
    more = recipe.train.accumulate - parts + 1 if accelerator else 0
    made = [example_batch(pairs, lengths, side, states) for _ in range(parts + more)]
    return made[:parts], made[parts:]


def _state_alone(task: AnyTask) -> dict[str, int]:
    trained = sum(p.numel() * p.element_size() for p in trained_parameters(task))
    return {WEIGHTS: _bytes(task), GRADIENTS: trained, MOMENTS: 2 * trained}


def _with_values(sampler: MaskSampler) -> MaskSampler:
    """Draws what a run would: how many words are masked decides the number of logits."""

    def draw(shape: torch.Size, position: StepPosition) -> MaskDraws:
        with unsimulated():
            return sampler(shape, position)

    return draw


def _make_moments(task: AnyTask, optimiser: torch.optim.Optimizer) -> None:
    # Gradients and update are empty: what is wanted is the optimiser's state.
    for parameter in trained_parameters(task):
        parameter.grad = torch.empty_like(parameter)
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)


def _label(simulation: Simulation, task: AnyTask, optimiser: torch.optim.Optimizer) -> None:
    # The teacher's, which are among them, get their own label below.
    for parameter in task.parameters():
        simulation.relabel(parameter, WEIGHTS)
    for parameter in trained_parameters(task):
        parameter.register_post_accumulate_grad_hook(  # type: ignore[no-untyped-call]  # torch
            lambda p: simulation.relabel(p.grad, GRADIENTS)
        )
    for state in optimiser.state.values():
        for value in state.values():
            simulation.relabel(value, MOMENTS)
    if isinstance(task, ContrastiveTask) and task.contrasts:
        for parameter in task.teacher.parameters():
            simulation.relabel(parameter, TEACHER)
        for buffer in task.queue.buffers():
            simulation.relabel(buffer, QUEUES)
        for module, _ in _activations(task.teacher):
            simulation.within(module, TEACHER_PASS)
    assert isinstance(task.student, Med | Albef)
    for module, label in _activations(task.student):
        simulation.within(module, label)
    task.register_forward_pre_hook(lambda *_: simulation.stage(LOSSES))
    task.register_forward_hook(_when_backward_begins(simulation))
    optimiser.register_step_pre_hook(lambda *_: simulation.stage(UPDATE))


def _activations(model: Med | Albef) -> Iterator[tuple[nn.Module, str | Callable[[Any], str]]]:
    """Modules, and the label of what they allocate; outer ones first."""
    yield model.image_encoder, IMAGES
    if isinstance(model, Med):
        yield model.text, _role
    else:
        yield model.text.embeddings, TEXT_ALONE
        for number, layer in enumerate(model.text.layers):
            yield layer, TEXT_ALONE if number < model.config.fusion_layer else TEXT_WITH_IMAGE
    for name, module in model.named_modules():
        if name.endswith(".key_value"):
            yield module, MEMORY
        elif name.endswith("lm_head"):
            yield module, VOCABULARY


def _role(texts: TextPass) -> str:
    return TEXT_ALONE if texts.memory is None else TEXT_WITH_IMAGE


def _when_backward_begins(simulation: Simulation) -> Any:
    def after_forward(_: nn.Module, __: Any, output: Any) -> None:
        output.loss.register_hook(lambda _: simulation.stage(BACKWARD))

    return after_forward


def _gathered(task: AnyTask) -> int:
    models = [child for child in task.children() if isinstance(child, Med | Albef)]
    # A teacher of a frozen encoder has none.
    parts = [(getattr(one.image_encoder, "blocks", ()), one.text.layers) for one in models]
    layers = [*chain.from_iterable(chain.from_iterable(parts))]
    of_layers = [_bytes(layer) for layer in layers]
    in_none = sum(_bytes(one) for one in models) - sum(of_layers)
    # One layer computes while the next one's weights arrive.
    return 2 * in_none + 3 * max(of_layers)


def _bytes(module: nn.Module) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in module.parameters())


def example_batch(
    pairs: int, lengths: TextLengths, side: int, states: tuple[int, int] | None = None
) -> Batch:
    """Pairs without content; the first text is the longest, the others have the mean length.

    Args:
        pairs: how many.
        lengths: of the texts.
        side: pixels of an image's side.
        states: tokens and channels of an image's states, which stand in the images' place.
    """
    others = (pairs * lengths.mean - lengths.longest) / max(pairs - 1, 1)
    tokens = torch.full((pairs,), round(min(max(others, 3), lengths.longest)))
    tokens[0] = lengths.longest
    return Batch(
        ids=("",) * pairs,
        images=torch.empty(pairs, 3, side, side)
        if states is None
        else torch.empty(pairs, *states, dtype=torch.float16),
        tokens=torch.zeros(pairs, lengths.longest, dtype=torch.int64),
        mask=torch.arange(lengths.longest) < tokens[:, None],
        image_ids=torch.arange(pairs),
        text_ids=torch.arange(pairs),
        step=0,
    )
