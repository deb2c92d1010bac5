"""Every key of every released model, at full size, is converted or dropped for a stated reason.

The models are BLIP's, in all their kinds, and those of ALBEF for pre-training and retrieval.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from openblip.checkpoints.original import from_original, to_original
from openblip.model import Med, MedConfig, VisionConfig
from openblip.model.albef import AlbefConfig
from openblip.model.config import PresetName

pytestmark = pytest.mark.golden

HEADS = {
    "pretrain": ("itc", "itm", "lm"),
    "retrieval": ("itc", "itm"),
    "itm": ("itc", "itm"),
    "caption": ("lm",),
}
ALBEF_KINDS = ["albef_pretrain", "albef_retrieval"]
LISTS = [
    *(f"{kind}_{size}" for kind in HEADS for size in ("base", "large")),
    *("feature_extractor_base", "vqa_base", "nlvr_base"),
    *ALBEF_KINDS,
]
REFERENCES = ["pretrain", "retrieval", "itm", "caption", "towers", "vqa", "nlvr", *ALBEF_KINDS]

Keys = dict[str, tuple[int, ...]]


def listed(golden_dir: Path, name: str) -> dict[str, Tensor]:
    """A state dict without numbers."""
    path = golden_dir / "official_keys" / f"{name}.json"
    if not path.is_file():
        pytest.skip(f"key list not found: {path}")
    shapes = json.loads(path.read_text())
    return {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}


def keys_of(tensors: dict[str, Tensor]) -> Keys:
    return {key: tuple(tensor.shape) for key, tensor in tensors.items()}


def test_no_list_is_left_out(golden_dir: Path) -> None:
    found = {path.stem for path in (golden_dir / "official_keys").glob("*.json")}
    assert found <= set(LISTS)


@pytest.mark.parametrize("name", LISTS)
def test_every_key_and_shape_survives_the_way_there_and_back(golden_dir: Path, name: str) -> None:
    official = listed(golden_dir, name)
    checkpoint = from_original(official, name)
    assert checkpoint.kind == (name if name in ALBEF_KINDS else name.rsplit("_", 1)[0])
    teacher = None if checkpoint.teacher is None else checkpoint.teacher_model()
    back = to_original(
        checkpoint.model(), checkpoint.kind, teacher=teacher, queues=checkpoint.queues
    )
    assert keys_of(back) == keys_of(official)


@pytest.mark.parametrize("name", LISTS)
def test_what_is_dropped_is_dropped_for_a_reason(golden_dir: Path, name: str) -> None:
    official = listed(golden_dir, name)
    dropped = from_original(official, name).dropped
    assert set(dropped) <= set(official)
    for key, reason in dropped.items():
        if reason.startswith("tied to "):
            assert reason.removeprefix("tied to ") in set(official) - set(dropped)
        elif key.endswith(".position_ids"):
            assert reason == "the constant 0, 1, 2, ..."
        else:
            assert name not in ALBEF_KINDS
            assert key.startswith("text_encoder_m.encoder.layer.")
            assert ".crossattention." in key
            assert reason == "cross-attention of the teacher: updated, but never run"


@pytest.mark.parametrize("size", ["base", "large"])
@pytest.mark.parametrize("kind", HEADS)
def test_the_presets_have_the_released_sizes(golden_dir: Path, kind: str, size: PresetName) -> None:
    config = from_original(listed(golden_dir, f"{kind}_{size}")).config
    assert isinstance(config, MedConfig)
    preset = MedConfig.preset(size, image_size=224 if kind == "pretrain" else 384)
    assert (config.vision, config.text) == (preset.vision, preset.text)
    assert config.embed_dim == preset.embed_dim
    assert config.heads == HEADS[kind]


@pytest.mark.parametrize("kind", ALBEF_KINDS)
def test_the_default_sizes_of_albef_are_the_released_ones(golden_dir: Path, kind: str) -> None:
    config = from_original(listed(golden_dir, kind)).config
    if kind == "albef_pretrain":
        assert config == AlbefConfig()
    else:
        vision = VisionConfig(image_size=384)
        assert config == AlbefConfig(vision=vision, heads=("itc", "itm"))


@pytest.mark.parametrize("kind", ALBEF_KINDS)
def test_of_albef_only_repetitions_and_constants_are_dropped(golden_dir: Path, kind: str) -> None:
    """The momentum model's fusion layers are kept: pre-training runs them."""
    dropped = from_original(listed(golden_dir, kind)).dropped
    expected: dict[str, str] = {}
    for encoder in ("text_encoder", "text_encoder_m"):
        bert = f"{encoder}.bert" if kind == "albef_pretrain" else encoder
        expected[f"{bert}.embeddings.position_ids"] = "the constant 0, 1, 2, ..."
        if kind == "albef_pretrain":
            head = f"{encoder}.cls.predictions"
            words = f"{bert}.embeddings.word_embeddings.weight"
            expected[f"{head}.decoder.weight"] = f"tied to {words}"
            expected[f"{head}.decoder.bias"] = f"tied to {head}.bias"
    assert dropped == expected


@pytest.mark.parametrize("name", REFERENCES)
def test_every_number_of_a_reference_survives_the_way_there_and_back(
    golden: Callable[[str], Any], name: str
) -> None:
    reference = golden(name)
    checkpoint = reference.checkpoint
    teacher = None if checkpoint.teacher is None else reference.teacher()
    back = to_original(
        reference.model(), checkpoint.kind, teacher=teacher, queues=checkpoint.queues
    )
    assert keys_of(back) == keys_of(reference.state_dict)
    unused = "text_encoder_m.encoder.layer.*.crossattention.*"
    for key, tensor in reference.state_dict.items():
        if name in ALBEF_KINDS or not Path(key).match(unused):
            assert torch.equal(back[key], tensor), key


def test_the_dropped_cross_attention_of_the_teacher_is_written_as_the_students(
    golden: Callable[[str], Any],
) -> None:
    reference = golden("pretrain")
    back = to_original(reference.med(), "pretrain", teacher=reference.teacher())
    key = "encoder.layer.0.crossattention.self.query.weight"
    assert torch.equal(back[f"text_encoder_m.{key}"], back[f"text_encoder.{key}"])


def test_a_pretrained_model_can_be_written_as_each_of_its_parts(
    golden: Callable[[str], Any],
) -> None:
    reference = golden("pretrain")
    whole = reference.state_dict
    for kind in ("itm", "caption", "feature_extractor"):
        part = to_original(reference.med(), kind)
        assert set(part) < set(whole)
        for key, tensor in part.items():
            assert torch.equal(tensor, whole[key]), key
        heads = (reference.vision_config.heads, reference.text_config.heads)
        read = from_original(part, kind, vision_heads=heads[0], text_heads=heads[1])
        assert read.kind == kind
        assert isinstance(read.model(), Med)
