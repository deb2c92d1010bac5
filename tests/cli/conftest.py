"""Small checkpoints of every kind, and a photo."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from openblip.batches.tokenizer import TextTokenizer
from openblip.inference.blip import Blip
from openblip.model import TextConfig, VisionConfig
from openblip.model.vqa import Nlvr, NlvrConfig, Vqa, VqaConfig

from ..inference.conftest import TEXTS, draw_weights, make_med


@pytest.fixture(scope="session")
def tokenizer() -> TextTokenizer:
    return TextTokenizer.train([*TEXTS, "yes", "no"], vocab_size=200)


@pytest.fixture(scope="session")
def checkpoint(
    tokenizer: TextTokenizer, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], str]:
    """The folder of a checkpoint of a kind."""
    folder = tmp_path_factory.mktemp("checkpoints")
    heads = {"captioner": ("lm",), "filter": ("itc", "itm"), "pretrain": ("itc", "itm", "lm")}
    for kind, own in heads.items():
        med = make_med(tokenizer, heads=own)
        if "lm" in own:
            # Captions have words in them.
            with torch.no_grad():
                med.text.lm_head.bias[tokenizer.special.sep] = -9.0
        Blip(med, tokenizer, kind, 32, 40).save(folder / kind)
    vision = VisionConfig(image_size=32, patch_size=16, width=32, depth=2, heads=2)
    text = TextConfig(
        vocab_size=tokenizer.vocab_size, width=32, depth=2, heads=4, ffn_width=48, max_positions=40
    )
    vqa = Vqa(VqaConfig(vision=vision, text=text))
    draw_weights(vqa, seed=3)
    Blip(vqa, tokenizer, "vqa", 32, 35).save(folder / "vqa")
    nlvr = Nlvr(NlvrConfig(vision=vision, text=text))
    draw_weights(nlvr, seed=4)
    Blip(nlvr, tokenizer, "nlvr", 32, 35).save(folder / "nlvr")
    return lambda kind: str(folder / kind)


@pytest.fixture
def photo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A photo in the working directory, which is empty otherwise."""
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, size=(40, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save("photo.png")
    return "photo.png"
