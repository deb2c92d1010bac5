"""Image encoders and BERTs of others as the beginning of a model, held to the models themselves."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save_file
from torch import nn

from openblip.batches.tokenizer import TextTokenizer
from openblip.checkpoints.assembly import NameMap, Section
from openblip.checkpoints.beginnings import (
    begin_images,
    begin_text,
    image_sizes,
    text_sizes,
    text_tokenizer,
)
from openblip.checkpoints.original_layout import TIMM_VISION
from openblip.model import Med, MedConfig, TextConfig, TextPass, VisionConfig
from openblip.model.albef import Albef
from openblip.model.config import AlbefConfig, Sharing
from openblip.model.vision import ImageEncoder, interpolate_positions
from openblip.runtime.errors import CheckpointError, OpenBlipWarning

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 80,
    "image_size": 32,
    "patch_size": 8,
}
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "dog", "cat", "red", "##s", "runs"]
# The recipe's own sizes, none of which is the source's.
VISION = VisionConfig(image_size=32, patch_size=16, width=48, depth=1, heads=3)
TEXT = TextConfig(width=16, depth=1, heads=2, ffn_width=32, max_positions=16)


def shaken(model: Any) -> Any:
    """With weights that all matter: biases, norms and tokens too."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


@pytest.fixture
def save_vit(tmp_path: Path) -> Callable[..., tuple[Any, str]]:
    def save(kind: Any = transformers.ViTModel, **changes: Any) -> tuple[Any, str]:
        vit = shaken(kind(transformers.ViTConfig(**{**SIZES, **changes})))
        vit.save_pretrained(tmp_path / "vit")
        return vit, str(tmp_path / "vit")

    return save


@pytest.fixture
def save_bert(tmp_path: Path) -> Callable[..., tuple[Any, str]]:
    def save(kind: Any = transformers.BertModel, **changes: Any) -> tuple[Any, str]:
        values = {
            **{k: v for k, v in SIZES.items() if k not in ("image_size", "patch_size")},
            "max_position_embeddings": 24,
            "vocab_size": len(WORDS),
        }
        bert = shaken(kind(transformers.BertConfig(**{**values, **changes})))
        bert.save_pretrained(tmp_path / "bert")
        (tmp_path / "bert" / "vocab.txt").write_text("\n".join(WORDS) + "\n")
        return bert, str(tmp_path / "bert")

    return save


def begun_med(folder: str, sharing: Sharing = "all_but_self_attention") -> tuple[Med, Any]:
    tokenizer = text_tokenizer(folder)
    text = replace(TEXT, sharing=sharing, vocab_size=tokenizer.vocab_size)
    med = Med(MedConfig(vision=VISION, text=text_sizes(folder, text), embed_dim=8)).eval()
    return med, begin_text(med.text, folder, tokenizer)


