"""Text to token ids and back: a BERT vocabulary, any `tokenizer.json`, or one trained here.

The only file that imports `tokenizers`.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from copy import copy
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

import numpy as np
import torch
from torch import Tensor

from openblip.documents import read_text
from openblip.errors import DataError, RecipeError

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from tokenizers.decoders import Decoder

FirstToken = Literal["cls", "enc", "dec"]

TOKENIZER_FILE = "tokenizer.json"
VOCABULARY_FILE = "vocab.txt"

_BERT_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
# In this order behind the vocabulary: 30522 and 30523 for bert-base-uncased, as in the original.
BLIP_TOKENS = ("[DEC]", "[ENC]")
_REMEDY = "give a tokenizer.json, a BERT vocab.txt, or a folder that holds one of them"

# Spaces that BERT's decoding leaves before English punctuation and clitics, and what they become.
_ENGLISH_JOINS = (
    *((f" {mark}", mark) for mark in ".?!,"),
    (" ' ", "'"),
    *((f" {clitic}", clitic) for clitic in ("n't", "'m", "'s", "'ve", "'re")),
)

# A word start keeps its leading "\u2581" (a space), so that decoding restores the spaces exactly.
# Han characters and every mark or symbol stand alone; other letters and digits run together.
_WORD_MARK = "\u2581"
_PIECES = rf"{_WORD_MARK}?\p{{Han}}|{_WORD_MARK}?[^\p{{P}}\p{{S}}\p{{Han}}\s]+|{_WORD_MARK}?[\s\S]"
# Scripts without spaces (Thai, Khmer) make long words; BERT's limit of 100 would lose them.
_MAX_WORD_CHARACTERS = 512
_PAD_MULTIPLE = 8


@dataclass(frozen=True)
class SpecialTokens:
    """Ids of the tokens with a meaning of their own."""

    pad: int
    unk: int
    cls: int
    """First token of a text for the unimodal encoder."""
    sep: int
    """Last token of every text, and the end of a generated one."""
    mask: int
    dec: int
    """First token for the decoder."""
    enc: int
    """First token for the image-grounded encoder."""


@dataclass(frozen=True)
class TokenBatch:
    """Tokenised texts, padded at the right."""

    ids: Tensor
    """int64 (rows, tokens)."""
    mask: Tensor
    """bool (rows, tokens), True where a token is, False on padding."""

    def row(self, number: int) -> list[int]:
        """The ids of one text without its padding."""
        return [int(token) for token in self.ids[number][self.mask[number]]]


class TextTokenizer:
    """A WordPiece (or any other) tokenizer with the special tokens of BLIP."""

    def __init__(self, backend: "Tokenizer", source: str = "tokenizer") -> None:
        """Wraps a tokenizer of the `tokenizers` library and appends `[DEC]` and `[ENC]` if absent.

        Args:
            backend: changed in place; its own padding, truncation and post-processing are unused.
            source: what errors name, usually a file.

        Raises:
            DataError: if one of `[PAD] [UNK] [CLS] [SEP] [MASK]` is not in the vocabulary.
        """
        missing = [token for token in _BERT_TOKENS if backend.token_to_id(token) is None]
        if missing:
            raise DataError(f"{source}: the vocabulary lacks {' '.join(missing)}; {_REMEDY}")
        backend.add_special_tokens([*_BERT_TOKENS, *BLIP_TOKENS])
        backend.no_padding()
        backend.no_truncation()
        # Differs from BLIP: "[SEP]" written in a caption is text, not the end of it.
        backend.encode_special_tokens = True
        self._backend = backend
        self._ends_texts = True
        ids = backend.get_vocab(with_added_tokens=True)
        self.special = SpecialTokens(*(ids[token] for token in (*_BERT_TOKENS, *BLIP_TOKENS)))

    @classmethod
    def from_file(cls, path: str | Path) -> Self:
        """Returns the tokenizer stored in a `tokenizer.json`, a BERT `vocab.txt`, or their folder.

        A vocabulary is read as the lower-casing WordPiece of bert-base-uncased. In a folder
        `tokenizer.json` goes first.

        Raises:
            DataError: if the file is missing or is not a tokenizer.
        """
        file = tokenizer_file(Path(path))
        if file.suffix == ".json":
            return cls.from_json(_read_text(file), str(file))
        return cls(_bert_backend(_read_vocabulary(file)), str(file))

    @classmethod
    def from_json(cls, text: str, source: str = "tokenizer") -> Self:
        """Returns the tokenizer that a `tokenizer.json` describes.

        Args:
            text: what the file holds.
            source: what errors name.

        Raises:
            DataError: if it is no tokenizer.
        """
        return cls(_parse_json(text, source), source)

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int, lowercase: bool = True) -> Self:
        """Returns a WordPiece tokenizer learnt from `texts`, which may be in any language.

        Accents and vowel signs stay (text is only brought to Unicode form C), and decoding gives
        back the text up to case and white space. The same texts give the same vocabulary in any
        order. All texts are held in memory.

        Args:
            texts: captions; none of them needs to be cleaned or in lower case.
            vocab_size: most ids to use, special tokens included; few texts give fewer.
            lowercase: whether to drop the difference between upper and lower case.

        Raises:
            DataError: if the texts hold no character.
            RecipeError: if `vocab_size` leaves no room besides the special tokens.
        """
        num_special = len(_BERT_TOKENS) + len(BLIP_TOKENS)
        if vocab_size <= num_special + 1:
            raise RecipeError(f"vocab_size is {vocab_size}; give more than {num_special + 1}")
        return cls(_train_backend(list(texts), vocab_size - len(BLIP_TOKENS), lowercase))

    def without_end(self) -> Self:
        """Returns the same tokenizer, but `encode` puts no `[SEP]` behind a text, as ALBEF's."""
        other = copy(self)
        other._ends_texts = False
        return other

    @property
    def vocab_size(self) -> int:
        """Returns the number of ids, special tokens included: the rows of the word embedding."""
        return self._backend.get_vocab_size(with_added_tokens=True)

    def to_json(self) -> str:
        """Returns what `tokenizer.json` holds."""
        return self._backend.to_str(pretty=True)

    def save(self, folder: str | Path) -> Path:
        """Returns the path of the `tokenizer.json` written into `folder`, which is made if absent.

        Raises:
            DataError: if the file cannot be written.
        """
        file = Path(folder) / TOKENIZER_FILE
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(self.to_json(), encoding="utf-8")
        except OSError as error:
            raise DataError(f"{file}: cannot be written ({error}); give another folder") from error
        return file

    def encode(
        self,
        texts: Sequence[str],
        max_tokens: int,
        first: FirstToken = "cls",
        pad_to: int | None = None,
    ) -> TokenBatch:
        """Returns the texts as `[CLS] pieces [SEP]`, one row each.

        Args:
            texts: any number, also none.
            max_tokens: a longer text keeps its first pieces, as many as there is room for.
            first: the first token: `[CLS]`, `[ENC]` or `[DEC]`.
            pad_to: length of the rows, at least `max_tokens`. By default the longest row, rounded
                up to a multiple of 8 so that few shapes occur.

        Raises:
            ValueError: if `max_tokens` is below 2 or `pad_to` below `max_tokens`.
        """
        if max_tokens < 2:
            raise ValueError(f"max_tokens is {max_tokens}, but the first token and [SEP] take 2")
        if pad_to is not None and pad_to < max_tokens:
            raise ValueError(f"pad_to is {pad_to}, but rows may have max_tokens = {max_tokens}")
        first_id = {"cls": self.special.cls, "enc": self.special.enc, "dec": self.special.dec}[
            first
        ]
        last = (self.special.sep,) if self._ends_texts else ()
        most = self.room(max_tokens)
        rows = [(first_id, *pieces[:most], *last) for pieces in self.pieces(texts)]
        lengths = np.array([len(row) for row in rows], dtype=np.int64)
        longest = int(lengths.max(initial=2))
        width = -(-longest // _PAD_MULTIPLE) * _PAD_MULTIPLE if pad_to is None else pad_to
        ids = np.full((len(rows), width), self.special.pad, dtype=np.int64)
        for target, row in zip(ids, rows, strict=True):
            target[: len(row)] = row
        mask = np.arange(width) < lengths[:, None]
        return TokenBatch(torch.from_numpy(ids), torch.from_numpy(mask))

    def cut(self, text: str, max_tokens: int) -> int | None:
        """Returns the place of the first character that `encode` leaves out; None if none is."""
        offsets = self._backend.encode(_valid(text), add_special_tokens=False).offsets
        most = self.room(max_tokens)
        return offsets[most][0] if len(offsets) > most else None

    def room(self, max_tokens: int) -> int:
        """Returns how many pieces `encode` keeps of a text."""
        return max_tokens - 1 - self._ends_texts

    def pieces(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns the ids of whole texts, without special tokens at their ends."""
        valid = [_valid(text) for text in texts]
        encodings = self._backend.encode_batch_fast(valid, add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def spans(self, text: str) -> list[tuple[int, str]]:
        """Returns the ids of a whole text, each with the part of the text that it stands for."""
        valid = _valid(text)
        encoding = self._backend.encode(valid, add_special_tokens=False)
        return [
            (piece, valid[first:end].strip())
            for piece, (first, end) in zip(encoding.ids, encoding.offsets, strict=True)
        ]

    def decode(self, ids: Sequence[int] | Tensor) -> str:
        """Returns the text of one row of ids; special tokens are skipped, wherever they stand."""
        plain = ids.tolist() if isinstance(ids, Tensor) else list(ids)
        return self._backend.decode(plain, skip_special_tokens=True).strip()


def _valid(text: str) -> str:
    """Half a surrogate pair (from broken JSON or a broken command line) is not valid Unicode."""
    return text.encode("utf-8", "replace").decode()


def tokenizer_file(path: Path) -> Path:
    """The file that `TextTokenizer.from_file` reads.

    Raises:
        DataError: there is none.
    """
    candidates = [path / TOKENIZER_FILE, path / VOCABULARY_FILE] if path.is_dir() else [path]
    found = next((file for file in candidates if file.is_file()), None)
    if found is None:
        raise DataError(f"{path}: no tokenizer found; {_REMEDY}")
    return found


def _read_text(file: Path) -> str:
    try:
        return read_text(file)
    except DataError as error:
        raise DataError(f"{error}; {_REMEDY}") from error


def _parse_json(text: str, source: str) -> "Tokenizer":
    from tokenizers import Tokenizer
    from tokenizers.decoders import WordPiece

    try:
        backend = Tokenizer.from_str(text)
    except Exception as error:  # the library raises bare Exceptions
        raise DataError(f"{source}: not a tokenizer file ({error!s:.120}); {_REMEDY}") from error
    # The library's own clean-up works token by token and leaves "dog ' s".
    if isinstance(backend.decoder, WordPiece) and backend.decoder.cleanup:
        backend.decoder = _bert_decoder(backend.decoder.prefix)
    return backend


def _read_vocabulary(file: Path) -> dict[str, int]:
    lines = _read_text(file).removesuffix("\n").split("\n")
    vocabulary: dict[str, int] = {}
    for index, line in enumerate(lines):
        token = line.removesuffix("\r")
        if vocabulary.setdefault(token, index) != index:
            first = vocabulary[token] + 1
            raise DataError(
                f"{file}: line {index + 1} repeats the token {token!r} of line {first}; {_REMEDY}"
            )
    return vocabulary


def _bert_backend(vocabulary: dict[str, int]) -> "Tokenizer":
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    backend = Tokenizer(models.WordPiece(vocab=vocabulary, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = _bert_decoder("##")
    return backend


def _bert_decoder(prefix: str) -> "Decoder":
    from tokenizers import decoders

    joins = [decoders.Replace(pattern, content) for pattern, content in _ENGLISH_JOINS]
    words = decoders.WordPiece(prefix=prefix, cleanup=False)
    return decoders.Sequence([words, decoders.Fuse(), *joins])


def _train_backend(texts: list[str], vocab_size: int, lowercase: bool) -> "Tokenizer":
    from tokenizers import trainers

    backend = _untrained_backend(lowercase)
    alphabet = _alphabet(backend, texts, (vocab_size - len(_BERT_TOKENS) + 1) // 2)
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=list(_BERT_TOKENS),
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        continuing_subword_prefix="",
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return backend


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
