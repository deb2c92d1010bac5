"""By what rule tokens of a text are chosen: the settings of `generation.py`.

Each field is a flag too, of `openblip caption`, `evaluate caption` and `capfilt run`. Nothing heavy
is imported here: a help text has to come at once.
"""

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from openblip.runtime.errors import RecipeError
from openblip.runtime.ranges import (
    Count,
    CountOrNone,
    Finite,
    Positive,
    PositiveShare,
    check_ranges,
)

Method = Literal["beam", "nucleus", "greedy"]
Scoring = Literal["original", "transformers"]


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """The rule by which tokens are chosen.

    Lengths count token ids, those of the prompt with its `[DEC]` included.
    """

    method: Method = "beam"
    """Beam search, nucleus sampling, or always the likeliest token."""
    num_beams: Count = 3
    """Texts that beam search follows per image; with 1 it is the greedy method."""
    max_length: Count = 20
    """Most tokens of a text, prompt and `[SEP]` included."""
    min_length: CountOrNone = 5
    """Fewest tokens of a text before its `[SEP]`, prompt included."""
    top_p: PositiveShare = 0.9
    """Nucleus: sample from the fewest likeliest tokens that hold this probability together."""
    top_k: CountOrNone = 0
    """Nucleus: before that, keep only so many tokens; 0 keeps all. The original has 50."""
    repetition_penalty: Positive = 1.0
    """Divides positive and multiplies negative scores of tokens that the text already has.

    Scores are log-probabilities in beam search, logits otherwise. The original's nucleus has 1.1.
    """
    no_repeat_ngram_size: CountOrNone = 0
    """No so many tokens in a row occur twice in a text, prompt included, as in `transformers`; 0 is
    off."""
    length_penalty: Finite = 1.0
    """Exponent of the length by which a text's summed log-probability is divided."""
    scoring: Scoring = "original"
    """Which length of a text `length_penalty` is an exponent of: tokens before `[SEP]`, prompt
    included ("original"), or generated tokens with `[SEP]` ("transformers")."""

    def __post_init__(self) -> None:
        for name, choices in (("method", get_args(Method)), ("scoring", get_args(Scoring))):
            if getattr(self, name) not in choices:
                raise RecipeError(
                    f"{name} {getattr(self, name)!r} is not one of {', '.join(choices)}"
                )
        check_ranges(self)
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
