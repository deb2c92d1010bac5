"""What holds for every way of generating."""

import pytest
import torch

from openblip.inference.blip import Blip
from openblip.inference.decoding import Decoding
from openblip.inference.generation import generate, remaining
from openblip.runtime.errors import MissingHead, RecipeError

from .conftest import make_med

METHODS = [
    Decoding(method="greedy"),
    Decoding(num_beams=3),
    Decoding(num_beams=5, max_length=14, min_length=8, repetition_penalty=1.3),
    Decoding(num_beams=3, scoring="transformers", length_penalty=0.5),
    Decoding(method="nucleus"),
    Decoding(method="nucleus", top_k=10, repetition_penalty=1.1, min_length=9),
]
every_method = pytest.mark.parametrize("decoding", METHODS, ids=lambda d: f"{d.method}-{d.scoring}")
SEEDS = [101, 102, 103, 104, 105, 106, 107]


def captions(blip, images, decoding, seeds=None, num_captions=1):
    return blip.generate(blip.encode(images), decoding, "a picture of", seeds, num_captions)


def prompt_of(tokenizer):
    tokens = tokenizer.encode(["a picture of"], 20, first="dec")
    return tuple(tokens.ids[tokens.mask].tolist()[:-1])


def ids(captions_of_image):
    return [[caption.token_ids for caption in one] for one in captions_of_image]


@every_method
def test_other_images_in_the_batch_change_nothing(blip, images, decoding):
    together = captions(blip, images, decoding, SEEDS)
    order = [4, 0, 6, 2]
    shuffled = captions(blip, images[order], decoding, [SEEDS[place] for place in order])
    assert ids(shuffled) == [ids(together)[place] for place in order]
    for place in range(len(images)):
        alone = captions(blip, images[place : place + 1], decoding, SEEDS[place : place + 1])
        assert ids(alone) == ids(together)[place : place + 1]
        assert alone[0][0].logprob == pytest.approx(together[place][0].logprob, abs=1e-4)


@every_method
def test_the_texts_end_at_different_lengths(blip, images, decoding):
    # Otherwise the test above would not see images leave the batch.
    lengths = {len(one[0].token_ids) for one in captions(blip, images, decoding, SEEDS)}
    assert len(lengths) > 1


@every_method
def test_lengths_count_the_prompt(blip, images, decoding):
    end, prompt = blip.tokenizer.special.sep, prompt_of(blip.tokenizer)
    for (caption,) in captions(blip, images, decoding, SEEDS):
        assert caption.token_ids[: len(prompt)] == prompt
        text = caption.token_ids[len(prompt) :]
        assert len(caption.token_ids) <= decoding.max_length
        if end in text:
            assert text.index(end) == len(text) - 1
            assert len(caption.token_ids) - 1 >= decoding.min_length
        else:
            assert len(caption.token_ids) == decoding.max_length
        assert caption.text == blip.tokenizer.decode(text)


@every_method
@torch.no_grad()
def test_logprob_is_the_sum_under_teacher_forcing(blip, images, decoding):
    encoded = blip.encode(images)
    start = len(prompt_of(blip.tokenizer)) - 1
    for place, (caption,) in enumerate(captions(blip, images, decoding, SEEDS)):
        text = torch.tensor([caption.token_ids])
        memory = encoded.decoder_memory.select(torch.tensor([place]))
        logprobs = blip.med.decode(text[:, :-1], None, memory).log_softmax(dim=-1)
        chosen = logprobs.gather(2, text[:, 1:, None])[0, :, 0]
        assert caption.logprob == pytest.approx(chosen[start:].sum().item(), abs=1e-4)


@torch.no_grad()
def test_greedy_with_a_cache_takes_the_uncached_argmax(blip, images):
    decoding = Decoding(method="greedy", min_length=0)
    encoded = blip.encode(images)
    for place, (caption,) in enumerate(blip.generate(encoded, decoding, prompt="")):
        memory = encoded.decoder_memory.select(torch.tensor([place]))
        text = torch.tensor([caption.token_ids])
        uncached = blip.med.decode(text, None, memory).argmax(dim=-1)
        assert uncached[0, :-1].tolist() == text[0, 1:].tolist()


