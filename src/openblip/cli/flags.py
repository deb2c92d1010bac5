"""Flags: ranges of numbers, fields of settings and of a recipe, and how captions are decoded.

What is out of its range (`batch_size: Count`) is wrong usage, and names the flag. A command takes
the fields of a dataclass as flags by `takes`; those of a recipe have its parts in their names, such
as `--train.batch-size 64`.
"""

import ast
import functools
import inspect
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_type_hints

from openblip.runtime.errors import OpenBlipError, RecipeError
from openblip.runtime.ranges import (
    Count,
    NotNegative,
    Workers,
    broken_range,
)

if TYPE_CHECKING:
    from openblip.jobs.pools import RayCluster
    from openblip.training.recipe import Recipe

_Result = TypeVar("_Result")

Backend = Literal["onnx", "onnx-int8", "openvino"]
"""`openblip.checkpoints.reading.BackendName`, which is not imported for a help text."""


class UsageError(OpenBlipError):
    """The words of a command line make no sense; the exit code is 2."""


def wrapping(
    run: Callable[..., _Result],
) -> Callable[[Callable[..., _Result]], Callable[..., _Result]]:
    """`functools.wraps`, annotations included that a function was given after it was made.

    From Python 3.14 on it copies what makes annotations, and not them.
    """

    def decorate(command: Callable[..., _Result]) -> Callable[..., _Result]:
        wrapped = functools.wraps(run)(command)
        wrapped.__annotations__ = run.__annotations__
        return wrapped

    return decorate


def checked(run: Callable[..., _Result]) -> Callable[..., _Result]:
    """A command that refuses numbers out of their ranges before it begins.

    Raises:
        UsageError: a number is out of its range.
    """

    @wrapping(run)
    def command(*args: Any, **kwargs: Any) -> _Result:
        signature = inspect.signature(run)
        given = signature.bind(*args, **kwargs).arguments
        hints = get_type_hints(run, include_extras=True)
        _check(given, hints)
        _check_thresholds(given, hints)
        return run(*args, **kwargs)

    command.__doc__ = with_examples_apart(run.__doc__ or "")
    return command


def with_examples_apart(text: str) -> str:
    """A help text whose examples are paragraphs: lines of one are joined where it is shown."""
    return re.sub(r"\n( *)(?=openblip )", r"\n\n\1", text)


def _check_thresholds(given: dict[str, Any], hints: dict[str, Any]) -> None:
    """That thresholds of a score that is a probability are; those of others are any numbers."""
    for name in (name for name in ("threshold", "thresholds") if "score" in hints):
        value = given.get(name)
        numbers = value if isinstance(value, tuple) else () if value is None else (value,)
        wrong = [number for number in numbers if not 0 <= number <= 1]
        # Only now, as this reads NumPy.
        if wrong and given.get("score", "itm") in _probabilities():
            raise UsageError(f"--{name} must be from 0 to 1, not {wrong[0]}")


def _probabilities() -> tuple[str, ...]:
    from openblip.table.scores import AUTO_SCORE, PROBABILITIES

    return (AUTO_SCORE, *PROBABILITIES)


# Flags and words that are texts, which may be empty, or whose command says that they may not.
_TEXTS = frozenset(
    ("prompt", "prefix", "texts", "text", "questions", "queries", "not", "candidates", "templates")
)


def empty_name(run: Callable[..., Any], words: Sequence[str]) -> str | None:
    """Which word of a command line is empty where a name belongs, as a variable that is not set.

    To Python an empty path is the folder that one is in, and an empty model the default one.

    Args:
        run: the command.
        words: behind its name.
    """
    places = [
        "" if "Path" in str(parameter.annotation) else name
        for name, parameter in inspect.signature(run).parameters.items()
        if parameter.kind is parameter.POSITIONAL_ONLY
    ]
    flag, number = "", 0
    for word in words:
        if word.startswith("--"):
            flag, is_given, word = word.partition("=")
            if not is_given:
                continue
        else:
            number += not flag
        kind = flag or (places[min(number, len(places)) - 1] if places else "")
        if not word.strip() and kind.lstrip("-").rpartition(".")[2] not in _TEXTS:
            return flag or f"word {number}"
    return None


def _check(given: dict[str, Any], hints: dict[str, Any]) -> None:
    for name, value in given.items():
        if is_dataclass(value):  # its fields are flags themselves
            own = get_type_hints(type(value), include_extras=True)
            _check(vars(value), own)
            continue
        for number in value if isinstance(value, tuple) else (value,):
            if allowed := broken_range(hints[name], number):
                flag = f"--{name.replace('_', '-')}"
                raise UsageError(f"{flag} must be {allowed}, not {number}")


