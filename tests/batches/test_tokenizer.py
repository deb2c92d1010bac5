"""Tokens: layout of encoded rows, BERT vocabularies, and tokenizers trained here."""

import json
import random

import pytest
import torch

from openblip.batches.tokenizer import SpecialTokens, TextTokenizer
from openblip.runtime.errors import DataError, RecipeError

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = ["a", "dog", "dogs", "run", "##s", "##ning", "'", "s", ",", "!", "[", "]", "sep", "cafe"]
PAD, UNK, CLS, SEP, MASK = range(5)
DEC, ENC = len(SPECIAL) + len(WORDS), len(SPECIAL) + len(WORDS) + 1


def word_ids(*words):
    return [len(SPECIAL) + WORDS.index(word) for word in words]


@pytest.fixture
def vocabulary(tmp_path):
    file = tmp_path / "vocab.txt"
    file.write_text("\n".join(SPECIAL + WORDS) + "\n", encoding="utf-8")
    return file


@pytest.fixture
def tokenizer(vocabulary):
    return TextTokenizer.from_file(vocabulary)


def ids_of(tokenizer, text):
    batch = tokenizer.encode([text], 512)
    return batch.ids[0, batch.mask[0]].tolist()


class TestEncode:
    def test_dec_and_enc_come_behind_the_vocabulary(self, tokenizer):
        assert tokenizer.special == SpecialTokens(
            pad=PAD, unk=UNK, cls=CLS, sep=SEP, mask=MASK, dec=DEC, enc=ENC
        )
        assert tokenizer.vocab_size == ENC + 1

    @pytest.mark.parametrize(("first", "first_id"), [("cls", CLS), ("enc", ENC), ("dec", DEC)])
    def test_a_row_is_first_token_pieces_sep_and_padding(self, tokenizer, first, first_id):
        batch = tokenizer.encode(["A Dog runs", ""], 30, first=first)
        rows = [[first_id, *word_ids("a", "dog", "run", "##s"), SEP, PAD, PAD]]
        rows.append([first_id, SEP] + [PAD] * 6)
        assert batch.ids.tolist() == rows
        assert batch.mask.tolist() == [[True] * 6 + [False] * 2, [True] * 2 + [False] * 6]
        assert (batch.ids.dtype, batch.mask.dtype) == (torch.int64, torch.bool)

    @pytest.mark.parametrize(("num_words", "width"), [(0, 8), (6, 8), (7, 16), (14, 16), (15, 24)])
    def test_rows_are_padded_to_a_multiple_of_8(self, tokenizer, num_words, width):
        assert tokenizer.encode(["dog " * num_words], 64).ids.shape == (1, width)

    def test_a_long_text_keeps_its_beginning_and_the_final_sep(self, tokenizer):
        batch = tokenizer.encode(["a dog dogs run a a a"], 5, pad_to=5)
        assert batch.ids.tolist() == [[CLS, *word_ids("a", "dog", "dogs"), SEP]]

    def test_pad_to_fixes_the_width(self, tokenizer):
        assert tokenizer.encode(["a", "dog run"], 30, pad_to=30).ids.shape == (2, 30)

    def test_no_texts_give_no_rows(self, tokenizer):
        assert tokenizer.encode([], 30).ids.shape == (0, 8)

    def test_a_given_text_stands_before_a_text_and_is_cut_by_itself(self, tokenizer):
        text, long = ids_of(tokenizer, "a dog")[1:-1], "a dog a dog a dog"
        batch, given = tokenizer.encode_behind([long, None, "", "a"], ["a dog"] * 4, 3, 4)
        special = tokenizer.special
        end = [*text, special.sep]
        cut = [*text, text[0], special.sep]
        assert batch.row(0) == [special.cls, *cut, *end]
        assert batch.row(1) == batch.row(2) == [special.cls, *end]
        assert batch.row(3) == [special.cls, text[0], special.sep, *end]
        assert given.tolist() == [4, 0, 0, 2]

    def test_special_tokens_written_in_a_text_are_text(self, tokenizer):
        assert ids_of(tokenizer, "[SEP]") == [CLS, *word_ids("[", "sep", "]"), SEP]

    def test_half_a_surrogate_pair_is_an_unknown_character(self, tokenizer):
        assert ids_of(tokenizer, "dog \ud83d") == [CLS, *word_ids("dog"), UNK, SEP]

    def test_lengths_that_cannot_be_are_refused(self, tokenizer):
        with pytest.raises(ValueError, match="max_tokens is 1"):
            tokenizer.encode(["a"], 1)
        with pytest.raises(ValueError, match="pad_to is 8"):
            tokenizer.encode(["a"], 30, pad_to=8)


