"""Generation of texts about many images at once: greedy, beam search, nucleus sampling.

A decoder holds what earlier tokens left behind. Beam search follows several texts an image, without
early stopping; of the other methods each text grows by its likeliest token, or by a drawn one.
"""

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from openblip.batches.shuffle import keyed_hash
from openblip.batches.tokenizer import SpecialTokens
from openblip.inference.decoding import Decoding
from openblip.inference.encoding import finite
from openblip.model import ImageMemory, KeyValueCache, TextPass
from openblip.model.config import TextConfig
from openblip.model.text import TextStack
from openblip.runtime.errors import RecipeError
from openblip.runtime.threads import threads_for


@dataclass(frozen=True)
class Generated:
    """A generated text as ids."""

    token_ids: tuple[int, ...]
    """The prompt, what follows it, and `[SEP]` unless the longest length came first."""
    logprob: float
    """Sum of the model's log-probabilities of the ids behind the prompt, `[SEP]` included."""
    score: float
    """What beams are ranked by: summed scores (log-probabilities after any repetition penalty)
    over the length that `Decoding.scoring` names. Of other methods: `logprob` over it."""
    token_logprobs: tuple[float, ...]
    """The parts of `logprob`, one per id behind the prompt: those of the model, before any
    penalty, minimum length or nucleus."""


@torch.inference_mode()
def generate(
    text: TextStack,
    memory: ImageMemory,
    prompt_ids: Int[Tensor, "images prompt"],
    decoding: Decoding,
    special: SpecialTokens,
    seeds: Sequence[int] | None = None,
    num_captions: int = 1,
    ground: "Ground | None" = None,
) -> list[list[Generated]]:
    """Per image `num_captions` texts: of beam search the best, best first; of nucleus drawn ones.

    Args:
        text: the decoder's stack, in eval mode, with an LM head.
        memory: what the decoder attends to.
        prompt_ids: what the texts begin with, `[DEC]` first; the same length for all images.
        decoding: how tokens are chosen.
        special: `[SEP]` ends a text.
        seeds: one per image; needed by nucleus sampling alone.
        num_captions: texts per image.
        ground: what else the scores are changed by, see `Ground`.

    Raises:
        RecipeError: if the settings do not fit the prompt, the model or each other.
    """
    _check(prompt_ids.shape[1], decoding, seeds, num_captions)
    if prompt_ids.shape[0] == 0:
        return []
    decoder = RunningDecoder(text, memory, decoding.max_length)
    with threads_for(_largest_product(text.config, len(prompt_ids), decoding, num_captions)):
        if decoding.method == "nucleus":
            assert seeds is not None
            choice = NucleusChoice(decoding, seeds, num_captions)
            return sample(decoder, prompt_ids, decoding, special.sep, choice, num_captions, ground)
        if decoding.method == "greedy" or decoding.num_beams == 1:
            return sample(decoder, prompt_ids, decoding, special.sep, likeliest, ground=ground)
        return beam_search(decoder, prompt_ids, decoding, special.sep, num_captions, ground)


def _largest_product(
    config: TextConfig, num_images: int, decoding: Decoding, num_captions: int
) -> int:
    """Multiply-adds of a step's largest product, mostly that with the vocabulary."""
    rows = num_images * (decoding.num_beams if decoding.method == "beam" else num_captions)
    return rows * config.width * max(config.vocab_size, config.ffn_width)


def _check(
    prompt_tokens: int, decoding: Decoding, seeds: Sequence[int] | None, num_captions: int
) -> None:
    if num_captions < 1:
        raise RecipeError(f"num_captions is {num_captions}; give 1 or more")
    if decoding.max_length <= prompt_tokens:
        raise RecipeError(
            f"max_length {decoding.max_length} counts the prompt, which has {prompt_tokens} tokens "
            "with [DEC]; give more"
        )
    if decoding.method == "nucleus":
        if seeds is None:
            raise RecipeError("nucleus sampling needs a seed per image")
        return
    most = decoding.num_beams if decoding.method == "beam" else 1
    if num_captions > most:
        raise RecipeError(
            f"num_captions {num_captions} is more than the {most} that this method finds; "
            "raise num_beams with method beam, or use method nucleus"
        )


