"""A model with 8-bit linear layers gives nearly the float32 model's results."""

import copy
import subprocess
import sys

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from openblip.inference import Blip, Decoding
from openblip.inference.loading import quantise
from openblip.runtime.errors import CheckpointError, RecipeError

TEXTS = ["a red square", "two green triangles on a white table", "people walk along the street"]
# Of a narrow model with large weights, whose probabilities lie between 0 and 1 everywhere.
TOLERANCE = 0.08


@pytest.fixture(scope="module")
def small(blip):
    pytest.importorskip("torchao", reason="the extra int8 is not installed")
    med = quantise(copy.deepcopy(blip.med))
    return Blip(med, blip.tokenizer, blip.kind, 32, 30)


def test_probabilities_and_embeddings_stay_near(blip, small, pictures):
    expected = blip.match_all(pictures, TEXTS)
    difference = (small.match_all(pictures, TEXTS) - expected).abs()
    assert 0 < difference.max() < TOLERANCE
    assert expected.std() > 4 * TOLERANCE, "the model tells pairs apart"
    for name, given in (("embed_images", pictures), ("embed_texts", TEXTS)):
        cosines = (getattr(blip, name)(given) * getattr(small, name)(given)).sum(dim=1)
        assert cosines.min() > 0.998


def test_results_do_not_depend_on_the_batch(small, pictures, images):
    together = small.match_all(pictures, TEXTS)
    alone = torch.cat([small.match_all([picture], TEXTS[:1]) for picture in pictures])
    # What is left in floats differs by rounding, which may take a number to the next integer.
    torch.testing.assert_close(together[:, :1], alone, rtol=0, atol=TOLERANCE / 4)


@torch.no_grad()
def test_a_token_is_rounded_by_itself(small):
    layer = small.med.text.layers[0].ffn.up
    token, outlier = torch.randn(2, 1, layer.in_features) * torch.tensor([1.0, 1e4])[:, None, None]
    torch.testing.assert_close(layer(torch.cat([token, outlier]))[:1], layer(token))


@pytest.mark.parametrize("method", ["greedy", "beam", "nucleus"])
@torch.no_grad()
def test_captions_have_nearly_the_log_probability_of_float32(blip, small, images, method):
    seeds = list(range(len(images)))
    encoded = blip.encode(images)
    written = small.generate(small.encode(images), Decoding(method=method), "", seeds)
    for place, (caption,) in enumerate(written):
        text = torch.tensor([caption.token_ids])
        memory = encoded.decoder_memory.select(torch.tensor([place]))
        logprobs = blip.med.decode(text[:, :-1], None, memory).log_softmax(dim=-1)
        expected = logprobs.gather(2, text[:, 1:, None]).sum().item()
        assert caption.logprob == pytest.approx(expected, abs=0.3 * text.shape[1])


def stored(weight):
    """The plain tensors that a weight holds: releases of torchao nest them differently."""
    if not is_traceable_wrapper_subclass(weight):
        return [weight]
    names, _ = weight.__tensor_flatten__()
    return [part for name in names for part in stored(getattr(weight, name))]


def test_the_linear_layers_take_a_quarter(blip, small):
    def of(model):
        return model.med.text.layers[0].ffn.up.weight

    numbers, *others = sorted(stored(of(small)), key=Tensor.numel, reverse=True)
    assert numbers.dtype == torch.int8
    assert numbers.shape == of(blip).shape
    # Beside the numbers, a scale and a zero point for each row at most.
    assert sum(part.numel() for part in others) <= 2 * len(numbers)
    assert small.med.text.embeddings.word.weight.dtype == torch.float32


def test_it_is_not_saved(small, tmp_path):
    with pytest.raises(CheckpointError, match=r"weight is quantised.*load the model again"):
        small.save(tmp_path / "small")
    assert not list(tmp_path.iterdir())


def test_another_type_is_an_error(blip):
    with pytest.raises(RecipeError, match="bfloat16 on cpu; int8 takes a float32 model"):
        quantise(copy.deepcopy(blip.med).bfloat16())


@pytest.mark.parametrize(
    ("library", "told"),
    [
        pytest.param("None", "int8 needs torchao: pip install 'openblip[int8]'", id="absent"),
        pytest.param("type(sys)('torchao')", f"not go with torch {torch.__version__}", id="other"),
    ],
)
def test_without_a_library_that_fits_it_is_told_what_to_install(library, told):
    code = (
        f"import sys; sys.modules['torchao.quantization'] = {library}\n"
        "from torch import nn\n"
        "from openblip.runtime.errors import RecipeError\n"
        "from openblip.inference.loading import quantise\n"
        "try: quantise(nn.Linear(2, 2))\n"
        f"except RecipeError as error: assert {told!r} in str(error)\n"
        "else: raise AssertionError\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
