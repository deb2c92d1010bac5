"""Texts that grow by one chosen token at a time: the likeliest one, or a drawn one."""

from collections.abc import Callable, Container, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from openblip.data.shuffle import keyed_hash
from openblip.inference.decoding import Decoding, Generated, divisor
from openblip.inference.processors import constrain, nucleus_probabilities
from openblip.inference.running import RunningDecoder, remaining

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
        return invert_cumulative(probabilities.cpu(), uniform)


def uniform_number(seed: int, caption: int, step: int) -> float:
    """A number in [0, 1) that looks random, and is the same on every machine."""
    return (keyed_hash(seed, caption, step) >> 12) * 2.0**-52


def invert_cumulative(
    probabilities: Float[Tensor, "rows vocab"], uniform: Sequence[float]
) -> Int[Tensor, " rows"]:
    """The token of each row in whose part of [0, 1) the row's number falls.

    Tokens stand in the order of their ids: in the order of probability, rounding could swap two
    of them, and with them the draw.
    """
    cumulative = probabilities.double().numpy().cumsum(axis=1)
    targets = np.array(uniform) * cumulative[:, -1]
    chosen = [
        np.searchsorted(row, at, "right") for row, at in zip(cumulative, targets, strict=True)
    ]
    return torch.from_numpy(np.array(chosen, dtype=np.int64))


def sample(
    decoder: RunningDecoder,
    prompt_ids: Int[Tensor, "images prompt"],
    decoding: Decoding,
    end: int,
    choose: Choice,
    captions_per_image: int = 1,
) -> list[list[Generated]]:
    """`captions_per_image` texts per image, each token of them chosen by `choose`."""
    images, prompt_tokens = prompt_ids.shape
    finished: dict[int, Generated] = {}
    numbers = torch.arange(images * captions_per_image).view(images, captions_per_image)
    ids = prompt_ids.cpu().repeat_interleave(captions_per_image, dim=0)
    logprobs = torch.zeros(len(ids), 0)
    logits = decoder.start(prompt_ids, captions_per_image)
    for length in range(prompt_tokens + 1, decoding.max_length + 1):
        scores = constrain(logits, ids, decoding, end)
        tokens = choose(scores, numbers.flatten().tolist(), length - prompt_tokens - 1).cpu()
        ids = torch.cat([ids, tokens[:, None]], dim=1)
        chosen = tokens[:, None].to(logits.device)
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
