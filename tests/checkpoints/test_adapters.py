"""Adapters of peft: added to their base as peft does it, or refused with the way to merge them."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from openblip.batches.tokenizer import TextTokenizer
from openblip.checkpoints.huggingface import read_huggingface, save_huggingface
from openblip.checkpoints.reading import find_model, model_fingerprint, read_model
from openblip.model import Med
from openblip.runtime.errors import CheckpointError

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
        ({"use_dora": True}, "kind use_dora"),
        ({"use_qalora": True}, "kind use_qalora"),
        ({"of_a_later_version": [1]}, "kind of_a_later_version"),
        ({"init_lora_weights": "pissa_niter_4"}, "kind init_lora_weights 'pissa_niter_4'"),
        ({"init_lora_weights": "olora"}, "'olora'"),
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


def test_the_first_pattern_that_fits_says_alpha(base: Path, tmp_path: Path) -> None:
    patterns = {"layer.0.attention.self.query": 8, "query": 2}
    adapter = write_adapter(
        tmp_path / "adapter", str(base), of_layer(QUERY, 128, 128), alpha_pattern=patterns
    )
    weight = load_file(base / "model.safetensors")[f"{QUERY}.weight"]
    state = read_huggingface(adapter).model.state_dict()
    read = state["text.layers.0.causal_self_attention.qkv.weight"][:128]
    torch.testing.assert_close(read, weight + 8 / 2 * drawn(128, 2) @ drawn(2, 128))


@pytest.mark.parametrize("own_base", ["../base", "."])
def test_an_adapter_beside_a_model_counts_before_it(
    base: Path, tmp_path: Path, own_base: str
) -> None:
    """The base that it names may be the model beside it."""
    changes = of_layer(QUERY, 128, 128)
    alone = write_adapter(tmp_path / "alone", str(base), changes)
    both = shutil.copytree(base, tmp_path / "both")
    for file in write_adapter(tmp_path / "adapter", own_base, changes).iterdir():
        shutil.copy(file, both)
    state, expected = (read_model(place).model.state_dict() for place in (both, alone))
    assert all(torch.equal(state[key], expected[key]) for key in expected)
    assert model_fingerprint(both) != model_fingerprint(base)


def test_an_adapter_of_an_adapter_is_refused(base: Path, tmp_path: Path) -> None:
    first = shutil.copytree(base, tmp_path / "first")
    changes = of_layer(QUERY, 128, 128)
    for file in write_adapter(tmp_path / "a", str(base), changes).iterdir():
        shutil.copy(file, first)
    second = write_adapter(tmp_path / "second", str(first), changes)
    with pytest.raises(CheckpointError, match="is an adapter itself"):
        read_model(second)


def test_an_adapter_without_weights(base: Path, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter", str(base), {})
    (adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="an adapter without weights"):
        read_model(adapter)


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ["query", "value"]},
        {
            "target_modules": ["query", "key", "projection"],
            "alpha_pattern": {"layer.0.attention.self.query": 64, "query": 16},
            "rank_pattern": {"key": 3},
        },
        {
            "target_modules": ["qkv", "fc1", "patch_embedding", "word_embeddings"],
            "use_rslora": True,
        },
        {"target_modules": ["query"], "bias": "lora_only", "modules_to_save": ["post_layernorm"]},
    ],
    ids=["plain", "patterns", "rslora", "biases"],
)
@pytest.mark.filterwarnings("ignore")
def test_it_is_what_peft_merges(base: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    peft = pytest.importorskip("peft")
    from transformers import BlipForConditionalGeneration

    theirs = BlipForConditionalGeneration.from_pretrained(base)
    changed = peft.get_peft_model(theirs, peft.LoraConfig(r=4, lora_alpha=8, **settings))
    with torch.no_grad():
        for number, (_, weight) in enumerate(changed.named_parameters()):
            if weight.requires_grad:
                weight.add_(0.1 * drawn(*weight.shape) + number / 1000)
    changed.save_pretrained(tmp_path / "adapter")
    merged = shutil.copytree(base, tmp_path / "merged")
    loaded = BlipForConditionalGeneration.from_pretrained(base)
    peft.PeftModel.from_pretrained(loaded, tmp_path / "adapter").merge_and_unload().save_pretrained(
        merged
    )
    state, expected = (read_model(p).model.state_dict() for p in (tmp_path / "adapter", merged))
    for key, tensor in expected.items():
        torch.testing.assert_close(state[key], tensor)
