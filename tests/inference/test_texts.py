"""Texts that people give: cut with a word, empty, in any script."""

import warnings

import pytest
import torch

from openblip.batches.tokenizer import TextTokenizer
from openblip.inference.blip import Blip
from openblip.inference.encoding import tokens_for
from openblip.runtime.errors import TextTruncated, UnknownWords


@pytest.fixture
def words(tmp_path) -> TextTokenizer:
    """A BERT vocabulary in which every word of the tests is one token, or a stem and a suffix."""
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "dog", "walk", "##ing", ","]
    (tmp_path / "vocab.txt").write_text("\n".join(vocabulary))
    return TextTokenizer.from_file(tmp_path)


def test_a_text_that_fits_is_not_mentioned(words):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tokens = tokens_for(words, ["dog " * 510, "a"], 512, "[ENC]")
    assert tokens.mask.sum(dim=1).tolist() == [512, 3]
    assert tokens.ids[0, 0] == words.special.enc


def test_a_text_over_512_tokens_is_cut_and_the_word_named(words):
    text = " ".join(["dog"] * 510 + ["walking"] + ["a"] * 90)
    with pytest.warns(TextTruncated, match=r"text 2 is cut at its word 511, 'walking': .* 512 tok"):
        tokens = tokens_for(words, ["a dog", text], 512, "[CLS]")
    assert torch.equal(tokens.ids, words.encode(["a dog", text], 512).ids)


@pytest.mark.parametrize(
    ("text", "max_tokens", "told"),
    [
        ("a dog walking", 4, "word 3, 'walking'"),
        ("a dog walking", 5, "word 3, 'walking'"),  # only its suffix is lost
        ("  a\n dog,a", 5, "word 2, 'dog,a'"),
        ("dog " * 9, 3, "word 2, 'dog'"),
        ("x" * 200 + " dog", 3, "word 2, 'dog'"),
    ],
)
def test_the_word_that_is_lost_or_cut_is_counted(words, text, max_tokens, told):
    with pytest.warns(TextTruncated, match=told):
        tokens_for(words, [text], max_tokens, "[CLS]")


def test_a_tokenizer_trained_here_counts_the_same_words(tokenizer):
    text = "a picture of a red square above a blue circle"
    pieces = int(tokenizer.encode(["a picture of a red"], 64).mask.sum()) - 2
    with pytest.warns(TextTruncated, match="word 6, 'square'"):
        tokens_for(tokenizer, [text], pieces + 2, "[CLS]")


def test_a_piece_that_python_takes_for_white_space_is_a_word(tokenizer):
    with pytest.warns(TextTruncated, match="word 1"):
        tokens_for(tokenizer, ["\x1c"], 2, "[CLS]")


def test_several_texts_give_one_warning(words):
    with pytest.warns(
        TextTruncated, match="text 1 is cut at its word 2, 'dog', and 2 more"
    ) as all_:
        tokens_for(words, ["a dog", "a", "a a a", "walking dog"], 3, "[CLS]")
    assert len(all_) == 1


STRANGE = [
    "",
    "   ",
    "🐕🏽‍🦺 🎉",
    "一只狗在海滩上",
    "كلب على الشاطئ",
    "כלב על החוף",
    "\ud800 half",
    "\0",
]


@pytest.mark.filterwarnings("ignore::openblip.runtime.errors.UnknownWords")
@pytest.mark.parametrize("text", STRANGE)
def test_any_text_can_be_matched_and_embedded(blip, pictures, text):
    (match,) = blip.match(pictures[0], text)
    assert 0.0 <= match.itm <= 1.0
    embed = blip.embed_texts(text)
    assert torch.isfinite(embed).all()
    torch.testing.assert_close(embed.norm(dim=1), torch.ones(1))


@pytest.mark.filterwarnings("ignore::openblip.runtime.errors.UnknownWords")
@pytest.mark.parametrize("prompt", STRANGE)
def test_any_text_can_be_a_prompt(blip, pictures, prompt):
    ((caption,),) = blip.caption(pictures[0], prompt=prompt, max_length=38)
    assert caption.logprob < 0.0


def test_no_text_is_no_row(words):
    assert len(tokens_for(words, [], 8, "[CLS]").ids) == 0


UNKNOWN = ["a собака", "a dog", "a кошка"]
CALLS = {
    "match": lambda blip, image: blip.match([image] * 3, UNKNOWN, batch_size=1),
    "match_all": lambda blip, image: blip.match_all([image] * 3, UNKNOWN, batch_size=1),
    "embed_texts": lambda blip, image: blip.embed_texts(UNKNOWN, batch_size=1),
    "explain": lambda blip, image: blip.explain(image, UNKNOWN[0]),
    "caption": lambda blip, image: blip.caption([image] * 3, prompt=UNKNOWN[0], batch_size=1),
    "prompts": lambda blip, image: blip.caption([image] * 3, prompt=UNKNOWN, batch_size=3),
    "stream": lambda blip, image: list(
        blip.caption_stream(iter([image] * 3), prompt=iter(UNKNOWN), batch_size=1)
    ),
}


@pytest.mark.parametrize("call", CALLS)
def test_a_call_tells_once_which_words_the_vocabulary_lacks(blip, pictures, call):
    with pytest.warns(UnknownWords, match="lacks .*'собака'") as told:
        CALLS[call](blip, pictures[0])
    assert len([each for each in told if each.category is UnknownWords]) == 1


@pytest.mark.parametrize("candidates", [None, ["yes", "кошка"]])
def test_questions_and_candidates_are_told_together(vqa, tokenizer, pictures, candidates):
    blip = Blip(vqa, tokenizer, "vqa", 32, 35)
    with pytest.warns(UnknownWords) as told:
        blip.ask(pictures[:2], ["a собака", "a dog"], candidates, batch_size=1)
    (told,) = [str(each.message) for each in told if each.category is UnknownWords]
    assert "собака" in told
    assert ("кошка" in told) == (candidates is not None)


def test_a_mark_that_the_vocabulary_lacks_is_no_word(blip, pictures):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        blip.match(pictures[0], "a dog, a cat?")