class RunningDecoder:
    """Next-token logits of texts that grow by one token a step.

    Rows are grouped by image, so that all texts of an image read one set of cross-attention keys
    and values. Texts that are finished leave with `select`.
    """

    def __init__(self, text: TextStack, memory: ImageMemory, max_length: int) -> None:
        """Prepares texts of up to `max_length` ids about the images of `memory`.

        Raises:
            RecipeError: if the model has no positions for such long texts.
        """
        limit = text.config.max_positions
        if max_length > limit:
            raise RecipeError(f"max_length is {max_length}; this model has {limit} positions")
        self._text = text
        self._memory = memory
        self._max_length = max_length
        self._cache: KeyValueCache | None = None
        self.device = memory.keys[0].device

    def start(
        self, prompt_ids: Int[Tensor, "images prompt"], texts_per_image: int
    ) -> Float[Tensor, "rows vocab"]:
        """Logits of the first token behind the prompt; the rows of an image are equal.

        The prompt is read in one pass, once per image, and its cache is then copied to the rows.
        """
        images = prompt_ids.shape[0]
        # Room for the longest text at once: a cache that grew by a token would be copied each step.
        self._cache = self._text.empty_cache(images, self._max_length, self._memory.keys[0])
        logits = self._logits(prompt_ids)
        if texts_per_image > 1:
            rows = torch.arange(images).repeat_interleave(texts_per_image).to(self.device)
            self._cache = self._cache.select(rows)
            logits = logits.index_select(0, rows)
        return logits

    def step(self, ids: Int[Tensor, " rows"]) -> Float[Tensor, "rows vocab"]:
        """Logits of the token behind these."""
        return self._logits(ids[:, None])

    def select(self, rows: Int[Tensor, " new_rows"], images: Int[Tensor, " new_images"]) -> None:
        """Go on with the texts `rows` about the images `images`, both counted as they stand."""
        assert self._cache is not None, "start comes before select"
        # Mostly nothing moves, and what does not move is not copied.
        if not _is_everything(rows, self._cache.rows):
            self._cache = self._cache.select(rows.to(self.device))
        if not _is_everything(images, self._memory.images):
            self._memory = self._memory.select(images.to(self.device))

    def _logits(self, ids: Int[Tensor, "rows tokens"]) -> Float[Tensor, "rows vocab"]:
        texts = TextPass(ids.to(self.device), memory=self._memory, causal=True)
        (hidden,) = self._text(texts, cache=self._cache)
        # The vocabulary is the widest layer: only the last token needs it.
        return finite(self._text.logits(hidden[:, -1:])[:, 0].float(), "next-token logits")


def remaining(unfinished: Sequence[bool]) -> Int[Tensor, " kept"]:
    """Places of the images that stay in the batch: the unfinished ones, or for a while all.

    The keys and values of an image at 384 px take 42 MB in the base size. Copying those of the
    remaining images costs about as much as two steps for them, so that a few finished images among
    many are carried along until a quarter is finished.
    """
    leave = 4 * sum(unfinished) <= 3 * len(unfinished)
    return torch.tensor([place for place, stays in enumerate(unfinished) if stays or not leave])


def _is_everything(index: Tensor, size: int) -> bool:
    return len(index) == size and bool((index == torch.arange(size)).all())


# Score of beams that do not exist yet: at the start all texts of an image are the same.
_ABSENT = -1.0e9


class Running(NamedTuple):
    """The unfinished texts, best first, on the CPU."""

    ids: Int[Tensor, "images beams length"]
    scores: Float[Tensor, "images beams"]
    logprobs: Float[Tensor, "images beams generated"]
    """Of every id behind the prompt."""


class Candidates(NamedTuple):
    """The best continuations of each image's beams by one token, best first, on the CPU."""

    scores: Float[Tensor, "images candidates"]
    logprobs: Float[Tensor, "images candidates"]
    """Of the added token alone."""
    parents: Int[Tensor, "images candidates"]
    tokens: Int[Tensor, "images candidates"]


