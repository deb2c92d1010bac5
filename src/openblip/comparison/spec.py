"""What a comparison file says: data, models, tasks, tables, claims.

A comparison file, read: an error names the field and its line.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from openblip.capfilt.captioners import check_count
from openblip.comparison.protocols import PROTOCOLS, ProtocolName
from openblip.inference.decoding import Decoding
from openblip.runtime.documents import read_yaml
from openblip.runtime.errors import RecipeError
from openblip.runtime.references import is_reference
from openblip.sources.checking import Ids
from openblip.table.table import ORIGINS, SPLITS
from openblip.training.recipe_file import FieldError, from_plain, nearest

TrainedAs = Literal["clip", "albef", "unimodal"]
Layout = Literal["models", "figures", "gains"]


@dataclass(frozen=True, kw_only=True)
class SourceSpec:
    """Pairs that are imported, as by `openblip data import`."""

    source: str
    """File, folder or pattern; may begin with a variable of the environment, as `$DATA`."""
    origin: str = "web"
    """`web` or `human`."""
    split: str | None = None
    """For all rows, whatever the source says."""
    format: str | None = None
    """Found out if it is not given."""
    ids: Ids = "key"
    """`key` takes the source's ids, `sha256` the hash of the image: of one image in several sources
    the first is taken."""

    def __post_init__(self) -> None:
        if self.origin not in ORIGINS:
            raise RecipeError(f"origin is {self.origin!r}; choose one of {', '.join(ORIGINS)}")


@dataclass(frozen=True, kw_only=True)
class CapFiltSpec:
    """A copy of a table with the columns of a CapFilt job."""

    of: str
    """Name of the data."""
    captioner: str
    """Name of the model that writes captions."""
    filter: str
    """Name of the model that judges texts."""
    prompt: str = "a picture of "
    """What the captioner was fine-tuned to continue."""
    num_captions: int = 1
    """Synthetic captions per image."""
    decoding: Decoding = field(default_factory=lambda: Decoding(method="nucleus", top_p=0.9))
    """How they are written."""
    fit: bool = False
    """Whether further scores and their combination `right` are computed as well, as by `openblip
    capfilt scores` and `capfilt fit`."""

    def __post_init__(self) -> None:
        if self.num_captions < 1:
            raise RecipeError(f"num_captions is {self.num_captions}; give 1 or more")
        names = ("num_captions", "decoding.method", "decoding.num_beams")
        check_count(self.decoding, self.num_captions, names)


@dataclass(frozen=True, kw_only=True)
class MadeSpec:
    """A table that a function of somebody makes, for each seed another one."""

    by: str
    """`module:name` of a function that is given the place of the table, `seed`, and `settings`."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Its keywords. A text may begin with a variable of the environment, as `$DATA`; what lies
    there counts as an input."""

    def __post_init__(self) -> None:
        if not is_reference(self.by):
            raise RecipeError(f"by is {self.by!r}; name a function as module:name")
        if "seed" in self.settings:
            raise RecipeError("settings: the seed is that of the comparison")


@dataclass(frozen=True, kw_only=True)
class DataSpec:
    """A pair table: give one of these."""

    table: str | None = None
    """Path of a table that is there; may begin with a variable of the environment, as `$DATA`."""
    sources: tuple[SourceSpec, ...] = ()
    """What is imported into a new one, one behind the other."""
    world: dict[str, Any] | None = None
    """Fields of an embedded world; without `seed` each seed of the comparison has its own."""
    made: MadeSpec | None = None
    """What a function makes, such as a noisy copy of a data set."""
    capfilt: CapFiltSpec | None = None
    """A job over other data."""

    def __post_init__(self) -> None:
        given = [self.table is not None, bool(self.sources), self.world is not None]
        if sum((*given, self.made is not None, self.capfilt is not None)) != 1:
            raise RecipeError("give one of table, sources, world, made, capfilt")


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """A model: one that is there (`checkpoint`, `published_clip`), or one that is trained.

    `recipe` or `like` say what the training begins with; the other fields change that, in the
    order in which they stand here.
    """

    label: str | None = None
    """What the tables call it; by default its name."""
    checkpoint: str | None = None
    """Model folder, run directory, file or hub id; `{seed}` stands for the seed."""
    published_clip: str | None = None
    """A CLIP of others, as `openblip evaluate retrieval` takes it: folder, hub id or `open_clip:`
    name; may begin with a variable of the environment. It can be evaluated, and nothing else."""
    recipe: str | None = None
    """Name of a recipe, or a recipe.yaml."""
    like: str | None = None
    """Name of another model, whose recipe this one begins with."""
    data: str | None = None
    """Name of the data that is learnt from; of the first one by default."""
    init: str | None = None
    """Name of the model whose weights this one starts from."""
    view: dict[str, Any] | None = None
    """Fields of the caption view."""
    trained_as: TrainedAs | None = None
    """Another model of equal means: same data, image encoder, steps and batch."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Fields of the recipe by their names with dots, such as `train.steps`."""

    def __post_init__(self) -> None:
        begins = (self.checkpoint, self.published_clip, self.recipe, self.like)
        if sum(beginning is not None for beginning in begins) != 1:
            raise RecipeError("give one of checkpoint, published_clip, recipe, like")
        changes = (self.data, self.init, self.view, self.trained_as, self.settings)
        if self.is_given and any(changes):
            raise RecipeError(
                "a model that is there is taken as it is: leave data, init, view, trained_as and "
                "settings out"
            )

    @property
    def is_given(self) -> bool:
        """Whether it is there, and nothing is trained."""
        return self.recipe is None and self.like is None


