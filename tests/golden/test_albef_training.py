"""Consecutive steps of ALBEF's pre-training and retrieval fine-tuning, against the original's.

The negatives and masks that the original drew are replayed.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from openblip.batches.loader import Batch
from openblip.batches.tokenizer import SpecialTokens
from openblip.checkpoints.original import OriginalQueues, to_original
from openblip.objectives.albef import AlbefObjectives, AlbefTask
from openblip.objectives.lm import MaskDraws, mask_words
from openblip.objectives.task import StepPosition

from ..original_gradients import export_gradients

pytestmark = pytest.mark.golden

# Largest difference in units of the largest magnitude; of gradients, of their norm.
OUTPUTS, GRADIENTS = 2e-5, 5e-4
START = StepPosition(step=0, epoch=0.0)
DRAWS = ("mlm_draw_masked", "mlm_draw_replace80", "mlm_draw_random50", "mlm_draw_random_words")
# A constant added to all keys changes no attention: these gradients are zero but for rounding.
KEY_BIAS = re.compile(r"\.key\.bias$")
TERMS = {"itc": "loss_ita", "itm": "loss_itm", "mlm": "loss_mlm"}


@dataclass
class Step:
    """What one of our steps computed, and where the original's stands."""

    prefix: str
    expected: dict[str, Any]
    loss: Tensor
    terms: dict[str, Tensor]
    outputs: dict[str, Tensor]
    """By the original's names."""
    gradients: dict[str, Tensor]
    state: dict[str, Tensor]
    """After the step and before the optimiser, by the original's names."""


@dataclass
class Replay:
    """Gives the negatives that the original drew; notes what it is asked with."""

    indices: dict[str, list[int]]
    weights: dict[str, Tensor] = field(default_factory=dict)

    def __call__(self, weights: Tensor, position: StepPosition, wanted: str) -> Tensor:
        self.weights[wanted] = weights
        return torch.tensor(self.indices[wanted])


def special_tokens(reference: Any) -> SpecialTokens:
    meta = reference.meta
    ids = {name: meta[name.upper()] for name in ("pad", "unk", "cls", "sep", "mask")}
    # ALBEF has no such tokens.
    return SpecialTokens(**ids, dec=-1, enc=-1)


def make_task(reference: Any, alpha: float) -> AlbefTask:
    retrieval = reference.name == "albef_retrieval"
    task = AlbefTask(
        reference.model(),
        special_tokens(reference),
        AlbefObjectives(
            losses=("itc", "itm") if retrieval else ("itc", "itm", "mlm"),
            queue_size=reference.json["queue_size"],
            momentum=reference.json["momentum"],
            alpha=alpha,
            alpha_ramp_epochs=0.0,
            id_targets=retrieval,
            max_temperature=float("inf") if retrieval else 0.5,
            min_temperature=1e-9 if retrieval else 0.001,
        ),
        seed=0,
    )
    task.teacher.load_state_dict(reference.teacher().state_dict())
    queues = reference.checkpoint.queues
    task.queue.image_embed.copy_(queues.image_embed)
    task.queue.text_embed.copy_(queues.text_embed)
    task.queue.pointer.fill_(queues.pointer)
    if queues.image_ids is not None:
        task.queue.image_ids.copy_(queues.image_ids)
    return task


def make_batch(reference: Any, number: int) -> Batch:
    images = reference[f"step{number}.image"]
    rows = torch.arange(len(images)) + number * len(images)
    # Pre-training knows no ids; in retrieval they are of images.
    ids = reference.tensors.get(f"step{number}.idx", rows)
    tokens, mask = (reference[f"step{number}.{name}"] for name in ("input_ids", "attention_mask"))
    return Batch((), images, tokens, mask.bool(), ids, rows, number)


def recorded_draws(reference: Any, prefix: str) -> MaskDraws | None:
    if prefix + DRAWS[0] not in reference.tensors:
        return None
    *flags, words = (reference[prefix + name] for name in DRAWS)
    return MaskDraws(*(flag.bool() for flag in flags), words)


def take_step(task: AlbefTask, reference: Any, alpha: str, number: int) -> Step:
    prefix = f"alpha{alpha}.step{number}."
    expected = reference.json["alphas"][alpha]["steps"][number]
    replay = Replay(
        {"image": expected["neg_image_for_text"], "text": expected["neg_text_for_image"]}
    )
    draws = recorded_draws(reference, prefix)
    task.negative_sampler, task.mask_sampler = replay, lambda shape, position: draws
    batch = make_batch(reference, number)
    task.begin_step(START)
    hidden = task.student.encode_images(batch.images)
    states = task.student.encode_texts(batch.tokens, batch.mask)
    contrast = task.contrast(batch, hidden, states, task.teacher.encode_images(batch.images), START)
    output = task(batch, START)
    output.loss.backward()
    task.finish_step(output.update)
    queue = task.queue
    ids = queue.image_ids if "idx_queue" in reference.state_dict else None
    queues = OriginalQueues(queue.image_embed, queue.text_embed, int(queue.pointer), ids)
    named = {name: p.grad for name, p in task.student.named_parameters()}
    state = to_original(task.student, reference.kind, teacher=task.teacher, queues=queues)
    return Step(
        prefix=prefix,
        expected=expected,
        loss=output.loss.detach(),
        terms=dict(output.terms),
        outputs={
            "sim_i2t": contrast.image_sims,
            "sim_t2i": contrast.text_sims,
            "sim_i2t_targets": contrast.image_targets,
            "sim_t2i_targets": contrast.text_targets,
            "weights_t2i": replay.weights["image"],
            "weights_i2t": replay.weights["text"],
        },
        gradients={n: g.clone() for n, g in export_gradients(named, reference.kind).items()},
        state={name: tensor.detach().clone() for name, tensor in state.items()},
    )


