"""Prompts of several images, and how sure the model was of each word."""

import dataclasses
import math

import pytest
import torch

from openblip.batches.tokenizer import TextTokenizer, pack_tokens
from openblip.inference.blip import Blip
from openblip.inference.captions import (
    Caption,
    GivenPrompt,
    Grounding,
    WordConfidence,
    caption_encoded,
    cut_given,
)
from openblip.inference.decoding import Decoding
from openblip.runtime.errors import RecipeError

SEEDS = [11, 12, 13, 14, 15, 16, 17]
PROMPTS = ["a picture of", "", "a large dog and", "a picture of", "two", "people with", "the cat"]
METHODS = [
    Decoding(method="greedy"),
    Decoding(num_beams=3),
    Decoding(num_beams=4, repetition_penalty=1.3, min_length=8, scoring="transformers"),
    Decoding(method="nucleus", top_k=10, repetition_penalty=1.1, min_length=9),
]
every_method = pytest.mark.parametrize("decoding", METHODS, ids=lambda d: f"{d.method}-{d.scoring}")


@every_method
def test_a_caption_is_that_of_its_image_and_prompt_alone(blip, images, decoding):
    encoded = blip.encode(images)
    several = 2 if decoding.method != "greedy" else 1
    together = caption_encoded(encoded, blip.tokenizer, decoding, PROMPTS, SEEDS, several)
    for place, prompt in enumerate(PROMPTS):
        image = blip.encode(images[place : place + 1])
        seed = SEEDS[place : place + 1]
        (alone,) = caption_encoded(image, blip.tokenizer, decoding, prompt, seed, several)
        for one, other in zip(together[place], alone, strict=True):
            assert one.token_ids == other.token_ids
            assert one.logprob == pytest.approx(other.logprob, abs=1e-4)


def test_as_many_prompts_as_images(blip, encoded):
    with pytest.raises(RecipeError, match="2 prompts for 7 images"):
        caption_encoded(encoded, blip.tokenizer, Decoding(), ["a", "two"])


@every_method
@torch.no_grad()
def test_words_have_the_probabilities_of_teacher_forcing(blip, encoded, decoding):
    tokenizer, joined = blip.tokenizer, 0
    captions = caption_encoded(encoded, tokenizer, decoding, "a picture of", SEEDS)
    start = len(tokenizer.encode(["a picture of"], 20, first="dec").ids[0].nonzero()) - 1
    for place, (caption,) in enumerate(captions):
        text = torch.tensor([caption.token_ids])
        memory = encoded.decoder_memory.select(torch.tensor([place]))
        logprobs = blip.med.decode(text[:, :-1], None, memory).log_softmax(dim=-1)
        chosen = logprobs.gather(2, text[:, 1:, None])[0, start - 1 :, 0].tolist()
        pieces = list(caption.token_ids[start:])
        if pieces[-1] == tokenizer.special.sep:
            pieces.pop()
        assert "".join(word.text for word in caption.words) == caption.text.replace(" ", "")
        # Each word takes the fewest pieces that spell it.
        at = 0
        for word in caption.words:
            until = at + 1
            while tokenizer.decode(pieces[at:until]) != word.text:
                until += 1
                assert until <= len(pieces), word
            expected = math.exp(sum(chosen[at:until]))
            assert word.probability == pytest.approx(expected, rel=1e-3, abs=1e-6)
            joined += until - at > 1
            at = until
        assert at == len(pieces)
    assert joined, "no word has several pieces"


def test_words_and_the_end_make_up_the_whole(blip, encoded):
    decoding = Decoding(max_length=12)
    for (caption,) in caption_encoded(encoded, blip.tokenizer, decoding, ""):
        product = math.prod(word.probability for word in caption.words)
        assert product >= math.exp(caption.logprob) * (1 - 1e-6)
        if caption.token_ids[-1] != blip.tokenizer.special.sep:
            assert product == pytest.approx(math.exp(caption.logprob), rel=1e-5)


def test_words_do_not_count_when_captions_are_compared():
    words = (WordConfidence("dog", 0.5),)
    one, other = Caption("dog", -1.0, (1, 2), words), Caption("dog", -1.0, (1, 2))
    assert one == other
    assert hash(one) == hash(other)
    assert one != dataclasses.replace(other, text="cat")


