"""Every key of transformers' full-size models is converted or dropped for a stated reason."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from openblip.batches.tokenizer import SpecialTokens
from openblip.checkpoints.huggingface import from_huggingface, to_huggingface
from openblip.checkpoints.huggingface_config import CLASSES, TIED
from openblip.checkpoints.original import from_original, to_original
from openblip.model.vqa import VqaConfig

pytestmark = pytest.mark.golden

KINDS = {CLASSES[kind]: kind for kind in ("caption", "retrieval", "vqa")}
# Its decoder expects states of 1024 channels where the question has 768: it can be built, not run.
BROKEN = "BlipForQuestionAnswering_large"
LISTS = [f"{name}_{size}" for name in KINDS for size in ("base", "large")]
# bert-base-uncased with [DEC] and [ENC].
BERT = SpecialTokens(pad=0, unk=100, cls=101, sep=102, mask=103, dec=30522, enc=30523)
TINY = SpecialTokens(pad=0, unk=1, cls=2, sep=3, mask=4, dec=221, enc=222)
VISION = {
    "base": {},
    "large": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
    },
}


def listed(golden_dir: Path, name: str) -> dict[str, Tensor]:
    """A state dict without numbers."""
    path = golden_dir / "hf_keys" / f"{name}.json"
    if not path.is_file():
        pytest.skip(f"key list not found: {path}")
    shapes = json.loads(path.read_text())
    return {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}


def config_of(name: str) -> dict[str, Any]:
    """The `config.json` of a list: the defaults, but for the sizes of the large image encoder."""
    architecture, size = name.split("_")
    return {
        "architectures": [architecture],
        "model_type": "blip",
        "vision_config": VISION[size],
        "text_config": {"num_attention_heads": 12},
    }


def keys_of(tensors: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(tensor.shape) for key, tensor in tensors.items()}


def test_no_list_is_left_out(golden_dir: Path) -> None:
    assert {path.stem for path in (golden_dir / "hf_keys").glob("*.json")} <= set(LISTS)


def test_a_model_that_cannot_be_run_can_still_be_converted(golden_dir: Path) -> None:
    config = from_huggingface(listed(golden_dir, BROKEN), config_of(BROKEN), BROKEN).config
    assert isinstance(config, VqaConfig)
    assert (config.answer_memory_width, config.text.width) == (1024, 768)


@pytest.mark.parametrize("name", LISTS)
def test_every_key_and_shape_survives_the_way_there_and_back(golden_dir: Path, name: str) -> None:
    theirs = listed(golden_dir, name)
    checkpoint = from_huggingface(theirs, config_of(name), name)
    assert checkpoint.kind == KINDS[name.split("_")[0]]
    back, config = to_huggingface(checkpoint.model(), BERT)
    assert keys_of(back) == keys_of(theirs)
    again = from_huggingface(back, config, name)
    assert again.config == checkpoint.config


@pytest.mark.parametrize("name", LISTS)
def test_what_is_dropped_is_the_tied_output_layer(golden_dir: Path, name: str) -> None:
    theirs = listed(golden_dir, name)
    dropped = from_huggingface(theirs, config_of(name), name).dropped
    assert set(dropped) == {key for key in theirs if key.startswith(TIED)}
    for reason in dropped.values():
        assert reason.removeprefix("tied to ") in set(theirs) - set(dropped)


@pytest.mark.parametrize("name", ["caption", "itm", "vqa"])
def test_original_ours_hugging_face_ours_original_changes_no_bit(
    golden: Callable[[str], Any], name: str
) -> None:
    reference = golden(name)
    tensors, config = to_huggingface(reference.model(), TINY)
    through = from_huggingface(tensors, json.loads(json.dumps(config)), name)
    heads = {
        "vision_heads": through.config.vision.heads,
        "text_heads": through.config.text.heads,
    }
    back = to_original(through.model(), name)
    assert keys_of(back) == keys_of(reference.state_dict)
    for key, tensor in reference.state_dict.items():
        assert torch.equal(back[key], tensor), key
    expected = reference.checkpoint.config
    # Stochastic depth is part of a training run there, not of a model.
    assert through.config.vision == replace(expected.vision, drop_path=0.0)
    assert through.config.text == expected.text
    assert from_original(back, name, **heads).kind == name


def test_a_pretrained_model_is_written_as_both_of_its_parts(golden: Callable[[str], Any]) -> None:
    med = golden("pretrain").med()
    state = med.state_dict()
    seen = set()
    for kind in ("caption", "retrieval"):
        tensors, config = to_huggingface(med, TINY, kind)
        part = from_huggingface(tensors, config, kind).model().state_dict()
        for name, tensor in part.items():
            assert torch.equal(tensor, state[name]), name
        seen |= set(part)
    assert seen == set(state)
