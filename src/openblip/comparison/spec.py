"""What a comparison file says: data, models, tasks, tables, claims."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from openblip.comparison.tasks import TaskKind
from openblip.data.table import ORIGINS, SPLITS
from openblip.errors import RecipeError
from openblip.inference import Decoding

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


@dataclass(frozen=True, kw_only=True)
class DataSpec:
    """A pair table: give one of these."""

    table: str | None = None
    """Path of a table that is there; may begin with a variable of the environment, as `$DATA`."""
    sources: tuple[SourceSpec, ...] = ()
    """What is imported into a new one, one behind the other."""
    world: dict[str, Any] | None = None
    """Fields of an embedded world; without `seed` each seed of the comparison has its own."""
    capfilt: CapFiltSpec | None = None
    """A job over other data."""

    def __post_init__(self) -> None:
        given = [self.table is not None, bool(self.sources), self.world is not None]
        if sum((*given, self.capfilt is not None)) != 1:
            raise RecipeError("give one of table, sources, world, capfilt")


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

    task: TaskKind
    """The protocol."""
    data: str | None = None
    """Name of the data; of the first one by default."""
    split: str = "test"
    """Which rows."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Fields of the protocol's settings (`openblip.comparison.tasks`)."""

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
