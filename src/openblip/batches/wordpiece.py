"""WordPiece tokenizers: read from the files of a BERT, or learnt from texts."""

from collections import Counter
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openblip.runtime.documents import read_json, read_text
from openblip.runtime.errors import DataError

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from tokenizers.decoders import Decoder
    from tokenizers.normalizers import BertNormalizer

BERT_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
"""The special tokens of a BERT, first in a vocabulary that is learnt here."""

TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
"""Beside a vocabulary: what becomes of a text before it is looked up."""

# Spaces that BERT's decoding leaves before English punctuation and clitics, and what they become.
_ENGLISH_JOINS = (
    *((f" {mark}", mark) for mark in ".?!,"),
    (" ' ", "'"),
    *((f" {clitic}", clitic) for clitic in ("n't", "'m", "'s", "'ve", "'re")),
)
# BERT reads every Han character as a word; Chinese and Japanese are written without spaces.
_WIDE = r"[\p{Han}\p{Hiragana}\p{Katakana}\u30fc\u3000-\u303f\uff01-\uff65]"
_SPACE_BETWEEN_WIDE = rf"(?<={_WIDE}) (?={_WIDE})"

# A word start keeps its leading "\u2581" (a space), so that decoding restores the spaces exactly.
# Han characters and every mark or symbol stand alone; other letters and digits run together.
_WORD_MARK = "\u2581"
_PIECES = rf"{_WORD_MARK}?\p{{Han}}|{_WORD_MARK}?[^\p{{P}}\p{{S}}\p{{Han}}\s]+|{_WORD_MARK}?[\s\S]"
# Scripts without spaces (Thai, Khmer) make long words; BERT's limit of 100 would lose them.
_MAX_WORD_CHARACTERS = 512

SETTINGS = {
    "do_lower_case": "lowercase",
    "strip_accents": "strip_accents",
    "tokenize_chinese_chars": "handle_chinese_chars",
}
"""Of `tokenizer_config.json`, and what the library's normaliser calls each."""


def read_vocabulary(file: Path) -> "Tokenizer":
    """The WordPiece of a BERT `vocab.txt`, set as the `tokenizer_config.json` beside it says.

    Where that is silent about `do_lower_case`, the vocabulary tells: one with a capital letter is
    of a tokenizer that keeps them, any other is read in lower case, as bert-base-uncased's.

    Raises:
        DataError: a file cannot be read, a token is repeated, or a setting is no true or false.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = _tokens(file)
    backend = Tokenizer(models.WordPiece(vocab=vocabulary, unk_token="[UNK]"))
    backend.normalizer = _normalizer(
        {"lowercase": not has_capitals(vocabulary)} | _read_settings(file)
    )
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = bert_decoder("##")
    return backend


def follow_settings(backend: "Tokenizer", file: Path) -> None:
    """Let the `tokenizer_config.json` beside a BERT's `tokenizer.json` decide, as `transformers`.

    Raises:
        DataError: it cannot be read.
    """
    from tokenizers.normalizers import BertNormalizer

    stored = backend.normalizer
    if isinstance(stored, BertNormalizer) and (told := _read_settings(file)):
        names = ("clean_text", *SETTINGS.values())
        backend.normalizer = _normalizer({name: getattr(stored, name) for name in names} | told)


def settings_beside(file: Path) -> list[Path]:
    """The file that decides with a tokenizer's own what becomes of a text, if there is one."""
    beside = file.parent / TOKENIZER_CONFIG_FILE
    return [beside] if beside.is_file() else []


def has_capitals(vocabulary: dict[str, int]) -> bool:
    """Whether a token has a capital letter of ours, special tokens such as `[PAD]` left out."""
    return any(
        token != token.lower() and not (token[0] in "[<" and token[-1] in "]>")
        for token in vocabulary
        if token.isascii()
    )