@pytest.fixture(scope="module")
def reader(blip, tokenizer):
    """A captioner that reads up to six tokens of a given text."""
    return Blip(blip.model, tokenizer, "captioner", 32, 30, given_tokens=6)


GIVEN = ["a red dog", "", "people walk at night along the street", "a red dog", "TWO!", "two", "a"]


@pytest.mark.parametrize("method", ["greedy", "beam", "nucleus"])
def test_a_caption_is_that_of_its_image_and_given_text_alone(reader, images, method):
    decoding, encoded = Decoding(method=method, max_length=14), reader.encode(images)
    prompts = [GivenPrompt(text, "a picture of ") for text in GIVEN]
    together = reader.generate(encoded, decoding, prompts, SEEDS)
    for place, prompt in enumerate(prompts):
        image = reader.encode(images[place : place + 1])
        ((alone,),) = reader.generate(image, decoding, prompt, SEEDS[place : place + 1])
        (own,) = together[place]
        assert own.token_ids == alone.token_ids
        assert own.text == alone.text
        assert own.logprob == pytest.approx(alone.logprob, abs=1e-4)


@pytest.fixture(scope="module")
def naming(tmp_path_factory):
    """A vocabulary in which names are pieces, and the tokens that they begin with."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    known = ["a", "man", "named", "in", "red", "dog", "and", "boat", "street", "'", "/", "-"]
    names = ["anna", "##be", "##l", "pierre", "s", "london", "paris", "##ton"]
    file = tmp_path_factory.mktemp("naming") / "vocab.txt"
    file.write_text("\n".join([*special, *known, *names]) + "\n", encoding="utf-8")
    tokenizer = TextTokenizer.from_file(file)
    ids = {word: tokenizer.pieces([word])[0][0] for word in ("anna", "pierre", "london", "paris")}
    return tokenizer, set(ids.values())


def follows(naming, given, text, given_tokens=30):
    """What may follow a text by what was given."""
    tokenizer, names = naming
    before = tokenizer.given_ids([given], given_tokens)[0]
    written = tokenizer.pieces([text])[0]
    packed = pack_tokens(names, tokenizer.vocab_size)
    start = 1 + len(before)
    grounding = Grounding(tokenizer, packed, len(before), start, given_tokens)
    ids = torch.tensor([[tokenizer.special.dec, *before, *written]])
    scores = grounding(torch.zeros(1, tokenizer.vocab_size), ids)[0]
    return {tokenizer.decode([token]) for token in (scores > -torch.inf).nonzero()[:, 0].tolist()}


NAMES = {"anna", "pierre", "london", "paris"}


@pytest.mark.parametrize(
    ("given", "text", "there"),
    [
        ("a red dog", "a man named", set()),
        ("", "a man named", set()),
        ("anna and a dog", "a man named", {"anna"}),
        ("pierre's boat", "a man named", {"pierre"}),
        ("london/paris street", "a dog in", {"london", "paris"}),
        # Said once, in whatever longer name it may be found again.
        ("anna and a dog", "a man named anna and", set()),
        ("anna and annabel", "a man named annabel and", {"anna"}),
    ],
)
def test_a_name_may_come_where_the_given_text_has_it(naming, given, text, there):
    found = follows(naming, given, text)
    assert found & NAMES == there
    assert {"a", "red", "boat"} <= found


@pytest.mark.parametrize(
    ("given", "text", "only"),
    [
        ("annabel and a dog", "a man named anna", {"##be"}),
        ("annabel and a dog", "a man named annabe", {"##l"}),
    ],
)
def test_a_name_is_written_to_its_end(naming, given, text, only):
    assert follows(naming, given, text) == only


def test_a_name_that_begins_another_one_may_end(naming):
    found = follows(naming, "anna and annabel", "a man named anna")
    assert {"##be", "and", "a"} <= found
    # An apostrophe ends a name, and what stands behind it is another word.
    assert {"'", "and", "a"} <= follows(naming, "pierre's boat", "a man named pierre")


def test_the_last_word_of_a_text_that_was_cut_is_no_name(naming):
    assert follows(naming, "a dog and annabel", "a man named") & NAMES == {"anna"}
    assert follows(naming, "a dog and annabel", "a man named", given_tokens=5) & NAMES == set()


def test_how_likely_a_name_comes_stays_and_the_given_text_says_which(naming):
    tokenizer, tokens = naming
    named = sorted(tokens)
    own = [token for token in range(tokenizer.vocab_size) if token not in tokens]
    (given,) = tokenizer.given_ids(["pierre and a dog"], 9)
    pierre = given[0]
    packed = pack_tokens(tokens, tokenizer.vocab_size)
    grounding = Grounding(tokenizer, packed, len(given), 1 + len(given), 9)
    ids = torch.tensor([[tokenizer.special.dec, *given]])
    scores = torch.randn(1, tokenizer.vocab_size, generator=torch.Generator().manual_seed(0))
    scores[:, named] += 5.0
    before, after = scores.softmax(1)[0], grounding(scores, ids).softmax(1)[0]
    assert before[named].sum() > 0.5
    assert float(after[pierre]) == pytest.approx(float(before[named].sum()), rel=1e-4)
    torch.testing.assert_close(after[own], before[own])
    # Where one is unlikely, those that are not given are just left out.
    scores[:, named] -= 9.0
    seldom = grounding(scores, ids)[0]
    assert seldom[pierre] == scores[0, pierre]
    assert (seldom > -torch.inf).sum() == len(own) + 1


@pytest.mark.parametrize("method", ["greedy", "beam", "nucleus"])
def test_names_of_captions_come_from_the_given_text(blip, tokenizer, images, method):
    special = set(tokenizer.special.__dict__.values())
    names = {number for number in range(0, tokenizer.vocab_size, 3) if number not in special}
    packed = pack_tokens(names, tokenizer.vocab_size)
    reader = Blip(blip.model, tokenizer, "captioner", 32, 30, None, 6, packed)
    free = Blip(blip.model, tokenizer, "captioner", 32, 30, given_tokens=6)
    prompts = [GivenPrompt(text, "a picture of ") for text in GIVEN]
    decoding, encoded = Decoding(method=method, max_length=16), reader.encode(images)
    captions = reader.generate(encoded, decoding, prompts, SEEDS)
    assert captions != free.generate(encoded, decoding, prompts, SEEDS)
    for text, (caption,) in zip(GIVEN, captions, strict=True):
        given = tokenizer.pieces([tokenizer.cleaning.caption(text)])[0][:6]
        start = len(given) + bool(given) + len(tokenizer.pieces(["a picture of "])[0]) + 1
        assert names & set(caption.token_ids[start:]) <= set(given)


def test_a_given_text_stands_before_the_prompt_with_an_end_and_lengths_do_not_count_it(
    reader, images, tokenizer
):
    decoding, encoded = Decoding(method="greedy", max_length=9, min_length=9), reader.encode(images)
    prompts = [GivenPrompt(text, "a picture of ") for text in GIVEN]
    special, prompt = tokenizer.special, tokenizer.pieces(["a picture of "])[0]
    for text, (caption,) in zip(GIVEN, reader.generate(encoded, decoding, prompts), strict=True):
        given = tokenizer.pieces([tokenizer.cleaning.caption(text)])[0][:6]
        start = [special.dec, *given, *([special.sep] if given else []), *prompt]
        assert list(caption.token_ids[: len(start)]) == start
        assert len(caption.token_ids) == 9 + len(start) - 1 - len(prompt)
    # Of an empty one nothing stands there: the captioner works alone.
    alone = reader.generate(encoded, decoding, "a picture of ")
    assert reader.generate(encoded, decoding, GivenPrompt("")) == alone


def test_a_model_that_reads_no_given_text_refuses_one(blip, encoded):
    with pytest.raises(RecipeError, match="not fine-tuned to read a given text"):
        blip.generate(encoded, Decoding(), GivenPrompt("a red dog"))


@pytest.mark.parametrize("settings", [{"repetition_penalty": 1.1}, {"no_repeat_ngram_size": 2}])
def test_what_would_forbid_to_repeat_a_name_is_refused(reader, images, settings):
    with pytest.raises(RecipeError, match="leave them out"):
        reader.generate(reader.encode(images), Decoding(**settings), GivenPrompt("a red dog"))


def test_given_texts_that_are_cut_are_counted(tokenizer):
    longest = max(len(pieces) for pieces in tokenizer.pieces(GIVEN))
    assert cut_given(tokenizer, GIVEN, longest) == 0
    assert cut_given(tokenizer, GIVEN, longest - 1) == 1
    assert cut_given(tokenizer, GIVEN, 0) == len(GIVEN) - 1