class TestImages:
    @pytest.mark.parametrize(
        "kind", [transformers.ViTModel, transformers.ViTForImageClassification]
    )
    def test_our_encoder_has_the_states_of_a_vit(
        self, save_vit: Callable[..., tuple[Any, str]], kind: Any
    ) -> None:
        vit, folder = save_vit(kind)
        vision = image_sizes(folder, VISION)
        assert vision.backbone is None
        assert (vision.width, vision.depth, vision.heads, vision.patch_size) == (32, 2, 4, 8)
        assert vision.norm_eps == vit.config.layer_norm_eps
        encoder = ImageEncoder(vision).eval()
        report = begin_images(encoder, folder)
        images = torch.randn(2, 3, 32, 32)
        base = getattr(vit, "vit", vit)
        with torch.no_grad():
            expected = base(pixel_values=images).last_hidden_state
            torch.testing.assert_close(encoder(images), expected, atol=1e-5, rtol=1e-5)
        assert not report.fresh
        assert set(report.used.values()) == set(encoder.state_dict())
        kind_of_head = "classifier" if base is not vit else "pooler.dense"
        assert set(report.dropped) == {f"{kind_of_head}.weight", f"{kind_of_head}.bias"}

    def test_positions_are_interpolated_to_the_image_size(
        self, save_vit: Callable[..., tuple[Any, str]]
    ) -> None:
        vit, folder = save_vit()
        encoder = ImageEncoder(image_sizes(folder, replace(VISION, image_size=64))).eval()
        begin_images(encoder, folder)
        own = vit.embeddings.position_embeddings.detach()
        torch.testing.assert_close(encoder.positions.detach(), interpolate_positions(own, (8, 8)))
        images = torch.randn(1, 3, 64, 64)
        with torch.no_grad():
            expected = vit(pixel_values=images, interpolate_pos_encoding=True).last_hidden_state
            torch.testing.assert_close(encoder(images), expected, atol=1e-5, rtol=1e-5)

    @pytest.mark.parametrize("changes", [{"qkv_bias": False}, {"hidden_act": "gelu_new"}])
    def test_a_vit_that_is_not_as_ours_becomes_a_backbone(
        self, save_vit: Callable[..., tuple[Any, str]], changes: dict[str, Any]
    ) -> None:
        vit, folder = save_vit(**changes)
        med = Med(MedConfig(vision=image_sizes(folder, VISION), text=TEXT)).eval()
        assert med.config.vision.backbone is not None
        begin_images(med.image_encoder, folder)
        images = torch.randn(2, 3, 32, 32)
        with torch.no_grad():
            expected = vit(pixel_values=images).last_hidden_state
            torch.testing.assert_close(med.encode_images(images), expected, atol=1e-5, rtol=1e-5)

    def test_a_siglip_becomes_a_backbone_and_its_keys_are_listed(self, tmp_path: Path) -> None:
        siglip = shaken(transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**SIZES)))
        siglip.save_pretrained(tmp_path)
        vision = image_sizes(str(tmp_path), VISION)
        med = Med(MedConfig(vision=vision, text=TEXT)).eval()
        report = begin_images(med.image_encoder, str(tmp_path))
        assert set(report.used.values()) == set(med.image_encoder.state_dict())
        assert "head.probe" in report.dropped
        images = torch.randn(2, 3, 32, 32)
        with torch.no_grad():
            expected = siglip(pixel_values=images).last_hidden_state
            found = med.encode_images(images)[:, 1:]
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
        assert image_sizes(str(tmp_path), vision) == vision

    @pytest.mark.parametrize("as_folder", [True, False])
    def test_weights_in_timms_names_begin_our_encoder(
        self, tmp_path: Path, as_folder: bool
    ) -> None:
        sizes = VisionConfig(image_size=32, patch_size=8, width=192, depth=2, heads=3)
        source = shaken(ImageEncoder(sizes))
        names = NameMap((Section("", "", TIMM_VISION),))
        tensors = {names.places(n)[0][0]: t for n, t in source.state_dict().items()}
        tensors |= {"head.weight": torch.zeros(5, 192), "head.bias": torch.zeros(5)}
        path = tmp_path / "deit.pth"
        if as_folder:
            path = tmp_path / "hub"
            path.mkdir()
            (path / "config.json").write_text(json.dumps({"architecture": "vit_tiny"}))
            save_file(
                {k: t.detach().clone() for k, t in tensors.items()}, path / "model.safetensors"
            )
        else:
            torch.save({"model": tensors}, path)
        vision = image_sizes(str(path), VISION)
        assert (vision.width, vision.depth, vision.heads, vision.norm_eps) == (192, 2, 3, 1e-6)
        encoder = ImageEncoder(vision).eval()
        report = begin_images(encoder, str(path))
        assert set(report.dropped) == {"head.weight", "head.bias"}
        images = torch.randn(2, 3, 32, 32)
        with torch.no_grad():
            torch.testing.assert_close(encoder(images), source(images))

    def test_heads_that_are_guessed_are_told(self, tmp_path: Path) -> None:
        source = ImageEncoder(replace(VISION, width=80, heads=5))
        names = NameMap((Section("", "", TIMM_VISION),))
        path = tmp_path / "vit.pth"
        torch.save({names.places(n)[0][0]: t for n, t in source.state_dict().items()}, path)
        with pytest.warns(OpenBlipWarning, match="taken as 1, one per 64 channels"):
            assert image_sizes(str(path), VISION).heads == 1
        assert image_sizes(str(path), replace(VISION, width=80, heads=5)).heads == 5

    def test_a_model_that_does_not_say_what_it_is_is_refused(self, tmp_path: Path) -> None:
        torch.save(nn.Linear(3, 4).state_dict(), tmp_path / "some.pth")
        with pytest.raises(CheckpointError, match=r"give vision\.backbone"):
            image_sizes(str(tmp_path / "some.pth"), VISION)

    def test_a_backbone_that_is_another_than_the_source_is_refused(
        self, save_vit: Callable[..., tuple[Any, str]], tmp_path: Path
    ) -> None:
        transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**SIZES)).save_pretrained(
            tmp_path / "clip"
        )
        vision = replace(VISION, backbone=f"transformers:{tmp_path / 'clip'}")
        with pytest.raises(CheckpointError, match="another model than vision"):
            image_sizes(save_vit()[1], vision)

    def test_weights_of_a_module_of_ones_own_are_found_by_name(self, tmp_path: Path) -> None:
        from .. import foreign_encoders

        source = foreign_encoders.wide()
        torch.save({**source.state_dict(), "head.weight": torch.zeros(2)}, tmp_path / "mine.pth")
        vision = replace(VISION, backbone=f"{foreign_encoders.__name__}:wide")
        med = Med(MedConfig(vision=image_sizes(str(tmp_path / "mine.pth"), vision), text=TEXT))
        report = begin_images(med.image_encoder, str(tmp_path / "mine.pth"))
        assert list(report.dropped) == ["head.weight"]
        own = med.image_encoder.backbone.state_dict()
        assert all(torch.equal(own[name], tensor) for name, tensor in source.state_dict().items())


