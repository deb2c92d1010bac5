"""The pre-training step."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from openblip.batches.loader import Batch
from openblip.batches.tokenizer import SpecialTokens
from openblip.model import Med
from openblip.model.config import Sharing
from openblip.objectives.finetune import CaptionerTask
from openblip.objectives.itm import hard_negatives
from openblip.objectives.pool import Texts
from openblip.objectives.pretrain import PretrainObjectives, PretrainTask
from openblip.objectives.task import StepPosition
from openblip.runtime.errors import MissingHead, RecipeError

LOSSES = ("itc", "itm", "lm")
SUBSETS = [subset for size in (1, 2, 3) for subset in combinations(LOSSES, size)]
START = StepPosition(step=0, epoch=0.0)
LATER = StepPosition(step=7, epoch=3.0)

MakeStudent = Callable[..., Med]
MakeBatch = Callable[..., Batch]
MakeTask = Callable[..., PretrainTask]


class RecordingSampler:
    """Draws with given uniforms and keeps the weights it was given."""

    def __init__(self, uniform: float = 0.5) -> None:
        self.uniform = uniform
        self.weights: dict[str, Tensor] = {}
        self.drawn: dict[str, Tensor] = {}

    def __call__(self, weights: Tensor, position: StepPosition, wanted: str) -> Tensor:
        self.weights[wanted] = weights
        self.drawn[wanted] = hard_negatives(weights, torch.full((len(weights),), self.uniform))
        return self.drawn[wanted]


@pytest.fixture
def make_task(make_student: MakeStudent, special: SpecialTokens) -> MakeTask:
    def make(
        student: Med | None = None, sampler: RecordingSampler | None = None, **settings: Any
    ) -> PretrainTask:
        objectives = PretrainObjectives(**{"queue_size": 10, **settings})
        return PretrainTask(
            student or make_student(), special, objectives, seed=5, negative_sampler=sampler
        )

    return make


def snapshot(task: PretrainTask) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in task.state_dict().items()}


def assert_same(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    changed = [name for name in first if not torch.equal(first[name], second[name])]
    assert changed == []


def test_forward_changes_nothing_and_repeats_itself(
    make_task: MakeTask, make_batch: MakeBatch
) -> None:
    task, batch = make_task(), make_batch()
    before, random_state = snapshot(task), torch.get_rng_state()
    outputs = [task(batch, LATER) for _ in range(2)]
    assert_same(before, snapshot(task))
    assert torch.equal(random_state, torch.get_rng_state())
    assert torch.equal(outputs[0].loss, outputs[1].loss)
    assert_same(dict(outputs[0].terms), dict(outputs[1].terms))
    assert_same(vars(outputs[0].update), vars(outputs[1].update))


def test_dropout_acts_on_the_teacher_as_in_the_original(
    make_task: MakeTask, make_student: MakeStudent, make_batch: MakeBatch
) -> None:
    task, batch = make_task(make_student(dropout=0.3)), make_batch()
    first, second = (task(batch, START).update.text_embed for _ in range(2))
    assert not torch.equal(first, second)
    task.eval()
    first, second = (task(batch, START).update.text_embed for _ in range(2))
    assert torch.equal(first, second)


def test_a_step_projects_each_image_once_per_layer(
    make_task: MakeTask, make_batch: MakeBatch
) -> None:
    task, batch = make_task(), make_batch(size=6)
    encoded = task.student.encode_images(batch.images)
    rows: Counter[str] = Counter()
    seen: dict[str, list[Tensor]] = {}

    def count(name: str) -> Callable[..., None]:
        def hook(module: object, inputs: tuple[Tensor], output: Tensor) -> None:
            rows[name] += inputs[0].shape[0]
            seen.setdefault(name, []).append(inputs[0])

        return hook

    modules = [
        (name, module)
        for name, module in task.named_modules()
        if name.endswith(("cross_attention.key_value", "image_encoder"))
    ]
    for name, module in modules:
        module.register_forward_hook(count(name))
    task(batch, LATER).loss.backward()
    task.finish_step(None)
    # Two layers of the student; the encoders of student and teacher.
    assert len(modules) == 4
    assert rows == {name: 6 for name, _ in modules}
    for name, inputs in seen.items():
        expected = encoded if "key_value" in name else batch.images
        assert len(inputs) == 1
        torch.testing.assert_close(inputs[0], expected)


@pytest.mark.parametrize("losses", SUBSETS)
def test_any_subset_of_the_losses_is_a_step(
    losses: tuple[str, ...],
    make_task: MakeTask,
    make_student: MakeStudent,
    make_batch: MakeBatch,
) -> None:
    task = make_task(make_student(heads=losses), losses=losses)
    task.begin_step(START)
    output = task(make_batch(), START)
    output.loss.backward()
    task.finish_step(output.update)
    terms = dict(output.terms)
    assert ("temperature" in terms) == ("itc" in losses)
    terms.pop("temperature", None)
    assert set(terms) == set(losses)
    torch.testing.assert_close(output.loss.detach(), torch.stack(list(terms.values())).sum())
    # A student built with just these heads has no part that the step leaves without gradient.
    assert [n for n, p in task.student.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("losses", SUBSETS)
def test_a_loss_is_the_same_in_every_subset(
    losses: tuple[str, ...], make_task: MakeTask, make_batch: MakeBatch
) -> None:
    sampler = RecordingSampler()
    everything = make_task(sampler=sampler)(make_batch(), LATER)
    task = make_task(losses=losses)
    task.negative_sampler = lambda weights, position, wanted: sampler.drawn[wanted]
    for name in losses:
        torch.testing.assert_close(
            task(make_batch(), LATER).terms[name], everything.terms[name], atol=1e-5, rtol=0
        )


@pytest.mark.parametrize("sharing", get_args(Sharing))
def test_every_way_of_sharing_learns(
    sharing: str, make_task: MakeTask, make_student: MakeStudent, make_batch: MakeBatch
) -> None:
    task, batch = make_task(make_student(sharing=sharing)), make_batch()
    optimiser = torch.optim.AdamW(task.student.parameters(), lr=3e-3)
    losses = []
    for step in range(12):
        position = StepPosition(step, epoch=0.0)
        task.begin_step(position)
        optimiser.zero_grad()
        output = task(batch, position)
        output.loss.backward()
        optimiser.step()
        task.finish_step(output.update)
        losses.append(output.loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_the_teacher_has_the_students_names_and_no_gradient(
    make_task: MakeTask, make_batch: MakeBatch
) -> None:
    task = make_task()
    teacher, student = (dict(m.named_parameters()) for m in (task.teacher, task.student))
    assert set(teacher) < set(student)
    assert not any("cross_attention" in name or "causal" in name for name in teacher)
    task(make_batch(), LATER).loss.backward()
    for name, parameter in teacher.items():
        assert torch.equal(parameter, student[name])
        assert parameter.data_ptr() != student[name].data_ptr()
        assert parameter.grad is None


def test_begin_step_clamps_the_temperature_and_moves_the_teacher(make_task: MakeTask) -> None:
    task = make_task(momentum=0.75)
    with torch.no_grad():
        task.student.temperature.fill_(0.7)
        task.student.text_projection.weight.add_(1.0)
    before = task.teacher.text_projection.weight.clone()
    task.begin_step(START)
    assert task.student.temperature.item() == 0.5
    torch.testing.assert_close(task.teacher.text_projection.weight, before + 0.25)
    with torch.no_grad():
        task.student.temperature.fill_(-1.0)
    task.begin_step(START)
    assert task.student.temperature.item() == pytest.approx(0.001)


def test_finish_step_enqueues_the_teachers_features(
    make_task: MakeTask, make_batch: MakeBatch
) -> None:
    task, batch = make_task(), make_batch(size=6, seed=2)
    output = task(batch, START)
    task.finish_step(output.update)
    expected = task.teacher.embed_texts(batch.tokens, batch.mask)
    torch.testing.assert_close(task.queue.text_embed[:6], expected)
    assert torch.equal(task.queue.image_ids[:6], batch.image_ids)
    assert not torch.equal(task(batch, START).terms["itc"], output.terms["itc"])


def test_without_a_queue_the_batch_gives_the_keys(
    make_task: MakeTask, make_batch: MakeBatch
) -> None:
    task, batch = make_task(queue_size=0), make_batch(size=6)
    contrast = task.contrast(batch, task.student.encode_images(batch.images), START)
    assert contrast.image_sims.shape == (6, 6)
    task.finish_step(task(batch, START).update)


def test_equal_images_and_equal_texts_are_no_negatives_of_each_other(
    make_task: MakeTask, make_batch: MakeBatch
) -> None:
    sampler = RecordingSampler()
    batch = replace(
        make_batch(size=5),
        image_ids=torch.tensor([1, 1, 2, 3, 4]),
        text_ids=torch.tensor([5, 6, 7, 7, 8]),
    )
    make_task(sampler=sampler)(batch, LATER)
    zero = {(i, i) for i in range(5)} | {(0, 1), (1, 0), (2, 3), (3, 2)}
    for weights in sampler.weights.values():
        assert {(int(r), int(c)) for r, c in (weights == 0).nonzero()} == zero


def test_pairs_of_unknown_ids_may_be_negatives(make_task: MakeTask, make_batch: MakeBatch) -> None:
    sampler = RecordingSampler()
    unknown = torch.full((5,), -1)
    batch = replace(make_batch(size=5), image_ids=unknown, text_ids=unknown)
    make_task(sampler=sampler)(batch, LATER)
    for weights in sampler.weights.values():
        assert (weights == 0).sum() == 5


@pytest.mark.parametrize("size", [1, 4])
def test_a_batch_of_one_image_has_no_negatives(
    size: int, make_task: MakeTask, make_batch: MakeBatch, special: SpecialTokens
) -> None:
    batch = replace(make_batch(size=size), image_ids=torch.zeros(size, dtype=torch.int64))
    task = make_task()
    output = task(batch, LATER)
    output.loss.backward()
    tokens = batch.tokens.clone()
    tokens[:, 0] = special.enc
    memory = task.student.memories(task.student.encode_images(batch.images)).encoder
    logits = task.student.match(tokens, batch.mask, memory)
    positives = torch.nn.functional.cross_entropy(logits, torch.ones(size, dtype=torch.int64))
    torch.testing.assert_close(output.terms["itm"], positives.detach())
    gradients = [p.grad for p in task.student.parameters() if p.grad is not None]
    assert all(torch.isfinite(g).all() for g in gradients)


def test_a_row_without_negatives_leaves_the_others_theirs(
    make_task: MakeTask, make_batch: MakeBatch
) -> None:
    # Pair 0 shares its image with pairs 1 and 2, its text with pair 3.
    batch = replace(
        make_batch(size=4),
        image_ids=torch.tensor([1, 1, 1, 2]),
        text_ids=torch.tensor([1, 2, 3, 1]),
    )
    sampler = RecordingSampler()
    task = make_task(sampler=sampler)
    logits: list[Tensor] = []
    task.student.itm_head.register_forward_hook(lambda m, i, output: logits.append(output))
    loss = task(batch, LATER).terms["itm"]
    pairs = logits[0].view(4, 2, 2)
    kept = torch.cat([pairs[:, 0], logits[1][1:], pairs[1:, 1]])
    matched = torch.tensor([1] * 4 + [0] * 6)
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(kept, matched).detach())


def test_negatives_without_contrast_are_uniform(make_task: MakeTask, make_batch: MakeBatch) -> None:
    sampler = RecordingSampler()
    make_task(sampler=sampler, losses=("itm",))(make_batch(size=3), START)
    for weights in sampler.weights.values():
        assert torch.equal(weights, 1 - torch.eye(3))


def test_position_and_seed_decide_the_draw(
    make_student: MakeStudent, make_batch: MakeBatch, special: SpecialTokens
) -> None:
    batch = make_batch(size=12)

    def drawn(seed: int, position: StepPosition) -> list[int]:
        objectives = PretrainObjectives(losses=("itm",))
        task = PretrainTask(make_student(), special, objectives, seed)
        weights = 1 - torch.eye(len(batch.ids))
        return [*task.negative_sampler(weights, position, "image").tolist()]

    first = drawn(1, StepPosition(3, 0.0))
    assert drawn(1, StepPosition(3, 0.5)) == first
    assert drawn(2, StepPosition(3, 0.0)) != first
    assert drawn(1, StepPosition(4, 0.0)) != first
    assert drawn(1, StepPosition(3, 0.0, micro_step=1)) != first


def test_texts_of_the_same_image_share_the_target(
    make_task: MakeTask, make_batch: MakeBatch
) -> None:
    batch = replace(make_batch(size=3), image_ids=torch.tensor([7, 8, 7]))
    task = make_task(id_targets=True, queue_size=4)
    task.queue.image_ids[1] = 8
    contrast = task.contrast(batch, task.student.encode_images(batch.images), START)
    expected = torch.tensor(
        [[0.5, 0, 0.5, 0, 0, 0, 0], [0, 0.5, 0, 0, 0.5, 0, 0], [0.5, 0, 0.5, 0, 0, 0, 0]]
    )
    assert torch.equal(contrast.image_targets, expected)
    assert torch.equal(contrast.text_targets, expected)
    identity = make_task(queue_size=4)
    contrast = identity.contrast(batch, identity.student.encode_images(batch.images), START)
    assert torch.equal(contrast.image_targets, torch.eye(3, 7))


def test_padding_does_not_matter(make_task: MakeTask, make_batch: MakeBatch) -> None:
    task, batch = make_task(), make_batch()
    padded = replace(
        batch,
        tokens=torch.nn.functional.pad(batch.tokens, (0, 5)),
        mask=torch.nn.functional.pad(batch.mask, (0, 5)),
    )
    torch.testing.assert_close(task(batch, LATER).loss, task(padded, LATER).loss)


def test_a_restored_task_goes_on_alike(make_task: MakeTask, make_batch: MakeBatch) -> None:
    task = make_task()
    for step in range(2):
        task.begin_step(START)
        task.finish_step(task(make_batch(seed=step), START).update)
    with torch.no_grad():
        task.student.text_projection.weight.mul_(1.1)
    other = make_task()
    other.load_state_dict(task.state_dict())
    for each in (task, other):
        each.begin_step(LATER)
    assert torch.equal(task(make_batch(seed=3), LATER).loss, other(make_batch(seed=3), LATER).loss)


def test_losses_are_float32_under_autocast(make_task: MakeTask, make_batch: MakeBatch) -> None:
    sampler = RecordingSampler()
    task, batch = make_task(sampler=sampler), make_batch()
    exact = task(batch, LATER)
    task.negative_sampler = lambda weights, position, wanted: sampler.drawn[wanted]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = task(batch, LATER)
    output.loss.backward()
    for name, term in output.terms.items():
        assert term.dtype == torch.float32
        torch.testing.assert_close(term, exact.terms[name], rtol=0.1, atol=0.1)


def test_a_student_without_the_head_is_refused(
    make_task: MakeTask, make_student: MakeStudent
) -> None:
    with pytest.raises(MissingHead, match="itm"):
        make_task(make_student(heads=("itc", "lm")))


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"losses": ()}, "losses"),
        ({"losses": ("itc", "mlm")}, "losses"),
        ({"negatives": "world"}, "negatives"),
        ({"negative_features": "queue"}, "negative_features"),
        ({"momentum": 1.5}, "momentum"),
        ({"alpha": -0.1}, "alpha"),
        ({"label_smoothing": 1.0}, "label_smoothing"),
        ({"queue_size": -1}, "queue_size"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(RecipeError, match=named):
        PretrainObjectives(**settings)


def test_a_prompt_is_continued_and_contrast_and_matching_do_not_see_it(
    make_student: MakeStudent, make_batch: MakeBatch, special: SpecialTokens
) -> None:
    student, batch = make_student(), make_batch()
    prompt = torch.tensor([[9, 11]]).expand(len(batch.ids), -1)
    prompted = replace(
        batch,
        tokens=torch.cat([batch.tokens[:, :1], prompt, batch.tokens[:, 1:]], dim=1),
        mask=torch.cat([torch.ones_like(prompt, dtype=torch.bool), batch.mask], dim=1),
    )
    objectives = PretrainObjectives(queue_size=10)
    plain = PretrainTask(student, special, objectives, seed=5)(batch, LATER)
    task = PretrainTask(student, special, objectives, seed=5, prompt_tokens=3)

    found = task(prompted, LATER)

    for loss in ("itc", "itm"):
        torch.testing.assert_close(found.terms[loss], plain.terms[loss])
    behind = CaptionerTask(student, special, prompt_tokens=3)(prompted, LATER)
    torch.testing.assert_close(found.terms["lm"], behind.loss.detach())
    assert not torch.isclose(found.terms["lm"], plain.terms["lm"])


def test_texts_lose_their_prompt_and_keep_their_width() -> None:
    texts = Texts(
        torch.tensor([[2, 8, 9, 7, 3, 0], [2, 8, 9, 6, 5, 3]]),
        torch.tensor([[True] * 5 + [False], [True] * 6]),
    )
    without = texts.without_prompt(3, pad=1)
    assert without.tokens.tolist() == [[2, 7, 3, 0, 1, 1], [2, 6, 5, 3, 1, 1]]
    assert without.mask.sum(dim=1).tolist() == [3, 4]
    assert texts.without_prompt(1, pad=1) is texts
    wider = texts.padded(8, pad=1)
    assert wider.tokens[:, 6:].tolist() == [[1, 1], [1, 1]]
    assert wider.mask.sum(dim=1).tolist() == [5, 6]


@pytest.mark.parametrize("width", [5, 8, 14])
def test_contrast_and_matching_see_one_text_and_the_decoder_writes_another(
    width: int, make_task: MakeTask, make_batch: MakeBatch
) -> None:
    """The other text is shorter, as long, or longer."""
    seen, other = make_batch(), make_batch(seed=1)
    tokens, mask = torch.full((6, width), 9), torch.ones(6, width, dtype=torch.bool)
    tokens[:, : min(width, 8)] = other.tokens[:, : min(width, 8)]
    mask[:, : min(width, 8)] = other.mask[:, : min(width, 8)]
    mask = mask.cummin(dim=1).values
    both = replace(seen, decoder_tokens=tokens, decoder_mask=mask)
    task = make_task()
    terms = task(both, LATER).terms
    of_seen = task(seen, LATER).terms
    of_written = task(replace(seen, tokens=tokens, mask=mask), LATER).terms
    torch.testing.assert_close(terms["itc"], of_seen["itc"])
    torch.testing.assert_close(terms["itm"], of_seen["itm"])
    torch.testing.assert_close(terms["lm"], of_written["lm"])
    assert not torch.isclose(terms["lm"], of_seen["lm"])
    alone = make_task(losses=("itc", "itm"))
    assert task(both, LATER).update is not None
    torch.testing.assert_close(alone(both, LATER).terms["itm"], of_seen["itm"])
