"""Adapters of peft: added to their base as peft does it, or refused with the way to merge them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from openblip.data.tokenizer import TextTokenizer
from openblip.errors import CheckpointError
from openblip.interop.huggingface_folder import read_huggingface, save_huggingface
from openblip.interop.reading import read_model
from openblip.interop.sources import find_model, model_fingerprint
from openblip.model import Med

QUERY = "text_decoder.bert.encoder.layer.0.attention.self.query"
PATCHES = "vision_model.embeddings.patch_embedding"
WORDS = "text_decoder.bert.embeddings.word_embeddings"
NORM = "vision_model.post_layernorm"


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.fixture
def base(tmp_path: Path, med: Med, tokenizer: TextTokenizer) -> Path:
    save_huggingface(tmp_path / "base", med, tokenizer, "caption")
    return tmp_path / "base"


def write_adapter(folder: Path, base: str, tensors: dict[str, Tensor], **config: Any) -> Path:
    folder.mkdir()
    values = {
        "peft_type": "LORA",
        "base_model_name_or_path": base,
        "r": 2,
        "lora_alpha": 6,
        "use_rslora": False,
        "use_dora": False,
        "fan_in_fan_out": False,
    }
    (folder / "adapter_config.json").write_text(json.dumps(values | config))
    save_file(
        {f"base_model.model.{k}": t for k, t in tensors.items()},
        folder / "adapter_model.safetensors",
    )
    return folder


def of_layer(name: str, out: int, into: int) -> dict[str, Tensor]:
    return {f"{name}.lora_A.weight": drawn(2, into), f"{name}.lora_B.weight": drawn(out, 2)}


def test_a_model_with_its_changes(base: Path, tmp_path: Path, tokenizer: TextTokenizer) -> None:
    weights = load_file(base / "model.safetensors")
    vocab = tokenizer.vocab_size
    changes = {
        **of_layer(QUERY, 128, 128),
        f"{PATCHES}.lora_A.weight": drawn(2, 3, 16, 16),
        f"{PATCHES}.lora_B.weight": drawn(64, 2, 1, 1),
        f"{WORDS}.lora_embedding_A": drawn(2, vocab),
        f"{WORDS}.lora_embedding_B": drawn(128, 2),
        f"{NORM}.modules_to_save.weight": drawn(64),
    }
    adapter = write_adapter(tmp_path / "adapter", "../base", changes, alpha_pattern={"query": 4})
    state = read_huggingface(adapter).model.state_dict()

    expected = weights[f"{QUERY}.weight"] + 4 / 2 * drawn(128, 2) @ drawn(2, 128)
    read = state["text.layers.0.causal_self_attention.qkv.weight"][:128]
    torch.testing.assert_close(read, expected)
    patches = drawn(64, 2, 1, 1).flatten(1) @ drawn(2, 3, 16, 16).flatten(1) * 3
    torch.testing.assert_close(
        state["image_encoder.patch_embed.weight"],
        weights[f"{PATCHES}.weight"] + patches.view(64, 3, 16, 16),
    )
    words = weights[f"{WORDS}.weight"] + 3 * (drawn(128, 2) @ drawn(2, vocab)).T
    torch.testing.assert_close(state["text.embeddings.word.weight"], words)
    assert torch.equal(state["image_encoder.norm.weight"], drawn(64))


def test_it_is_found_and_has_a_fingerprint_of_its_own(base: Path, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter", str(base), of_layer(QUERY, 128, 128))
    assert find_model(adapter) == adapter
    assert read_model(adapter).kind == "captioner"
    assert model_fingerprint(adapter) != model_fingerprint(base)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"peft_type": "IA3"}, r"kind 'IA3', which is not merged here; .*\.merge_and_unload"),
        ({"use_dora": True}, "kind 'use_dora'"),
        ({"base_model_name_or_path": None}, "does not name its base"),
        ({"base_model_name_or_path": "nowhere"}, "an adapter whose base is not there: nowhere"),
        ({"base_model_name_or_path": "."}, "is no model of transformers|base is not there"),
        ({"lora_alpha": "many"}, "lora_alpha is 'many'"),
        ({"alpha_pattern": {"(": 1}}, "alpha_pattern is"),
        ({"alpha_pattern": [3]}, "alpha_pattern is"),
    ],
)
def test_what_cannot_be_added_is_named(
    base: Path, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    adapter = write_adapter(tmp_path / "adapter", str(base), of_layer(QUERY, 128, 128), **settings)
    with pytest.raises(CheckpointError, match=message):
        read_model(adapter)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (of_layer("text_decoder.bert.pooler", 128, 128), "changes nothing that the base has"),
        ({f"{QUERY}.lora_A.weight": drawn(2, 128)}, "changes nothing"),
        ({f"{QUERY}.lora_magnitude_vector.weight": drawn(2)}, "changes nothing"),
        (of_layer(QUERY, 128, 64), "does not fit a weight of shape"),
        ({f"{NORM}.weight": drawn(3)}, r"has shape \(3,\)"),
        ({"extra.weight": drawn(3)}, "changes nothing"),
    ],
)
def test_changes_of_another_base(
    base: Path, tmp_path: Path, tensors: dict[str, Tensor], message: str
) -> None:
    adapter = write_adapter(tmp_path / "adapter", str(base), tensors)
    with pytest.raises(CheckpointError, match=rf"adapter_model\.safetensors: .*{message}"):
        read_model(adapter)


def test_an_adapter_without_weights(base: Path, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter", str(base), {})
    (adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="an adapter without weights"):
        read_model(adapter)
