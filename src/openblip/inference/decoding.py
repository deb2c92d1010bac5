"""How tokens of a text are chosen: the settings, and the rules that change next-token scores."""

from dataclasses import asdict, dataclass
from math import inf, isfinite
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from openblip.runtime.errors import RecipeError

Method = Literal["beam", "nucleus", "greedy"]
Scoring = Literal["original", "transformers"]
_LEAST = {"num_beams": 1, "max_length": 1, "min_length": 0, "top_k": 0, "no_repeat_ngram_size": 0}


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """The rule by which tokens are chosen.

    Lengths count token ids, those of the prompt with its `[DEC]` included.
    """

    method: Method = "beam"
    """Beam search, nucleus sampling, or always the likeliest token."""
    num_beams: int = 3
    """Texts that beam search follows per image; with 1 it is the greedy method."""
    max_length: int = 20
    """Most ids of a text, `[SEP]` included."""
    min_length: int = 5
    """Fewest ids of a text before its `[SEP]`."""
    top_p: float = 0.9
    """Nucleus: sample from the fewest likeliest tokens that hold this probability together."""
    top_k: int = 0
    """Nucleus: before that, keep only so many tokens; 0 keeps all. The original has 50."""
    repetition_penalty: float = 1.0
    """Divides positive and multiplies negative scores of ids that the text already has.

    Scores are log-probabilities in beam search, logits otherwise. The original's nucleus has 1.1.
    """
    no_repeat_ngram_size: int = 0
    """No so many ids in a row occur twice in a text, prompt included, as in `transformers`; 0 is
    off."""
    length_penalty: float = 1.0
    """Exponent of the length by which a text's summed log-probability is divided."""
    scoring: Scoring = "original"
    """Which length that is: ids before `[SEP]`, prompt included ("original"), or generated ids
    with `[SEP]` ("transformers")."""

    def __post_init__(self) -> None:
        for name, choices in (("method", get_args(Method)), ("scoring", get_args(Scoring))):
            if getattr(self, name) not in choices:
                raise RecipeError(
                    f"{name} {getattr(self, name)!r} is not one of {', '.join(choices)}"
                )
        for name, least in _LEAST.items():
            if getattr(self, name) < least:
                off = " (off)" if least == 0 and name != "min_length" else ""
                raise RecipeError(f"{name} is {getattr(self, name)}; give {least}{off} or more")
        if not 0.0 < self.top_p <= 1.0:
            raise RecipeError(f"top_p is {self.top_p}; give a probability above 0 and up to 1")
        if not 0.0 < self.repetition_penalty < inf:
            raise RecipeError(
                f"repetition_penalty is {self.repetition_penalty}; give more than 0 (1 is off)"
            )
        if not isfinite(self.length_penalty):
            raise RecipeError(f"length_penalty is {self.length_penalty}; give a finite number")
        if self.min_length > self.max_length:
            raise RecipeError(
                f"min_length {self.min_length} is above max_length {self.max_length}; "
                "both count the prompt"
            )

    def stored(self) -> dict[str, Any]:
        """The settings by name as jobs note them: what came later only where it is used.

        So what was written before goes on.
        """
        values = asdict(self)
        if not self.no_repeat_ngram_size:
            del values["no_repeat_ngram_size"]
        return values


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


def constrain(
    scores: Float[Tensor, "rows vocab"],
    ids: Int[Tensor, "rows length"],
    decoding: Decoding,
    end: int,
) -> Float[Tensor, "rows vocab"]:
    """The scores with ids that were seen penalised; without n-grams that repeat, and early ends.

    Differs from a renormalised distribution on purpose: log-probabilities given to it no longer
    sum to one, as in the original.

    Args:
        scores: logits or log-probabilities.
        ids: each row's text so far, prompt included.
        decoding: its repetition penalty, size of n-grams and minimum length.
        end: id of the token that ends a text.
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
    return scores


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