@pytest.mark.parametrize("method", ["beam", "nucleus", "greedy"])
@pytest.mark.parametrize("sharing", ["all_but_self_attention", "all_but_cross_attention"])
def test_keys_and_values_of_an_image_are_computed_once(tokenizer, images, method, sharing):
    med = make_med(tokenizer, sharing=sharing)
    blip = Blip(med, tokenizer, "pretrain", 32, 30)
    layers = [layer.part("cross_attention", causal=True).key_value for layer in med.text.layers]
    seen = [[] for _ in layers]
    for calls, layer in zip(seen, layers, strict=True):
        layer.register_forward_hook(lambda _, given, __, calls=calls: calls.append(len(given[0])))
    encoded = blip.encode(images)
    for prompt in ("", "a picture of"):
        captions_of = blip.generate(encoded, Decoding(method=method), prompt, SEEDS)
        assert max(len(caption.token_ids) for (caption,) in captions_of) > 6
    assert seen == [[len(images)]] * len(layers)


def test_several_beam_captions_are_the_best_in_order(blip, images):
    decoding = Decoding(num_beams=4)
    single = captions(blip, images, decoding)
    several = captions(blip, images, decoding, num_captions=4)
    for best, (first, *rest) in zip(single, several, strict=True):
        assert best == [first]
        assert len({first.token_ids, *(caption.token_ids for caption in rest)}) == 4


def test_several_nucleus_captions_are_separate_draws(blip, images):
    decoding = Decoding(method="nucleus")
    single = captions(blip, images, decoding, SEEDS)
    several = captions(blip, images, decoding, SEEDS, num_captions=3)
    assert [one[:1] for one in ids(several)] == ids(single)
    assert sum(len(set(one)) for one in ids(several)) > 2 * len(images)


def test_another_seed_draws_another_caption(blip, images):
    decoding = Decoding(method="nucleus")
    one = captions(blip, images, decoding, SEEDS)
    other = captions(blip, images, decoding, [seed + 1000 for seed in SEEDS])
    assert sum(a != b for a, b in zip(ids(one), ids(other), strict=True)) >= 5


def test_finished_images_leave_when_a_quarter_is_finished():
    assert remaining([True] * 8).tolist() == list(range(8))
    assert remaining([False, *[True] * 7]).tolist() == list(range(8))
    assert remaining([False, True, False, *[True] * 5]).tolist() == [1, 3, 4, 5, 6, 7]
    assert remaining([True, False]).tolist() == [0]


def test_no_image_gives_no_text(blip):
    assert captions(blip, torch.empty(0, 3, 32, 32), Decoding()) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "best"}, "beam, nucleus, greedy"),
        ({"scoring": "new"}, "original, transformers"),
        ({"num_beams": 0}, "num_beams"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"top_k": -1}, "top_k"),
        ({"repetition_penalty": 0.0}, "repetition_penalty"),
        ({"min_length": 21}, "min_length 21 is above max_length 20"),
    ],
)
def test_settings_out_of_range_are_named(settings, message):
    with pytest.raises(RecipeError, match=message):
        Decoding(**settings)


@pytest.mark.parametrize(
    ("decoding", "options", "message"),
    [
        (Decoding(max_length=5), {}, "has 5 tokens"),
        (Decoding(max_length=41), {}, "40 positions"),
        (Decoding(method="nucleus"), {}, "seed per image"),
        (Decoding(num_beams=2), {"num_captions": 3}, "num_captions 3 is more than the 2"),
        (Decoding(method="greedy"), {"num_captions": 2}, "num_captions 2 is more than the 1"),
        (Decoding(), {"num_captions": 0}, "num_captions"),
    ],
)
def test_settings_that_do_not_fit_are_named(blip, encoded, decoding, options, message):
    special = blip.tokenizer.special
    prompt = torch.full((len(encoded), 5), special.dec)
    with pytest.raises(RecipeError, match=message):
        generate(blip.med.text, encoded.decoder_memory, prompt, decoding, special, **options)


def test_a_filter_cannot_write(tokenizer, images):
    blip = Blip(make_med(tokenizer, heads=("itc", "itm")), tokenizer, "filter", 32, 30)
    with pytest.raises(MissingHead, match="captioner"):
        captions(blip, images, Decoding())
