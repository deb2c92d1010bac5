"""The host never waits for the device in a step: shown on tensors that have no content to ask for.

Whoever asks a tensor of the device "meta" for a number, or for how many places of a mask are true,
gets an error; and a copy from the host that would be waited for is noted.
"""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from openblip.batches.image_pairs import ImagePairBatch
from openblip.batches.loader import Batch
from openblip.batches.questions import QuestionBatch
from openblip.batches.step_loader import Examples
from openblip.batches.tokenizer import SpecialTokens
from openblip.model import Med, TextConfig, VisionConfig
from openblip.model.albef import Albef, AlbefConfig
from openblip.model.vqa import Nlvr, NlvrConfig, Vqa, VqaConfig
from openblip.objectives.albef import AlbefTask
from openblip.objectives.clip import ClipTask
from openblip.objectives.finetune import CaptionerTask, NlvrTask, VqaTask
from openblip.objectives.pretrain import FilterTask, PretrainTask
from openblip.objectives.settings import (
    AlbefObjectives,
    ClipObjectives,
    FilterObjectives,
    PretrainObjectives,
    VqaObjectives,
)
from openblip.objectives.task import AnyTask, StepPosition
from openblip.training.optimiser import build_optimiser, trained_parameters
from openblip.training.recipe import OptimiserConfig

DEVICE = torch.device("meta")
# Past the ramp of alpha: the teacher guesses masked words.
POSITION = StepPosition(step=3, epoch=5.0)
VISION = VisionConfig(image_size=32, patch_size=16, width=32, depth=2, heads=2)
TEXT = TextConfig(
    vocab_size=40, width=32, depth=3, heads=2, ffn_width=48, max_positions=16, dropout=0.1
)

MakeStudent = Callable[..., Med]
MakeBatch = Callable[..., Batch]


class Copies(TorchDispatchMode):
    """Notes copies from the host to the device for which the host waits."""

    def __init__(self) -> None:
        super().__init__()
        self.waited: list[str] = []
        self.sent = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        given = [each for each in args if isinstance(each, Tensor)]
        copies = func in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
        from_host = any(each.device.type == "cpu" for each in given)
        if copies and from_host and isinstance(out, Tensor) and out.device.type == "meta":
            self.sent += 1
            is_sent = (kwargs or {}).get("non_blocking") or (len(args) > 2 and args[2])
            if not is_sent:
                self.waited.append(f"{func}: {[tuple(each.shape) for each in given]}")
        return out


@dataclass
class TwoRanks:
    """Collectives of the first of two ranks, of which the other has the same tensors."""

    rank: int = 0
    world_size: int = 2

    def gather(self, tensor: Tensor) -> Tensor:
        return torch.cat([tensor.detach()] * 2)

    def gather_with_gradient(self, tensor: Tensor) -> Tensor:
        return torch.cat([tensor] * 2)


def step(task: AnyTask, batch: Examples) -> Copies:
    task = task.to(DEVICE).train()
    optimiser = build_optimiser(trained_parameters(task), OptimiserConfig(lr=1e-3))
    with Copies() as copies:
        moved = batch.to(DEVICE)
        assert moved.on_host is batch
        task.begin_step(POSITION)
        output = task(moved, POSITION)
        output.loss.backward()
        task.finish_step(output.update)
    optimiser.step()
    return copies


@pytest.fixture(autouse=True)
def _without_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    """This device has none, not even one that is switched off."""
    monkeypatch.setattr(torch, "autocast", lambda *given, **named: nullcontext())


@pytest.fixture(params=["alone", "two ranks"])
def collectives(request: pytest.FixtureRequest) -> TwoRanks | None:
    return None if request.param == "alone" else TwoRanks()


@pytest.mark.parametrize("prompt_tokens", [0, 3])
def test_pretraining(
    make_student: MakeStudent,
    make_batch: MakeBatch,
    special: SpecialTokens,
    collectives: TwoRanks | None,
    prompt_tokens: int,
) -> None:
    settings = PretrainObjectives(queue_size=12, negatives="all_ranks")
    task = PretrainTask(
        make_student(dropout=0.1), special, settings, 0, collectives, prompt_tokens=prompt_tokens
    )
    copies = step(task, make_batch())
    assert copies.waited == []
    # The batch, the draws of negatives and the places of the labels.
    assert copies.sent >= 5


def test_a_filter(
    make_student: MakeStudent,
    make_batch: MakeBatch,
    special: SpecialTokens,
    collectives: TwoRanks | None,
) -> None:
    settings = FilterObjectives(queue_size=12)
    task = FilterTask(make_student(heads=("itc", "itm")), special, settings, 0, collectives)
    assert step(task, make_batch()).waited == []


def test_a_captioner(
    make_student: MakeStudent, make_batch: MakeBatch, special: SpecialTokens
) -> None:
    task = CaptionerTask(make_student(heads=("lm",)), special, prompt_tokens=2)
    assert step(task, make_batch()).waited == []


def test_clip(
    make_student: MakeStudent, make_batch: MakeBatch, collectives: TwoRanks | None
) -> None:
    task = ClipTask(make_student(heads=("itc",)), ClipObjectives(), collectives)
    assert step(task, make_batch()).waited == []


def test_albef(make_batch: MakeBatch, special: SpecialTokens, collectives: TwoRanks | None) -> None:
    student = Albef(AlbefConfig(vision=VISION, text=TEXT, embed_dim=12, fusion_layer=1))
    task = AlbefTask(student, special, AlbefObjectives(queue_size=12), 0, collectives)
    assert step(task, make_batch()).waited == []


def test_questions(make_batch: MakeBatch) -> None:
    pairs, answers = make_batch(4), make_batch(6, seed=1)
    batch = QuestionBatch(
        ids=pairs.ids,
        images=pairs.images,
        tokens=pairs.tokens,
        mask=pairs.mask,
        answers=answers.tokens,
        answers_mask=answers.mask,
        question_of_answer=torch.tensor([0, 0, 1, 2, 2, 3]),
        weights=torch.ones(6),
        step=0,
    )
    student = Vqa(VqaConfig(vision=VISION, text=TEXT))
    assert step(VqaTask(student, VqaObjectives()), batch).waited == []


def test_sentences_about_two_images(make_batch: MakeBatch) -> None:
    pairs = make_batch(4)
    batch = ImagePairBatch(
        ids=pairs.ids,
        first_images=pairs.images,
        second_images=pairs.images,
        tokens=pairs.tokens,
        mask=pairs.mask,
        labels=torch.tensor([0, 1, 1, 0]),
        step=0,
    )
    student = Nlvr(NlvrConfig(vision=VISION, text=TEXT))
    assert step(NlvrTask(student), batch).waited == []
