"""Text to token ids and back: a BERT vocabulary, any `tokenizer.json`, or one trained here.

Only this file and `wordpiece.py` import `tokenizers`.
"""

import base64
from collections.abc import Iterable, Sequence
from copy import copy
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from openblip.batches.text import Cleaning
from openblip.batches.wordpiece import (
    BERT_TOKENS,
    bert_decoder,
    follow_settings,
    has_capitals,
    read_vocabulary,
    train_wordpiece,
)
from openblip.runtime.documents import read_text
from openblip.runtime.errors import DataError, RecipeError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

FirstToken = Literal["cls", "enc", "dec"]

TOKENIZER_FILE = "tokenizer.json"
VOCABULARY_FILE = "vocab.txt"

# What other families call these, in the same order: XLM-RoBERTa, CamemBERT, PhoBERT. Some mix both
# (ALBERT and IndicBERT have "<pad>" and "[CLS]"), so each is looked for by itself.
_OTHER_TOKENS = ("<pad>", "<unk>", "<s>", "</s>", "<mask>")
# In this order behind the vocabulary: 30522 and 30523 for bert-base-uncased, as in the original.
BLIP_TOKENS = ("[DEC]", "[ENC]")
_REMEDY = "give a tokenizer.json, a BERT vocab.txt, or a folder that holds one of them"

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

    special: SpecialTokens
    """Ids of the special tokens."""
    special_names: tuple[str, ...]
    """What the vocabulary calls them, in the order of `SpecialTokens`."""
    cleaning: Cleaning
    """What becomes of a text before it is tokenised."""

    def __init__(self, backend: "Tokenizer", source: str = "tokenizer") -> None:
        """Wraps a tokenizer of the `tokenizers` library and appends `[DEC]` and `[ENC]` if absent.

        Args:
            backend: changed in place; its own padding, truncation and post-processing are unused.
            source: what errors name, usually a file.

        Raises:
            DataError: if one of `[PAD] [UNK] [CLS] [SEP] [MASK]` is not in the vocabulary, under
                this name or that of XLM-RoBERTa (`<pad> <unk> <s> </s> <mask>`).
        """
        names = (*_names_of_roles(backend, source), *BLIP_TOKENS)
        backend.add_special_tokens(list(names))
        backend.no_padding()
        backend.no_truncation()
        # Differs from BLIP: "[SEP]" written in a caption is text, not the end of it.
        backend.encode_special_tokens = True
        self._backend = backend
        self._ends_texts = True
        ids = backend.get_vocab(with_added_tokens=True)
        self.special_names = names
        self.special = SpecialTokens(*(ids[token] for token in names))
        self._reserved = frozenset(astuple(self.special)) - {self.special.unk}
        self.cleaning = Cleaning(lowercases=_lowercases(backend))

    @classmethod
    def from_file(cls, path: str | Path) -> Self:
        """Returns the tokenizer stored in a `tokenizer.json`, a BERT `vocab.txt`, or their folder.

        A vocabulary is read as WordPiece, whose `tokenizer_config.json` beside it says whether it
        keeps case (`do_lower_case`), accents and Han characters (`strip_accents`,
        `tokenize_chinese_chars`); where it is silent, a vocabulary with capital letters keeps case.
        In a folder `tokenizer.json` goes first.

        Raises:
            DataError: if the file is missing or is not a tokenizer.
        """
        file = tokenizer_file(Path(path))
        try:
            if file.suffix != ".json":
                return cls(read_vocabulary(file), str(file))
            backend = _parse_json(read_text(file), str(file))
            follow_settings(backend, file)
        except DataError as error:
            told = str(error)
            raise DataError(told if _REMEDY in told else f"{told}; {_REMEDY}") from error
        return cls(backend, str(file))

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
        num_special = len(BERT_TOKENS) + len(BLIP_TOKENS)
        if vocab_size <= num_special + 1:
            raise RecipeError(f"vocab_size is {vocab_size}; give more than {num_special + 1}")
        return cls(train_wordpiece(list(texts), vocab_size - len(BLIP_TOKENS), lowercase))

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
        return self._padded(rows, pad_to)

    def encode_behind(
        self,
        given: Sequence[str | None],
        texts: Sequence[str],
        given_tokens: int,
        max_tokens: int,
    ) -> tuple[TokenBatch, Tensor]:
        """Returns the texts behind given ones, `[CLS] given [SEP] pieces [SEP]`, one row each.

        Args:
            given: one for each text; None or an empty one puts nothing before it.
            texts: any number.
            given_tokens: a longer given text keeps its first so many pieces.
            max_tokens: of each row without its given text, as of `encode`.

        Returns:
            The rows, and int64 (rows,) how many tokens a given text and its `[SEP]` take.
        """
        most = self.room(max_tokens)
        rows, lengths = [], []
        for before, pieces in zip(
            self.given_ids(given, given_tokens), self.pieces(texts), strict=True
        ):
            rows.append((self.special.cls, *before, *pieces[:most], self.special.sep))
            lengths.append(len(before))
        return self._padded(rows), torch.tensor(lengths, dtype=torch.int64)

    def given_ids(self, given: Sequence[str | None], given_tokens: int) -> list[list[int]]:
        """Returns of each given text its first pieces and `[SEP]`; nothing of one without any.

        Args:
            given: texts, cleaned.
            given_tokens: most pieces of one.
        """
        pieces = [own[:given_tokens] for own in self.pieces([text or "" for text in given])]
        return [[*own, self.special.sep] if own else [] for own in pieces]

    def _padded(self, rows: Sequence[Sequence[int]], pad_to: int | None = None) -> TokenBatch:
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
        return [self._as_text(encoding.ids) for encoding in encodings]

    def spans(self, text: str) -> list[tuple[int, str]]:
        """Returns the ids of a whole text, each with the part of the text that it stands for."""
        valid = _valid(text)
        encoding = self._backend.encode(valid, add_special_tokens=False)
        return [
            (piece, valid[first:end].strip())
            for piece, (first, end) in zip(
                self._as_text(encoding.ids), encoding.offsets, strict=True
            )
        ]

    def _as_text(self, ids: list[int]) -> list[int]:
        """Ids of a text: where a Unigram finds "</s>" in it, that is no end, but unknown."""
        if self._reserved.isdisjoint(ids):
            return ids
        return [self.special.unk if piece in self._reserved else piece for piece in ids]

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


