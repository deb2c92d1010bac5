"""Captions of encoded images: prompt to ids, generation, ids to text and to the words in it."""

import math
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from openblip.batches.text import is_unspaced
from openblip.batches.tokenizer import TextTokenizer, unpack_tokens
from openblip.inference.decoding import Decoding
from openblip.inference.encoding import EncodedImages
from openblip.inference.generation import Generated, generate
from openblip.runtime.errors import RecipeError

PROMPT = "a picture of "
"""What the captioners of the paper were trained to continue."""

# What BERT writes before a piece within a word, and decoding leaves at the beginning of a text.
_WITHIN = "##"
# What a piece of byte-level BPE is without the other bytes of its letter.
_PART_OF_LETTER = "\ufffd"


@dataclass(frozen=True)
class GivenPrompt:
    """A text about the image that a captioner reads before it continues a prompt."""

    given: str
    """Such as what a web page says; empty for nothing."""
    prompt: str = PROMPT
    """What the caption continues."""

    def __str__(self) -> str:
        return f"{self.given} {self.prompt}"


Prompt = str | GivenPrompt


@dataclass(frozen=True)
class WordConfidence:
    """A word of a caption, and how sure the model was of it."""

    text: str
    probability: float
    """The product of its pieces' probabilities, each given the image and what stands before."""


@dataclass(frozen=True)
class Caption:
    """A generated text about an image."""

    text: str
    """Without the prompt."""
    logprob: float
    """The model's log-probability of what follows the prompt, the end included."""
    token_ids: tuple[int, ...]
    """Prompt, text and, unless the longest length came first, `[SEP]`."""
    words: tuple[WordConfidence, ...] = field(default=(), compare=False)
    """The text's words in their order. The end has no word: the product of the probabilities is
    exp(`logprob`) but for the end's own."""
    reason: str | None = field(default=None, compare=False)
    """Why the text is empty; None where it is not."""


def caption_encoded(
    encoded: EncodedImages,
    tokenizer: TextTokenizer,
    decoding: Decoding,
    prompt: Prompt | Sequence[Prompt],
    seeds: Sequence[int] | None = None,
    num_captions: int = 1,
    given_tokens: int = 0,
    name_tokens: str = "",
) -> list[list[Caption]]:
    """A list per image, of `num_captions`; arguments and errors as in `generate`.

    Args:
        encoded: the images.
        tokenizer: of prompt and text.
        decoding: how tokens are chosen; its lengths count each image's own prompt, but not a text
            that is given before it.
        prompt: of all images, or one per image. Images whose prompts have equally many tokens are
            captioned together, so that none is padded: a caption is that of its image and prompt
            alone.
        seeds: one per image.
        num_captions: per image.
        given_tokens: longest given text; it is cut to this.
        name_tokens: what is written from a given text alone, see `Grounding`; empty for nothing.

    Raises:
        RecipeError: if there are not as many prompts as images, or a text is given to a model that
            reads none.
    """
    prompts = [prompt] * len(encoded) if isinstance(prompt, str | GivenPrompt) else list(prompt)
    if len(prompts) != len(encoded):
        raise RecipeError(
            f"{len(prompts)} prompts for {len(encoded)} images; give one for all or one per image"
        )
    most = encoded.med.config.text.max_positions
    starts = {text: _start(tokenizer, text, most, given_tokens) for text in dict.fromkeys(prompts)}
    ids_of = {text: ids for text, (ids, _) in starts.items()}
    places_of_length: dict[tuple[int, int], list[int]] = defaultdict(list)
    for place, text in enumerate(prompts):
        places_of_length[ids_of[text].shape[1], starts[text][1]].append(place)
    captions: list[list[Caption]] = [[] for _ in prompts]
    for (start, given), places in places_of_length.items():
        memory = encoded.decoder_memory
        if len(places) < len(encoded):
            # Copied once: with gradients it would be a view, of which every step makes a copy.
            with torch.no_grad():
                memory = memory.select(torch.tensor(places, device=memory.keys[0].device))
        texts = generate(
            encoded.med.text,
            memory,
            torch.cat([ids_of[prompts[place]] for place in places]),
            _behind(decoding, given),
            tokenizer.special,
            None if seeds is None else [seeds[place] for place in places],
            num_captions,
            Grounding(tokenizer, name_tokens, given, start, given_tokens) if name_tokens else None,
        )
        for place, of_image in zip(places, texts, strict=True):
            captions[place] = [_caption(tokenizer, text, start) for text in of_image]
    return captions


