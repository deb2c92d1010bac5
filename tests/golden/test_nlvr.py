"""Predictions about two images are the original's."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from openblip.model.vqa import Nlvr
from openblip.objectives.finetune import ImagePairBatch, NlvrTask
from openblip.objectives.task import StepPosition

pytestmark = pytest.mark.golden

TOLERANCE = 2e-5


@pytest.fixture(scope="module")
def nlvr(golden: Callable[[str], Any]) -> Any:
    return golden("nlvr")


def predict(nlvr: Any, model: Nlvr) -> Tensor:
    first, second = model.encode_images(nlvr["image"]).chunk(2)
    mask = nlvr.mask("attention_mask")
    return model.compare(nlvr["input_ids"], mask, model.memory(first, second))


@torch.no_grad()
def test_prediction(nlvr: Any) -> None:
    assert nlvr.error(predict(nlvr, nlvr.model().eval()), "prediction_eval") < TOLERANCE


@torch.no_grad()
def test_state_that_is_classified(nlvr: Any) -> None:
    model = nlvr.model().eval()
    states: list[Tensor] = []
    model.text.register_forward_hook(lambda _module, _args, output: states.append(output[0][:, 0]))
    predict(nlvr, model)
    assert nlvr.error(states[0], "hidden_state") < TOLERANCE


def test_loss_and_gradient_of_the_task(nlvr: Any) -> None:
    task = NlvrTask(nlvr.model().train())
    assert nlvr.error(predict(nlvr, task.student), "prediction") < TOLERANCE
    first, second = nlvr["image"].chunk(2)
    batch = ImagePairBatch(
        ids=("",) * len(first),
        first_images=first,
        second_images=second,
        tokens=nlvr["input_ids"],
        mask=nlvr.mask("attention_mask"),
        labels=nlvr["targets"],
        step=0,
    )
    output = task(batch, StepPosition(0, 0.0))
    assert output.loss.item() == pytest.approx(nlvr.json["loss"], rel=TOLERANCE)
    output.loss.backward()
    gradients = {name: parameter.grad for name, parameter in task.student.named_parameters()}
    assert nlvr.worst_gradient_norm_error(gradients, nlvr.json["grad_norm"]) < 1e-4
    assert nlvr.worst_gradient_error(gradients) < 1e-4


def test_the_first_merging_layer_is_told_by_the_keys(nlvr: Any) -> None:
    assert nlvr.converted.config.merge_from_layer == nlvr.json["merge_from_layer"]
