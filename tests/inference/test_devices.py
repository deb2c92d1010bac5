"""Half precision and other devices: results stay near float32, and come back as float32 on the CPU.

Of a small model with large weights, bfloat16 (8 bits of mantissa) is held to 0.03 and float16
(11 bits) to 0.005, for probabilities, cosines and elements of unit vectors; log-probabilities of
the same text to ten times that per token.
"""

import copy

import pytest
import torch

from openblip.inference.answers import rank_answers, read_questions, write_answers
from openblip.inference.blip import Blip
from openblip.inference.decoding import Decoding

TEXTS = ["a red square", "two green triangles on a white table", "people walk along the street"]
TOLERANCE = {torch.bfloat16: 0.03, torch.float16: 0.005, torch.float32: 1e-4}
DECODINGS = [
    Decoding(method="greedy"),
    Decoding(num_beams=3),
    Decoding(num_beams=3, scoring="transformers", repetition_penalty=1.2),
    Decoding(method="nucleus", top_k=20),
]


def available(device: str) -> bool:
    return torch.cuda.is_available() if device == "cuda" else torch.backends.mps.is_available()


PLACES = [
    pytest.param(
        device,
        dtype,
        id=f"{device}-{str(dtype).removeprefix('torch.')}",
        marks=pytest.mark.skipif(
            device != "cpu" and not available(device), reason=f"this machine has no {device}"
        ),
    )
    for device in ("cpu", "cuda", "mps")
    for dtype in (torch.float32, torch.bfloat16, torch.float16)
    if (device, dtype) != ("cpu", torch.float32)
]


@pytest.fixture
def moved(blip, device, dtype):
    """The model elsewhere, and how far its results may be from those of float32 on the CPU."""
    med = copy.deepcopy(blip.med).to(device, dtype)
    return Blip(med, blip.tokenizer, blip.kind, 32, 30), TOLERANCE[dtype]


@pytest.mark.parametrize(("device", "dtype"), PLACES)
def test_embeddings_and_matches_stay_near(blip, moved, pictures):
    other, tolerance = moved
    for name, given in (("embed_images", pictures), ("embed_texts", TEXTS)):
        expected, found = getattr(blip, name)(given), getattr(other, name)(given)
        assert found.dtype == torch.float32
        assert found.device.type == "cpu"
        torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)
    expected, found = blip.match_all(pictures, TEXTS), other.match_all(pictures, TEXTS)
    assert found.dtype == torch.float32
    assert found.device.type == "cpu"
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)
    for one, two in zip(
        blip.match(pictures[:3], TEXTS), other.match(pictures[:3], TEXTS), strict=True
    ):
        assert two.itm == pytest.approx(one.itm, abs=tolerance)
        assert two.itc == pytest.approx(one.itc, abs=tolerance)


@pytest.mark.parametrize("decoding", DECODINGS, ids=lambda d: f"{d.method}-{d.scoring}")
@pytest.mark.parametrize(("device", "dtype"), PLACES)
@torch.no_grad()
def test_captions_have_nearly_the_log_probability_of_float32(blip, moved, images, decoding):
    other, tolerance = moved
    seeds = list(range(len(images)))
    encoded = blip.encode(images)
    written = other.generate(other.encode(images), decoding, "a picture of", seeds)
    start = len(blip.tokenizer.encode(["a picture of"], 20, first="dec").ids[0].nonzero()) - 1
    for place, (caption,) in enumerate(written):
        # The text may be another where two were nearly as likely.
        text = torch.tensor([caption.token_ids])
        memory = encoded.decoder_memory.select(torch.tensor([place]))
        logprobs = blip.med.decode(text[:, :-1], None, memory).log_softmax(dim=-1)
        expected = logprobs.gather(2, text[:, 1:, None])[0, start - 1 :].sum().item()
        tokens = text.shape[1] - start
        assert caption.logprob == pytest.approx(expected, abs=10 * tolerance * tokens)


@pytest.mark.parametrize(("device", "dtype"), PLACES)
def test_keys_and_values_have_the_models_type(moved, images, dtype):
    encoded = moved[0].encode(images)
    assert encoded.hidden.dtype == dtype
    assert encoded.decoder_memory.keys[0].dtype == dtype


@pytest.mark.parametrize(("device", "dtype"), PLACES)
@torch.no_grad()
def test_answers_have_nearly_the_log_probability_of_float32(vqa, tokenizer, images, device, dtype):
    other = copy.deepcopy(vqa).to(device, dtype)
    hidden = vqa.encode_images(images[:3])
    questions = tokenizer.encode(TEXTS, 35, first="enc")
    candidates = tokenizer.encode(["a", "cat", "two", "the street"], 40, first="dec")
    elsewhere = other.encode_images(images[:3].to(device, dtype))
    expected = rank_answers(vqa, read_questions(vqa, hidden, questions), candidates)
    found = rank_answers(other, read_questions(other, elsewhere, questions), candidates)
    # Candidates may change their order: they are compared by number.
    for part in ("first_probabilities", "logprobs"):
        ours, theirs = (
            getattr(ranking, part).gather(1, ranking.candidates.argsort(dim=1))
            for ranking in (found, expected)
        )
        assert ours.dtype == torch.float32
        assert ours.device.type == "cpu"
        tokens = candidates.ids.shape[1] if part == "logprobs" else 0.1
        torch.testing.assert_close(ours, theirs, rtol=0, atol=10 * TOLERANCE[dtype] * tokens)
    for text in write_answers(
        other, read_questions(other, elsewhere, questions), tokenizer.special
    ):
        assert text.logprob == pytest.approx(sum(text.token_logprobs))