@dataclass
class Hypotheses:
    """The best finished texts of one image, in the order in which they were finished."""

    capacity: int
    texts: list[Generated] = field(default_factory=list)
    is_complete: bool = False
    """No text that may still come is better: none is taken any more."""

    def offer(self, text: Generated) -> None:
        """Keep a text if there is room or a worse one to give up; of equals the older leaves."""
        if self.is_complete:
            return
        if len(self.texts) < self.capacity:
            self.texts.append(text)
        elif text.score > (worst := min(self.texts, key=lambda kept: kept.score)).score:
            self.texts.remove(worst)
            self.texts.append(text)

    def complete(self, attainable: float) -> None:
        """Close if there are enough texts, all at least as good as what may still come."""
        if len(self.texts) == self.capacity:
            self.is_complete |= min(text.score for text in self.texts) >= attainable

    def best(self, number: int) -> list[Generated]:
        """The best texts, best first; of equals the younger goes first."""
        return sorted(self.texts, key=lambda text: text.score)[::-1][:number]


def beam_search(
    decoder: RunningDecoder,
    prompt_ids: Int[Tensor, "images prompt"],
    decoding: Decoding,
    end: int,
    num_captions: int = 1,
    ground: "Ground | None" = None,
) -> list[list[Generated]]:
    """The `num_captions` best texts per image, best first.

    An image is finished when it has `num_beams` texts and the best candidate, divided by its
    length as it is, is no better than the worst of them. The steps are those of the release that
    the original BLIP pins (`scoring="original"`) or of today's `transformers`.
    """
    images, prompt_tokens = prompt_ids.shape
    beams = decoding.num_beams
    hypotheses = [Hypotheses(beams) for _ in range(images)]
    batch = hypotheses
    running = _start(prompt_ids, beams)
    logits = decoder.start(prompt_ids, beams)
    for length in range(prompt_tokens + 1, decoding.max_length + 1):
        # As if every candidate ended here: those that go on may yet score higher by their length,
        # which the original does not look ahead to either.
        by = divisor(decoding, length, True, prompt_tokens)
        candidates = _expand(logits, running, decoding, end, ground)
        ended = candidates.tokens == end
        if length == decoding.max_length and decoding.scoring == "transformers":
            ended = torch.ones_like(ended)
        # An end that ranks below all beams would not have been followed either.
        for place, rank in ended[:, :beams].nonzero().tolist():
            batch[place].offer(_generated(running, candidates, place, rank, by))
        parents, running = _survive(running, candidates, ended)
        # Only the original counts a text that has just ended among those that may still come.
        hopeful = candidates.scores if decoding.scoring == "original" else running.scores
        for texts, score in zip(batch, hopeful[:, 0].tolist(), strict=True):
            texts.complete(score / by)
        if length == decoding.max_length or all(texts.is_complete for texts in batch):
            break
        kept = remaining([not texts.is_complete for texts in batch])
        batch = [batch[place] for place in kept.tolist()]
        running = Running(*(part[kept] for part in running))
        # A beam takes over the cache of the one that it continues, which several may do.
        decoder.select((kept[:, None] * beams + parents[kept]).flatten(), kept)
        logits = decoder.step(running.ids[:, :, -1].flatten())
    if decoding.scoring == "original":
        _offer_unfinished(batch, running, decoding)
    return [texts.best(num_captions) for texts in hypotheses]


def _start(prompt_ids: Int[Tensor, "images prompt"], beams: int) -> Running:
    ids = prompt_ids.cpu()[:, None].repeat(1, beams, 1)
    scores = torch.zeros(ids.shape[:2])
    scores[:, 1:] = _ABSENT
    return Running(ids, scores, torch.zeros(*ids.shape[:2], 0))


