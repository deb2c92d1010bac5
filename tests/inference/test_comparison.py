"""Probabilities that sentences are true of two images."""

import pytest
import torch

from openblip.batches.text import clean_caption
from openblip.batches.transforms import eval_transform
from openblip.inference.blip import Blip
from openblip.inference.loading import load
from openblip.model.vqa import Nlvr, NlvrConfig
from openblip.runtime.errors import DataError, MissingHead

from .conftest import draw_weights, make_med

SENTENCES = ["The left image shows a dog.", "two cats", "people with umbrellas: at night!"]


@pytest.fixture(scope="module")
def nlvr(tokenizer) -> Blip:
    sizes = make_med(tokenizer).config
    model = Nlvr(NlvrConfig(vision=sizes.vision, text=sizes.text, merge_from_layer=1))
    draw_weights(model, seed=0)
    return Blip(model, tokenizer, "nlvr", image_size=32, max_tokens=40)


@torch.no_grad()
def expected(nlvr, first, second, sentence) -> float:
    model = nlvr.model
    hidden = [model.encode_images(eval_transform(image, 32)[None]) for image in (first, second)]
    tokens = nlvr.tokenizer.encode([clean_caption(sentence, 40)], 40, first="enc")
    logits = model.compare(tokens.ids, tokens.mask, model.memory(*hidden))
    return logits.softmax(dim=-1)[0, 1].item()


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_each_pair_is_judged_alone(nlvr, pictures, batch_size):
    found = nlvr.compare(pictures[:3], pictures[3:6], SENTENCES, batch_size=batch_size)
    triples = zip(pictures[:3], pictures[3:6], SENTENCES, strict=True)
    alone = [expected(nlvr, *triple) for triple in triples]
    assert found.tolist() == pytest.approx(alone, abs=1e-5)
    assert found.std() > 1e-3


def test_the_order_of_the_images_counts(nlvr, pictures):
    there = nlvr.compare(pictures[0], pictures[1], SENTENCES[0])
    back = nlvr.compare(pictures[1], pictures[0], SENTENCES[0])
    assert there.shape == (1,)
    assert abs(there - back) > 1e-4


def test_as_many_of_each(nlvr, pictures):
    with pytest.raises(DataError, match="2 first images, 3 second images and 3 sentences"):
        nlvr.compare(pictures[:2], pictures[:3], SENTENCES)


def test_it_survives_its_folder(nlvr, pictures, tmp_path):
    nlvr.save(tmp_path / "nlvr")
    read = load(tmp_path / "nlvr", device="cpu")
    assert read.kind == "nlvr"
    images = (pictures[:3], pictures[3:6])
    assert torch.equal(read.compare(*images, SENTENCES), nlvr.compare(*images, SENTENCES))


def test_other_checkpoints_cannot_compare_and_this_one_nothing_else(nlvr, blip, pictures):
    with pytest.raises(MissingHead, match="of the kind pretrain; load a two-image"):
        blip.compare(pictures[0], pictures[1], "a dog")
    with pytest.raises(
        MissingHead, match="of the kind nlvr, which cannot caption; load a pre-trained or captioner"
    ):
        nlvr.caption(pictures[0])
