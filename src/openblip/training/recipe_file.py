"""Recipes as YAML: written with every run, read back to continue or repeat it."""

import difflib
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from openblip.model import MedConfig
from openblip.objectives.named import is_own, task_needs
from openblip.runtime.atomic import replace_file
from openblip.runtime.documents import read_yaml
from openblip.runtime.errors import RecipeError
from openblip.training.recipe import Recipe

RECIPE_FILE = "recipe.yaml"


class FieldError(RecipeError):
    """A field of a file is wrong; `field` is its place in the file, with dots."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


def recipe_to_dict(recipe: Recipe) -> dict[str, Any]:
    """Every field of the recipe, defaults included, as plain YAML values."""
    plain: dict[str, Any] = to_plain(recipe)
    return plain


def recipe_from_dict(values: Mapping[str, Any]) -> Recipe:
    """The recipe of plain values; what is not given takes its default.

    Raises:
        RecipeError: a name is unknown (the message gives the nearest), a value has another type
            than its field, or the values contradict each other.
    """
    parts = dict(values)
    task = parts.get("task")
    needs = task_needs(task if isinstance(task, str) else repr(task))
    objectives = from_plain(needs.settings, parts.get("objectives") or {}, "objectives")
    model = from_plain((needs.model or MedConfig) | None, parts.get("model"), "model")
    recipe = from_plain(Recipe, {**parts, "objectives": objectives, "model": model}, "")
    assert isinstance(recipe, Recipe)
    return recipe


def write_recipe(recipe: Recipe, path: Path) -> None:
    """Write the recipe as YAML, in the order of its fields; the file appears whole."""
    import yaml

    with replace_file(path) as unfinished:
        text = yaml.safe_dump(recipe_to_dict(recipe), sort_keys=False)
        unfinished.write_text(text, encoding="utf-8")


def read_recipe(path: Path) -> Recipe:
    """The recipe of a YAML file.

    Raises:
        RecipeError: the file is missing, is not YAML, or is not a recipe.
    """
    return _recipe_of(_read_fields(path), path)


def read_settings(path: Path) -> dict[str, Any]:
    """Every field of a YAML file's recipe by its name with dots; runs nobody's code.

    The settings of a task from outside are those that the file gives.

    Raises:
        RecipeError: as `read_recipe`.
    """
    values = _read_fields(path)
    if not is_own(values.get("task")):
        return flattened(_recipe_of(values, path))
    # Of a known task all other fields are filled up and checked.
    known: dict[str, Any] = {"task": "pretrain", "objectives": None}
    model = values.get("model")
    if isinstance(model, dict) and "fusion_layer" in model:
        known["task"] = "albef"
    elif isinstance(model, dict) and model.get("heads"):
        # Whatever its losses are: a known one needs its head.
        known["objectives"] = {"losses": model["heads"]}
    checked = recipe_to_dict(_recipe_of({**values, **known}, path))
    own = {name: values.get(name) or {} for name in ("task", "objectives")}
    return dict(_flattened({**checked, **own}, ""))


def _read_fields(path: Path) -> dict[str, Any]:
    values, _ = read_yaml(path, RecipeError)
    if not isinstance(values, dict):
        raise RecipeError(f"{path}: expected fields of a recipe such as `task: pretrain`")
    return values


def _recipe_of(values: Mapping[str, Any], path: Path) -> Recipe:
    try:
        return recipe_from_dict(values)
    except RecipeError as error:
        raise RecipeError(f"{path}: {error}") from error


def difference(first: Recipe, second: Recipe) -> str | None:
    """The first field in which the recipes differ, with both values; None if they are equal."""
    before, after = flattened(first), flattened(second)
    for name in {**before, **after}:
        if before.get(name) != after.get(name):
            return f"{name} (was {before.get(name)!r}, is {after.get(name)!r})"
    return None


def flattened(recipe: Recipe) -> dict[str, Any]:
    """Every field of the recipe by its name with dots, as the command line gives it."""
    return dict(_flattened(recipe_to_dict(recipe), ""))


def _flattened(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flattened(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def to_plain(value: Any) -> Any:
    """A dataclass, however deep, as plain YAML values."""
    if is_dataclass(value):
        return {f.name: to_plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, tuple):
        return [to_plain(item) for item in value]
    return value


def from_plain(kind: Any, value: Any, name: str) -> Any:
    """Plain YAML values as an instance of an annotation: a dataclass and what its fields may be.

    Args:
        kind: the annotation.
        value: plain values; what is an instance already stays as it is.
        name: place of the value in its file, with dots; empty for the whole.

    Raises:
        FieldError: a name is unknown or missing, or a value is of another type than its field.
        RecipeError: a dataclass refuses its values.
    """
    origin = get_origin(kind)
    if kind is Any:
        return value
    if is_dataclass(kind) and isinstance(kind, type):
        return value if isinstance(value, kind) else _build(kind, value, name)
    if origin in (Union, types.UnionType):
        return _from_union(get_args(kind), value, name)
    if origin is Literal:
        if value not in get_args(kind):
            raise _wrong(name, value, "one of " + ", ".join(map(str, get_args(kind))))
        return value
    if origin is tuple:
        return _from_list(get_args(kind), value, name)
    if origin is dict:
        return _from_mapping(get_args(kind)[1], value, name)
    return _from_scalar(kind, value, name)


def _build(kind: Any, value: Any, name: str) -> Any:
    if not isinstance(value, Mapping):
        raise _wrong(name, value, "fields and their values")
    hints = get_type_hints(kind)
    prefix = f"{name}." if name else ""
    for given in value:
        if given not in hints:
            field = f"{prefix}{given}"
            raise FieldError(field, f"{field} is unknown{nearest(given, list(hints), prefix)}")
    for f in fields(kind):
        if f.name not in value and f.default is MISSING and f.default_factory is MISSING:
            raise FieldError(name, f"{prefix}{f.name} is missing; it has no default")
    built = {k: from_plain(hints[k], v, f"{prefix}{k}") for k, v in value.items()}
    try:
        return kind(**built)
    except RecipeError as error:
        raise FieldError(name, str(error)) from error


def nearest(given: object, names: Sequence[str], prefix: str = "") -> str:
    """The end of an error about an unknown name: the nearest one, or all that are known."""
    close = difflib.get_close_matches(str(given), names, n=1, cutoff=0.5)
    return f"; did you mean {prefix}{close[0]}?" if close else f"; known are {', '.join(names)}"


def _from_union(kinds: tuple[Any, ...], value: Any, name: str) -> Any:
    others = [kind for kind in kinds if kind is not types.NoneType]
    if value is None and len(others) < len(kinds):
        return None
    # A value that has been built already, such as the objectives, is of one of the kinds.
    if any(
        isinstance(kind, type) and is_dataclass(value) and isinstance(value, kind)
        for kind in others
    ):
        return value
    assert len(others) == 1, f"{name}: a recipe field has one type besides None"
    return from_plain(others[0], value, name)


def _from_mapping(kind: Any, value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise _wrong(name, value, "names and their values")
    prefix = f"{name}." if name else ""
    return {str(key): from_plain(kind, item, f"{prefix}{key}") for key, item in value.items()}


def _from_list(kinds: tuple[Any, ...], value: Any, name: str) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise _wrong(name, value, "a list")
    each = [kinds[0]] * len(value) if kinds[-1] is Ellipsis else list(kinds)
    if len(each) != len(value):
        raise _wrong(name, value, f"a list of {len(each)} values")
    # Places in a list of fields are counted from 0, as in the names of flags.
    numbered = any(is_dataclass(kind) for kind in each)
    return tuple(
        from_plain(kind, item, f"{name}.{place}" if numbered else name)
        for place, (kind, item) in enumerate(zip(each, value, strict=True))
    )


def _from_scalar(kind: Any, value: Any, name: str) -> Any:
    if kind is float and not isinstance(value, bool):
        # YAML reads "1e-4", which lacks a decimal point, as text.
        try:
            return float(value)
        except (TypeError, ValueError):
            raise _wrong(name, value, "a number") from None
    # Not `isinstance`: to Python True is a whole number.
    if type(value) is not kind:
        words = {int: "a whole number", bool: "true or false", str: "text", float: "a number"}
        raise _wrong(name, value, words.get(kind, str(kind)))
    return value


def _wrong(name: str, value: Any, expected: str) -> FieldError:
    return FieldError(name, f"{name or 'the recipe'} is {value!r}; expected {expected}")