class Grounding:
    """Has a caption take names from its given text, and from nowhere else.

    A token that names alone begin with is written where it begins a word of the given text, which
    then is written to its end, and once. How likely a name comes next stays as the model says;
    whose it is, the given text decides. Else the names that were most frequent in training would be
    written, whoever is named; and without a given text they are not written.
    """

    def __init__(
        self,
        tokenizer: TextTokenizer,
        name_tokens: str,
        given: int,
        prompt_tokens: int,
        given_tokens: int,
    ) -> None:
        """Of texts whose prompts have the same lengths.

        Args:
            tokenizer: of the texts.
            name_tokens: those that names alone begin with, packed by `pack_tokens`.
            given: ids behind `[DEC]` that are given, the `[SEP]` behind them included.
            prompt_tokens: ids before the caption, `[DEC]` included.
            given_tokens: longest given text, without its `[SEP]`.
        """
        self._tokenizer, self._given, self._prompt = tokenizer, given, prompt_tokens
        # The last word of a text that was cut may be a part of one.
        self._may_be_cut = given > given_tokens
        self._names = unpack_tokens(name_tokens, tokenizer.vocab_size)
        self._words: dict[tuple[int, ...], list[tuple[int, ...]]] = {}

    def __call__(
        self, scores: Float[Tensor, "rows vocab"], ids: Int[Tensor, "rows length"]
    ) -> Float[Tensor, "rows vocab"]:
        """The scores, logits or log-probabilities, of the tokens that may come next."""
        allowed, names = self._allowed(ids).to(scores.device), self._names.to(scores.device)
        never = torch.tensor(float("-inf"), device=scores.device)
        there = scores.where(names & allowed, never).logsumexp(dim=1, keepdim=True)
        anywhere = scores.where(names, never).logsumexp(dim=1, keepdim=True)
        # Where a name is less likely than not, a share of it is what the model does not know.
        expects = anywhere - scores.logsumexp(dim=1, keepdim=True) > math.log(0.5)
        # Where the given text has none, there is nobody to take what they all had.
        moved = (anywhere - there).where(expects & (there > never), 0.0)
        return (scores + moved * names).where(allowed, never)

    def _allowed(self, ids: Int[Tensor, "rows length"]) -> Bool[Tensor, "rows vocab"]:
        """Which tokens may come next in each row."""
        allowed = (~self._names).repeat(len(ids), 1)
        for row, own in zip(allowed, ids.tolist(), strict=True):
            text, words = tuple(own[self._prompt :]), self._words_of(tuple(own[1 : self._given]))
            ends = [word for word in words if text[-len(word) :] == word]
            begun = [
                word[k]
                for word in words
                for k in range(1, min(len(word), len(text) + 1))
                if text[-k:] == word[:k]
            ]
            # Within a name there is no way but its own; a short name may begin a longer one.
            if begun and not ends:
                row.fill_(False)
            else:
                row[[word[0] for word in words if word not in _said(text, words)]] = True
            row[begun] = True
        return allowed

    def _words_of(self, given: tuple[int, ...]) -> list[tuple[int, ...]]:
        """The names of a given text, each once: what stands between spaces and punctuation."""
        if given not in self._words:
            words = find_words(self._tokenizer, given)
            # Joined to it by an apostrophe or a slash is another word.
            parts = [
                tuple(given[place] for place in run)
                for word in (words[:-1] if self._may_be_cut else words)
                for is_sign, run in groupby(word.places, lambda place: self._is_sign(given[place]))
                if not is_sign
            ]
            self._words[given] = [own for own in dict.fromkeys(parts) if self._names[own[0]]]
        return self._words[given]

    def _is_sign(self, token_id: int) -> bool:
        return _is_punctuation(self._tokenizer.decode([token_id]).removeprefix(_WITHIN))


