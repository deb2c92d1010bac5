"""A comparison file, read: an error names the field and its line."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from openblip.comparison.spec import ComparisonSpec
from openblip.comparison.tasks import PROTOCOLS
from openblip.documents import read_yaml
from openblip.errors import RecipeError
from openblip.training.recipe_file import FieldError, from_plain, nearest


def read_spec(path: Path) -> tuple[ComparisonSpec, dict[str, int]]:
    """The comparison of a YAML file, and the line of each of its fields by its name with dots.

    Raises:
        RecipeError: the file is missing or not YAML, or a field is wrong; names file and line.
    """
    values, lines = read_yaml(path, RecipeError)
    if not isinstance(values, dict):
        raise RecipeError(f"{path}: expected the fields of a comparison, such as `title:`")
    try:
        spec = from_plain(ComparisonSpec, values, "")
        assert isinstance(spec, ComparisonSpec)
        check_names(spec)
    except RecipeError as error:
        raise located(error, path, lines) from error
    return spec, lines


def located(error: RecipeError, path: Path, lines: dict[str, int]) -> RecipeError:
    """The error with the file and the line of the nearest field that the file has."""
    field = error.field if isinstance(error, FieldError) else ""
    named = f"{field}: " if field not in str(error) else ""
    while field and field not in lines:
        field = field.rpartition(".")[0]
    where = f"{path}, line {lines[field]}" if field else str(path)
    return RecipeError(f"{where}: {named}{error}")


def check_names(spec: ComparisonSpec) -> None:
    """Check that whatever is named is there.

    Raises:
        FieldError: a name is unknown; the message gives the nearest.
    """
    for field, name in _data_named(spec):
        _known(name, spec.data, field)
    for field, name in _models_named(spec):
        _known(name, spec.models, field)
    for name, task in spec.tasks.items():
        from_plain(PROTOCOLS[task.task].settings, task.settings, f"tasks.{name}.settings")
    for field, figure in _figures_named(spec):
        _known_figure(figure, spec, field)
    _check_labels(spec)
    _check_published(spec)


def _check_published(spec: ComparisonSpec) -> None:
    """Check that a published CLIP is asked only for what contrast alone can do.

    Raises:
        FieldError: it is asked for something else; the message names the model, and the task.
    """
    clips = {name for name, model in spec.models.items() if model.published_clip is not None}
    for field, name in _models_built_upon(spec):
        if name in clips:
            raise FieldError(
                field, f"{field} is {name!r}, a published CLIP, which can only be evaluated"
            )
    able = [kind for kind, protocol in PROTOCOLS.items() if protocol.needs_contrast_alone]
    for field, model, figure in spec.pairs():
        task = figure.partition(".")[0]
        kind = spec.tasks[task].task
        if model in clips and kind not in able:
            raise FieldError(
                field,
                f"{field}: the model {model!r} is a published CLIP, which cannot do the task "
                f"{task!r} ({kind}), only {' and '.join(able)}; leave it out of this entry",
            )


def _data_named(spec: ComparisonSpec) -> Iterator[tuple[str, str | None]]:
    """Fields that name data, and what they name."""
    for name, data in spec.data.items():
        if data.capfilt is not None:
            yield f"data.{name}.capfilt.of", data.capfilt.of
    for name, model in spec.models.items():
        yield f"models.{name}.data", model.data
    for name, task in spec.tasks.items():
        yield f"tasks.{name}.data", task.data


def _models_built_upon(spec: ComparisonSpec) -> Iterator[tuple[str, str | None]]:
    """Fields that name what models and data are made with, and what they name."""
    for name, data in spec.data.items():
        if data.capfilt is not None:
            yield f"data.{name}.capfilt.captioner", data.capfilt.captioner
            yield f"data.{name}.capfilt.filter", data.capfilt.filter
    for name, model in spec.models.items():
        yield f"models.{name}.like", model.like
        yield f"models.{name}.init", model.init


def _models_named(spec: ComparisonSpec) -> Iterator[tuple[str, str | None]]:
    yield from _models_built_upon(spec)
    for number, table in enumerate(spec.tables):
        yield from ((f"tables.{number}.models", name) for name in table.models)
        yield f"tables.{number}.baseline", table.baseline
        for at, row in enumerate(table.rows):
            yield f"tables.{number}.rows.{at}.model", row.model
            yield f"tables.{number}.rows.{at}.baseline", row.baseline
    for number, claim in enumerate(spec.claims):
        yield f"claims.{number}.better", claim.better
        yield f"claims.{number}.than", claim.than


def _figures_named(spec: ComparisonSpec) -> Iterator[tuple[str, str]]:
    for number, table in enumerate(spec.tables):
        yield from ((f"tables.{number}.figures", figure) for figure in table.figures)
        for at, row in enumerate(table.rows):
            yield f"tables.{number}.rows.{at}.figure", row.figure
    for number, claim in enumerate(spec.claims):
        yield from ((f"claims.{number}.figures", figure) for figure in claim.figures)


def _known(name: str | None, known: dict[str, Any], field: str) -> None:
    if name is not None and name not in known:
        raise FieldError(field, f"{field} is {name!r}, an unknown name{nearest(name, list(known))}")


def _known_figure(figure: str, spec: ComparisonSpec, field: str) -> None:
    task, _, metric = figure.partition(".")
    if not metric:
        raise FieldError(field, f"{field}: {figure!r} is not TASK.METRIC, as in retrieval.TR@1")
    _known(task, spec.tasks, field)
    protocol = PROTOCOLS[spec.tasks[task].task]
    if metric not in protocol.metrics:
        message = f"{field}: {figure!r} has an unknown metric{nearest(metric, protocol.metrics)}"
        raise FieldError(field, message)
    switch = protocol.switches.get(metric)
    if switch is not None and not spec.tasks[task].settings.get(switch):
        message = f"{field}: {figure!r} needs tasks.{task}.settings with {switch}: true"
        raise FieldError(field, message)


def _check_labels(spec: ComparisonSpec) -> None:
    """Check that a chart, which is of one figure of a table, tells its models apart."""
    for number, table in enumerate(spec.tables):
        models: dict[tuple[str, str], str] = {}
        for model, figure in table.pairs():
            label = spec.label(model)
            other = models.setdefault((figure, label), model)
            if other != model:
                raise FieldError(
                    f"tables.{number}",
                    f"tables.{number}: {other} and {model} are both called {label!r}; "
                    "give one another label",
                )
