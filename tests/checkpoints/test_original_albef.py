"""Names of the original ALBEF and ours: both ways, nothing lost, nothing invented."""

from dataclasses import replace

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
from openblip.model.albef import Albef, AlbefConfig
from openblip.runtime.errors import CheckpointError, MissingHead

from ..original_gradients import export_gradients

KINDS: list[Kind] = ["albef_pretrain", "albef_retrieval"]
HEADS = {"albef_pretrain": ("itc", "itm", "mlm"), "albef_retrieval": ("itc", "itm")}
CROSS_ATTENTION = "encoder.layer.1.crossattention.self.query.weight"


def drawn(config: AlbefConfig, seed: int) -> Albef:
    model = Albef(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model


@pytest.fixture
def albef_config(config: MedConfig) -> AlbefConfig:
    return AlbefConfig(vision=config.vision, text=config.text, embed_dim=16, fusion_layer=1)


@pytest.fixture
def albef(albef_config: AlbefConfig) -> Albef:
    return drawn(albef_config, seed=0)


@pytest.fixture
def teacher(albef_config: AlbefConfig) -> Albef:
    return drawn(replace(albef_config, heads=("itc", "mlm")), seed=1)


@pytest.fixture
def queues() -> OriginalQueues:
    images, texts = torch.randn(2, 10, 16, generator=torch.Generator().manual_seed(2))
    return OriginalQueues(images, texts, pointer=4, image_ids=torch.arange(10))


@pytest.fixture
def original(albef: Albef, teacher: Albef, queues: OriginalQueues) -> dict[str, Tensor]:
    return to_original(albef, teacher=teacher, queues=queues)


class TestThereAndBack:
    @pytest.mark.parametrize("kind", KINDS)
    def test_student_teacher_and_queues(
        self, albef: Albef, teacher: Albef, queues: OriginalQueues, kind: Kind
    ) -> None:
        read = from_original(to_original(albef, kind, teacher=teacher, queues=queues))
        assert read.kind == kind
        assert read.config == replace(albef.config, heads=HEADS[kind])
        for ours, expected in ((read.model(), albef), (read.teacher_model(), teacher)):
            weights = expected.state_dict() | {"temperature": albef.temperature}
            for name, tensor in ours.state_dict().items():
                assert torch.equal(tensor, weights[name]), name
        assert read.queues is not None
        assert torch.equal(read.queues.image_embed, queues.image_embed)
        assert torch.equal(read.queues.text_embed, queues.text_embed)
        assert read.queues.pointer == 4
        ids = read.queues.image_ids
        assert (None if ids is None else ids.tolist()) == (
            list(range(10)) if kind == "albef_retrieval" else None
        )

    def test_the_teacher_has_all_that_distillation_runs(self, original: dict[str, Tensor]) -> None:
        names = set(from_original(original).teacher_model().state_dict())
        for part in ("cross_attention.query.weight", "ffn.up.weight"):
            assert f"text.layers.1.{part}" in names
        assert "text.lm_head.bias" in names
        assert "itm_head.weight" not in names

    def test_without_queues_they_are_as_long_as_the_releases(self, albef: Albef) -> None:
        written = to_original(albef)
        assert written["image_queue"].shape == (16, 65536)
        assert written["queue_ptr"].tolist() == [0]

    def test_without_a_teacher_the_momentum_weights_are_the_students(
        self, albef: Albef, queues: OriginalQueues
    ) -> None:
        written = to_original(albef, "albef_retrieval", queues=queues)
        student = written[f"text_encoder.{CROSS_ATTENTION}"]
        assert torch.equal(written[f"text_encoder_m.{CROSS_ATTENTION}"], student)

    @pytest.mark.parametrize("kind", KINDS)
    def test_the_kind_follows_from_the_heads(
        self, albef_config: AlbefConfig, queues: OriginalQueues, kind: Kind
    ) -> None:
        model = Albef(replace(albef_config, heads=HEADS[kind]))
        assert from_original(to_original(model, queues=queues)).kind == kind

    def test_both_copies_of_the_word_matrix_are_one_tensor(
        self, original: dict[str, Tensor]
    ) -> None:
        for encoder in ("text_encoder", "text_encoder_m"):
            words = original[f"{encoder}.bert.embeddings.word_embeddings.weight"]
            copy = original[f"{encoder}.cls.predictions.decoder.weight"]
            assert copy.data_ptr() == words.data_ptr()

    def test_each_gradient_appears_once(self, albef: Albef, original: dict[str, Tensor]) -> None:
        gradients = {name: torch.ones_like(p) for name, p in albef.named_parameters()}
        exported = export_gradients(gradients, "albef_pretrain")
        assert set(exported) < set(original)
        assert "text_encoder.bert.embeddings.token_type_embeddings.weight" in exported
        assert "text_encoder.cls.predictions.decoder.weight" not in exported
        total = sum(g.numel() for g in exported.values() if g is not None)
        assert total == sum(p.numel() for p in albef.parameters())


class TestRefusing:
    @pytest.mark.parametrize(
        "key",
        [
            "text_encoder.bert.embeddings.token_type_embeddings.weight",
            f"text_encoder.bert.{CROSS_ATTENTION}",
            f"text_encoder_m.bert.{CROSS_ATTENTION}",
            "text_encoder_m.cls.predictions.transform.dense.weight",
            "itm_head.weight",
            "queue_ptr",
            "temp",
        ],
    )
    def test_any_missing_key_is_named(self, original: dict[str, Tensor], key: str) -> None:
        del original[key]
        with pytest.raises(CheckpointError, match=f"missing {key}"):
            from_original(original)

    def test_cross_attention_below_fusion(self, original: dict[str, Tensor]) -> None:
        bert = "text_encoder.bert."
        lower = CROSS_ATTENTION.replace("layer.1", "layer.0")
        original[bert + lower] = original[bert + CROSS_ATTENTION]
        with pytest.raises(CheckpointError, match=r"x\.pth: .*layer.0.crossattention.*first text"):
            from_original(original, "x.pth")

    def test_a_tied_weight_of_the_teacher_with_a_value_of_its_own(
        self, original: dict[str, Tensor]
    ) -> None:
        key = "text_encoder_m.cls.predictions.decoder.weight"
        original[key] = original[key] + 1
        with pytest.raises(CheckpointError, match=f"{key} differs from text_encoder_m.bert"):
            from_original(original)

    def test_other_models_of_albef(
        self, albef: Albef, teacher: Albef, queues: OriginalQueues
    ) -> None:
        written = to_original(albef, "albef_retrieval", teacher=teacher, queues=queues)
        del written["idx_queue"]
        with pytest.raises(CheckpointError, match=r"x\.pth: an ALBEF checkpoint without"):
            from_original(written, "x.pth")

    def test_an_albef_is_no_med(self, original: dict[str, Tensor]) -> None:
        with pytest.raises(CheckpointError, match=r"of the kind albef_pretrain; .* of BLIP"):
            from_original(original).med()

    def test_a_model_of_another_kind(self, albef: Albef, med: Med) -> None:
        with pytest.raises(CheckpointError, match=r"Med cannot be written as .* albef_pretrain"):
            to_original(med, "albef_pretrain")
        with pytest.raises(CheckpointError, match=r"Albef cannot be written as .* pretrain"):
            to_original(albef, "pretrain")

    def test_a_missing_head(self, teacher: Albef) -> None:
        with pytest.raises(MissingHead, match="no itm head"):
            to_original(teacher)