def _names_of_roles(backend: "Tokenizer", source: str) -> tuple[str, ...]:
    """What a vocabulary calls the special tokens of a BERT, in their order."""
    names = []
    for pair in zip(BERT_TOKENS, _OTHER_TOKENS, strict=True):
        found = next((name for name in pair if backend.token_to_id(name) is not None), None)
        names.append(found)
    missing = [token for token, name in zip(BERT_TOKENS, names, strict=True) if name is None]
    if missing:
        others = [_OTHER_TOKENS[BERT_TOKENS.index(token)] for token in missing]
        raise DataError(
            f"{source}: the vocabulary lacks {' '.join(missing)} (or {' '.join(others)}); {_REMEDY}"
        )
    return tuple(name for name in names if name is not None)


def _lowercases(backend: "Tokenizer") -> bool:
    """Whether a tokenizer reads a capital letter as a small one.

    One that changes nothing reads capitals as unknown if it has none: then small ones it must be.
    """
    if backend.normalizer is None:
        return not has_capitals(backend.get_vocab(with_added_tokens=False))
    return "A" not in backend.normalizer.normalize_str("A")


def _parse_json(text: str, source: str) -> "Tokenizer":
    from tokenizers import Tokenizer
    from tokenizers.decoders import WordPiece

    try:
        backend = Tokenizer.from_str(text)
    except Exception as error:  # the library raises bare Exceptions
        raise DataError(f"{source}: not a tokenizer file ({error!s:.120}); {_REMEDY}") from error
    # The library's own clean-up works token by token and leaves "dog ' s".
    if isinstance(backend.decoder, WordPiece):
        backend.decoder = bert_decoder(backend.decoder.prefix, backend.decoder.cleanup)
    return backend


def pack_tokens(ids: Iterable[int], vocab_size: int) -> str:
    """A set of token ids in few characters: a bit for each of the vocabulary, in base64."""
    mask = np.zeros(vocab_size, dtype=bool)
    mask[list(ids)] = True
    return base64.b64encode(np.packbits(mask).tobytes()).decode()


def unpack_tokens(text: str, vocab_size: int) -> Bool[Tensor, " vocab"]:
    """Which tokens are in a set of `pack_tokens`.

    Raises:
        ValueError: the text is none, or of another vocabulary.
    """
    packed = np.frombuffer(base64.b64decode(text, validate=True), dtype=np.uint8)
    if len(packed) != -(-vocab_size // 8):
        raise ValueError(f"{len(packed)} bytes are no set of the {vocab_size} tokens")
    return torch.from_numpy(np.unpackbits(packed, count=vocab_size).astype(bool))
