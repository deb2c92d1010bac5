"""Weights are found in whatever training programs put around them, or what is there is named."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from openblip.checkpoints.original import from_original, read_original, to_original
from openblip.checkpoints.pickled import plain_names
from openblip.model import Med
from openblip.runtime.errors import CheckpointError, OpenBlipWarning

State = dict[str, Tensor]


@pytest.fixture
def original(med: Med) -> State:
    return to_original(med, "caption")


def prefixed(state: State, prefix: str) -> State:
    return {f"{prefix}{key}": tensor for key, tensor in state.items()}


def sharded(state: State) -> State:
    """As FullyShardedDataParallel names what it has wrapped, layer by layer."""
    named = {
        key.replace("blocks.0.", "blocks.0._fsdp_wrapped_module."): t for key, t in state.items()
    }
    named = {
        key.replace("layer.1.", "layer.1._checkpoint_wrapped_module."): named[key] for key in named
    }
    return prefixed(named, "_fsdp_wrapped_module.")


WRAPPED: dict[str, Callable[[State], Any]] = {
    "state_dict": lambda s: {"state_dict": s, "epoch": 3},
    "model in state_dict": lambda s: {"state_dict": {"model": s}},
    "model_state_dict": lambda s: {"model_state_dict": s, "optimizer_state_dict": {"state": {}}},
    "DataParallel": lambda s: prefixed(s, "module."),
    "torch.compile": lambda s: prefixed(s, "_orig_mod."),
    "DataParallel of a compiled one": lambda s: {"model": prefixed(s, "module._orig_mod.")},
    "a compiled DataParallel": lambda s: prefixed(s, "_orig_mod.module."),
    "FullyShardedDataParallel": sharded,
    "Lightning": lambda s: {
        "epoch": 1,
        "pytorch-lightning_version": "2.0",
        "state_dict": prefixed(s, "model."),
        "hyper_parameters": {"lr": 1e-4},
    },
    "Lightning, compiled": lambda s: {"state_dict": prefixed(s, "net.blip._orig_mod.")},
    "DeepSpeed": lambda s: {"module": s, "ds_version": "0.14", "lr_scheduler": None},
    "a running mean beside": lambda s: {"model": s, "ema": {k: t + 1 for k, t in s.items()}},
    "the running mean alone": lambda s: {"ema_state_dict": s},
    "numpy's numbers beside": lambda s: {
        "model": s,
        "best": np.float64(0.5),
        "step": np.int64(3),
        "loss": np.float32(1.5),
    },
    "arguments beside": lambda s: {"model": s, "args": argparse.Namespace(lr=0.1, out="x")},
}


@pytest.mark.parametrize("wrapper", WRAPPED)
def test_the_weights_are_found(tmp_path: Path, original: State, wrapper: str) -> None:
    path = tmp_path / "model.pth"
    torch.save(WRAPPED[wrapper](original), path)
    read = read_original(path)
    assert set(read) == set(original)
    assert all(torch.equal(read[key], tensor) for key, tensor in original.items())


def test_what_stands_beside_the_model_is_said(original: State) -> None:
    around = {**prefixed(original, "model."), "criterion.weight": torch.ones(2)}
    with pytest.warns(OpenBlipWarning, match=r"those in model\.\*; left out: criterion\.weight"):
        assert set(plain_names(around, "x.ckpt")) == set(original)


def test_a_running_mean_in_the_same_dictionary_is_not_the_model(original: State) -> None:
    mean = {key: tensor + 1 for key, tensor in prefixed(original, "model_ema.").items()}
    with pytest.warns(OpenBlipWarning, match=r"left out: model_ema\..* and \d+ more"):
        read = plain_names({**mean, **prefixed(original, "model.")}, "x.ckpt")
    assert all(torch.equal(read[key], tensor) for key, tensor in original.items())


@pytest.mark.parametrize(
    ("wrap", "message"),
    [
        (lambda s: {**prefixed(s, "a."), **prefixed(s, "b.")}, r"several models, a\., b\.; save"),
        (lambda s: {**s, **prefixed(s, "module.")}, r"twice, once as module\."),
        (lambda s: {**s, "x.lora_A.weight": torch.ones(2)}, "LoRA.*merge_and_unload"),
    ],
)
def test_what_is_not_one_model_is_refused(
    original: State, wrap: Callable[[State], State], message: str
) -> None:
    with pytest.raises(CheckpointError, match=rf"x\.ckpt: holds .*{message}"):
        plain_names(wrap(original), "x.ckpt")


def test_a_whole_pickled_module_is_refused_by_its_name(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "whole.pth")
    with pytest.raises(
        CheckpointError, match=r"torch\.nn\..*Linear, .* save model\.state_dict"
    ) as e:
        read_original(tmp_path / "whole.pth")
    assert "weights_only" not in str(e.value)


@pytest.mark.parametrize("kind", ["pretrain", "retrieval"])
@pytest.mark.parametrize("without", ["momentum and queues", "queues", "momentum"])
def test_the_student_is_enough(med: Med, kind: Any, without: str) -> None:
    written = to_original(med, kind)
    if "momentum" in without:
        written = {k: t for k, t in written.items() if not k.split(".")[0].endswith("_m")}
    if "queues" in without:
        written = {k: t for k, t in written.items() if "queue" not in k}
    read = from_original(written, "x.pth")
    assert (read.teacher is None) == ("momentum" in without)
    assert (read.queues is None) == ("queues" in without)
    state = read.med().state_dict()
    expected = med.state_dict()
    assert all(torch.equal(state[name], expected[name]) for name in state)


def test_a_part_of_the_momentum_model_is_still_an_error(med: Med) -> None:
    written = to_original(med, "pretrain")
    del written["visual_encoder_m.cls_token"]
    with pytest.raises(CheckpointError, match=r"missing visual_encoder_m\.cls_token"):
        from_original(written, "x.pth")
