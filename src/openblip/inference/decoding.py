"""How a text is generated, and what a generated text is."""

from dataclasses import asdict, dataclass
from math import inf, isfinite
from typing import Any, Literal, get_args

from openblip.errors import RecipeError

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
