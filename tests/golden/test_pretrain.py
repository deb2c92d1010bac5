"""Consecutive steps of pre-training and of retrieval fine-tuning, against the original's.

Both are the same step with other settings: the original's retrieval fine-tuning is our filter.
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
from openblip.model import Med, TextPass
from openblip.objectives.finetune import CaptionerTask
from openblip.objectives.itc import similarities
from openblip.objectives.pretrain import FilterTask, PretrainObjectives, PretrainTask
from openblip.objectives.settings import FilterObjectives
from openblip.objectives.task import StepOutput, StepPosition

from ..original_gradients import export_gradients

pytestmark = pytest.mark.golden

# Largest difference in units of the largest magnitude; of gradients, of their norm.
OUTPUTS, GRADIENTS = 2e-5, 5e-4
START = StepPosition(step=0, epoch=0.0)
SPECIAL_NAMES = {"pad": "PAD", "cls": "CLS", "sep": "SEP", "dec": "bos_DEC", "enc": "ENC"}
# A constant added to all keys changes no attention: these gradients are zero but for rounding.
KEY_BIAS = re.compile(r"\.key\.bias$")


@dataclass
class Step:
    """What one of our steps computed, and the names of what the original did."""

    prefix: str
    mask: Tensor
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
    ids = {ours: reference.meta[theirs] for ours, theirs in SPECIAL_NAMES.items()}
    # The original's step never looks at these two.
    return SpecialTokens(**ids, unk=-1, mask=-1)


def make_task(reference: Any, alpha: float) -> PretrainTask:
    settings, special = reference.json, special_tokens(reference)
    common = {
        "queue_size": settings["queue_size"],
        "momentum": settings["momentum"],
        "alpha": alpha,
        "alpha_ramp_epochs": 0.0,
    }
    if reference.name == "pretrain":
        task = PretrainTask(reference.med(), special, PretrainObjectives(**common), seed=0)
    else:
        task = FilterTask(reference.med(), special, FilterObjectives(**common), seed=0)
    task.teacher.load_state_dict(reference.teacher().state_dict())
    queues = reference.checkpoint.queues
    task.queue.image_embed.copy_(queues.image_embed)
    task.queue.text_embed.copy_(queues.text_embed)
    task.queue.pointer.fill_(queues.pointer)
    return task


def make_batch(reference: Any, number: int) -> Batch:
    images = reference[f"step{number}.image"]
    rows = torch.arange(len(images)) + number * len(images)
    # Pre-training knows no ids; in retrieval they are of images.
    ids = reference.tensors.get(f"step{number}.idx", rows)
    tokens, mask = (reference[f"step{number}.{name}"] for name in ("input_ids", "attention_mask"))
    return Batch((), images, tokens, mask.bool(), ids, rows, number)


def features_and_targets(task: PretrainTask, batch: Batch) -> dict[str, Tensor]:
    hidden = task.student.encode_images(batch.images)
    contrast = task.contrast(batch, hidden, START)
    temperature = task.student.temperature
    image_embed, text_embed = contrast.image_embed, contrast.text_embed
    return {
        "image_embeds": hidden,
        "text_last_hidden_state": task.student.text(TextPass(batch.tokens, batch.mask))[0],
        "image_feat": image_embed,
        "text_feat": text_embed,
        "image_feat_m": contrast.teacher.image_embed,
        "text_feat_m": contrast.teacher.text_embed,
        "sim_i2t": contrast.image_sims,
        "sim_t2i": contrast.text_sims,
        "batch_sim_i2t": similarities(image_embed, text_embed, temperature),
        "batch_sim_t2i": similarities(text_embed, image_embed, temperature),
        "sim_i2t_targets": contrast.image_targets,
        "sim_t2i_targets": contrast.text_targets,
    }


def forward_with_heads(task: PretrainTask, batch: Batch) -> tuple[StepOutput, dict[str, Tensor]]:
    """The step's output, and what went into and came out of the heads of matching and decoding."""
    matched: list[tuple[Tensor, Tensor]] = []
    decoded: list[Tensor] = []
    heads = task.student.itm_head, getattr(task.student.text, "lm_head", torch.nn.Identity())
    hooks = [
        heads[0].register_forward_hook(lambda m, i, output: matched.append((i[0], output))),
        heads[1].register_forward_hook(lambda m, i, output: decoded.append(output[0])),
    ]
    output = task(batch, START)
    for hook in hooks:
        hook.remove()
    # Positives and negative texts run side by side, negative images behind them.
    embeds, logits = (
        torch.cat([both[0::2], negative_images, both[1::2]])
        for both, negative_images in zip(*matched, strict=True)
    )
    outputs = {"vl_embeddings": embeds, "vl_output": logits}
    return output, outputs | ({"lm_logits": decoded[0]} if decoded else {})


def original_state(task: PretrainTask, kind: str) -> dict[str, Tensor]:
    queue = task.queue
    queues = OriginalQueues(
        queue.image_embed, queue.text_embed, int(queue.pointer), queue.image_ids
    )
    state = to_original(task.student, kind, teacher=task.teacher, queues=queues)
    return {name: tensor.detach().clone() for name, tensor in state.items()}


def original_gradients(student: Med, kind: str) -> dict[str, Tensor]:
    named = {name: p.grad for name, p in student.named_parameters()}
    return {name: g.clone() for name, g in export_gradients(named, kind).items()}


