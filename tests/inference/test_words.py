"""Pieces of a text are joined to the words that decoding writes."""

import pytest

from openblip.batches.tokenizer import TextTokenizer
from openblip.inference.captions import find_words

from ..batches.foreign_tokenizers import ALL, TEXTS, bert_folder, byte_level_folder, unigram_folder

# fmt: off
VOCABULARY = [
    "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "dog", "run", "##s", "##ning", "play",
    "##ground", "don", "do", "n", "'", "t", "s", "?", ",", '"', "well", "-", "known", "的", "狗",
]
# fmt: on


@pytest.fixture
def bert(tmp_path) -> TextTokenizer:
    file = tmp_path / "vocab.txt"
    file.write_text("\n".join(VOCABULARY), encoding="utf-8")
    return TextTokenizer.from_file(file)


def split(tokenizer: TextTokenizer, text: str) -> list[tuple[str, int]]:
    """Words of a text with the number of their pieces; all pieces are used once, in order."""
    ids = tokenizer.encode([text], 40, first="enc")
    row = ids.ids[0][ids.mask[0]].tolist()
    words = find_words(tokenizer, row)
    assert [p for word in words for p in word.places] == list(range(1, len(row) - 1))
    return [(word.text, len(word.places)) for word in words]


def test_pieces_of_a_word_are_joined(bert):
    expected = [("a", 1), ("dog", 1), ("runs", 2), ("playground", 2)]
    assert split(bert, "A dog runs playground") == expected


def test_clitics_belong_to_their_word(bert):
    assert split(bert, "the dog's") == [("[UNK]", 1), ("dog's", 3)]
    assert split(bert, "don't a") == [("don't", 3), ("a", 1)]


def test_a_word_that_a_later_piece_draws_together(bert):
    pieces = [VOCABULARY.index(piece) for piece in ("do", "n", "'", "t", "run")]
    assert [word.text for word in find_words(bert, pieces)] == ["don't", "run"]


def test_punctuation_at_the_ends_stands_alone(bert):
    assert split(bert, '"a dog"?') == [('"', 1), ("a", 1), ("dog", 1), ('"', 1), ("?", 1)]
    assert split(bert, "?,") == [("?", 1), (",", 1)]


def test_unknown_words_have_a_name_and_divide(bert):
    assert split(bert, "run zebra ground") == [("run", 1), ("[UNK]", 1), ("[UNK]", 1)]


def test_special_tokens_belong_to_no_word(bert):
    special = bert.special
    ids = [special.dec, VOCABULARY.index("dog"), special.pad, VOCABULARY.index("##s"), special.sep]
    assert [word.places for word in find_words(bert, ids)] == [(1,), (3,)]
    assert find_words(bert, [special.enc, special.sep]) == []
    assert find_words(bert, []) == []


def test_han_characters_stand_alone(bert):
    assert split(bert, "的狗") == [("的", 1), ("狗", 1)]
    trained = TextTokenizer.train(["狗在草地上奔跑 dog", "一只猫 dog"], vocab_size=60)
    assert [text for text, _ in split(trained, "狗在草地 dog")] == ["狗", "在", "草", "地", "dog"]


def test_pieces_stand_alone_where_nothing_tells_the_words(tmp_path):
    bert = TextTokenizer.from_file(
        bert_folder(tmp_path, ["วิ่ง", "##อยู่", "走", "って", "##いる", "。"], do_lower_case=False)
    )
    assert split(bert, "วิ่งอยู่") == [("วิ่ง", 1), ("อยู่", 1)]
    assert split(bert, "走っている。") == [("走", 1), ("って", 1), ("いる", 1), ("。", 1)]


@pytest.mark.parametrize("make", [unigram_folder, byte_level_folder])
@pytest.mark.parametrize("language", TEXTS)
def test_words_of_every_language_are_its_text(tmp_path, make, language):
    tokenizer = TextTokenizer.from_file(make(tmp_path, ALL))
    for text in TEXTS[language]:
        words = [word.text for word in find_words(tokenizer, tokenizer.pieces([text])[0])]
        decoded = tokenizer.decode(tokenizer.pieces([text])[0])
        assert "".join(words) == decoded.replace(" ", "")
        if language in ("thai", "chinese") and make is unigram_folder:
            assert len(words) > 1


def test_a_trained_tokenizer(tokenizer):
    text = "a large umbrella and two triangles under the grassland"
    words = split(tokenizer, text)
    assert [word for word, _ in words] == text.split()
    assert max(pieces for _, pieces in words) > 1
