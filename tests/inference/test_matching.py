"""Scores of texts that are grouped by image."""

import pytest
import torch

from openblip.inference.blip import Blip
from openblip.inference.encoding import EncodedImages
from openblip.runtime.errors import MissingHead

from .conftest import TEXTS, make_med

WORDS = [
    "dog",
    "a cat",
    "a red square",
    "people walk at night with umbrellas",
    "tree",
    "the street",
]
UNEVEN = [WORDS[:3], [], WORDS[2:], WORDS[:1], [WORDS[4], WORDS[0], WORDS[4]], TEXTS, WORDS[1:4]]


@torch.no_grad()
def score_one(blip, image, text, first="enc"):
    hidden = blip.med.encode_images(image[None])
    tokens = blip.tokenizer.encode([text], blip.max_tokens, first=first)
    memory = blip.med.memories(hidden).encoder
    itm = blip.med.match(tokens.ids, tokens.mask, memory).softmax(dim=-1)[0, 1]
    tokens = blip.tokenizer.encode([text], blip.max_tokens)
    itc = blip.med.embed_images(hidden) @ blip.med.embed_texts(tokens.ids, tokens.mask).T
    return itm.item(), itc.item()


@pytest.mark.parametrize(("first_token", "first"), [("[ENC]", "enc"), ("[CLS]", "cls")])
def test_grouped_scores_equal_those_of_each_pair(blip, images, encoded, first_token, first):
    matches = blip.score(encoded, UNEVEN, first_token)
    assert [len(own) for own in matches] == [len(texts) for texts in UNEVEN]
    for image, texts, own in zip(images, UNEVEN, matches, strict=True):
        for text, match in zip(texts, own, strict=True):
            assert (match.itm, match.itc) == pytest.approx(
                score_one(blip, image, text, first), abs=1e-5
            )


def test_the_scores_tell_texts_and_images_apart(blip, encoded):
    matches = blip.score(encoded, [WORDS[:2]] * len(encoded))
    assert len({round(match.itm, 4) for own in matches for match in own}) > len(encoded)


def test_keys_and_values_are_computed_once_however_many_texts(tokenizer, images):
    blip = Blip(make_med(tokenizer), tokenizer, "filter", 32, 30)
    layers = [layer.cross_attention.key_value for layer in blip.med.text.layers]
    seen = []
    for layer in layers:
        layer.register_forward_hook(lambda _, given, __: seen.append(len(given[0])))
    encoded = blip.encode(images)
    blip.score(encoded, UNEVEN)
    blip.score(encoded, [TEXTS * 30] * len(images))
    assert seen == [len(images)] * len(layers)


def test_many_texts_go_through_in_several_passes(blip, images):
    texts = [f"{first} {second}" for first in TEXTS for second in WORDS * 4]
    encoded = blip.encode(images[:2])
    whole = blip.score(encoded, [texts, texts])
    single = blip.score(encoded, [texts[70:71], texts[70:71]])
    assert [own[70].itm for own in whole] == pytest.approx([own[0].itm for own in single], abs=1e-5)


def test_without_texts_there_is_nothing_to_score(blip, encoded):
    assert blip.score(encoded, [[]] * len(encoded)) == [[]] * len(encoded)


def test_a_model_without_embeddings_still_matches(tokenizer, images):
    blip = Blip(make_med(tokenizer, heads=("itm",)), tokenizer, "filter", 32, 30)
    (match,) = blip.score(blip.encode(images[:1]), [["a dog"]])[0]
    assert 0 < match.itm < 1
    assert match.itc is None


def test_a_short_text_reads_the_images_without_keys_and_values(tokenizer, images):
    blip = Blip(make_med(tokenizer), tokenizer, "filter", 32, 30)
    encoded = blip.encode(images)
    few = blip.score(encoded, [[""]] * len(images))
    assert not encoded.encoder_memory_for(1).is_projected
    assert encoded.encoder_memory.is_projected
    # They are there now, and so they are read.
    assert encoded.encoder_memory_for(1) is encoded.encoder_memory
    many = blip.score(encoded, [[""]] * len(images))
    assert [own[0].itm for own in few] == pytest.approx([own[0].itm for own in many], rel=1e-5)


def test_a_captioner_cannot_match(tokenizer, images):
    blip = Blip(make_med(tokenizer, heads=("lm",)), tokenizer, "captioner", 32, 30)
    with pytest.raises(MissingHead, match="filter"):
        blip.score(blip.encode(images), UNEVEN)


@pytest.mark.parametrize(
    "sharing", ["all", "all_but_self_attention", "all_but_cross_attention", "none"]
)
@torch.no_grad()
def test_encoder_and_decoder_memories_are_one_where_shared(tokenizer, images, sharing):
    med = make_med(tokenizer, sharing=sharing)
    encoded = EncodedImages(med, med.encode_images(images))
    reference = med.memories(encoded.hidden)
    shared = reference.encoder is reference.decoder
    assert (encoded.encoder_memory is encoded.decoder_memory) == shared
    for ours, theirs in (
        (encoded.encoder_memory, reference.encoder),
        (encoded.decoder_memory, reference.decoder),
    ):
        torch.testing.assert_close(ours.keys, theirs.keys)
        torch.testing.assert_close(ours.values, theirs.values)
