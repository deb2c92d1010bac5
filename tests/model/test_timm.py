"""Models of timm as image encoders; `make test-timm` builds an environment where it can run."""

from pathlib import Path

import pytest
import torch

from openblip.checkpoints.assembly import fill
from openblip.checkpoints.beginnings import begin_images, image_sizes
from openblip.checkpoints.families import empty_model, state_to_write
from openblip.model import Med, MedConfig, TextConfig, VisionConfig
from openblip.model.flops import image_encoder_flops
from openblip.runtime.errors import RecipeError

pytestmark = pytest.mark.timm
timm = pytest.importorskip("timm", exc_type=ImportError)

TEXT = TextConfig(vocab_size=50, width=32, depth=1, heads=4, ffn_width=64, max_positions=20)
VIT = "vit_tiny_patch16_224"


def made(name: str, image_size: int = 224, checkpoint_layers: int = 0) -> Med:
    vision = VisionConfig(
        image_size=image_size, backbone=f"timm:{name}", checkpoint_layers=checkpoint_layers
    )
    return Med(MedConfig(vision=vision, text=TEXT, embed_dim=8)).eval()


@pytest.mark.parametrize(
    ("name", "size", "tokens", "width"),
    [
        (VIT, 224, 197, 192),
        (VIT, 64, 17, 192),
        ("resnet18", 64, 5, 512),
        ("swin_tiny_patch4_window7_224", 224, 50, 768),
    ],
)
def test_features_are_those_of_timm(name: str, size: int, tokens: int, width: int) -> None:
    med = made(name, size)
    assert (med.config.vision.num_patches, med.config.vision.width) == (tokens, width)
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        features = med.image_encoder.backbone.model.forward_features(images)
        hidden = med.encode_images(images)
    if features.ndim == 4:
        of_first = features.shape[1] == width
        features = features.flatten(2).mT if of_first else features.flatten(1, 2)
    torch.testing.assert_close(hidden[:, -features.shape[1] :], features, atol=1e-5, rtol=1e-5)
    assert image_encoder_flops(med.config, 1) > 0


def test_a_saved_model_is_built_again() -> None:
    med = made(VIT, 64, checkpoint_layers=2)
    again = fill(empty_model(med.config), state_to_write(med), "memory").eval()
    images = torch.randn(1, 3, 64, 64)
    assert torch.equal(again.encode_images(images), med.encode_images(images))
    assert len(med.image_encoder.blocks) == 12


def test_a_vit_of_timm_begins_our_own_encoder(tmp_path: Path) -> None:
    model = timm.create_model(VIT, num_classes=10).eval()
    torch.save(model.state_dict(), tmp_path / "vit.pth")
    vision = image_sizes(str(tmp_path / "vit.pth"), VisionConfig())
    assert vision.backbone is None
    assert (vision.width, vision.heads, vision.depth) == (192, 3, 12)
    med = Med(MedConfig(vision=vision, text=TEXT, embed_dim=8)).eval()
    begin_images(med.image_encoder, str(tmp_path / "vit.pth"))
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        expected = model.forward_features(images)
        torch.testing.assert_close(med.encode_images(images), expected, atol=1e-5, rtol=1e-5)


def test_a_name_that_timm_does_not_know_is_refused() -> None:
    with pytest.raises(RecipeError, match="timm cannot make it"):
        made("vit_of_nobody")
