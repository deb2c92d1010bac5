"""`scoring="transformers"` finds what today's `transformers` finds with the same weights."""

import random
from collections import defaultdict
from functools import cache

import pytest
import torch

from openblip.checkpoints.original import to_original
from openblip.inference.answers import read_questions, write_answers
from openblip.inference.captions import caption_encoded, prompt_ids
from openblip.inference.decoding import Decoding
from openblip.inference.encoding import EncodedImages
from openblip.inference.generation import constrain, generate, nucleus_probabilities

from .conftest import make_med

transformers = pytest.importorskip("transformers")


def text_part(kind, text, memory_width, weights, special, **settings):
    """A text encoder or decoder of `transformers`.

    Args:
        kind: its class.
        text: our sizes.
        memory_width: channels of what it attends to.
        weights: by their names.
        special: ids of the special tokens.
        settings: further arguments of the class.
    """
    config = transformers.BlipTextConfig(
        vocab_size=text.vocab_size,
        hidden_size=text.width,
        encoder_hidden_size=memory_width,
        intermediate_size=text.ffn_width,
        num_hidden_layers=text.depth,
        num_attention_heads=text.heads,
        max_position_embeddings=text.max_positions,
        layer_norm_eps=text.norm_eps,
        bos_token_id=special.dec,
        eos_token_id=special.sep,
        sep_token_id=special.sep,
        pad_token_id=special.pad,
        is_decoder=True,
    )
    part = kind(config, **settings)
    part.load_state_dict(weights)
    return part.eval()


def weights_of(model, kind, prefix):
    """The weights of a part by the original's names, which the library's text parts have too."""
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in to_original(model, kind).items()
        if name.startswith(prefix) and not name.endswith("position_ids")
    }


def text_decoder(med, special):
    """The decoder of a captioner in `transformers`, with the weights of `med`."""
    return text_part(
        transformers.BlipTextLMHeadModel,
        med.config.text,
        med.config.vision.width,
        weights_of(med, "caption", "text_decoder."),
        special,
    )


def their_beams(decoder, special, hidden, prompt, **settings):
    """What the library finds for images (rows of `hidden`) and prompts of one length."""
    return decoder.generate(
        input_ids=prompt,
        encoder_hidden_states=hidden,
        encoder_attention_mask=torch.ones(hidden.shape[:2], dtype=torch.int64),
        eos_token_id=special.sep,
        pad_token_id=special.pad,
        return_dict_in_generate=True,
        output_scores=True,
        **{"attention_mask": torch.ones_like(prompt), **settings},
    )


def is_row(row, ids, special):
    """Whether a padded row of the library is a text of ours."""
    # Behind beams the library fills up with the end token where the padding's id is 0.
    return row[: len(ids)] == list(ids) and set(row[len(ids) :]) <= {special.sep, special.pad}


SETTINGS = [
    {"num_beams": 3, "max_length": 20, "min_length": 5},
    {"num_beams": 4, "max_length": 12, "min_length": 8, "length_penalty": 2.0},
    {"num_beams": 3, "max_length": 9, "min_length": 0, "length_penalty": -1.0},
    {"num_beams": 2, "max_length": 16, "min_length": 5, "repetition_penalty": 1.4},
    {"num_beams": 3, "max_length": 24, "min_length": 16, "no_repeat_ngram_size": 2},
    {"num_beams": 3, "max_length": 12, "min_length": 8, "no_repeat_ngram_size": 1},
]


@pytest.mark.parametrize("seed", [0, 1, 2])
@torch.no_grad()
def test_beams_are_those_of_transformers(tokenizer, images, seed):
    med = make_med(tokenizer, seed)
    special = tokenizer.special
    decoder = text_decoder(med, special)
    hidden = med.encode_images(images)
    memory = med.memories(hidden).decoder
    prompt = torch.tensor([special.dec, 20, 30]).expand(len(images), -1)
    scorings_differ = False
    for settings in SETTINGS:
        theirs = their_beams(decoder, special, hidden, prompt, **settings)
        ours = generate(
            med.text, memory, prompt, Decoding(scoring="transformers", **settings), special
        )
        for (text,), row in zip(ours, theirs.sequences.tolist(), strict=True):
            assert is_row(row, text.token_ids, special)
        scores = [text.score for (text,) in ours]
        assert scores == pytest.approx(theirs.sequences_scores.tolist(), abs=1e-5)
        original = generate(med.text, memory, prompt, Decoding(**settings), special)
        scorings_differ |= [text.token_ids for (text,) in original] != [
            text.token_ids for (text,) in ours
        ]
    assert scorings_differ


