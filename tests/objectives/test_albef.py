"""ALBEF's step: what it computes is in the golden tests; here, what it is made of."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from openblip.batches.loader import Batch
from openblip.batches.tokenizer import SpecialTokens
from openblip.model import TextConfig, VisionConfig
from openblip.model.albef import Albef, AlbefConfig
from openblip.objectives.albef import AlbefObjectives, AlbefTask
from openblip.objectives.task import StepPosition
from openblip.runtime.errors import MissingHead, RecipeError

CONFIG = AlbefConfig(
    vision=VisionConfig(image_size=32, patch_size=16, width=24, depth=2, heads=2),
    text=TextConfig(
        vocab_size=40, width=32, depth=3, heads=2, ffn_width=48, max_positions=16, dropout=0.0
    ),
    embed_dim=12,
    fusion_layer=1,
)
START = StepPosition(0, 0.0)

MakeBatch = Callable[..., Batch]


def make_task(special: SpecialTokens, **objectives: object) -> AlbefTask:
    torch.manual_seed(0)
    settings = AlbefObjectives(**{"queue_size": 12, **objectives})
    return AlbefTask(Albef(replace(CONFIG, heads=settings.losses)), special, settings, seed=0)


@pytest.mark.parametrize("losses", [("itc",), ("itc", "itm"), ("itc", "itm", "mlm")])
def test_the_loss_is_the_sum_of_those_that_are_named(
    special: SpecialTokens, make_batch: MakeBatch, losses: tuple[str, ...]
) -> None:
    output = make_task(special, losses=losses)(make_batch(), START)
    assert set(output.terms) == {*losses, "temperature"}
    total = sum(output.terms[name] for name in losses)
    torch.testing.assert_close(output.loss.detach(), total)


def test_a_step_learns_every_weight_and_nothing_of_the_teacher(
    special: SpecialTokens, make_batch: MakeBatch
) -> None:
    task = make_task(special)
    task(make_batch(), START).loss.backward()
    assert all(p.grad is not None for p in task.student.parameters())
    assert all(p.grad is None for p in task.teacher.parameters())


def test_the_same_position_hides_the_same_words_and_another_one_others(
    special: SpecialTokens, make_batch: MakeBatch
) -> None:
    task = make_task(special, mask_probability=0.5)
    batch = make_batch()
    losses = [
        task(batch, StepPosition(step, 0.0, micro)).terms["mlm"].item()
        for step, micro in ((0, 0), (0, 0), (1, 0), (0, 1))
    ]
    assert losses[0] == losses[1]
    assert len(set(losses)) == 3


def test_the_teacher_guesses_the_hidden_words_once_alpha_has_risen(
    special: SpecialTokens, make_batch: MakeBatch
) -> None:
    task, batch = make_task(special, mask_probability=0.5), make_batch()
    at_start, later = (task(batch, StepPosition(0, epoch)).terms["mlm"] for epoch in (0.0, 1.0))
    assert not torch.equal(at_start, later)
    without = make_task(special, mask_probability=0.5, alpha=0.0)
    torch.testing.assert_close(without(batch, StepPosition(0, 1.0)).terms["mlm"], at_start)


class TwoAlike:
    """Two ranks that have the same batch, as the first of them sees it."""

    rank, world_size = 0, 2

    def gather(self, tensor: Tensor) -> Tensor:
        return torch.cat([tensor, tensor])

    gather_with_gradient = gather


def test_a_step_in_which_no_rank_hides_a_word_has_no_loss_of_words(
    special: SpecialTokens, make_batch: MakeBatch
) -> None:
    settings = AlbefObjectives(
        queue_size=12, losses=("itc", "mlm"), negatives="all_ranks", mask_probability=1e-9
    )
    student = Albef(replace(CONFIG, heads=settings.losses))
    output = AlbefTask(student, special, settings, 0, TwoAlike())(make_batch(), START)
    assert output.terms["mlm"] == 0.0
    assert output.loss.isfinite()


def test_a_forward_changes_nothing(special: SpecialTokens, make_batch: MakeBatch) -> None:
    task = make_task(special)
    before = {name: value.clone() for name, value in task.state_dict().items()}
    task(make_batch(), START)
    assert all(torch.equal(value, before[name]) for name, value in task.state_dict().items())


def test_a_missing_head_and_losses_that_do_not_go_together_are_refused(
    special: SpecialTokens,
) -> None:
    retrieval = Albef(replace(CONFIG, heads=("itc", "itm")))
    with pytest.raises(MissingHead, match="mlm"):
        AlbefTask(retrieval, special, AlbefObjectives(queue_size=4), seed=0)
    with pytest.raises(RecipeError, match="itc"):
        AlbefObjectives(losses=("itm", "mlm"))
    with pytest.raises(RecipeError, match="mask_probability"):
        AlbefObjectives(mask_probability=1.0)
