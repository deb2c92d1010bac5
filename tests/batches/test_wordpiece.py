"""Tokenizers of other languages' models: case, accents and scripts as their files say."""

import json
from pathlib import Path
from unicodedata import normalize

import pytest

from openblip.batches.text import Cleaning
from openblip.batches.tokenizer import TextTokenizer
from openblip.runtime.errors import DataError

from .foreign_tokenizers import (
    ALL,
    TEXTS,
    bert_folder,
    byte_level_folder,
    letters_of,
    unigram_folder,
)

MULTILINGUAL_CASED = {"do_lower_case": False, "model_max_length": 512}


def tokens_of(tokenizer: TextTokenizer, text: str) -> list[str]:
    return [tokenizer.decode([piece]) for piece in tokenizer.pieces([text])[0]]


class TestBertFiles:
    def test_the_settings_beside_a_vocabulary_decide_its_case(self, tmp_path: Path) -> None:
        words = ["The", "the", "dog"]
        for lowers, expected in ((False, ["The", "dog"]), (True, ["the", "dog"])):
            folder = bert_folder(tmp_path / str(lowers), words, do_lower_case=lowers)
            for place in (folder, folder / "vocab.txt"):
                tokenizer = TextTokenizer.from_file(place)
                assert tokens_of(tokenizer, "The dog") == expected
                assert tokenizer.cleaning == Cleaning(lowercases=lowers)

    def test_accents_and_han_characters_follow_their_settings(self, tmp_path: Path) -> None:
        words = ["läuft", "lauft", "狗", "跑", "狗跑", "कुत्ता"]
        plain = TextTokenizer.from_file(bert_folder(tmp_path / "a", words, do_lower_case=True))
        assert tokens_of(plain, "läuft 狗跑") == ["lauft", "狗", "跑"]
        kept = TextTokenizer.from_file(
            bert_folder(
                tmp_path / "b",
                words,
                do_lower_case=True,
                strip_accents=False,
                tokenize_chinese_chars=False,
            )
        )
        assert tokens_of(kept, "Läuft 狗跑 कुत्ता") == ["läuft", "狗跑", "कुत्ता"]

    def test_a_vocabulary_alone_keeps_case_if_it_has_capital_letters(self, tmp_path: Path) -> None:
        cased = TextTokenizer.from_file(bert_folder(tmp_path / "cased", ["The", "dog"]))
        assert tokens_of(cased, "The dog") == ["The", "dog"]
        lower = TextTokenizer.from_file(bert_folder(tmp_path / "lower", ["[unused1]", "the"]))
        assert tokens_of(lower, "The") == ["the"]

    @pytest.mark.parametrize(
        ("settings", "message"),
        [('{"do_lower_case": "no"}', "do_lower_case is 'no'"), ("[]", "no JSON object"), ("{", "")],
    )
    def test_damaged_settings_are_named(self, tmp_path: Path, settings: str, message: str) -> None:
        folder = bert_folder(tmp_path, ["dog"])
        (folder / "tokenizer_config.json").write_text(settings)
        with pytest.raises(DataError, match=rf"tokenizer_config\.json.*{message}"):
            TextTokenizer.from_file(folder)

    def test_settings_beside_a_tokenizer_json_decide_too_as_in_transformers(
        self, tmp_path: Path
    ) -> None:
        TextTokenizer.from_file(bert_folder(tmp_path / "lower", ["the", "The"])).save(tmp_path)
        assert tokens_of(TextTokenizer.from_file(tmp_path), "The") == ["The"]
        (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": true}')
        assert tokens_of(TextTokenizer.from_file(tmp_path), "The") == ["the"]
        (tmp_path / "tokenizer_config.json").write_text('{"model_max_length": 30}')
        assert tokens_of(TextTokenizer.from_file(tmp_path), "The") == ["The"]

    def test_a_saved_tokenizer_keeps_its_case_without_the_settings(self, tmp_path: Path) -> None:
        folder = bert_folder(tmp_path / "bert", ["The", "the"], do_lower_case=False)
        saved = TextTokenizer.from_file(folder).save(tmp_path / "run")
        again = TextTokenizer.from_file(saved)
        assert tokens_of(again, "The") == ["The"]
        assert not again.cleaning.lowercases

    @pytest.mark.parametrize("language", TEXTS)
    def test_ids_and_roles_are_those_of_transformers(self, tmp_path: Path, language: str) -> None:
        transformers = pytest.importorskip("transformers")
        folder = bert_folder(tmp_path, letters_of(TEXTS[language]), **MULTILINGUAL_CASED)
        theirs = transformers.AutoTokenizer.from_pretrained(folder, tokenizer_type="bert")
        ours = TextTokenizer.from_file(folder)
        for text in TEXTS[language]:
            assert ours.encode([text], 512).row(0) == theirs(text)["input_ids"]


class TestDecoding:
    def test_han_and_kana_are_joined_without_spaces(self, tmp_path: Path) -> None:
        ours = TextTokenizer.from_file(bert_folder(tmp_path, letters_of(ALL), do_lower_case=False))
        for text in (*TEXTS["chinese"], *TEXTS["japanese"]):
            assert ours.decode(ours.pieces([text])[0]) == text

    def test_words_beside_han_keep_their_spaces(self, tmp_path: Path) -> None:
        words = ["一", "只", "dog", "在", "3"]
        ours = TextTokenizer.from_file(bert_folder(tmp_path, words))
        assert ours.decode(ours.pieces(["一只 dog 在 3 dog dog"])[0]) == "一只 dog 在 3 dog dog"

    @pytest.mark.parametrize("kind", ["bert", "unigram", "byte_level"])
    @pytest.mark.parametrize("language", TEXTS)
    def test_every_language_survives(self, tmp_path: Path, kind: str, language: str) -> None:
        if kind == "bert":
            folder = bert_folder(tmp_path, letters_of(ALL), **MULTILINGUAL_CASED)
        else:
            folder = {"unigram": unigram_folder, "byte_level": byte_level_folder}[kind](
                tmp_path, ALL
            )
        tokenizer = TextTokenizer.from_file(folder)
        for text in TEXTS[language]:
            ids = tokenizer.encode([text], 512).row(0)
            assert tokenizer.special.unk not in ids
            decoded = tokenizer.decode(ids)
            # BERT forgets where spaces were beside marks; XLM-RoBERTa's reads compatible forms.
            if kind == "bert":
                decoded, text = decoded.replace(" ", ""), text.replace(" ", "")
            assert decoded == (normalize("NFKC", text) if kind == "unigram" else text)


class TestRoles:
    def test_special_tokens_are_found_by_what_they_do(self, tmp_path: Path) -> None:
        tokenizer = TextTokenizer.from_file(unigram_folder(tmp_path, ALL))
        special = tokenizer.special
        assert (special.cls, special.pad, special.sep, special.unk) == (0, 1, 2, 3)
        assert (special.dec, special.enc) == (tokenizer.vocab_size - 2, tokenizer.vocab_size - 1)
        assert tokenizer.special_names == (
            "<pad>", "<unk>", "<s>", "</s>", "<mask>", "[DEC]", "[ENC]",
        )  # fmt: skip
        ids = tokenizer.encode(["Hund"], 30, first="enc").row(0)
        assert (ids[0], ids[-1]) == (special.enc, special.sep)

    def test_names_of_both_families_may_be_mixed(self, tmp_path: Path) -> None:
        names = ("<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]")
        (tmp_path / "vocab.txt").write_text("\n".join([*names, "dog"]), encoding="utf-8")
        assert TextTokenizer.from_file(tmp_path).special_names[:5] == names

    def test_a_special_token_written_in_a_text_is_no_special_token(self, tmp_path: Path) -> None:
        tokenizer = TextTokenizer.from_file(unigram_folder(tmp_path, ALL))
        (pieces,) = tokenizer.pieces(["Hund </s> <pad> Hund"])
        special = tokenizer.special
        assert {special.sep, special.pad}.isdisjoint(pieces)
        assert [piece for piece, _ in tokenizer.spans("Hund </s> <pad> Hund")] == pieces
        assert special.unk in pieces

    def test_what_is_missing_is_named_in_both_families(self, tmp_path: Path) -> None:
        (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\ndog", encoding="utf-8")
        with pytest.raises(DataError, match=r"lacks \[MASK\] \(or <mask>\)"):
            TextTokenizer.from_file(tmp_path)


class TestCase:
    def test_unigram_and_byte_level_keep_case(self, tmp_path: Path) -> None:
        for make in (unigram_folder, byte_level_folder):
            tokenizer = TextTokenizer.from_file(make(tmp_path / make.__name__, ALL))
            assert not tokenizer.cleaning.lowercases

    def test_without_normaliser_a_vocabulary_of_small_letters_gets_small_letters(
        self, tmp_path: Path
    ) -> None:
        tokenizer = TextTokenizer.from_file(bert_folder(tmp_path, ["a", "dog"]))
        plain = json.loads(tokenizer.to_json()) | {"normalizer": None}
        assert TextTokenizer.from_json(json.dumps(plain)).cleaning.lowercases

    def test_a_tokenizer_that_is_learnt_says_what_it_was_asked_for(self) -> None:
        for lowercase in (True, False):
            tokenizer = TextTokenizer.train(["A dog", "一只狗"], 60, lowercase=lowercase)
            assert tokenizer.cleaning.lowercases is lowercase


def test_pieces_learnt_from_chinese_are_characters() -> None:
    texts = ["红色的圆形在蓝色的方块左边", "两个绿色的三角形", "红色的圆形"] * 50
    tokenizer = TextTokenizer.train(texts, 200)
    assert tokens_of(tokenizer, texts[0]) == list(texts[0])