def take_step(task: PretrainTask, reference: Any, alpha: str, number: int) -> Step:
    expected = reference.json["alphas"][alpha]["steps"][number]
    replay = Replay(
        {"image": expected["neg_image_for_text"], "text": expected["neg_text_for_image"]}
    )
    task.negative_sampler = replay
    batch = make_batch(reference, number)
    task.begin_step(START)
    outputs = features_and_targets(task, batch)
    output, of_heads = forward_with_heads(task, batch)
    output.loss.backward()
    task.finish_step(output.update)
    weights = {"weights_t2i": replay.weights["image"], "weights_i2t": replay.weights["text"]}
    return Step(
        prefix=f"alpha{alpha}.step{number}.",
        mask=batch.mask,
        expected=expected,
        loss=output.loss.detach(),
        terms=dict(output.terms),
        outputs=outputs | of_heads | weights,
        gradients=original_gradients(task.student, reference.kind),
        state=original_state(task, reference.kind),
    )


@dataclass
class Run:
    """The consecutive steps of every alpha, with the original's optimiser between them."""

    reference: Any
    steps: list[Step]

    def assert_equals(self, actual: Tensor, key: str) -> None:
        error = self.reference.error(actual, key)
        assert error < OUTPUTS, f"{key}: {error:.1e}"


@pytest.fixture(scope="module", params=["pretrain", "retrieval"])
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
        names = {"itc": "loss_ita", "itm": "loss_itm", "lm": "loss_lm"}
        stored = {n: step.expected[k] for n, k in names.items() if k in step.expected}
        assert set(stored) == set(step.terms) - {"temperature"}
        for name, value in stored.items():
            assert step.terms[name].item() == pytest.approx(value, rel=OUTPUTS)
        assert step.loss.item() == pytest.approx(sum(stored.values()), rel=OUTPUTS)
        if "temp" in step.expected:
            assert step.terms["temperature"].item() == pytest.approx(step.expected["temp"])


def test_every_stored_output(run: Run) -> None:
    # The state is compared below; of the teacher's similarities the targets are made.
    elsewhere = re.compile(r"grad\.|momentum\.|\w+_queue$|sim_(i2t|t2i)_m$|sim_targets$")
    for step in run.steps:
        keys = [key for key in run.reference.tensors if key.startswith(step.prefix)]
        names = [key.removeprefix(step.prefix) for key in keys]
        names = [name for name in names if not elsewhere.match(name)]
        assert {"image_feat", "sim_i2t_targets", "weights_t2i", "vl_output"} <= set(names)
        for name in set(names) - {"lm_logits", "text_last_hidden_state"}:
            run.assert_equals(step.outputs[name], step.prefix + name)


def test_text_states_and_decoding_where_a_token_is(run: Run) -> None:
    reference = run.reference
    for step in run.steps:
        if (key := step.prefix + "text_last_hidden_state") in reference.tensors:
            states = step.outputs["text_last_hidden_state"]
            assert reference.error(states[step.mask], reference[key][step.mask]) < OUTPUTS
        if (key := step.prefix + "lm_logits") in reference.tensors:
            # Ours computes the logits of positions with a label only.
            expected = reference[key][:, :-1][step.mask[:, 1:]]
            assert reference.error(step.outputs["lm_logits"], expected) < OUTPUTS


def test_gradient_of_every_parameter(run: Run) -> None:
    for step in run.steps:
        norms = step.expected["grad_norm"]
        assert set(norms) == set(step.gradients)
        for name, gradient in step.gradients.items():
            if KEY_BIAS.search(name):
                assert gradient.norm() < 1e-6
                continue
            norm = norms[name]
            assert gradient.norm().item() == pytest.approx(norm, rel=GRADIENTS), name
            stored = run.reference.tensors.get(f"{step.prefix}grad.{name}")
            if stored is not None:
                assert (gradient - stored).norm() < GRADIENTS * norm, name


def test_teacher_after_each_step(run: Run) -> None:
    for step in run.steps:
        norms = step.expected["momentum_norm_after"]
        # The original moves its teacher's cross-attention too, which nothing ever runs.
        used = [name for name in norms if "crossattention" not in name]
        assert used
        for name in used:
            assert step.state[name].norm().item() == pytest.approx(norms[name], rel=OUTPUTS), name
            if (key := f"{step.prefix}momentum.{name}") in run.reference.tensors:
                run.assert_equals(step.state[name], key)


def test_queues_after_each_step(run: Run) -> None:
    for step in run.steps:
        run.assert_equals(step.state["image_queue"], step.prefix + "image_queue")
        run.assert_equals(step.state["text_queue"], step.prefix + "text_queue")
        for name in ("queue_ptr", "ptr_queue"):
            if name in step.expected:
                assert step.state[name].item() == step.expected[name]
        if "idx_queue" in step.state:
            stored = run.reference[step.prefix + "idx_queue"]
            # An unknown id is another negative number there.
            known = stored >= 0
            assert torch.equal(step.state["idx_queue"][known], stored[known])
            assert (step.state["idx_queue"][~known] < 0).all()


def test_captioner_step(golden: Callable[[str], Any]) -> None:
    reference = golden("caption")
    student = reference.med()
    task = CaptionerTask(student, special_tokens(reference), reference.json["prompt_length"])
    tokens, mask = reference["tokenized.input_ids"], reference.mask("tokenized.attention_mask")
    rows = torch.arange(len(tokens))
    output = task(Batch((), reference["image"], tokens, mask, rows, rows, 0), START)
    assert output.loss.item() == pytest.approx(reference.json["loss"], rel=OUTPUTS)
    output.loss.backward()
    gradients = original_gradients(student, reference.kind)
    norms = reference.json["grad_norm"]
    assert set(norms) == set(gradients)
    for name in (name for name in norms if not KEY_BIAS.search(name)):
        assert gradients[name].norm().item() == pytest.approx(norms[name], rel=GRADIENTS), name