class TestDecode:
    def test_special_tokens_and_padding_vanish(self, tokenizer):
        row = [DEC, *word_ids("a", "dog"), SEP, PAD, PAD]
        assert tokenizer.decode(row) == "a dog"
        assert tokenizer.decode(torch.tensor(row)) == "a dog"

    def test_pieces_and_english_punctuation_are_joined(self, tokenizer):
        assert tokenizer.decode(word_ids("run", "##ning", ",", "dog", "'", "s", "!")) == (
            "running, dog's!"
        )


class TestFiles:
    def test_a_folder_is_searched_and_tokenizer_json_goes_first(self, vocabulary, tokenizer):
        folder = vocabulary.parent
        assert TextTokenizer.from_file(folder).vocab_size == ENC + 1
        trained = TextTokenizer.train(["b b"], 20)
        trained.save(folder)
        assert TextTokenizer.from_file(str(folder)).vocab_size == trained.vocab_size

    def test_a_saved_tokenizer_reads_back_equal(self, tokenizer, tmp_path):
        file = tokenizer.save(tmp_path / "new" / "folder")
        assert file.name == "tokenizer.json"
        again = TextTokenizer.from_file(file)
        assert again.special == tokenizer.special
        text = "Café, [SEP] dogs running !"
        assert ids_of(again, text) == ids_of(tokenizer, text)
        assert again.decode(ids_of(again, text)) == tokenizer.decode(ids_of(tokenizer, text))
        assert again.save(tmp_path).read_bytes() == file.read_bytes()

    def test_padding_and_truncation_stored_in_a_file_are_ignored(self, tokenizer, tmp_path):
        file = tokenizer.save(tmp_path / "stored")
        settings = json.loads(file.read_text())
        settings["truncation"] = {
            "direction": "Left", "max_length": 2, "strategy": "LongestFirst", "stride": 0,
        }  # fmt: skip
        settings["padding"] = {
            "strategy": {"Fixed": 50}, "direction": "Left", "pad_to_multiple_of": None,
            "pad_id": 0, "pad_type_id": 0, "pad_token": "[PAD]",
        }  # fmt: skip
        file.write_text(json.dumps(settings))
        assert ids_of(TextTokenizer.from_file(file), "a dog run") == ids_of(tokenizer, "a dog run")

    def test_windows_line_ends_are_no_part_of_tokens(self, vocabulary, tokenizer):
        vocabulary.write_bytes(vocabulary.read_bytes().replace(b"\n", b"\r\n"))
        assert TextTokenizer.from_file(vocabulary).special == tokenizer.special

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("tokenizer.json", b"{}", "not a tokenizer file"),
            ("tokenizer.json", b'{"model": ', "not a tokenizer file"),
            ("vocab.txt", b"\xff\xfe\x00", "is not UTF-8"),
            ("vocab.txt", b"[PAD]\n[UNK]\ndog\n", r"lacks \[CLS\] \[SEP\] \[MASK\]"),
            ("vocab.txt", b"[PAD]\ndog\ncat\ndog\n", "line 4 repeats the token 'dog' of line 2"),
            ("vocab.txt", b"", r"lacks \[PAD\]"),
        ],
    )
    def test_a_bad_file_is_named_with_a_remedy(self, tmp_path, name, content, message):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=message) as caught:
            TextTokenizer.from_file(tmp_path)
        assert name in str(caught.value)
        assert "give a tokenizer.json" in str(caught.value)

    def test_a_missing_file_is_named(self, tmp_path):
        with pytest.raises(DataError, match=r"nowhere.*no tokenizer found; give a tokenizer\.json"):
            TextTokenizer.from_file(tmp_path / "nowhere")

    def test_a_folder_that_cannot_be_written_is_named(self, tokenizer, vocabulary):
        with pytest.raises(DataError, match=r"vocab\.txt.*cannot be written"):
            tokenizer.save(vocabulary)


LANGUAGES = {
    "english": ["A dog's ball, by the tree!", "un-known/words? x_y", "three 12.5 dogs"],
    "chinese": ["一只狗在公园里跑\uff0c很快。", "两只猫 睡在沙发上", "用 iPhone 拍的照片"],
    "japanese": ["犬が公園を走っている。", "カタカナと漢字"],
    "arabic": ["كَلْبٌ يَجْرِي في الحديقة", "قطة نائمة؟"],
    "hindi": ["एक कुत्ता पार्क में दौड़ रहा है।"],
    "thai": ["สุนัขกำลังวิ่งอยู่ในสวน"],
    "korean": ["개가 공원에서 달리고 있다."],
    "persian": ["می\u200cدود"],
    "accents": ["naïve café Überraschung", "một con chó đang chạy", "İstanbul'da köpek"],
    "emoji": ["👨\u200d👩\u200d👧 ok ❤\ufe0f!", "🐶🐱"],
}