def _said(text: tuple[int, ...], words: Sequence[tuple[int, ...]]) -> set[tuple[int, ...]]:
    """Which words stand in a text; one that begins a longer one of them does not with that."""
    said, place = set(), 0
    while place < len(text):
        found = [word for word in words if text[place : place + len(word)] == word]
        longest = max(found, key=len, default=None)
        if longest is not None:
            said.add(longest)
        place += len(longest or (0,))
    return said


def _start(
    tokenizer: TextTokenizer, prompt: Prompt, most: int, given_tokens: int
) -> tuple[Int[Tensor, "1 tokens"], int]:
    """`[DEC]`, what is given with its `[SEP]`, and the prompt; and how many ids are given."""
    if isinstance(prompt, str):
        return prompt_ids(tokenizer, prompt, most), 0
    if not given_tokens:
        raise RecipeError(
            "this captioner was not fine-tuned to read a given text; load one of "
            "`openblip finetune captioner ... --given web`, or give none"
        )
    (given,) = tokenizer.given_ids([tokenizer.cleaning.caption(prompt.given)], given_tokens)
    ids = prompt_ids(tokenizer, prompt.prompt, most)
    return torch.cat([ids[:, :1], torch.tensor([given], dtype=ids.dtype), ids[:, 1:]], 1), len(
        given
    )


def cut_given(tokenizer: TextTokenizer, given: Sequence[str], given_tokens: int) -> int:
    """How many of the texts are longer than what a captioner reads of them."""
    pieces = tokenizer.pieces([tokenizer.cleaning.caption(text) for text in given])
    return sum(len(own) > given_tokens for own in pieces)


def _behind(decoding: Decoding, given: int) -> Decoding:
    """How tokens are chosen behind so many given ids, which lengths do not count.

    Raises:
        RecipeError: what is given would be forbidden: a name in it could not be repeated.
    """
    if not given:
        return decoding
    if decoding.repetition_penalty != 1.0 or decoding.no_repeat_ngram_size:
        raise RecipeError(
            "repetition_penalty and no_repeat_ngram_size count what stands before a caption, and "
            "would keep it from repeating a name of the given text: leave them out with one"
        )
    return replace(
        decoding,
        max_length=decoding.max_length + given,
        min_length=decoding.min_length + given,
    )


def prompt_ids(tokenizer: TextTokenizer, prompt: str, most: int) -> Int[Tensor, "1 tokens"]:
    """`[DEC]` and the prompt, without an end."""
    tokens = tokenizer.encode([prompt], most + 1, first="dec")
    return tokens.ids[:, : int(tokens.mask.sum()) - 1]


def caption_ids(tokenizer: TextTokenizer, prompt: str, text: str, most: int) -> list[int]:
    """A given caption as ids: `[DEC]`, prompt, text, `[SEP]`; cut to `most`."""
    start = prompt_ids(tokenizer, prompt, most)[0].tolist()
    tokens = tokenizer.encode([text], most, first="dec")
    return [*start, *tokens.row(0)[1:]][:most]


def _caption(tokenizer: TextTokenizer, text: Generated, start: int) -> Caption:
    # Differs from BLIP: it cuts as many characters as the prompt has, which loses a character
    # where the tokenizer writes the prompt, or what is joined to it, more shortly.
    ids = text.token_ids[start:]
    words = tuple(
        WordConfidence(
            word.text, math.exp(sum(text.token_logprobs[place] for place in word.places))
        )
        for word in find_words(tokenizer, ids)
    )
    written = tokenizer.decode(ids)
    reason = None if written else _why_empty(tokenizer, ids)
    return Caption(written, text.logprob, text.token_ids, words, reason)