def _expand(
    logits: Float[Tensor, "rows vocab"],
    running: Running,
    decoding: Decoding,
    end: int,
    ground: "Ground | None",
) -> Candidates:
    """Twice as many candidates as beams: if half of them end, the other half goes on."""
    images, beams, _ = running.ids.shape
    vocab = logits.shape[1]
    # Penalties change what beams are ranked by, but not what the model thinks of a text.
    logprobs = logits.log_softmax(dim=-1)
    scores = constrain(logprobs, running.ids.flatten(0, 1), decoding, end, ground)
    totals = scores + running.scores.flatten().to(logits.device)[:, None]
    top_scores, flat = totals.view(images, beams * vocab).topk(2 * beams)
    top_logprobs = logprobs.view(images, beams * vocab).gather(1, flat).cpu()
    # From here on a handful of numbers an image, read one by one: that is no work for a GPU.
    flat = flat.cpu()
    return Candidates(top_scores.cpu(), top_logprobs, flat // vocab, flat % vocab)


def _survive(
    running: Running, candidates: Candidates, ended: Tensor
) -> tuple[Int[Tensor, "images beams"], Running]:
    """The best candidates that go on, and which beam each of them comes from."""
    beams = running.scores.shape[1]
    # A stable sort keeps the order of scores among those that go on.
    chosen = ended.int().argsort(dim=1, stable=True)[:, :beams]
    scores, logprobs, parents, tokens = (part.gather(1, chosen) for part in candidates)

    def extended(earlier: Tensor, added: Tensor) -> Tensor:
        own = earlier.gather(1, parents[:, :, None].expand(-1, -1, earlier.shape[2]))
        return torch.cat([own, added[:, :, None]], dim=2)

    ids = extended(running.ids, tokens)
    return parents, Running(ids, scores, extended(running.logprobs, logprobs))


def _generated(
    running: Running, candidates: Candidates, place: int, rank: int, by: float
) -> Generated:
    parent = candidates.parents[place, rank]
    ids = [*running.ids[place, parent].tolist(), int(candidates.tokens[place, rank])]
    logprobs = [
        *running.logprobs[place, parent].tolist(),
        float(candidates.logprobs[place, rank]),
    ]
    score = float(candidates.scores[place, rank]) / by
    return Generated(tuple(ids), sum(logprobs), score, tuple(logprobs))


def _offer_unfinished(batch: list[Hypotheses], running: Running, decoding: Decoding) -> None:
    """Texts that reached the longest length without an end compete with those that ended."""
    by = divisor(decoding, running.ids.shape[2], False, prompt_tokens=0)
    for texts, *beams in zip(batch, *(part.tolist() for part in running), strict=True):
        for ids, score, logprobs in zip(*beams, strict=True):
            texts.offer(Generated(tuple(ids), sum(logprobs), score / by, tuple(logprobs)))


Choice = Callable[[Tensor, list[int], int], Tensor]
"""Chooses a token per row, from scores (rows, vocab), the rows' numbers and the step.

A row's number is image * captions per image + caption, and stays when others leave.
"""


def likeliest(
    scores: Float[Tensor, "rows vocab"], numbers: list[int], step: int
) -> Int[Tensor, " rows"]:
    """The token of each row with the highest score: greedy decoding."""
    return scores.argmax(dim=-1)


class NucleusChoice:
    """Draws from the nucleus, by inverting the cumulative distribution at a hashed number.

    The number depends on (the image's seed, the caption's number, the step) alone, so that a
    caption does not depend on its batch (as far as rounding in the model does not).
    """

    def __init__(self, decoding: Decoding, seeds: Sequence[int], captions_per_image: int) -> None:
        self._decoding = decoding
        self._keys = [(seed, number) for seed in seeds for number in range(captions_per_image)]

    def __call__(
        self, scores: Float[Tensor, "rows vocab"], numbers: list[int], step: int
    ) -> Int[Tensor, " rows"]:
        """A drawn token per row."""
        probabilities = nucleus_probabilities(
            scores, top_p=self._decoding.top_p, top_k=self._decoding.top_k
        )
        uniform = [uniform_number(*self._keys[number], step) for number in numbers]
        return invert_cumulative(probabilities, uniform)


def uniform_number(seed: int, caption: int, step: int) -> float:
    """A number in [0, 1) that looks random, and is the same on every machine."""
    # 52 bits: all of them fit into the mantissa, so that none is rounded up to 1.
    return (keyed_hash(seed, caption, step) >> 12) * 2.0**-52


def invert_cumulative(
    probabilities: Float[Tensor, "rows vocab"], uniform: Sequence[float]
) -> Int[Tensor, " rows"]:
    """The token of each row in whose part of [0, 1) the row's number falls.

    Tokens stand in the order of their ids: in the order of probability, rounding could swap two
    of them, and with them the draw.
    """
    # Where they are: rows of a whole vocabulary take longer to come to the host than to be drawn
    # from. Apple's GPUs have no float64.
    if probabilities.device.type == "mps":
        probabilities = probabilities.cpu()
    # In float64, and up to the sum as it is: then each token's part is as wide as it should be.
    cumulative = probabilities.double().cumsum(dim=1)
    targets = torch.tensor(uniform, dtype=torch.float64, device=cumulative.device)
    return torch.searchsorted(cumulative, (targets * cumulative[:, -1])[:, None], right=True)[:, 0]


def sample(
    decoder: RunningDecoder,
    prompt_ids: Int[Tensor, "images prompt"],
    decoding: Decoding,
    end: int,
    choose: Choice,
    captions_per_image: int = 1,
    ground: "Ground | None" = None,
) -> list[list[Generated]]:
    """`captions_per_image` texts per image, each token of them chosen by `choose`."""
    images, prompt_tokens = prompt_ids.shape
    finished: dict[int, Generated] = {}
    numbers = torch.arange(images * captions_per_image).view(images, captions_per_image)
    ids = prompt_ids.cpu().repeat_interleave(captions_per_image, dim=0)
    logprobs = torch.zeros(len(ids), 0)
    logits = decoder.start(prompt_ids, captions_per_image)
    for length in range(prompt_tokens + 1, decoding.max_length + 1):
        scores = constrain(logits, ids, decoding, end, ground)
        tokens = choose(scores, numbers.flatten().tolist(), length - prompt_tokens - 1).cpu()
        ids = torch.cat([ids, tokens[:, None]], dim=1)
        chosen = tokens[:, None].to(logits.device)
        # Of the model's own distribution, whatever the nucleus and the penalties made of it.
        added = logits.log_softmax(dim=-1).gather(1, chosen).cpu()
        logprobs = torch.cat([logprobs, added], dim=1)
        ended = tokens == end
        for row in (ended | (length == decoding.max_length)).nonzero().flatten().tolist():
            by = divisor(decoding, length, bool(ended[row]), prompt_tokens)
            parts = tuple(logprobs[row].tolist())
            text = Generated(tuple(ids[row].tolist()), sum(parts), sum(parts) / by, parts)
            # A finished text that is carried along must not replace itself.
            finished.setdefault(int(numbers.flatten()[row]), text)
        if len(finished) == images * captions_per_image:
            break
        kept, rows = _still_needed(numbers, finished)
        numbers = numbers.flatten()[rows].view(len(kept), -1)
        ids, logprobs = ids[rows], logprobs[rows]
        decoder.select(rows, kept)
        logits = decoder.step(ids[:, -1])
    every = range(captions_per_image)
    return [[finished[image * captions_per_image + n] for n in every] for image in range(images)]


def _still_needed(
    numbers: Int[Tensor, "images captions"], finished: Container[int]
) -> tuple[Int[Tensor, " kept_images"], Int[Tensor, " kept_rows"]]:
    """Which images stay in the batch, and which of their rows.

    Every image has the same number of rows: of the image with the most unfinished texts. Others
    carry finished texts along, which are ignored.
    """
    unfinished = torch.tensor(
        [[number not in finished for number in row] for row in numbers.tolist()]
    )
    kept = remaining(unfinished.any(dim=1).tolist())
    most = int(unfinished.sum(dim=1).max())
    columns = unfinished[kept].int().argsort(dim=1, descending=True, stable=True)[:, :most]
    return kept, (kept[:, None] * numbers.shape[1] + columns).flatten()


def divisor(decoding: Decoding, length: int, ended: bool, prompt_tokens: int) -> float:
    """What a text's summed log-probability is divided by.

    Args:
        decoding: names the length that counts, and its exponent.
        length: all ids of the text.
        ended: whether `[SEP]` is the last of them.
        prompt_tokens: how many of them are the prompt.
    """
    counted = length - ended if decoding.scoring == "original" else length - prompt_tokens
    return float(counted**decoding.length_penalty)


Ground = Callable[[Tensor, Tensor], Tensor]
"""Changes scores (rows, vocab) by each row's text so far (rows, length), prompt included."""


def constrain(
    scores: Float[Tensor, "rows vocab"],
    ids: Int[Tensor, "rows length"],
    decoding: Decoding,
    end: int,
    ground: "Ground | None" = None,
) -> Float[Tensor, "rows vocab"]:
    """The scores with ids that were seen penalised; without n-grams that repeat, and early ends.

    Differs from a renormalised distribution on purpose: log-probabilities given to it no longer
    sum to one, as in the original.

    Args:
        scores: logits or log-probabilities.
        ids: each row's text so far, prompt included.
        decoding: its repetition penalty, size of n-grams and minimum length.
        end: id of the token that ends a text.
        ground: what else the scores are changed by, see `Ground`.
    """
    penalty = decoding.repetition_penalty
    if penalty != 1.0:
        ids = ids.to(scores.device)
        seen = scores.gather(1, ids)
        # Of a negative score the product is the lower one: the token becomes less likely anyway.
        seen = torch.where(seen < 0, seen * penalty, seen / penalty)
        scores = scores.scatter(1, ids, seen)
    if decoding.no_repeat_ngram_size:
        scores = _without_repeats(scores, ids, decoding.no_repeat_ngram_size)
    if ids.shape[1] < decoding.min_length:
        column = torch.tensor([end], device=scores.device)
        scores = scores.index_fill(1, column, float("-inf"))
    return scores if ground is None else ground(scores, ids)


def _without_repeats(
    scores: Float[Tensor, "rows vocab"], ids: Int[Tensor, "rows length"], size: int
) -> Float[Tensor, "rows vocab"]:
    """The scores without the ids that would end an n-gram of this size which a row has already."""
    if ids.shape[1] < size:
        return scores
    # On the CPU, where `nonzero` need not be waited for: texts are short.
    grams = ids.cpu().unfold(1, size, 1)
    begun = ids.cpu()[:, ids.shape[1] - size + 1 :]
    repeats = (grams[:, :, :-1] == begun[:, None]).all(dim=2)
    rows, places = repeats.nonzero(as_tuple=True)
    banned = grams[rows, places, -1]
    excluded = torch.tensor(float("-inf"), device=scores.device)
    at = (rows.to(scores.device), banned.to(scores.device))
    return scores.index_put(at, excluded)


def nucleus_probabilities(
    scores: Float[Tensor, "rows vocab"], *, top_p: float, top_k: int = 0
) -> Float[Tensor, "rows vocab"]:
    """Probabilities over the smallest set of likeliest tokens that holds `top_p`; 0 elsewhere.

    The token that reaches `top_p` belongs to the set (Holtzman et al., 2020, section 3.1).

    Args:
        scores: logits; -inf excludes a token.
        top_p: in (0, 1]; 1 keeps every token.
        top_k: only the so many likeliest tokens are considered, and what ties with the last of
            them; 0 considers all.
    """
    excluded = float("-inf")
    if 0 < top_k < scores.shape[1]:
        # By score, not by place: which of equals `topk` puts first is left to chance.
        least = scores.topk(top_k).values[:, -1:]
        scores = scores.masked_fill(scores < least, excluded)
    if top_p < 1.0:
        ordered, order = scores.sort(descending=True)
        reached = ordered.softmax(dim=-1).cumsum(dim=-1) > top_p
        outside = torch.zeros_like(reached)
        # Shifted by one, so that the token that reaches the sum stays.
        outside[:, 1:] = reached[:, :-1]
        scores = scores.masked_fill(outside.scatter(1, order, outside), excluded)
    return scores.softmax(dim=-1)
