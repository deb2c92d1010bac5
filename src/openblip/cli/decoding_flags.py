"""The flags by which commands that write captions choose tokens."""

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal

from openblip.cli.flags import Count, CountOrNone, Finite, Positive, Share

if TYPE_CHECKING:
    from openblip.inference import Decoding


@dataclass(frozen=True, kw_only=True)
class DecodingFlags:
    """The fields of `openblip.inference.Decoding`, which is not imported for a help text."""

    method: Literal["beam", "nucleus", "greedy"] = "beam"
    """how to decode."""
    num_beams: Count = 3
    """beam: width."""
    max_length: Count = 20
    """tokens, prompt included."""
    min_length: CountOrNone = 5
    """tokens, prompt included."""
    top_p: Share = 0.9
    """nucleus: smallest set of words with this probability."""
    top_k: CountOrNone = 0
    """nucleus: before that, only so many likeliest words; 0 keeps all."""
    repetition_penalty: Positive = 1.0
    """above 1: words that are there already become less likely."""
    no_repeat_ngram_size: CountOrNone = 0
    """no so many tokens in a row come twice in a caption; 0 is off."""
    length_penalty: Finite = 1.0
    """beam: above 0 favours long captions, below 0 short ones."""
    scoring: Literal["original", "transformers"] = "original"
    """beam: which length a text's score is divided by."""

    def decoding(self) -> "Decoding":
        """The rule that they describe.

        Raises:
            RecipeError: one is out of range, or two contradict each other.
        """
        from openblip.inference import Decoding

        return Decoding(**asdict(self))