@dataclass(frozen=True, kw_only=True)
class TaskSpec:
    """Something that models are measured by, on a split of a table."""

    task: ProtocolName
    """The protocol."""
    data: str | None = None
    """Name of the data; of the first one by default."""
    split: str = "test"
    """Which rows."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Fields of the protocol's settings (`openblip.evaluation.settings`)."""

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise RecipeError(f"split is {self.split!r}; choose one of {', '.join(SPLITS)}")


@dataclass(frozen=True, kw_only=True)
class GainRow:
    """A line of a table of gains: one model on one figure, beside a baseline."""

    labels: tuple[str, ...]
    """First cells, one for each name in the table's `header`."""
    model: str
    """Name of the model."""
    figure: str
    """`TASK.METRIC`."""
    baseline: str
    """Name of the model that the gain is over."""


@dataclass(frozen=True, kw_only=True)
class TableSpec:
    """A table of the report."""

    title: str
    """Its heading."""
    text: str = ""
    """A paragraph above it."""
    layout: Layout = "models"
    """`models`: a line for each model, a column for each figure. `figures`: the other way round.
    `gains`: the lines of `rows`, with the figure and the gain over the baseline."""
    models: tuple[str, ...] = ()
    """Names of the models."""
    figures: tuple[str, ...] = ()
    """`TASK.METRIC` each; the metric R@1 is the mean of TR@1 and IR@1."""
    baseline: str | None = None
    """The model that the others are compared with; the first one by default."""
    header: tuple[str, ...] = ("domain", "data set")
    """Gains: names of the columns of labels."""
    rows: tuple[GainRow, ...] = ()
    """Gains: the lines."""

    def __post_init__(self) -> None:
        if self.layout == "gains":
            if not self.rows or self.models or self.figures:
                raise RecipeError("a table of gains has rows, and neither models nor figures")
            if any(len(row.labels) != len(self.header) for row in self.rows):
                raise RecipeError(f"each row needs {len(self.header)} labels, as the header has")
        elif not self.models or not self.figures or self.rows:
            raise RecipeError(f"a table of the layout {self.layout} has models and figures")

    def pairs(self) -> Iterator[tuple[str, str]]:
        """The models and figures that it shows, baselines included."""
        baseline = [self.baseline] if self.baseline else []
        for model in dict.fromkeys([*self.models, *baseline]):
            yield from ((model, figure) for figure in self.figures)
        for row in self.rows:
            yield from ((model, row.figure) for model in (row.model, row.baseline))