class TestTrain:
    @pytest.mark.parametrize("lowercase", [False, True])
    @pytest.mark.parametrize("language", LANGUAGES)
    def test_every_language_survives(self, language, lowercase):
        texts = LANGUAGES[language]
        tokenizer = TextTokenizer.train(texts, 200, lowercase=lowercase)
        for text in texts:
            ids = ids_of(tokenizer, text)
            assert tokenizer.special.unk not in ids
            assert tokenizer.decode(ids) == (text.lower() if lowercase else text)

    def test_runs_of_white_space_become_one_space(self):
        tokenizer = TextTokenizer.train(["a dog"], 50)
        assert tokenizer.decode(ids_of(tokenizer, " a\t \n dog ")) == "a dog"

    def test_composed_and_decomposed_letters_are_one(self):
        tokenizer = TextTokenizer.train(["caf\u00e9"], 50)
        assert ids_of(tokenizer, "cafe\u0301") == ids_of(tokenizer, "caf\u00e9")

    def test_frequent_words_become_one_token(self):
        tokenizer = TextTokenizer.train(["a small dog", "the small cat"] * 5, 100)
        assert len(ids_of(tokenizer, "small small")) == 4

    def test_the_order_of_texts_does_not_matter(self, tmp_path):
        letters = random.Random(0)
        texts = [
            "".join(letters.choices("abcdefghij 一二三四五六七八九十", k=9)) for _ in range(300)
        ]
        first = TextTokenizer.train(texts, 60).save(tmp_path / "first").read_bytes()
        second = TextTokenizer.train(reversed(texts), 60).save(tmp_path / "second").read_bytes()
        assert first == second

    def test_the_vocabulary_has_the_asked_size_or_less(self):
        texts = ["one two three four five six seven eight nine ten"] * 2
        assert TextTokenizer.train(texts, 40).vocab_size == 40
        assert TextTokenizer.train(["a"] * 2, 1000).vocab_size < 20

    def test_a_character_never_seen_is_unknown_and_spoils_only_its_word(self):
        tokenizer = TextTokenizer.train(["a dog", "狗"] * 2, 60)
        ids = ids_of(tokenizer, "a dog ж 狗猫")
        assert ids.count(tokenizer.special.unk) == 2
        assert tokenizer.decode(ids) == "a dog 狗"

    def test_special_tokens_have_the_same_places_as_in_a_bert_vocabulary(self):
        special = TextTokenizer.train(["a dog"], 30).special
        assert (special.pad, special.unk, special.cls, special.sep, special.mask) == tuple(range(5))
        assert special.enc == special.dec + 1

    def test_nothing_to_learn_from_is_an_error(self):
        with pytest.raises(DataError, match="no text"):
            TextTokenizer.train(["", " \n"], 100)
        with pytest.raises(RecipeError, match="vocab_size is 7"):
            TextTokenizer.train(["a dog"], 7)


TEXTS = [
    "A man's dog can't run -- \"really\"?",
    "Café ÜBER naïve señor Ångström",
    "一只狗 run 在跑",
    "日本語のテキスト、カタカナ 한국어 문장",
    "👨\u200d👩\u200d👧 emoji 😀!",
    "¿Qué? — “quoted” … «guillemets»",
    "tab\tand\nnew\u00a0line\u200bzero\ufeffwidth",
    "हिन्दी में كَلْبٌ ภาษาไทย",
    "a" * 150 + " unbelievableness antidisestablishmentarianism",
    "\x00 control \x07 \ufffd",
    "1,234.56 $5 50% #tag @user _under_ <html> {x} ^~`|",
    "İstanbul ẞ ǅ ﬁ Ⅷ ① e\u0301",
    "",
]


def test_ids_equal_those_of_transformers(shared_data):
    transformers = pytest.importorskip("transformers")
    vocabulary = shared_data / "bert-base-uncased" / "vocab.txt"
    if not vocabulary.is_file():
        pytest.skip(f"reference data not found: {vocabulary}")
    tokenizer = TextTokenizer.from_file(vocabulary)
    reference = transformers.BertTokenizer(str(vocabulary))
    assert [ids_of(tokenizer, text) for text in TEXTS] == reference(TEXTS)["input_ids"]
    assert (tokenizer.special.dec, tokenizer.special.enc, tokenizer.vocab_size) == (
        30522, 30523, 30524,
    )  # fmt: skip
