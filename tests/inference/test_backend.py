"""A backend is named in the source or beside it, and decides what the model's fingerprint is."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from PIL import Image

from openblip.batches.tokenizer import TextTokenizer
from openblip.checkpoints.reading import (
    find_model,
    model_fingerprint,
    read_model,
    read_outline,
    split_backend,
    with_backend,
)
from openblip.inference.blip import Blip
from openblip.inference.embedder import embedder_fingerprint
from openblip.inference.loading import load, source_of
from openblip.model.vqa import Nlvr, NlvrConfig
from openblip.runtime.errors import CheckpointError, RecipeError

from ..deploy.conftest import _shapes_are_not_checked, exported
from .conftest import make_med

__all__ = ["_shapes_are_not_checked", "exported"]

needs_export = pytest.mark.skipif(
    not all(find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime")),
    reason="the extra `export` is not installed",
)
TEXTS = ["a red square", "two green triangles on a white table", "people walk along the street"]


def test_a_source_may_name_what_computes_the_model() -> None:
    assert split_backend("demo/captioner") == (None, "demo/captioner")
    assert split_backend("onnx:demo/captioner") == ("onnx", "demo/captioner")
    assert split_backend("onnx-int8:Salesforce/blip") == ("onnx-int8", "Salesforce/blip")
    assert split_backend("open_clip:ViT-B-32/laion") == (None, "open_clip:ViT-B-32/laion")
    assert split_backend("https://host/model.pth")[0] is None
    assert split_backend("onnx:") == (None, "onnx:")
    assert with_backend("demo", None) == "demo"
    assert with_backend("onnx:demo", None) == with_backend("demo", "onnx") == "onnx:demo"
    assert with_backend("onnx:demo", "onnx") == "onnx:demo"


@pytest.mark.parametrize(
    ("source", "backend", "told"),
    [
        ("demo", "tensorrt", "not one of onnx, onnx-int8, openvino; none is PyTorch"),
        ("onnx:demo", "openvino", "names the backend onnx, and openvino is asked for"),
    ],
)
def test_what_is_no_backend_is_told(source: str, backend: str, told: str) -> None:
    with pytest.raises(RecipeError, match=told):
        with_backend(source, backend)
    with pytest.raises(RecipeError, match=told):
        load(source, backend=backend)


def test_eight_bits_are_a_backend() -> None:
    assert source_of("demo", None, "int8") == source_of("onnx:demo", None, torch.int8)
    assert source_of("demo", "onnx", "int8") == "onnx-int8:demo"
    assert source_of("demo", None, "bfloat16") == "demo"
    with pytest.raises(RecipeError, match="int8 is computed by the backend onnx-int8"):
        source_of("demo", "openvino", "int8")


def test_each_backend_has_a_fingerprint_of_its_own(model: str) -> None:
    prints = [model_fingerprint(with_backend(model, b)) for b in (None, "onnx", "openvino")]
    assert len(set(prints)) == 3
    assert embedder_fingerprint(f"onnx:{model}") == prints[1]
    assert find_model(f"onnx:{model}") == Path(model)


def test_what_only_weights_can_be_is_refused_before_anything_is_made(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENBLIP_CACHE", str(tmp_path / "cache"))
    for settings, told in (
        ({"device": "meta"}, "computes on the CPU"),
        ({"dtype": "bfloat16"}, "bfloat16 is of PyTorch's models"),
        ({"compile": True}, "compile is of PyTorch's models"),
    ):
        with pytest.raises(RecipeError, match=told):
            load(model, backend="onnx", **settings)
    assert not (tmp_path / "cache").exists()


@needs_export
def test_a_model_of_two_images_has_no_backend(
    tokenizer: TextTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENBLIP_CACHE", str(tmp_path / "cache"))
    sizes = make_med(tokenizer).config
    nlvr = Nlvr(NlvrConfig(vision=sizes.vision, text=sizes.text, merge_from_layer=1))
    Blip(nlvr, tokenizer, "nlvr", 32, 30).save(tmp_path / "nlvr")
    with pytest.raises(RecipeError, match="two-image"):
        load(tmp_path / "nlvr", backend="onnx")


@needs_export
def test_an_exported_folder_is_a_model_without_weights(
    exported, blip: Blip, tmp_path: Path
) -> None:
    folder = exported.folder
    assert find_model(folder) == folder
    assert read_outline(folder).config == blip.model.config
    assert model_fingerprint(folder) != model_fingerprint(f"onnx:{folder}")
    with pytest.raises(CheckpointError, match="give the model that it was exported from"):
        read_model(folder)
    assert load(folder, backend="onnx").kind == "pretrain"
    for settings, told in (
        ({"backend": "openvino"}, "exported for another runtime than openvino"),
        ({"dtype": "int8"}, "exported for another runtime than onnx-int8"),
        ({"image_size": 64}, "images of 32 pixels; export the model again with --image-size 64"),
    ):
        with pytest.raises(RecipeError, match=told):
            load(folder, **settings)


@pytest.mark.slow
@needs_export
def test_eight_bits_stay_near(
    model: str,
    blip: Blip,
    pictures: list[Image.Image],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OPENBLIP_CACHE", str(tmp_path / "cache"))
    small = load(model, dtype="int8")
    expected = blip.match_all(pictures, TEXTS)
    difference = (small.match_all(pictures, TEXTS) - expected).abs()
    assert 0 < difference.max() < 0.1
    assert expected.std() > 0.1, "the model tells pairs apart"
    for name, given in (("embed_images", pictures), ("embed_texts", TEXTS)):
        cosines = (getattr(blip, name)(given) * getattr(small, name)(given)).sum(dim=1)
        assert 0.99 < cosines.min() < 1 - 1e-7
    (folder,) = (tmp_path / "cache" / "graphs").glob("*-1")
    assert load(model, backend="onnx-int8").caption(pictures) == small.caption(pictures)
    assert (folder / "decoder.onnx").is_file()


@pytest.mark.slow
@needs_export
def test_graphs_are_made_at_the_first_use_for_each_size(
    tokenizer: TextTokenizer,
    pictures: list[Image.Image],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OPENBLIP_CACHE", str(tmp_path / "cache"))
    own = Blip(make_med(tokenizer, heads=("itc",)), tokenizer, "filter", 32, 30)
    own.save(tmp_path / "model")
    computed = load(tmp_path / "model", backend="onnx", image_size=48)
    expected = load(tmp_path / "model", image_size=48, device="cpu").embed_images(pictures)
    assert (computed.embed_images(pictures) - expected).abs().max() < 1e-4
    folders = list((tmp_path / "cache" / "graphs").glob("*-48-1"))
    assert len(folders) == 1