def _why_empty(tokenizer: TextTokenizer, ids: Sequence[int]) -> str:
    if set(ids) <= {tokenizer.special.sep}:
        return "the model ended the caption at once"
    what = "[UNK]" if tokenizer.special.unk in ids else "tokens without a text"
    return f"the model wrote nothing but {what}"


class Word(NamedTuple):
    """A word of a text, and which ids it is made of."""

    text: str
    places: tuple[int, ...]
    """Places of its pieces in the text's ids."""


def find_words(tokenizer: TextTokenizer, ids: Sequence[int]) -> list[Word]:
    """The words of a text in their order; special tokens belong to none.

    What decoding writes without white space between is one word ("do", "n", "'", "t": "don't"),
    but punctuation at its ends stands alone, and so does each piece of a script without spaces, in
    which nothing tells the words (of Han that is a character). `[UNK]` is a word of that name.
    """
    special = set(tokenizer.special.__dict__.values())
    unknown = tokenizer.special.unk
    words: list[Word] = []
    # A run of pieces ends at a special token, which decoding leaves out.
    for kind, run in groupby(enumerate(ids), lambda item: _kind(item[1], special, unknown)):
        places = [place for place, _ in run]
        if kind == "unknown":
            words += [Word("[UNK]", (place,)) for place in places]
        elif kind == "text":
            words += _words_of_run(tokenizer, ids, places)
    return words


def _kind(token_id: int, special: set[int], unknown: int) -> str:
    if token_id == unknown:
        return "unknown"
    return "special" if token_id in special else "text"


def _words_of_run(
    tokenizer: TextTokenizer, ids: Sequence[int], places: Sequence[int]
) -> list[Word]:
    """The words of pieces that follow each other."""
    split = tokenizer.decode([ids[place] for place in places]).split()
    if len(split) == len(places):
        # Common, and a fiftieth of the time: every piece is a word.
        return [Word(word, (place,)) for word, place in zip(split, places, strict=True)]
    pieces = _visible_pieces(tokenizer, ids, places)
    number_of_word = []
    for end in range(1, len(pieces) + 1):
        so_far = [ids[place] for piece in pieces[:end] for place in piece.places]
        number_of_word.append(len(tokenizer.decode(so_far).split()))
    # A later piece may draw earlier ones together: "do n '" becomes "don't".
    for index in range(len(pieces) - 2, -1, -1):
        number_of_word[index] = min(number_of_word[index], number_of_word[index + 1])
    words = []
    for _, group in groupby(zip(number_of_word, pieces, strict=True), lambda item: item[0]):
        for part in _separated([piece for _, piece in group]):
            own = tuple(place for piece in part for place in piece.places)
            text = tokenizer.decode([ids[place] for place in own])
            words.append(Word(text.removeprefix(_WITHIN) if is_unspaced(text) else text, own))
    return words


def _visible_pieces(
    tokenizer: TextTokenizer, ids: Sequence[int], places: Sequence[int]
) -> list[Word]:
    """Each piece with its text; a word mark or a part of a letter goes with the piece behind it."""
    pieces: list[Word] = []
    held: list[int] = []
    for place in places:
        held.append(place)
        text = tokenizer.decode([ids[own] for own in held])
        is_part = _PART_OF_LETTER in text and place != places[-1]
        if text and not is_part:
            pieces.append(Word(text, tuple(held)))
            held = []
    return pieces


def _separated(pieces: list[Word]) -> list[list[Word]]:
    """A word's pieces without the punctuation at its ends, which stands alone."""
    lettered = [index for index, piece in enumerate(pieces) if not _is_punctuation(piece.text)]
    parts: list[list[Word]] = []
    continues = False
    for index, piece in enumerate(pieces):
        is_at_an_end = not lettered or not lettered[0] <= index <= lettered[-1]
        stands_alone = is_at_an_end or is_unspaced(piece.text)
        if continues and not stands_alone:
            parts[-1].append(piece)
        else:
            parts.append([piece])
        continues = not stands_alone
    return parts


def _is_punctuation(piece: str) -> bool:
    return all(unicodedata.category(character)[0] in "PS" for character in piece)
