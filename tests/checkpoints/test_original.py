"""Names of the original BLIP and ours: both ways, nothing lost, nothing invented."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from openblip.checkpoints.original import (
    OriginalQueues,
    from_original,
    to_original,
)
from openblip.checkpoints.original_layout import Kind
from openblip.model import Med, MedConfig
from openblip.model.dual import DualConfig, DualEncoder
from openblip.model.vqa import Nlvr, NlvrConfig, Vqa, VqaConfig
from openblip.runtime.errors import CheckpointError, MissingHead

from ..original_gradients import export_gradients

SELF_ATTENTION = "text_encoder.encoder.layer.1.attention.self"


@pytest.fixture
def teacher(config: MedConfig) -> Med:
    return Med(replace(config, heads=("itc",)))


@pytest.fixture
def queues() -> OriginalQueues:
    images, texts = torch.randn(2, 10, 16, generator=torch.Generator().manual_seed(1))
    return OriginalQueues(images, texts, pointer=4, image_ids=torch.arange(10))


@pytest.fixture
def original(med: Med, teacher: Med, queues: OriginalQueues) -> dict[str, Tensor]:
    return to_original(med, "pretrain", teacher=teacher, queues=queues)


def assert_same(state: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert set(state) == set(expected)
    for name, tensor in expected.items():
        assert torch.equal(state[name], tensor), name


class TestThereAndBack:
    def test_the_student(self, med: Med, original: dict[str, Tensor]) -> None:
        assert_same(from_original(original).student, med.state_dict())

    def test_the_teacher(self, med: Med, teacher: Med, original: dict[str, Tensor]) -> None:
        read = from_original(original).teacher_model()
        expected = teacher.state_dict() | {"temperature": med.temperature}
        assert_same(read.state_dict(), expected)

    @pytest.mark.parametrize("kind", ["pretrain", "retrieval"])
    def test_the_queues(self, med: Med, queues: OriginalQueues, kind: Kind) -> None:
        read = from_original(to_original(med, kind, queues=queues)).queues
        assert read is not None
        assert torch.equal(read.image_embed, queues.image_embed)
        assert torch.equal(read.text_embed, queues.text_embed)
        assert read.pointer == 4
        if kind == "retrieval":
            assert read.image_ids is not None
            assert torch.equal(read.image_ids, torch.arange(10))
        else:
            assert read.image_ids is None

    @pytest.mark.parametrize("kind", ["pretrain", "retrieval", "itm", "caption"])
    def test_every_kind_is_recognised(self, med: Med, queues: OriginalQueues, kind: Kind) -> None:
        checkpoint = from_original(to_original(med, kind, queues=queues))
        assert checkpoint.kind == kind
        for name, tensor in checkpoint.student.items():
            if name != "temperature":
                assert torch.equal(tensor, med.state_dict()[name])

    @pytest.mark.parametrize("model", ["vqa", "nlvr"])
    def test_the_models_that_are_no_med(self, config: MedConfig, model: str) -> None:
        sizes: dict[str, Any] = {"vision": config.vision, "text": config.text}
        ours = (
            Vqa(VqaConfig(**sizes))
            if model == "vqa"
            else Nlvr(NlvrConfig(**sizes, merge_from_layer=1))
        )
        checkpoint = from_original(to_original(ours))
        assert checkpoint.kind == model
        assert_same(checkpoint.student, ours.state_dict())
        assert_same(checkpoint.model().state_dict(), ours.state_dict())
        with pytest.raises(CheckpointError, match=f"a checkpoint of the kind {model}"):
            checkpoint.med()

    def test_sizes_are_told_by_the_shapes(
        self, config: MedConfig, original: dict[str, Tensor]
    ) -> None:
        assert from_original(original).config == config

    def test_the_read_model_computes_what_the_written_one_does(
        self, med: Med, original: dict[str, Tensor]
    ) -> None:
        images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(2))
        read = from_original(original).med()
        assert torch.equal(read.eval().encode_images(images), med.eval().encode_images(images))


class TestWriting:
    def test_fused_weights_are_split_in_the_order_query_key_value(
        self, med: Med, original: dict[str, Tensor]
    ) -> None:
        fused = med.state_dict()["text.layers.1.self_attention.qkv.weight"]
        parts = [original[f"{SELF_ATTENTION}.{part}.weight"] for part in ("query", "key", "value")]
        assert torch.equal(torch.cat(parts), fused)
        key_value = med.state_dict()["text.layers.0.cross_attention.key_value.bias"]
        cross = "text_encoder.encoder.layer.0.crossattention.self"
        parts = [original[f"{cross}.{part}.bias"] for part in ("key", "value")]
        assert torch.equal(torch.cat(parts), key_value)

    def test_what_the_original_ties_is_one_tensor(self, original: dict[str, Tensor]) -> None:
        words = original["text_encoder.embeddings.word_embeddings.weight"]
        for key in (
            "text_decoder.bert.embeddings.word_embeddings.weight",
            "text_decoder.cls.predictions.decoder.weight",
        ):
            assert original[key].data_ptr() == words.data_ptr()

    def test_encoder_and_decoder_keep_their_own_self_attention(
        self, original: dict[str, Tensor]
    ) -> None:
        decoders = SELF_ATTENTION.replace("text_encoder", "text_decoder.bert")
        key = "query.weight"
        assert not torch.equal(original[f"{SELF_ATTENTION}.{key}"], original[f"{decoders}.{key}"])

    def test_without_a_teacher_the_momentum_weights_are_the_students(self, med: Med) -> None:
        written = to_original(med, "retrieval")
        for key in ("cls_token", "blocks.1.attn.qkv.weight"):
            student = written[f"visual_encoder.{key}"]
            assert torch.equal(written[f"visual_encoder_m.{key}"], student)

    def test_without_queues_they_are_random_unit_vectors_as_long_as_the_releases(
        self, med: Med
    ) -> None:
        written = to_original(med, "retrieval")
        assert written["image_queue"].shape == (16, 57600)
        assert torch.allclose(written["text_queue"].norm(dim=0), torch.ones(57600))
        assert written["idx_queue"].unique().tolist() == [-100]

    def test_the_kind_follows_from_the_heads(self, config: MedConfig) -> None:
        captioner = Med(replace(config, heads=("lm",)))
        assert from_original(to_original(captioner)).kind == "caption"

    def test_a_missing_head_is_named(self, config: MedConfig) -> None:
        with pytest.raises(MissingHead, match="no itm head"):
            to_original(Med(replace(config, heads=("lm", "itc"))), "pretrain")

    def test_a_model_of_another_kind_is_refused(self, med: Med) -> None:
        with pytest.raises(
            CheckpointError, match="Med cannot be written as a checkpoint of the kind vqa"
        ):
            to_original(med, "vqa")

    def test_heads_without_a_model_in_the_original_are_refused(self, config: MedConfig) -> None:
        with pytest.raises(CheckpointError, match="no model with the heads itc alone"):
            to_original(Med(replace(config, heads=("itc",))))

    def test_other_sharing_is_refused(self, config: MedConfig) -> None:
        text = replace(config.text, sharing="none")
        with pytest.raises(CheckpointError, match=r"text.sharing 'none'"):
            to_original(Med(replace(config, text=text)))


class TestRefusing:
    def test_a_missing_key(self, original: dict[str, Tensor]) -> None:
        del original[f"{SELF_ATTENTION}.key.bias"]
        with pytest.raises(CheckpointError, match=rf"x\.pth: missing {SELF_ATTENTION}\.key\.bias"):
            from_original(original, "x.pth")

    @pytest.mark.parametrize(
        "key",
        [
            "visual_encoder.pos_embed",
            "visual_encoder_m.norm.bias",
            "text_encoder.embeddings.word_embeddings.weight",
            "text_decoder.cls.predictions.decoder.bias",
            "text_encoder_m.encoder.layer.0.crossattention.self.key.weight",
            "vision_proj.weight",
            "image_queue",
            "queue_ptr",
            "temp",
        ],
    )
    def test_any_missing_key_is_named(self, original: dict[str, Tensor], key: str) -> None:
        del original[key]
        with pytest.raises(CheckpointError, match=f"missing {key}"):
            from_original(original)

    def test_an_unknown_key(self, original: dict[str, Tensor]) -> None:
        original["text_encoder.pooler.dense.weight"] = torch.zeros(2)
        with pytest.raises(CheckpointError, match=r"x\.pth: unknown text_encoder\.pooler\.dense"):
            from_original(original, "x.pth")

    def test_a_further_layer_of_the_decoder(self, original: dict[str, Tensor]) -> None:
        original["text_decoder.bert.encoder.layer.2.output.dense.bias"] = torch.zeros(128)
        with pytest.raises(CheckpointError, match=r"unknown text_decoder.bert.encoder.layer.2"):
            from_original(original)

    def test_another_shape(self, original: dict[str, Tensor]) -> None:
        original[f"{SELF_ATTENTION}.value.weight"] = torch.zeros(128, 64)
        message = rf"x\.pth: {SELF_ATTENTION}\.value\.weight has shape \(128, 64\).*\(128, 128\)"
        with pytest.raises(CheckpointError, match=message):
            from_original(original, "x.pth")

    def test_positions_of_another_image_size_are_not_dropped(
        self, original: dict[str, Tensor]
    ) -> None:
        original["visual_encoder_m.pos_embed"] = torch.zeros(1, 10, 64)
        with pytest.raises(CheckpointError, match=r"visual_encoder_m\.pos_embed has shape"):
            from_original(original)

    def test_positions_that_are_no_square(self, original: dict[str, Tensor]) -> None:
        original["visual_encoder.pos_embed"] = torch.zeros(1, 7, 64)
        with pytest.raises(CheckpointError, match="7 positions, expected a square grid"):
            from_original(original)

    def test_a_tied_weight_with_a_value_of_its_own(self, original: dict[str, Tensor]) -> None:
        key = "text_decoder.cls.predictions.decoder.bias"
        original[key] = original[key] + 1
        with pytest.raises(CheckpointError, match=f"{key} differs from text_decoder.cls"):
            from_original(original)

    def test_position_ids_that_do_not_count(self, original: dict[str, Tensor]) -> None:
        key = "text_encoder.embeddings.position_ids"
        original[key] = original[key] + 1
        with pytest.raises(CheckpointError, match=f"{key} is not 0, 1, 2"):
            from_original(original)

    def test_position_ids_may_be_absent(self, med: Med, original: dict[str, Tensor]) -> None:
        """Later versions of `transformers` do not save them."""
        saved = {k: v for k, v in original.items() if not k.endswith("position_ids")}
        assert_same(from_original(saved).student, med.state_dict())

    def test_a_width_whose_heads_cannot_be_told(self, config: MedConfig) -> None:
        odd = Med(replace(config, vision=replace(config.vision, width=48, heads=4)))
        with pytest.raises(CheckpointError, match=r"width 48 .* give vision_heads"):
            from_original(to_original(odd, "itm"))
        read = from_original(to_original(odd, "itm"), vision_heads=4)
        assert read.config.vision.heads == 4

    def test_something_else(self) -> None:
        with pytest.raises(CheckpointError, match=r"x\.pth: no original BLIP .* found conv1, fc"):
            from_original({"conv1.weight": torch.zeros(1), "fc.bias": torch.zeros(1)}, "x.pth")

    def test_no_teacher(self, med: Med) -> None:
        with pytest.raises(CheckpointError, match="itm checkpoint has no momentum model"):
            from_original(to_original(med, "itm")).teacher_model()


class TestGradients:
    def test_each_tied_parameter_appears_once(self, med: Med, original: dict[str, Tensor]) -> None:
        gradients = {name: torch.ones_like(p) for name, p in med.named_parameters()}
        exported = export_gradients(gradients, "pretrain")
        assert set(exported) < set(original)
        assert "text_encoder.embeddings.word_embeddings.weight" in exported
        assert "text_decoder.cls.predictions.decoder.weight" not in exported
        assert "text_decoder.bert.encoder.layer.0.attention.self.query.weight" in exported
        total = sum(g.numel() for g in exported.values() if g is not None)
        assert total == sum(p.numel() for p in med.parameters())

    def test_no_gradient_stays_none(self, med: Med) -> None:
        exported = export_gradients({"text.layers.0.self_attention.qkv.bias": None}, "pretrain")
        assert list(exported.values()) == [None, None, None]

    def test_a_parameter_of_another_model_is_refused(self) -> None:
        with pytest.raises(CheckpointError, match=r"itm_head.weight is not a parameter"):
            export_gradients({"itm_head.weight": None}, "caption")


def test_a_model_that_the_original_does_not_have(config: MedConfig) -> None:
    dual = DualEncoder(DualConfig(vision=config.vision, text=config.text))
    with pytest.raises(CheckpointError, match="the original has no model like DualEncoder"):
        to_original(dual)
