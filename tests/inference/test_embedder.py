"""Published contrastive models behind the calls of ours, against the libraries they come from."""

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from openblip.batches.tokenizer import TextTokenizer
from openblip.inference.blip import Blip
from openblip.inference.embedder import load_embedder
from openblip.runtime.errors import CheckpointError

from .conftest import make_med
from .published_clip import save_clip, save_siglip, siglip_embeds, transformers_embeds

TEXTS = ["a dog on grass", "two cats", "a red car beside a very long and winding road", ""]


@pytest.fixture
def pictures() -> list[Image.Image]:
    generator = np.random.default_rng(0)
    sizes = [(40, 60), (64, 32), (33, 33)]
    return [
        Image.fromarray(generator.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in sizes
    ]


def test_a_siglip_sees_its_padding_as_transformers_does(
    tmp_path: Path, pictures: list[Image.Image]
) -> None:
    folder = save_siglip(tmp_path / "siglip")
    expected_images, expected_texts = siglip_embeds(folder, pictures, TEXTS)
    model = load_embedder(folder, "cpu")
    assert not isinstance(model, Blip)
    assert torch.allclose(model.embed_images(pictures), expected_images, atol=1e-5)
    assert torch.allclose(model.embed_texts(TEXTS), expected_texts, atol=1e-5)


@pytest.fixture
def clip_folder(tmp_path: Path) -> Path:
    return save_clip(tmp_path / "clip")


def test_a_clip_embeds_as_transformers_does(clip_folder: Path, pictures: list[Image.Image]) -> None:
    expected_images, expected_texts = transformers_embeds(clip_folder, pictures, TEXTS)

    ours = load_embedder(clip_folder)

    images = ours.embed_images(pictures, batch_size=2)
    torch.testing.assert_close(images, expected_images, rtol=0, atol=1e-5)
    texts = ours.embed_texts(TEXTS, batch_size=3)
    torch.testing.assert_close(texts, expected_texts, rtol=0, atol=1e-5)
    torch.testing.assert_close(ours.embed_texts(TEXTS[0])[0], texts[0], rtol=0, atol=1e-5)


def test_a_damaged_clip_is_named(clip_folder: Path) -> None:
    (clip_folder / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(CheckpointError, match=r"clip: transformers cannot read it"):
        load_embedder(clip_folder)


def test_a_library_that_is_not_installed_is_named_with_its_extra(
    clip_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(CheckpointError, match=r"pip install 'openblip\[clip\]'"):
        load_embedder(clip_folder)
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(CheckpointError, match=r"pip install 'openblip\[openclip\]'"):
        load_embedder("open_clip:ViT-B-32/laion2b_s34b_b79k")


def test_models_of_ours_are_loaded_as_ever(tmp_path: Path) -> None:
    tokenizer = TextTokenizer.train(TEXTS, 60)
    Blip(make_med(tokenizer), tokenizer, "pretrain", 32, 32).save(tmp_path / "ours")
    assert isinstance(load_embedder(tmp_path / "ours"), Blip)


def open_clip_or_skip() -> Any:
    try:
        # It imports torchvision and timm, whose warnings are none of ours.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import open_clip
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"open_clip cannot be imported here: {error}")
    return open_clip


@pytest.fixture
def open_clip_folder(tmp_path: Path) -> Path:
    """A small model of open_clip with random weights, in its own folder layout."""
    from safetensors.torch import save_model

    open_clip = open_clip_or_skip()
    vision = {"image_size": 32, "layers": 2, "width": 16, "head_width": 8, "patch_size": 8}
    text = {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2}
    towers = {"embed_dim": 8, "vision_cfg": vision, "text_cfg": text}
    folder = tmp_path / "open"
    folder.mkdir()
    config = {"model_cfg": towers, "preprocess_cfg": {"size": [32, 32]}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    model = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
    save_model(model, str(folder / "open_clip_model.safetensors"))
    return folder


@pytest.mark.filterwarnings("ignore")
def test_a_model_of_open_clip_embeds_as_there(
    open_clip_folder: Path, pictures: list[Image.Image]
) -> None:
    open_clip = open_clip_or_skip()
    name = f"local-dir:{open_clip_folder}"
    theirs, _, prepare = open_clip.create_model_and_transforms(name)
    with torch.no_grad():
        pixels = torch.stack([prepare(picture) for picture in pictures])
        images = theirs.eval().encode_image(pixels, normalize=True)
        tokens = open_clip.get_tokenizer(name)(TEXTS)
        texts = theirs.encode_text(tokens, normalize=True)

    ours = load_embedder(f"open_clip:{open_clip_folder}")

    torch.testing.assert_close(ours.embed_images(pictures, 2), images, rtol=0, atol=1e-5)
    torch.testing.assert_close(ours.embed_texts(TEXTS, 3), texts, rtol=0, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_a_model_that_open_clip_does_not_have_is_named() -> None:
    with pytest.raises(CheckpointError, match="open_clip:ViT-B-32"):
        load_embedder("open_clip:ViT-B-32")