PROMPTS = ["", "a", "a picture of", "two", "a large dog and", "the grass", "people with"]


def random_case(number, tokenizer):
    """Settings and prompts that depend on the number alone."""
    draw = random.Random(number)
    beams = draw.randint(1, 5)
    prompts = [draw.choice(PROMPTS) for _ in range(draw.randint(1, 7))]
    longest = max(prompt_ids(tokenizer, prompt, 40).shape[1] for prompt in prompts)
    max_length = longest + draw.randint(1, 14)
    settings = {
        "num_beams": beams,
        "max_length": max_length,
        "min_length": draw.choice([0, draw.randint(0, max_length)]),
        "repetition_penalty": draw.choice([1.0, 1.0, draw.uniform(1.0, 2.0), 0.8]),
        "no_repeat_ngram_size": draw.choice([0, 0, 1, 2, 3]),
        # Of a single beam the library refuses it.
        "length_penalty": 1.0 if beams == 1 else draw.choice([1.0, 0.0, 0.5, 2.0, -1.0]),
    }
    return settings, prompts, draw.randint(1, beams), draw.randrange(4)


@pytest.fixture(scope="module")
def peers(tokenizer, images):
    """By seed: our model, theirs with the same weights, and encoded images."""

    @cache
    def make(seed):
        med = make_med(tokenizer, seed)
        with torch.no_grad():
            return text_decoder(med, tokenizer.special), EncodedImages(
                med, med.encode_images(images)
            )

    return make


@torch.no_grad()
def check_case(number, peers, tokenizer):
    settings, prompts, num_captions, seed = random_case(number, tokenizer)
    decoder, every = peers(seed)
    encoded = EncodedImages(every.med, every.hidden[: len(prompts)])
    decoding = Decoding(scoring="transformers", **settings)
    ours = caption_encoded(encoded, tokenizer, decoding, prompts, num_captions=num_captions)
    places_of_length = defaultdict(list)
    for place, prompt in enumerate(prompts):
        ids = prompt_ids(tokenizer, prompt, 40)
        places_of_length[ids.shape[1]].append((place, ids))
    for length, items in places_of_length.items():
        places = [place for place, _ in items]
        theirs = their_beams(
            decoder,
            tokenizer.special,
            encoded.hidden[places],
            torch.cat([ids for _, ids in items]),
            num_return_sequences=num_captions,
            **settings,
        )
        texts = [caption for place in places for caption in ours[place]]
        rows = theirs.sequences.tolist()
        assert len(texts) == len(rows)
        for text, row in zip(texts, rows, strict=True):
            assert is_row(row, text.token_ids, tokenizer.special), settings
        if settings["num_beams"] > 1 and settings["repetition_penalty"] == 1.0:
            # Otherwise their scores are not the model's log-probabilities.
            for text, score in zip(texts, theirs.sequences_scores.tolist(), strict=True):
                by = (len(text.token_ids) - length) ** settings["length_penalty"]
                assert text.logprob / by == pytest.approx(score, rel=1e-4, abs=1e-5)


DEFAULT_CASES, ALL_CASES = 24, 400


@pytest.mark.parametrize("first", range(0, DEFAULT_CASES, 12))
def test_random_cases(peers, tokenizer, first):
    for number in range(first, first + 12):
        check_case(number, peers, tokenizer)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(DEFAULT_CASES, ALL_CASES, 47))
def test_more_random_cases(peers, tokenizer, first):
    for number in range(first, first + 47):
        check_case(number, peers, tokenizer)


