"""Names and configurations of `transformers` and ours: both ways, nothing lost or invented."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from openblip.batches.tokenizer import TextTokenizer
from openblip.checkpoints.huggingface import from_huggingface, to_huggingface
from openblip.checkpoints.huggingface_config import DEFAULTS, TIED, HuggingFaceKind
from openblip.model import Med, MedConfig
from openblip.model.vqa import Nlvr, NlvrConfig
from openblip.runtime.errors import CheckpointError, MissingHead

transformers = pytest.importorskip("transformers")

from .huggingface_peers import KINDS, peer  # noqa: E402

SEEDS = [0, 1, 2, 3]


class TestNames:
    @pytest.mark.parametrize("seed", SEEDS)
    @pytest.mark.parametrize("kind", KINDS)
    def test_there_and_back(
        self, tokenizer: TextTokenizer, kind: HuggingFaceKind, seed: int
    ) -> None:
        theirs = peer(kind, tokenizer, seed)
        checkpoint = from_huggingface(theirs.state_dict(), theirs.config.to_dict())
        assert checkpoint.kind == kind
        tensors, config = to_huggingface(checkpoint.model(), tokenizer.special)
        assert set(tensors) == set(theirs.state_dict())
        for key, tensor in theirs.state_dict().items():
            assert torch.equal(tensors[key], tensor), key
        assert from_huggingface(tensors, config).config == checkpoint.config

    def test_a_hidden_width_that_division_rounds(self, tokenizer: TextTokenizer) -> None:
        assert int(7 * (61 / 7)) == 60
        sizes = {"hidden_size": 7, "num_attention_heads": 1, "intermediate_size": 61}
        theirs = peer("caption", tokenizer, **sizes)
        checkpoint = from_huggingface(theirs.state_dict(), theirs.config.to_dict())
        _, config = to_huggingface(checkpoint.model(), tokenizer.special)
        assert config["vision_config"]["intermediate_size"] == 61

    def test_what_is_not_fused_is_not_copied(self, tokenizer: TextTokenizer) -> None:
        theirs = peer("caption", tokenizer).state_dict()
        checkpoint = from_huggingface(theirs, peer("caption", tokenizer).config.to_dict())
        addresses = {tensor.data_ptr() for tensor in theirs.values()}
        for name, tensor in checkpoint.model().state_dict().items():
            fused = ".text." not in name and (
                "causal_self_attention.qkv" in name or "key_value" in name
            )
            assert (tensor.data_ptr() in addresses) != fused, name

    def test_the_defaults_are_those_of_transformers(self) -> None:
        config = transformers.BlipConfig().to_dict()
        for part, fields in DEFAULTS.items():
            theirs = config[part] if part else config
            assert {field: theirs[field] for field in fields} == fields

    @pytest.mark.parametrize("kept", ["decoder.bias", "bias"])
    def test_tied_weights_may_be_stored_under_either_name(
        self, tokenizer: TextTokenizer, kept: str
    ) -> None:
        theirs = peer("caption", tokenizer)
        prefix = "text_decoder.cls.predictions."
        tensors = {
            key: tensor
            for key, tensor in theirs.state_dict().items()
            if not key.startswith(TIED) and key != f"{prefix}bias"
        }
        tensors[prefix + kept] = theirs.text_decoder.cls.predictions.bias
        checkpoint = from_huggingface(tensors, theirs.config.to_dict())
        assert torch.equal(checkpoint.state["text.lm_head.bias"], tensors[prefix + kept])
        assert checkpoint.dropped == {}

    def test_buffers_and_a_scale_that_older_versions_stored(self, tokenizer: TextTokenizer) -> None:
        theirs = peer("caption", tokenizer)
        tensors = theirs.state_dict() | {
            "text_decoder.bert.embeddings.position_ids": torch.arange(32)[None],
            "logit_scale": torch.tensor(2.6592),
        }
        dropped = from_huggingface(tensors, theirs.config.to_dict()).dropped
        assert {key: dropped[key] for key in tensors if key not in theirs.state_dict()} == {
            "text_decoder.bert.embeddings.position_ids": "the constant 0, 1, 2, ...",
            "logit_scale": "not part of a BlipForConditionalGeneration",
        }

    @pytest.mark.parametrize(
        ("key", "tensor", "message"),
        [
            (f"{TIED}weight", None, "decoder.weight differs from .*word_embeddings.weight"),
            (f"{TIED}bias", None, "decoder.bias differs from .*predictions.bias"),
            (
                "text_decoder.bert.embeddings.position_ids",
                torch.zeros(1, 32, dtype=torch.int64),
                "position_ids is not 0, 1, 2",
            ),
            ("vision_model.extra", torch.zeros(1), "unknown vision_model.extra"),
            ("vision_model.post_layernorm.bias", torch.zeros(3), r"bias has shape \(3,\)"),
        ],
    )
    def test_what_does_not_fit(
        self, tokenizer: TextTokenizer, key: str, tensor: Tensor | None, message: str
    ) -> None:
        theirs = peer("caption", tokenizer)
        state = theirs.state_dict()
        state[key] = state[key] + 1 if tensor is None else tensor
        with pytest.raises(CheckpointError, match=f"weights: .*{message}"):
            from_huggingface(state, theirs.config.to_dict(), "weights")

    def test_a_missing_key(self, tokenizer: TextTokenizer) -> None:
        theirs = peer("retrieval", tokenizer)
        state = theirs.state_dict()
        del state["itm_head.bias"]
        with pytest.raises(CheckpointError, match=r"weights: missing itm_head\.bias"):
            from_huggingface(state, theirs.config.to_dict(), "weights")

    def test_quantised_weights(self, tokenizer: TextTokenizer) -> None:
        theirs = peer("retrieval", tokenizer)
        state = theirs.state_dict()
        state["itm_head.bias"] = state["itm_head.bias"].to(torch.int8)
        with pytest.raises(CheckpointError, match=r"itm_head\.bias holds torch\.int8"):
            from_huggingface(state, theirs.config.to_dict())

    def test_weights_of_another_model(self) -> None:
        with pytest.raises(CheckpointError, match=r"no BLIP weights .* found qformer"):
            from_huggingface({"qformer.x": torch.zeros(1)}, {"model_type": "blip"})


class TestConfiguration:
    @pytest.mark.parametrize(
        ("part", "field", "value", "message"),
        [
            (
                "text_config",
                "hidden_act",
                "gelu_new",
                "text_config.hidden_act is 'gelu_new'; .*exact",
            ),
            (
                "vision_config",
                "hidden_act",
                "quick_gelu",
                "vision_config.hidden_act is 'quick_gelu'",
            ),
            ("text_config", "is_decoder", False, "text_config.is_decoder is False"),
            ("vision_config", "image_size", [32, 32], r"vision_config.image_size is \[32, 32\]"),
            ("vision_config", "image_size", 33, "not a multiple of vision.patch_size"),
            ("text_config", "num_attention_heads", 5, "text.heads 5"),
            ("text_config", "layer_norm_eps", "1e-12", "text_config.layer_norm_eps is '1e-12'"),
            ("", "auto_map", {"AutoModel": "x.Y"}, "auto_map asks to run code"),
            ("", "quantization_config", {"bits": 8}, "quantization_config is set"),
            ("", "model_type", "blip-2", "model_type is 'blip-2'; .*BlipForConditionalGeneration"),
            ("", "text_config", 3, "text_config is 3, expected an object"),
        ],
    )
    def test_what_is_refused(
        self, tokenizer: TextTokenizer, part: str, field: str, value: Any, message: str
    ) -> None:
        theirs = peer("caption", tokenizer)
        config = theirs.config.to_dict()
        (config[part] if part else config)[field] = value
        with pytest.raises(CheckpointError, match=f"there: .*{message}"):
            from_huggingface(theirs.state_dict(), config, config_source="there")

    @pytest.mark.parametrize("field", ["hidden_size", "vocab_size", "num_hidden_layers"])
    def test_sizes_are_checked_against_the_weights(
        self, tokenizer: TextTokenizer, field: str
    ) -> None:
        theirs = peer("caption", tokenizer)
        config = theirs.config.to_dict()
        config["text_config"][field] += config["text_config"]["num_attention_heads"]
        with pytest.raises(CheckpointError, match=r"weights: (missing )?text_decoder\."):
            from_huggingface(theirs.state_dict(), config, "weights")


class TestChoiceOfClass:
    def test_a_pretrained_model_needs_a_choice(self, med: Med, tokenizer: TextTokenizer) -> None:
        with pytest.raises(CheckpointError, match="caption and as retrieval"):
            to_huggingface(med, tokenizer.special)

    @pytest.mark.parametrize("kind", ["caption", "retrieval"])
    def test_a_part_of_a_pretrained_model(
        self, med: Med, tokenizer: TextTokenizer, kind: HuggingFaceKind
    ) -> None:
        tensors, config = to_huggingface(med, tokenizer.special, kind)
        read = from_huggingface(tensors, config)
        assert read.kind == kind
        for name, tensor in read.model().state_dict().items():
            assert torch.equal(tensor, med.state_dict()[name]), name

    def test_a_missing_head(self, config: MedConfig, tokenizer: TextTokenizer) -> None:
        captioner = Med(replace(config, heads=("lm",)))
        with pytest.raises(MissingHead, match="no itc head"):
            to_huggingface(captioner, tokenizer.special, "retrieval")

    @pytest.mark.parametrize("kind", ["vqa", "dual"])
    def test_a_class_of_another_model(
        self, med: Med, tokenizer: TextTokenizer, kind: HuggingFaceKind
    ) -> None:
        with pytest.raises(CheckpointError, match=f"Med cannot be written as a {kind}"):
            to_huggingface(med, tokenizer.special, kind)

    def test_models_without_a_class(self, config: MedConfig, tokenizer: TextTokenizer) -> None:
        nlvr = Nlvr(NlvrConfig(vision=config.vision, text=config.text))
        with pytest.raises(CheckpointError, match="no class for a model like Nlvr"):
            to_huggingface(nlvr, tokenizer.special)
        contrastive = Med(replace(config, heads=("itc",)))
        with pytest.raises(CheckpointError, match="heads itc alone"):
            to_huggingface(contrastive, tokenizer.special)
        shared = Med(replace(config, heads=("lm",), text=replace(config.text, sharing="all")))
        with pytest.raises(CheckpointError, match=r"text\.sharing 'all'"):
            to_huggingface(shared, tokenizer.special)