def takes(
    kind: type[Any], parameter: str = "settings", **defaults: Any
) -> Callable[[Callable[..., _Result]], Callable[..., _Result]]:
    """A command one of whose parameters is made from flags: one for each field of a dataclass.

    Help, range and default of such a flag are those of the field; a field that is a dataclass gives
    flags for its own. A flag of the command's own takes the place of the field of the same name,
    which then keeps its default.

    Args:
        kind: the dataclass.
        parameter: of the command.
        defaults: of flags, where the command has others than the fields.
    """
    own_fields = _flags_of(kind)

    def with_flags(run: Callable[..., _Result]) -> Callable[..., _Result]:
        signature = inspect.signature(run)
        flags = {
            name: flag.replace(default=defaults.get(name, flag.default))
            for name, flag in own_fields.items()
            if name not in signature.parameters
        }

        @functools.wraps(run)
        def command(*args: Any, **given: Any) -> _Result:
            # The fields are checked together here, after the range of each has named its flag.
            values = {name: given.pop(name, flag.default) for name, flag in flags.items()}
            try:
                settings = _made(kind, values)
            except RecipeError as error:
                raise UsageError(str(error)) from error
            return run(*args, **{parameter: settings}, **given)

        # These three are what a parser of command lines reads, if it does not see what is wrapped.
        if hasattr(command, "__wrapped__"):
            del command.__wrapped__
        parameters = [
            each
            for own in signature.parameters.values()
            for each in (flags.values() if own.name == parameter else [own])
        ]
        command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {p.name: p.annotation for p in parameters} | {"return": int}
        docs = _field_docs(kind)
        command.__doc__ = (run.__doc__ or "").rstrip() + "".join(
            f"\n        {name}: {docs[name]}" for name in flags
        )
        return command

    return with_flags


def _flags_of(kind: type[Any]) -> dict[str, inspect.Parameter]:
    """A keyword for each field of a dataclass, and of those among its fields."""
    hints = get_type_hints(kind, include_extras=True)
    flags: dict[str, inspect.Parameter] = {}
    for own in fields(kind):
        hint = hints[own.name]
        if is_dataclass(hint):
            flags |= _flags_of(hint)  # type: ignore[arg-type]
        else:
            flags[own.name] = inspect.Parameter(
                own.name, inspect.Parameter.KEYWORD_ONLY, default=own.default, annotation=hint
            )
    return flags


def _made(kind: type[Any], values: Mapping[str, Any]) -> Any:
    """A dataclass from values of its fields, and of those of the dataclasses among them."""
    hints = get_type_hints(kind)
    parts = {name: _made(hint, values) for name, hint in hints.items() if is_dataclass(hint)}  # type: ignore[arg-type]
    return kind(**parts, **{name: values[name] for name in hints if name in values})


def _field_docs(kind: type[Any]) -> dict[str, str]:
    """What stands below each field of a dataclass, as a help text: in one line, in lower case."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(tree, ast.ClassDef)
    docs = {}
    for field, below in pairwise(tree.body):
        if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr):
            assert isinstance(field.target, ast.Name)
            text = " ".join(ast.literal_eval(below.value).split())
            docs[field.target.id] = text[0].lower() + text[1:]
    for hint in get_type_hints(kind).values():
        docs |= _field_docs(hint) if is_dataclass(hint) else {}  # type: ignore[arg-type]
    return docs


def changed(recipe: "Recipe", words: list[str], prog: str, about: str | None = None) -> "Recipe":
    """The recipe with the changes of a command line; prints its help where that is asked for.

    `--train.steps` alone takes the place of the recipe's epochs, `--train.epochs` of its steps, and
    `--init-from` of its fresh weights and their tokenizer, `--init-text` of the tokenizer.

    Raises:
        RecipeError: the changes contradict the recipe.
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
    told = with_examples_apart(about) if about is not None else None
    return tyro.cli(kind, default=recipe, args=words, prog=prog, description=told)


def given_fields(words: list[str]) -> set[str]:
    """Names of the fields of a recipe that a command line sets, such as `data.view.itm`."""
    flags = (word.split("=")[0] for word in words if word.startswith("--"))
    # What `--part.no-name` turns off is not asked for.
    return {flag.removeprefix("--").replace("-", "_") for flag in flags}


def _counting_as_in(flags: set[str], recipe: "Recipe") -> "Recipe":
    in_steps, in_epochs = "--train.steps" in flags, "--train.epochs" in flags
    if in_steps == in_epochs:
        return recipe
    # Any number: that of the command line takes its place.
    steps, epochs = (1, None) if in_steps else (None, 1)
    return replace(recipe, train=replace(recipe.train, steps=steps, epochs=epochs))


@dataclass(frozen=True, kw_only=True)
class WorkerFlags:
    """Where the workers of a job run, and what a killed one may lose."""

    processes: Workers | None = None
    """default: one per GPU, or per core without a GPU."""
    ray: str | None = None
    """address of a Ray cluster whose machines do the work; local for a cluster of this one."""
    workers: Count | None = None
    """with --ray: most workers at a time; default: all room that the cluster has."""
    gpus_per_worker: NotNegative | None = None
    """with --ray: default 1 where there are GPUs."""
    save_seconds: NotNegative = 10.0
    """how often unfinished fragments are saved."""

    def cluster(self) -> "RayCluster | None":
        """The cluster; None for processes of this machine.

        Raises:
            RecipeError: flags of the one go with flags of the other.
        """
        from openblip.jobs.pools import RayCluster

        if self.ray is None:
            if self.workers is not None or self.gpus_per_worker is not None:
                raise RecipeError("--workers and --gpus-per-worker go with --ray; else --processes")
            return None
        if self.processes is not None:
            raise RecipeError("--processes are those of this machine; with --ray give --workers")
        return RayCluster(
            address=self.ray, workers=self.workers, gpus_per_worker=self.gpus_per_worker
        )
