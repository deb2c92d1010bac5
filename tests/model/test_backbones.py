"""Image encoders of others in the place of ours."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from openblip.checkpoints.assembly import copy_of
from openblip.checkpoints.families import empty_model
from openblip.model import Med, MedConfig
from openblip.model.backbones import BackboneEncoder, measure
from openblip.model.flops import class_token_flops, flop_counter, image_encoder_flops, image_tokens
from openblip.model.library_backbones import read_transformers_weights
from openblip.model.lowrank import adapt, low_rank_layers
from openblip.runtime.errors import RecipeError

from .. import foreign_encoders
from ..foreign_encoders import Convolutions

HERE = foreign_encoders.__name__
SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 16,
}
TOWERS: dict[str, Callable[[], Any]] = {
    "vit": lambda: transformers.ViTModel(transformers.ViTConfig(**SIZES)),
    "deit": lambda: transformers.DeiTModel(transformers.DeiTConfig(**SIZES)),
    "dinov2": lambda: transformers.Dinov2Model(transformers.Dinov2Config(**SIZES)),
    "registers": lambda: transformers.Dinov2WithRegistersModel(
        transformers.Dinov2WithRegistersConfig(**SIZES)
    ),
    "clip": lambda: transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**SIZES)),
    "siglip": lambda: transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**SIZES)),
}


@pytest.fixture
def with_backbone(config: MedConfig) -> Callable[..., Med]:
    """Makes a model with a backbone, whose weights the seed decides."""

    def make(backbone: str, **vision: Any) -> Med:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return Med(
                replace(config, vision=replace(config.vision, backbone=backbone, **vision))
            ).eval()

    return make


@pytest.fixture
def save_tower(tmp_path: Path) -> Callable[[str], tuple[Any, str]]:
    """A tower of transformers with small random weights, and the folder that it was saved in."""

    def save(name: str) -> tuple[Any, str]:
        with torch.random.fork_rng():
            torch.manual_seed(1)
            tower = TOWERS[name]().eval()
        tower.save_pretrained(tmp_path / name)
        return tower, str(tmp_path / name)

    return save


class TestModules:
    def test_sizes_are_what_the_backbone_turns_out_to_have(
        self, with_backbone: Callable[..., Med], images: Tensor
    ) -> None:
        med = with_backbone(f"{HERE}:Convolutions", width=96)
        vision = med.config.vision
        assert (vision.width, vision.depth, vision.num_patches, vision.patch_size) == (24, 2, 17, 8)
        assert med.encode_images(images).shape == (3, 17, 24)
        assert med.image_projection.in_features == 24

    def test_the_mean_of_the_tokens_stands_for_the_image(
        self, with_backbone: Callable[..., Med], images: Tensor
    ) -> None:
        med = with_backbone(f"{HERE}:wide")
        hidden, tokens = med.encode_images(images), med.image_encoder.backbone(images)
        torch.testing.assert_close(hidden[:, 1:], tokens)
        torch.testing.assert_close(hidden[:, 0], tokens.mean(dim=1))
        torch.testing.assert_close(med.encode_class_tokens(images), hidden[:, :1])

    def test_a_module_can_be_given_from_python(self, config: MedConfig, images: Tensor) -> None:
        backbone = Convolutions().eval()
        med = Med(config, backbone).eval()
        assert med.config.vision.backbone == f"{HERE}:Convolutions"
        torch.testing.assert_close(med.encode_images(images)[:, 1:], backbone(images))

    def test_a_module_that_its_class_does_not_build_again_is_refused(
        self, config: MedConfig
    ) -> None:
        with pytest.raises(RecipeError, match="does not build this backbone again"):
            Med(config, Convolutions(width=16))

    @pytest.mark.parametrize(
        ("backbone", "reason"),
        [
            ("vit", "give timm:NAME"),
            (f"{HERE}:Nothing", "has no Nothing"),
            ("no_such_module_of_mine:Encoder", "no module 'no_such_module_of_mine'"),
            (f"{HERE}:unannotated", "no class of modules"),
            (f"{HERE}:narrow", "no class of modules"),
            ("os:getcwd", "no class of modules"),
            ("torch.nn:Linear", "cannot be built without arguments"),
            ("torch.nn:Identity", "gives a tensor of shape"),
            ("transformers:{}", "no backbone that is known"),
            ("transformers:{", "no JSON"),
            ('transformers:{"model_type": "bert"}', "bert of transformers is no backbone"),
        ],
    )
    def test_what_is_no_backbone_is_refused_in_words(
        self, with_backbone: Callable[..., Med], backbone: str, reason: str
    ) -> None:
        with pytest.raises(RecipeError, match=reason):
            with_backbone(backbone)

    def test_a_timm_that_cannot_be_imported_is_told_with_the_remedy(
        self,
        with_backbone: Callable[..., Med],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """So fails a timm whose torchvision was built for another torch."""
        error = "raise RuntimeError('operator torchvision::nms does not exist')\n"
        (tmp_path / "timm.py").write_text(error, encoding="utf-8")
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "timm", raising=False)
        with pytest.raises(RecipeError, match=r"a torchvision that fits .*nms.*openblip\[timm\]"):
            with_backbone("timm:vit_tiny_patch16_224")

    def test_a_fixed_size_is_the_only_one(self, with_backbone: Callable[..., Med]) -> None:
        med = with_backbone(f"{HERE}:FixedSize")
        with pytest.raises(RecipeError, match="takes no images of 64 px"):
            med.resize_images(64)
        assert med.config.vision.image_size == 32

    def test_layers_that_are_not_shown_cannot_be_recomputed(
        self, with_backbone: Callable[..., Med]
    ) -> None:
        with pytest.raises(RecipeError, match="shows no layers"):
            with_backbone(f"{HERE}:FixedSize", checkpoint_layers=1)

    def test_drop_path_is_for_our_own_blocks(self, with_backbone: Callable[..., Med]) -> None:
        with pytest.raises(RecipeError, match=r"overrides\.drop-path"):
            with_backbone(f"{HERE}:wide", drop_path=0.1)

    def test_an_empty_model_draws_nothing_and_keeps_what_no_state_has(
        self, with_backbone: Callable[..., Med], images: Tensor
    ) -> None:
        med = with_backbone(f"{HERE}:Convolutions")
        before = torch.get_rng_state()
        empty = empty_model(med.config)
        assert torch.equal(before, torch.get_rng_state())
        assert all(parameter.is_meta for parameter in empty.parameters())
        empty.load_state_dict(med.state_dict(), assign=True)
        assert torch.equal(empty.eval().encode_images(images), med.encode_images(images))

    def test_a_copy_is_a_teacher(self, with_backbone: Callable[..., Med], images: Tensor) -> None:
        med = with_backbone(f"{HERE}:Convolutions")
        teacher = copy_of(med, lambda: Med(med.config)).eval()
        assert torch.equal(teacher.encode_images(images), med.encode_images(images))
        assert not any(parameter.requires_grad for parameter in teacher.parameters())

    def test_linear_layers_of_a_backbone_are_adapted(
        self, with_backbone: Callable[..., Med], images: Tensor
    ) -> None:
        med = with_backbone(f"{HERE}:Convolutions")
        before = med.encode_images(images)
        adapt(med, 2, 4.0, ["backbone"])
        (found,) = low_rank_layers(med)
        assert found[0] == "image_encoder.backbone.output"
        assert torch.equal(med.encode_images(images), before)
        nn.init.ones_(found[1].up)
        assert not torch.allclose(med.encode_images(images), before)


class TestTransformers:
    @pytest.mark.parametrize("name", TOWERS)
    @pytest.mark.parametrize("image_size", [32, 64])
    def test_states_are_those_of_the_tower(
        self,
        with_backbone: Callable[..., Med],
        save_tower: Callable[[str], tuple[Any, str]],
        name: str,
        image_size: int,
    ) -> None:
        tower, folder = save_tower(name)
        med = with_backbone(f"transformers:{folder}", image_size=image_size)
        assert isinstance(med.image_encoder, BackboneEncoder)
        assert med.config.vision.backbone is not None
        assert folder not in med.config.vision.backbone
        settings = med.config.vision.backbone.removeprefix("transformers:")
        weights, left = read_transformers_weights(Path(folder), settings)
        assert not left["missing"]
        med.image_encoder.backbone.load_state_dict(weights)
        images = torch.randn(2, 3, image_size, image_size)
        with torch.no_grad():
            options = {"interpolate_pos_encoding": True} if image_size != 32 else {}
            if name in ("dinov2", "registers"):
                options = {}
            expected = tower(pixel_values=images, **options).last_hidden_state
            hidden = med.encode_images(images)
        has_class_token = name != "siglip"
        torch.testing.assert_close(
            hidden if has_class_token else hidden[:, 1:], expected, atol=1e-5, rtol=1e-5
        )
        vision = med.config.vision
        assert hidden.shape == (2, vision.num_patches, 32)
        side = image_size // 16
        assert vision.num_patches - med.image_encoder.num_prefix_tokens == side**2
        assert len(med.image_encoder.blocks) == 2

    @pytest.mark.parametrize("name", TOWERS)
    def test_every_weight_takes_part(
        self,
        with_backbone: Callable[..., Med],
        save_tower: Callable[[str], tuple[Any, str]],
        images: Tensor,
        name: str,
    ) -> None:
        med = with_backbone(f"transformers:{save_tower(name)[1]}").train()
        med.encode_images(images).square().sum().backward()
        unused = [n for n, p in med.image_encoder.named_parameters() if p.grad is None]
        assert not unused

    def test_a_folder_with_two_towers_gives_that_of_images(
        self, with_backbone: Callable[..., Med], tmp_path: Path, images: Tensor
    ) -> None:
        text = {k: v for k, v in SIZES.items() if k not in ("image_size", "patch_size")}
        clip = transformers.CLIPModel(
            transformers.CLIPConfig(vision_config=SIZES, text_config={**text, "vocab_size": 60})
        ).eval()
        clip.save_pretrained(tmp_path)
        med = with_backbone(f"transformers:{tmp_path}")
        settings = str(med.config.vision.backbone).partition(":")[2]
        weights, left = read_transformers_weights(tmp_path, settings)
        assert "logit_scale" in left["unexpected"]
        med.image_encoder.backbone.load_state_dict(weights)
        with torch.no_grad():
            expected = clip.vision_model(pixel_values=images).last_hidden_state
            torch.testing.assert_close(med.encode_images(images), expected, atol=1e-5, rtol=1e-5)

    def test_recomputed_layers_have_the_same_gradient(
        self,
        with_backbone: Callable[..., Med],
        save_tower: Callable[[str], tuple[Any, str]],
        images: Tensor,
    ) -> None:
        folder = save_tower("siglip")[1]
        calls = 0

        def gradients(layers: int) -> list[Tensor]:
            nonlocal calls
            med = with_backbone(f"transformers:{folder}", checkpoint_layers=layers).train()
            calls = 0

            def count(*_: Any) -> None:
                nonlocal calls
                calls += 1

            last = med.image_encoder.blocks[-1]
            next(last.children()).register_forward_hook(count)
            med.encode_images(images).square().sum().backward()
            return [p.grad for p in med.image_encoder.parameters() if p.grad is not None]

        whole = gradients(0)
        assert calls == 1
        again = gradients(1)
        assert calls == 2
        for expected, found in zip(whole, again, strict=True):
            torch.testing.assert_close(found, expected)


class TestArithmetic:
    @pytest.mark.parametrize("backbone", ["Convolutions", "FixedSize"])
    def test_it_is_counted_on_the_backbone_itself(
        self, with_backbone: Callable[..., Med], images: Tensor, backbone: str
    ) -> None:
        med = with_backbone(f"{HERE}:{backbone}")
        with torch.no_grad(), flop_counter() as counter:
            med.encode_images(images)
        assert image_encoder_flops(med.config, 3) == counter.get_total_flops()
        assert class_token_flops(med.config, 3) == counter.get_total_flops()

    def test_tokens_of_another_size_are_asked_of_the_backbone(
        self, with_backbone: Callable[..., Med]
    ) -> None:
        med = with_backbone(f"{HERE}:Convolutions")
        assert image_tokens(med.config, 64) == 65 == measure(f"{HERE}:Convolutions", 64).tokens


def test_ours_has_no_tokens_to_say(config: MedConfig) -> None:
    with pytest.raises(RecipeError, match=r"vision\.tokens"):
        replace(config.vision, tokens=7)
