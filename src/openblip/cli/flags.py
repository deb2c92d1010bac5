"""Flags that commands share: ranges of numbers, fields of a recipe, how captions are decoded.

A command says `batch_size: Count`; what is out of range is wrong usage, and names the flag. Fields
of a recipe are changed by flags such as `--train.batch-size 64`.
"""

import functools
import inspect
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, is_dataclass, replace
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Literal,
    TypeVar,
    get_args,
    get_origin,
    get_type_hints,
)

from openblip.runtime.errors import OpenBlipError

if TYPE_CHECKING:
    from openblip.inference import Decoding
    from openblip.training.recipe import Recipe

_Result = TypeVar("_Result")


class UsageError(OpenBlipError):
    """The words of a command line make no sense; the exit code is 2."""


@dataclass(frozen=True)
class Range:
    """What a finite number must be: from `least` to `most`, both included, or above `least`."""

    least: float = -math.inf
    most: float = math.inf
    is_open: bool = False
    """Whether `least` itself is too small."""

    def __contains__(self, value: float) -> bool:
        above = value > self.least if self.is_open else value >= self.least
        return math.isfinite(value) and above and value <= self.most

    def __str__(self) -> str:
        if self.most < 1 << 31:
            return f"from {self.least:g} to {self.most:g}"
        return f"above {self.least:g}" if self.is_open else f"at least {self.least:g}"


Count = Annotated[int, Range(1, 1 << 53)]
"""How many of something that there must be: rows of a batch, beams, images."""
CountOrNone = Annotated[int, Range(0, 1 << 53)]
"""How many of something, none included."""
Workers = Annotated[int, Range(1, 4096)]
"""Threads or processes."""
Seed = Annotated[int, Range(0, (1 << 63) - 1)]
"""What draws begin with."""
Share = Annotated[float, Range(0, 1)]
"""A probability, or a part of a whole."""
Positive = Annotated[float, Range(0, is_open=True)]
"""Seconds, prices and the like, which nothing comes free of."""
NotNegative = Annotated[float, Range(0)]
"""A strength or a rate that may be nothing."""
Finite = Annotated[float, Range()]
"""Any number."""


def checked(run: Callable[..., _Result]) -> Callable[..., _Result]:
    """A command that refuses numbers out of their ranges before it begins.

    Raises:
        UsageError: a number is out of its range.
    """

    @functools.wraps(run)
    def command(*args: Any, **kwargs: Any) -> _Result:
        signature = inspect.signature(run)
        given = signature.bind(*args, **kwargs).arguments
        hints = get_type_hints(run, include_extras=True)
        _check(given, hints)
        return run(*args, **kwargs)

    return command


def _check(given: dict[str, Any], hints: dict[str, Any]) -> None:
    for name, value in given.items():
        flag = f"--{name.replace('_', '-')}"
        if is_dataclass(value):  # its fields are flags themselves
            own = get_type_hints(type(value), include_extras=True)
            _check(vars(value), own)
            continue
        for number in value if isinstance(value, tuple) else (value,):
            for allowed in _ranges(hints[name]):
                if isinstance(number, int | float) and number not in allowed:
                    raise UsageError(f"{flag} must be {allowed}, not {number}")


def _ranges(hint: Any) -> Iterator[Range]:
    """The ranges in an annotation, also in those of a union's or a tuple's members."""
    if get_origin(hint) is Annotated:
        yield from (part for part in hint.__metadata__ if isinstance(part, Range))
    for part in get_args(hint):
        yield from _ranges(part)


def changed(recipe: "Recipe", words: list[str], prog: str, about: str | None = None) -> "Recipe":
    """The recipe with the changes of a command line; prints its help where that is asked for.

    `--train.steps` alone takes the place of the recipe's epochs, `--train.epochs` of its steps, and
    `--init-from` of its fresh weights and their tokenizer, `--init-text` of the tokenizer.
    """
    import tyro

    from openblip.training.recipe import Recipe

    kind = tyro.conf.AvoidSubcommands[Recipe]
    flags = {word.split("=")[0] for word in words}
    recipe = _counting_as_in(flags, recipe)
    if "--init-from" in flags and recipe.init_from is None:
        # Any name: that of the command line takes its place.
        recipe = replace(recipe, model=None, tokenizer=None, init_from="MODEL")
    if "--init-text" in flags and recipe.init_text is None:
        recipe = replace(recipe, tokenizer=None, init_text="MODEL")
    return tyro.cli(kind, default=recipe, args=words, prog=prog, description=about)


def _counting_as_in(flags: set[str], recipe: "Recipe") -> "Recipe":
    in_steps, in_epochs = "--train.steps" in flags, "--train.epochs" in flags
    if in_steps == in_epochs:
        return recipe
    # Any number: that of the command line takes its place.
    steps, epochs = (1, None) if in_steps else (None, 1)
    return replace(recipe, train=replace(recipe.train, steps=steps, epochs=epochs))


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
