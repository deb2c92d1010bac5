"""Beam search without early stopping, many images at once."""

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from openblip.inference.decoding import Decoding, Generated, divisor
from openblip.inference.processors import constrain
from openblip.inference.running import RunningDecoder, remaining

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
        by = divisor(decoding, length, True, prompt_tokens)
        candidates = _expand(logits, running, decoding, end)
        ended = candidates.tokens == end
        if length == decoding.max_length and decoding.scoring == "transformers":
            ended = torch.ones_like(ended)
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
    logits: Float[Tensor, "rows vocab"], running: Running, decoding: Decoding, end: int
) -> Candidates:
    """Twice as many candidates as beams: if half of them end, the other half goes on."""
    images, beams, _ = running.ids.shape
    vocab = logits.shape[1]
    logprobs = logits.log_softmax(dim=-1)
    scores = constrain(logprobs, running.ids.flatten(0, 1), decoding, end)
    totals = scores + running.scores.flatten().to(logits.device)[:, None]
    top_scores, flat = totals.view(images, beams * vocab).topk(2 * beams)
    top_logprobs = logprobs.view(images, beams * vocab).gather(1, flat).cpu()
    flat = flat.cpu()
    return Candidates(top_scores.cpu(), top_logprobs, flat // vocab, flat % vocab)


def _survive(
    running: Running, candidates: Candidates, ended: Tensor
) -> tuple[Int[Tensor, "images beams"], Running]:
    """The best candidates that go on, and which beam each of them comes from."""
    beams = running.scores.shape[1]
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
