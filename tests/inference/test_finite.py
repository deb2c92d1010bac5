"""A model whose numbers are none says so, whatever it is asked."""

import math

import pytest
import torch

from openblip.inference.blip import Blip
from openblip.inference.encoding import finite
from openblip.inference.loading import check_weights, load
from openblip.model import MedConfig
from openblip.model.vqa import Nlvr, NlvrConfig
from openblip.runtime.errors import CheckpointError

from .conftest import make_med


def test_numbers_go_through(blip):
    values = torch.tensor([1e38, 1e38, -3e38])
    assert finite(values, "numbers") is values
    assert finite(torch.full((9,), 3e38), "numbers").sum().isinf(), "their sum overflows alone"
    assert len(finite(torch.empty(0), "numbers")) == 0
    check_weights(blip.model, "model")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_counted(value):
    with pytest.raises(CheckpointError, match=r"1 of 3 logits .* NaN or infinite: .* load another"):
        finite(torch.tensor([0.0, value, 1.0]), "logits")


@pytest.mark.parametrize("dtype", [None, "bfloat16", "float16"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_are_looked_at_when_a_model_is_loaded(tokenizer, tmp_path, value, dtype):
    med = make_med(tokenizer)
    with torch.no_grad():
        med.text.layers[1].cross_attention.query.weight[3, 4] = value
    Blip(med, tokenizer, "pretrain", 32, 30).save(tmp_path / "model")
    with pytest.raises(CheckpointError, match=r"model: 1 of [\d,]+ weights of text\..* diverged"):
        load(tmp_path / "model", dtype=dtype)


USES = {
    "caption": lambda blip, image: blip.caption(image),
    "greedy": lambda blip, image: blip.caption(image, method="greedy"),
    "nucleus": lambda blip, image: blip.caption(image, method="nucleus", seed=0),
    "match": lambda blip, image: blip.match(image, "a red square"),
    "match_all": lambda blip, image: blip.match_all(image, "a red square"),
    "embed_images": lambda blip, image: blip.embed_images(image),
    "embed_texts": lambda blip, image: blip.embed_texts("a red square"),
    "explain a caption": lambda blip, image: blip.explain(image),
    "explain a match": lambda blip, image: blip.explain(image, "a red square"),
}


@pytest.fixture(scope="module", params=["NaN", "exploded"])
def damaged(request, tokenizer) -> Blip:
    """Damaged after it was loaded; or with weights that are numbers, unlike what they give."""
    med = make_med(tokenizer)
    with torch.no_grad():
        for parameter in med.parameters():
            parameter.fill_(math.nan) if request.param == "NaN" else parameter.mul_(1e30)
    return Blip(med, tokenizer, "pretrain", 32, 30)


@pytest.mark.parametrize("use", USES)
def test_outputs_are_looked_at(damaged, pictures, use):
    with pytest.raises(CheckpointError, match="NaN or infinite"):
        USES[use](damaged, pictures[0])


def test_answers_are_looked_at(vqa, tokenizer, pictures):
    blip = Blip(vqa, tokenizer, "vqa", 32, 35)
    weight = vqa.answer.lm_head.bias
    with torch.no_grad():
        before = weight.clone()
        weight.fill_(math.nan)
    try:
        for candidates in (None, ["red", "blue"]):
            with pytest.raises(CheckpointError, match="NaN or infinite"):
                blip.ask(pictures[0], "a red square", candidates)
        with pytest.raises(CheckpointError, match="NaN or infinite"):
            blip.explain(pictures[0], question="a red square")
    finally:
        with torch.no_grad():
            weight.copy_(before)


def test_comparisons_are_looked_at(blip, tokenizer, pictures):
    config: MedConfig = blip.model.config
    nlvr = Nlvr(NlvrConfig(vision=config.vision, text=config.text)).eval()
    with torch.no_grad():
        next(nlvr.classifier.parameters()).fill_(math.nan)
    with pytest.raises(CheckpointError, match="NaN or infinite"):
        Blip(nlvr, tokenizer, "nlvr", 32, 30).compare(pictures[0], pictures[1], "a red square")
