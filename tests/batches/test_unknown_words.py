"""Words that a vocabulary lacks are counted and named."""

import warnings

import pytest

from openblip.batches.tokenizer import TextTokenizer
from openblip.batches.unknown_words import count_texts, warn_of_unknown_words
from openblip.runtime.errors import UnknownWords


@pytest.fixture(scope="module", params=["trained here", "BERT"])
def words(request, tmp_path_factory) -> TextTokenizer:
    if request.param == "trained here":
        return TextTokenizer.train(["a dog on a table , dog"] * 3, 60)
    folder = tmp_path_factory.mktemp("bert")
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "dog", "on", "table", ","]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    return TextTokenizer.from_file(folder)


def warned(tokenizer, texts, **options) -> str:
    with pytest.warns(UnknownWords) as told:
        assert warn_of_unknown_words(tokenizer, texts, options.pop("max_tokens", 30), **options)
    assert len(told) == 1
    return str(told[0].message)


def test_known_words_are_not_mentioned(words):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not warn_of_unknown_words(words, ["a dog on a table", "", "  "], 30)


def test_the_words_and_their_share_are_told_once(words):
    told = warned(words, ["a dog", "собака on a стол", "собака"])
    assert "3 of 7 tokens of the texts (43%) are [UNK]: " in told
    assert "lacks 'собака', 'стол';" in told


def test_of_many_words_a_few_are_named(words):
    told = warned(words, ["a один два три четыре пять"])
    assert told.endswith("lacks 'один', 'два', 'три' and 2 more")
    assert warned(words, ["a " + "я" * 200]).endswith(f"lacks '{'я' * 30}...'")


def test_texts_of_unknown_words_alone_get_equal_scores_and_are_counted(words):
    told = warned(words, ["собака на столе", "кошка на улице", "🐕 , 🎉", "a dog"])
    assert "3 of 4 texts have no word that it knows" in told
    assert "gives equally long ones equal scores" in told
    first, second = words.encode(["собака на столе", "кошка на улице"], 30).ids.tolist()
    assert first == second


@pytest.mark.parametrize("text", ["!!!", "-", "\u200b", "\x00\x01"])
def test_a_text_of_marks_alone_is_told(words, text):
    told = warned(words, ["a dog", text])
    assert "1 of 2 texts have no word that it knows" in told


def test_what_is_not_read_does_not_count(words):
    pieces = len(words.pieces(["a dog"])[0])
    count = count_texts(words, ["a dog собака"], pieces + 2)
    assert (count.num_tokens, count.num_unknown, count.num_cut) == (pieces, 0, 1)


def test_half_a_surrogate_pair_is_a_word_like_others(words):
    assert count_texts(words, ["\ud800 a"], 30).num_texts == 1


def test_counts_of_two_kinds_of_texts_are_added(words):
    both = count_texts(words, ["a кот"], 30) + count_texts(words, ["кот", "a"], 30)
    assert (both.num_texts, both.num_unknown, both.num_nameless) == (3, 2, 1)
    assert both.words == {"кот": 2}
