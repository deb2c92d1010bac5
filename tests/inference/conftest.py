"""A small model whose weights are large enough for its outputs to differ, and pictures for it."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from openblip.batches.tokenizer import TextTokenizer
from openblip.inference.blip import Blip
from openblip.inference.encoding import EncodedImages
from openblip.inference.image_sources import ImageSources
from openblip.inference.many_images import (
    CaptionJobResult,
    CaptionJobSettings,
    CaptionTarget,
    caption_images,
)
from openblip.model import Med, MedConfig, TextConfig, VisionConfig
from openblip.model.albef import Albef, AlbefConfig
from openblip.model.dual import DualConfig, DualEncoder
from openblip.model.vqa import Vqa, VqaConfig

TEXTS = [
    "a picture of a red square above a blue circle",
    "a picture of two green triangles on a white table",
    "a large dog and a small cat in the grass under a tree",
    "people with umbrellas walk along the street at night",
]


def make_med(tokenizer: TextTokenizer, seed: int = 0, **changes) -> Med:
    """A MED whose attention is not uniform and whose texts end at different lengths."""
    config = MedConfig(
        vision=VisionConfig(image_size=32, patch_size=16, width=24, depth=2, heads=2),
        text=TextConfig(
            vocab_size=tokenizer.vocab_size,
            width=32,
            depth=2,
            heads=4,
            ffn_width=48,
            max_positions=40,
            dropout=0.1,
            sharing=changes.pop("sharing", "all_but_self_attention"),
        ),
        embed_dim=16,
        **changes,
    )
    med = Med(config)
    draw_weights(med, seed)
    if "lm" in config.heads:
        with torch.no_grad():
            med.text.lm_head.bias[tokenizer.special.sep] += 4.5
    return med.eval()


@torch.no_grad()
def draw_weights(model: torch.nn.Module, seed: int) -> None:
    """Large weights, so that attention is not uniform."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            parameter.normal_(std=0.25, generator=generator)
        elif "norm" not in name and name != "temperature":
            parameter.normal_(std=0.1, generator=generator)


def make_relative(kind: str, tokenizer: TextTokenizer) -> Albef | DualEncoder:
    """A small ALBEF or dual encoder of the sizes of `make_med`."""
    sizes = make_med(tokenizer).config
    if kind == "albef":
        config = AlbefConfig(vision=sizes.vision, text=sizes.text, embed_dim=10, fusion_layer=1)
        model: Albef | DualEncoder = Albef(config)
    else:
        model = DualEncoder(DualConfig(vision=sizes.vision, text=sizes.text, embed_dim=10))
    draw_weights(model, seed=1)
    return model


@pytest.fixture(scope="session")
def tokenizer() -> TextTokenizer:
    return TextTokenizer.train(TEXTS, vocab_size=90)


@pytest.fixture(scope="session")
def blip(tokenizer) -> Blip:
    return Blip(make_med(tokenizer), tokenizer, "pretrain", image_size=32, max_tokens=30)


@pytest.fixture(scope="session")
def vqa(tokenizer) -> Vqa:
    return make_vqa(tokenizer)


def make_vqa(tokenizer: TextTokenizer, depth: int = 2) -> Vqa:
    vision = VisionConfig(image_size=32, patch_size=16, width=24, depth=depth, heads=2)
    text = TextConfig(
        vocab_size=tokenizer.vocab_size,
        width=32,
        depth=depth,
        heads=4,
        ffn_width=48,
        max_positions=40,
    )
    model = Vqa(VqaConfig(vision=vision, text=text))
    draw_weights(model, seed=3)
    with torch.no_grad():
        model.answer.lm_head.bias[tokenizer.special.sep] += 3.0
    return model.eval()


@pytest.fixture(scope="session")
def pictures() -> list[Image.Image]:
    generator = np.random.default_rng(0)
    arrays = generator.integers(0, 256, size=(7, 20, 28, 3), dtype=np.uint8)
    return [Image.fromarray(array) for array in arrays]


@pytest.fixture(scope="session")
def images() -> torch.Tensor:
    return torch.randn(7, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def encoded(blip, images) -> EncodedImages:
    return blip.encode(images)


@pytest.fixture(scope="session")
def model(blip, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("models") / "captioner"
    blip.save(folder)
    return str(folder)


@pytest.fixture
def photos(pictures, tmp_path, monkeypatch) -> Path:
    """Seven photos, two of them in a folder of their own."""
    monkeypatch.chdir(tmp_path)
    for number, picture in enumerate(pictures):
        file = Path("photos", "sub" if number > 4 else "", f"{number}.png")
        file.parent.mkdir(parents=True, exist_ok=True)
        picture.save(file)
    return Path("photos")


class CaptionRun:
    """A call of the job with everything that is seen of it."""

    def __init__(self, model: str) -> None:
        self.model = model
        self.reports: list[str] = []
        self.stdout = io.BytesIO()

    def __call__(
        self, *places: object, split: str | None = None, batch_size: int = 3, **options
    ) -> CaptionJobResult:
        names = ("file", "form", "sidecar", "overwrite")
        target = CaptionTarget(**{name: options.pop(name) for name in names if name in options})
        self.reports.clear()
        self.stdout = io.BytesIO()
        return caption_images(
            ImageSources([str(place) for place in places], split),
            CaptionJobSettings(**{"model": self.model} | options),
            target,
            batch_size=batch_size,
            report=self.reports.append,
            stdout=self.stdout,
        )

    @property
    def texts(self) -> dict[str, list[str]]:
        """Captions by name, from standard output."""
        lines = [json.loads(line) for line in self.stdout.getvalue().splitlines()]
        return {line["image"]: [c["text"] for c in line["captions"]] for line in lines}


@pytest.fixture
def caption_run(model) -> CaptionRun:
    return CaptionRun(model)