@torch.no_grad()
def test_prompts_of_different_lengths_equal_the_librarys_padded_batch(peers, tokenizer):
    # Of the decoder's `generate` a batch padded at the left is a peer: positions come from the
    # mask. It counts padding as length, and as seen ids, so lengths are those of the new tokens.
    # A batch padded at the right, and the whole captioner's `generate`, which overwrites the first
    # column, give other texts than each prompt alone.
    special = tokenizer.special
    decoder, encoded = peers(1)
    rows = [prompt_ids(tokenizer, prompt, 40)[0].tolist() for prompt in PROMPTS]
    longest = max(map(len, rows))
    ids = torch.tensor([[special.pad] * (longest - len(row)) + row for row in rows])
    theirs = their_beams(
        decoder,
        special,
        encoded.hidden,
        ids,
        attention_mask=(ids != special.pad).long(),
        num_beams=3,
        max_new_tokens=8,
    )
    for place, row in enumerate(theirs.sequences.tolist()):
        decoding = Decoding(
            num_beams=3, min_length=0, max_length=len(rows[place]) + 8, scoring="transformers"
        )
        one = EncodedImages(encoded.med, encoded.hidden[place : place + 1])
        ((caption,),) = caption_encoded(one, tokenizer, decoding, PROMPTS[place])
        assert is_row(row[longest - len(rows[place]) :], caption.token_ids, special)


@pytest.mark.parametrize("number", range(40))
def test_distributions_are_those_of_their_processors(number):
    draw = random.Random(number)
    generator = torch.Generator().manual_seed(number)
    rows, length, end = draw.randint(1, 5), draw.randint(1, 12), 3
    vocab = draw.choice([7, 90, 1000])
    scores = torch.randn(rows, vocab, generator=generator) * draw.uniform(0.5, 4.0)
    ids = torch.randint(draw.choice([3, vocab]), (rows, length), generator=generator)
    decoding = Decoding(
        min_length=draw.randint(0, 16),
        max_length=20,
        repetition_penalty=draw.choice([1.0, 1.1, draw.uniform(0.5, 2.0)]),
        # Of seven tokens all could be excluded.
        no_repeat_ngram_size=draw.choice([0, 1, 2, 3, 20]) if vocab > 7 else 0,
        top_p=draw.choice([1.0, 0.9, draw.uniform(0.05, 1.0)]),
        top_k=draw.choice([0, 50, draw.randint(1, 100)]),
    )
    processors = transformers.LogitsProcessorList(
        [
            transformers.RepetitionPenaltyLogitsProcessor(decoding.repetition_penalty),
            *(
                [transformers.NoRepeatNGramLogitsProcessor(decoding.no_repeat_ngram_size)]
                if decoding.no_repeat_ngram_size
                else []
            ),
            transformers.MinLengthLogitsProcessor(decoding.min_length, torch.tensor([end])),
        ]
    )
    constrained = constrain(scores, ids, decoding, end)
    torch.testing.assert_close(constrained, processors(ids, scores), rtol=0, atol=0)
    if decoding.top_k:
        processors.append(transformers.TopKLogitsWarper(decoding.top_k))
    processors.append(transformers.TopPLogitsWarper(decoding.top_p))
    ours = nucleus_probabilities(constrained, top_p=decoding.top_p, top_k=decoding.top_k)
    torch.testing.assert_close(ours, processors(ids, scores).softmax(dim=-1), rtol=1e-5, atol=1e-7)


@torch.no_grad()
def test_answers_are_those_of_transformers(vqa, tokenizer, images):
    special, text = tokenizer.special, vqa.config.text
    encoder = text_part(
        transformers.BlipTextModel,
        text,
        vqa.config.vision.width,
        weights_of(vqa, "vqa", "text_encoder."),
        special,
        add_pooling_layer=False,
    )
    decoder = text_part(
        transformers.BlipTextLMHeadModel,
        text,
        text.width,
        weights_of(vqa, "vqa", "text_decoder."),
        special,
    )
    hidden = vqa.encode_images(images)
    settings = {"num_beams": 3, "max_length": 10, "min_length": 1}
    decoding = Decoding(scoring="transformers", **settings)
    for place, prompt in enumerate(PROMPTS):
        # Their `[CLS]`, and one question at a time: they attend to padding.
        tokens = tokenizer.encode([prompt], 35, first="cls")
        ids = tokens.ids[:, : int(tokens.mask.sum())]
        image = hidden[place : place + 1]
        states = encoder(ids, encoder_hidden_states=image)[0]
        start = torch.tensor([[special.dec]])
        theirs = their_beams(decoder, special, states, start, **settings)
        (answer,) = write_answers(vqa, read_questions(vqa, image, tokens), special, decoding)
        assert is_row(theirs.sequences[0].tolist(), answer.token_ids, special)
        assert answer.score == pytest.approx(theirs.sequences_scores.item(), abs=1e-5)