def bert_decoder(prefix: str, cleanup: bool = True) -> "Decoder":
    """Joins pieces to text, without the spaces that nobody writes.

    Args:
        prefix: of a piece within a word.
        cleanup: whether English marks and clitics are drawn to the word before them.
    """
    from tokenizers import Regex, decoders

    joins = [decoders.Replace(*join) for join in _ENGLISH_JOINS] if cleanup else []
    words = decoders.WordPiece(prefix=prefix, cleanup=False)
    wide = decoders.Replace(Regex(_SPACE_BETWEEN_WIDE), "")
    return decoders.Sequence([words, decoders.Fuse(), *joins, wide])


def train_wordpiece(texts: list[str], vocab_size: int, lowercase: bool) -> "Tokenizer":
    """A WordPiece learnt from texts; its vocabulary begins with BERT's special tokens.

    Raises:
        DataError: if the texts hold no character.
    """
    from tokenizers import trainers

    backend = _untrained_backend(lowercase)
    alphabet = _alphabet(backend, texts, (vocab_size - len(BERT_TOKENS) + 1) // 2)
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=list(BERT_TOKENS),
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        continuing_subword_prefix="",
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return backend


def _tokens(file: Path) -> dict[str, int]:
    lines = read_text(file).removesuffix("\n").split("\n")
    vocabulary: dict[str, int] = {}
    for index, line in enumerate(lines):
        token = line.removesuffix("\r")
        if vocabulary.setdefault(token, index) != index:
            first = vocabulary[token] + 1
            raise DataError(f"{file}: line {index + 1} repeats the token {token!r} of line {first}")
    return vocabulary


def _read_settings(file: Path) -> dict[str, bool]:
    """What the settings beside a tokenizer's file say, by the names of the library."""
    for beside in settings_beside(file):
        return _checked_settings(beside, read_json(beside))
    return {}


def _checked_settings(beside: Path, told: object) -> dict[str, bool]:
    if not isinstance(told, dict):
        raise DataError(f"{beside}: holds no JSON object")
    # `strip_accents` is null where it follows the case.
    found = {name: told[name] for name in SETTINGS if told.get(name) is not None}
    for name, value in found.items():
        if not isinstance(value, bool):
            raise DataError(f"{beside}: {name} is {value!r:.60}, expected true or false")
    return {SETTINGS[name]: value for name, value in found.items()}


def _normalizer(settings: dict[str, Any]) -> "BertNormalizer":
    from tokenizers.normalizers import BertNormalizer

    return BertNormalizer(**settings)


def _untrained_backend(lowercase: bool) -> "Tokenizer":
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    # The prefix is empty because the word mark already tells where a word begins.
    model = models.WordPiece(
        vocab={},
        unk_token="[UNK]",
        max_input_chars_per_word=_MAX_WORD_CHARACTERS,
        continuing_subword_prefix="",
    )
    backend = Tokenizer(model)
    steps = [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
    if lowercase:
        # Before form C: the lower case of a composed letter may be a decomposed one.
        steps.insert(0, normalizers.Lowercase())
    backend.normalizer = normalizers.Sequence(steps)
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(replacement=_WORD_MARK, prepend_scheme="always"),
            pre_tokenizers.Split(Regex(_PIECES), behavior="isolated"),
        ]
    )
    backend.decoder = decoders.Metaspace(replacement=_WORD_MARK, prepend_scheme="always")
    return backend


def _alphabet(backend: "Tokenizer", texts: list[str], limit: int) -> list[str]:
    """Returns the word mark and the most frequent characters, at most `limit` in all.

    The library's own choice among equally rare characters differs from run to run.
    """
    normalizer = backend.normalizer
    assert normalizer is not None
    counts = Counter(chain.from_iterable(normalizer.normalize_str(text) for text in texts))
    del counts[" "]
    if not counts:
        raise DataError("no text to train a tokenizer on; give captions with at least one letter")
    ranked = sorted(counts, key=lambda character: (-counts[character], character))
    return [_WORD_MARK, *ranked][:limit]