@dataclass
class Run:
    """The consecutive steps of every alpha, with the original's optimiser between them."""

    reference: Any
    steps: list[Step]


@pytest.fixture(scope="module", params=["albef_pretrain", "albef_retrieval"])
def run(request: pytest.FixtureRequest, golden: Callable[[str], Any]) -> Run:
    reference = golden(request.param)
    lr = float(re.search(r"SGD lr=([\d.]+)", reference.json["optimizer_between_steps"])[1])
    steps = []
    for alpha, recorded in reference.json["alphas"].items():
        task = make_task(reference, float(alpha))
        optimiser = torch.optim.SGD(task.student.parameters(), lr=lr)
        for number in range(len(recorded["steps"])):
            optimiser.zero_grad()
            steps.append(take_step(task, reference, alpha, number))
            optimiser.step()
    return Run(reference, steps)


def test_losses(run: Run) -> None:
    for step in run.steps:
        stored = {ours: step.expected[key] for ours, key in TERMS.items() if key in step.expected}
        assert set(stored) == set(step.terms) - {"temperature"}
        for name, value in stored.items():
            assert step.terms[name].item() == pytest.approx(value, rel=OUTPUTS), name
        assert step.loss.item() == pytest.approx(sum(stored.values()), rel=OUTPUTS)
        assert step.terms["temperature"].item() == pytest.approx(step.expected["temp"], rel=OUTPUTS)


def test_similarities_targets_and_weights_of_negatives(run: Run) -> None:
    for step in run.steps:
        for name, value in step.outputs.items():
            if (key := step.prefix + name) in run.reference.tensors:
                # Equal images are excluded there by a factor; weights need not sum to one.
                assert run.reference.error(value, key) < OUTPUTS, key


def test_which_words_are_hidden(run: Run) -> None:
    for number, step in enumerate(run.steps):
        draws = recorded_draws(run.reference, step.prefix)
        if draws is None:
            continue
        batch = make_batch(run.reference, number % 2)
        mask_token = run.reference.meta["MASK"]
        words = mask_words(batch.tokens, batch.mask, draws, mask_token)
        assert torch.equal(words.ids, run.reference[step.prefix + "mlm_input_ids"])
        assert torch.equal(words.labels, run.reference[step.prefix + "mlm_labels"])


def test_gradient_of_every_parameter(run: Run) -> None:
    for step in run.steps:
        norms = step.expected["grad_norm"]
        assert set(norms) == set(step.gradients)
        for name, gradient in step.gradients.items():
            if KEY_BIAS.search(name):
                continue
            norm = norms[name]
            assert gradient.norm().item() == pytest.approx(norm, rel=GRADIENTS), name
            stored = run.reference.tensors.get(f"{step.prefix}grad.{name}")
            if stored is not None:
                assert (gradient - stored).norm() < GRADIENTS * norm, name


def test_teacher_after_each_step(run: Run) -> None:
    for step in run.steps:
        norms = step.expected["momentum_norm_after"]
        assert norms
        for name, norm in norms.items():
            assert step.state[name].norm().item() == pytest.approx(norm, rel=OUTPUTS), name
            if (key := f"{step.prefix}momentum.{name}") in run.reference.tensors:
                assert run.reference.error(step.state[name], key) < OUTPUTS, key


def test_queues_after_each_step(run: Run) -> None:
    for step in run.steps:
        for name in ("image_queue", "text_queue"):
            assert run.reference.error(step.state[name], step.prefix + name) < OUTPUTS
        assert step.state["queue_ptr"].item() == step.expected["queue_ptr"]
        if "idx_queue" in step.state:
            stored = run.reference[step.prefix + "idx_queue"]
            known = stored >= 0
            assert torch.equal(step.state["idx_queue"][known], stored[known])
            assert (step.state["idx_queue"][~known] < 0).all()


def test_without_distillation_the_losses_are_those_of_alpha_zero(
    golden: Callable[[str], Any],
) -> None:
    reference = golden("albef_retrieval")
    stored = reference.json["distill_False_alpha0.4_step0"]
    step = take_step(make_task(reference, 0.0), reference, "0.0", 0)
    assert step.terms["itc"].item() == pytest.approx(stored["loss_ita"], rel=OUTPUTS)
    assert step.terms["itm"].item() == pytest.approx(stored["loss_itm"], rel=OUTPUTS)