class TestText:
    @pytest.mark.parametrize("kind", [transformers.BertModel, transformers.BertForPreTraining])
    @pytest.mark.parametrize("sharing", ["all_but_self_attention", "none", "all"])
    def test_the_unimodal_encoder_has_the_states_of_bert(
        self, save_bert: Callable[..., tuple[Any, str]], kind: Any, sharing: Sharing
    ) -> None:
        bert, folder = save_bert(kind)
        med, _ = begun_med(folder, sharing)
        tokens = text_tokenizer(folder).encode(["a red dog", "cats", "a dog runs"], 10)
        with torch.no_grad():
            expected = getattr(bert, "bert", bert)(
                input_ids=tokens.ids, attention_mask=tokens.mask.long()
            ).last_hidden_state
            (found,) = med.text(TextPass(tokens.ids, tokens.mask))
        torch.testing.assert_close(found[tokens.mask], expected[tokens.mask], atol=1e-5, rtol=1e-5)

    def test_the_decoder_begins_equal_and_takes_the_head(
        self, save_bert: Callable[..., tuple[Any, str]]
    ) -> None:
        bert, folder = save_bert(transformers.BertForPreTraining)
        med, report = begun_med(folder)
        layer = med.text.layers[0]
        for name, parameter in layer.self_attention.state_dict().items():
            assert torch.equal(layer.causal_self_attention.state_dict()[name], parameter)
        states = torch.randn(2, 3, 32)
        with torch.no_grad():
            expected = bert.cls.predictions(states)
            torch.testing.assert_close(med.text.logits(states)[..., :11], expected)
        assert all(
            "cross_attention" in name
            or name in {"embeddings.word.weight[11:]", "lm_head.bias[11:]"}
            for name in report.fresh
        )
        assert any("cross_attention" in name for name in report.fresh)
        assert report.dropped["pooler.dense.weight"] == "a head of the source's own training"

    def test_new_words_stand_behind_those_of_bert(
        self, save_bert: Callable[..., tuple[Any, str]]
    ) -> None:
        bert, folder = save_bert()
        med, report = begun_med(folder)
        special = text_tokenizer(folder).special
        assert (special.dec, special.enc) == (11, 12)
        words = med.text.embeddings.word.weight.detach()
        assert words.shape == (13, 32)
        assert torch.equal(words[:11], bert.embeddings.word_embeddings.weight.detach())
        assert words[11:].abs().sum() > 0
        assert "lm_head.transform.weight" in report.fresh

    def test_every_key_and_every_weight_is_listed_once(
        self, save_bert: Callable[..., tuple[Any, str]]
    ) -> None:
        bert, folder = save_bert(transformers.BertForPreTraining)
        med, report = begun_med(folder)
        stored = {key.removeprefix("bert.") for key in bert.state_dict()}
        listed = set(report.used) | set(report.dropped)
        # Tied copies are stored once.
        assert stored - listed <= {"cls.predictions.decoder.weight", "cls.predictions.decoder.bias"}
        assert not set(report.used) & set(report.dropped)
        ours = {name for names in report.used.values() for name in names.split(", ")}
        fresh = {name.split("[")[0] for name in report.fresh}
        assert ours | fresh == set(med.text.state_dict())

    def test_old_names_of_norms_are_read(self, save_bert: Callable[..., tuple[Any, str]]) -> None:
        bert, folder = save_bert()
        old = {
            f"bert.{k}".replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta"): t
            for k, t in bert.state_dict().items()
        }
        torch.save(old, Path(folder) / "pytorch_model.bin")
        (Path(folder) / "model.safetensors").unlink()
        med, _ = begun_med(folder)
        norm = med.text.embeddings.norm
        assert torch.equal(norm.weight, bert.embeddings.LayerNorm.weight)

    def test_albef_divides_the_layers_and_keeps_token_types(
        self, save_bert: Callable[..., tuple[Any, str]]
    ) -> None:
        bert, folder = save_bert(transformers.BertForPreTraining)
        tokenizer = text_tokenizer(folder)
        text = text_sizes(folder, replace(TEXT, vocab_size=tokenizer.vocab_size))
        albef = Albef(AlbefConfig(vision=VISION, text=text, fusion_layer=1, embed_dim=8)).eval()
        begin_text(albef.text, folder, tokenizer)
        tokens = tokenizer.encode(["a red dog", "cats"], 10)
        with torch.no_grad():
            outputs = bert.bert(
                input_ids=tokens.ids, attention_mask=tokens.mask.long(), output_hidden_states=True
            )
            found = albef.encode_texts(tokens.ids, tokens.mask)
        expected = outputs.hidden_states[1]
        torch.testing.assert_close(found[tokens.mask], expected[tokens.mask], atol=1e-5, rtol=1e-5)

    def test_another_kind_of_text_model_is_refused(
        self, save_bert: Callable[..., tuple[Any, str]]
    ) -> None:
        with pytest.raises(CheckpointError, match="hidden_act is 'relu'"):
            text_sizes(save_bert(hidden_act="relu")[1], TEXT)

    def test_fewer_rows_than_words_are_refused(
        self, save_bert: Callable[..., tuple[Any, str]]
    ) -> None:
        folder = save_bert(vocab_size=8)[1]
        with pytest.raises(CheckpointError, match="has 8 words, but its tokenizer 11"):
            begun_med(folder)

    def test_the_tokenizer_comes_along(self, save_bert: Callable[..., tuple[Any, str]]) -> None:
        tokenizer = text_tokenizer(save_bert()[1])
        assert isinstance(tokenizer, TextTokenizer)
        assert tokenizer.vocab_size == len(WORDS) + 2
