"""An ALBEF in the place of a BLIP: it embeds, matches, and says what it cannot do."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from openblip.batches.tokenizer import TextTokenizer
from openblip.checkpoints.original import OriginalNote, to_original, write_original
from openblip.inference.blip import Blip
from openblip.inference.image_sources import image_batches
from openblip.inference.loading import load
from openblip.model import TextConfig, VisionConfig
from openblip.model.albef import Albef, AlbefConfig
from openblip.runtime.errors import MissingHead

TEXTS = ["a red square", "two green birds on a wall", "a cat"]


def config(vocab_size: int) -> AlbefConfig:
    return AlbefConfig(
        vision=VisionConfig(image_size=32, patch_size=16, width=64, depth=2, heads=1),
        text=TextConfig(
            vocab_size=vocab_size,
            width=64,
            depth=2,
            heads=1,
            ffn_width=256,
            max_positions=16,
            dropout=0.0,
        ),
        embed_dim=12,
        fusion_layer=1,
    )


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return TextTokenizer.train(TEXTS * 3, 60)


@pytest.fixture
def albef(tokenizer: TextTokenizer) -> Blip:
    torch.manual_seed(0)
    return Blip(Albef(config(tokenizer.vocab_size)), tokenizer, "albef", 32, 12)


@pytest.fixture
def images() -> list[Image.Image]:
    return [Image.new("RGB", (40, 30), colour) for colour in ("red", "green", "blue")]


def test_its_texts_begin_with_cls_and_have_no_end(albef: Blip) -> None:
    ids = albef.tokenizer.encode(["a cat"], 12).row(0)
    assert ids[0] == albef.tokenizer.special.cls
    assert albef.tokenizer.special.sep not in ids


def test_it_embeds_and_matches_as_its_model_does(albef: Blip, images: list[Image.Image]) -> None:
    model = albef.model
    tokens = albef.tokenizer.encode(TEXTS, 12)
    embeds = albef.embed_texts(TEXTS)
    with torch.no_grad():
        torch.testing.assert_close(embeds, model.embed_texts(tokens.ids, tokens.mask))
        hidden = model.encode_images(torch.cat(list(image_batches(images, 32, 2))))
        memory = model.memory(hidden)
        logits = model.match(tokens.ids.repeat(3, 1), tokens.mask.repeat(3, 1), memory)
    expected = logits.softmax(1)[:, 1].view(3, 3)
    torch.testing.assert_close(albef.match_all(images, TEXTS), expected)
    pairs = albef.match(images, TEXTS)
    assert [match.itm for match in pairs] == pytest.approx(expected.diagonal().tolist(), abs=1e-6)
    cosines = (albef.embed_images(images) * embeds).sum(1)
    assert [match.itc for match in pairs] == pytest.approx(cosines.tolist(), abs=1e-6)


def test_it_writes_no_captions(albef: Blip, images: list[Image.Image]) -> None:
    with pytest.raises(MissingHead, match="albef"):
        albef.caption(images)


def test_a_folder_keeps_it(albef: Blip, images: list[Image.Image], tmp_path: Path) -> None:
    albef.save(tmp_path / "model")
    read = load(tmp_path / "model", device="cpu")
    assert read.kind == "albef"
    torch.testing.assert_close(read.match_all(images, TEXTS), albef.match_all(images, TEXTS))


def test_an_original_file_has_two_words_less(
    tokenizer: TextTokenizer, images: list[Image.Image], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = Albef(config(tokenizer.vocab_size - 2))
    write_original(tmp_path / "albef.pth", to_original(model), OriginalNote.of(model))
    tokenizer.save(tmp_path)
    read = load(tmp_path / "albef.pth", device="cpu")
    tokens = read.tokenizer.encode(TEXTS, 12)
    with torch.no_grad():
        expected = model.eval().embed_texts(tokens.ids, tokens.mask)
    torch.testing.assert_close(read.embed_texts(TEXTS), expected)
    assert read.match(images, TEXTS)[0].itm is not None