@dataclass(frozen=True, kw_only=True)
class ClaimSpec:
    """A direction that the results are checked for."""

    claim: str
    """In words, such as "CapFilt > none"."""
    better: str
    """Name of the model that is said to be better."""
    than: str
    """Name of the other one."""
    figures: tuple[str, ...]
    """By which figures, each judged by itself."""

    def pairs(self) -> Iterator[tuple[str, str]]:
        """The models and figures that it needs."""
        for figure in self.figures:
            yield from ((model, figure) for model in (self.better, self.than))


@dataclass(frozen=True, kw_only=True)
class ComparisonSpec:
    """A comparison file."""

    title: str
    """Heading of the report."""
    text: str = ""
    """A paragraph below it."""
    seeds: tuple[int, ...] = (0,)
    """Of weights, order and draws, and of worlds: everything is done once for each."""
    data: dict[str, DataSpec]
    """Pair tables by name."""
    models: dict[str, ModelSpec]
    """Models by name."""
    tasks: dict[str, TaskSpec]
    """Tasks by name."""
    tables: tuple[TableSpec, ...]
    """Tables of the report."""
    claims: tuple[ClaimSpec, ...] = ()
    """What is checked."""

    def __post_init__(self) -> None:
        # One that counted twice would make intervals narrower than they are.
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise RecipeError("seeds: give at least one, each once")
        if not self.data or not self.models or not self.tables:
            raise RecipeError("data, models and tables must have an entry each")

    def label(self, model: str) -> str:
        """What the tables call a model."""
        return self.models[model].label or model

    def pairs(self) -> Iterator[tuple[str, str, str]]:
        """A place in the file, and a model and a figure that it asks for."""
        for number, table in enumerate(self.tables):
            yield from ((f"tables.{number}", *pair) for pair in table.pairs())
        for number, claim in enumerate(self.claims):
            yield from ((f"claims.{number}", *pair) for pair in claim.pairs())


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
    # A field that is missing has no line; what it should stand in has one.
    while field and field not in lines:
        field = field.rpartition(".")[0]
    where = f"{path}, line {lines[field]}" if field else str(path)
    return RecipeError(f"{where}: {named}{error}")


def check_names(spec: ComparisonSpec) -> None:
    """Check that whatever is named is there.

    Raises:
        FieldError: a name is unknown; the message gives the nearest.
    """
    for place, name in _data_named(spec):
        _known(name, spec.data, place)
    for place, name in _models_named(spec):
        _known(name, spec.models, place)
    for name, task in spec.tasks.items():
        # Made only to be checked, before anything runs.
        from_plain(PROTOCOLS[task.task].settings, task.settings, f"tasks.{name}.settings")
    for place, figure in _figures_named(spec):
        _known_figure(figure, spec, place)
    _check_labels(spec)
    _check_published(spec)


def _check_published(spec: ComparisonSpec) -> None:
    """Check that a published CLIP is asked only for what contrast alone can do.

    Raises:
        FieldError: it is asked for something else; the message names the model, and the task.
    """
    clips = {name for name, model in spec.models.items() if model.published_clip is not None}
    for place, name in _models_built_upon(spec):
        if name in clips:
            raise FieldError(
                place, f"{place} is {name!r}, a published CLIP, which can only be evaluated"
            )
    able = [kind for kind, protocol in PROTOCOLS.items() if protocol.needs_contrast_alone]
    for place, model, figure in spec.pairs():
        task = figure.partition(".")[0]
        # `check_names` has seen to it that there is such a task.
        kind = spec.tasks[task].task
        if model in clips and kind not in able:
            raise FieldError(
                place,
                f"{place}: the model {model!r} is a published CLIP, which cannot do the task "
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
