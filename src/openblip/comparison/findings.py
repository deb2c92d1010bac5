"""What finished stages say of a comparison: figures with intervals, compute, verdicts."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from openblip.comparison.planner import Planner
from openblip.comparison.spec import ClaimSpec, ComparisonSpec
from openblip.comparison.stages import Given, Stage, closure, rows_of
from openblip.comparison.statistics import SeedScores, seed_scores, verdict
from openblip.comparison.tasks import parts_of
from openblip.evaluation.metrics.bootstrap import Comparison
from openblip.training.utilisation import added


@dataclass(frozen=True)
class Compute:
    """What a model took, with all that it needs: means over seeds."""

    flops: float | None
    """Of training and of CapFilt; None where that of a task was not counted."""
    seconds: float


@dataclass(frozen=True)
class StageState:
    """How far a stage is."""

    kind: str
    name: str
    folder: str
    """Name of its folder."""
    is_finished: bool


@dataclass(frozen=True)
class Verdict:
    """A claim by one figure."""

    claim: ClaimSpec
    figure: str
    difference: Comparison | None
    """None where a figure is missing."""

    @property
    def word(self) -> str:
        """`holds`, `does not hold`, `not decided`, or `not measured`."""
        return verdict(self.difference) if self.difference else "not measured"


class Findings:
    """The figures of a comparison, as far as its stages are finished.

    Args:
        spec: the comparison.
        root: folder of the stages.
    """

    def __init__(self, spec: ComparisonSpec, root: Path) -> None:
        self.spec = spec
        self._planner, self._root = Planner(spec), root
        self._scores: dict[tuple[str, str], SeedScores | None] = {}

    @cached_property
    def evaluations(self) -> list[Stage]:
        """The evaluations that tables and claims need, each once.

        Raises:
            FieldError: the file asks for what cannot be.
        """
        wanted = dict.fromkeys(
            (model, figure.partition(".")[0]) for _, model, figure in self.spec.pairs()
        )
        return [
            self._planner.evaluation(model, task, seed)
            for seed in self.spec.seeds
            for model, task in wanted
        ]

    @property
    def stages(self) -> list[StageState]:
        """All stages in an order in which they can be carried out."""
        return [
            StageState(
                stage.kind,
                stage.name,
                stage.folder(self._root).name,
                stage.result(self._root) is not None,
            )
            for stage in closure(self.evaluations).values()
        ]

    def scores(self, model: str, figure: str) -> SeedScores | None:
        """A figure of a model; None if it cannot do the task, or a stage is not finished."""
        key = (model, figure)
        if key not in self._scores:
            self._scores[key] = self._read(model, figure)
        return self._scores[key]

    def why_missing(self, model: str, figure: str) -> str | None:
        """Why a figure has no value though all is done; None if it has one, or is not finished."""
        if self.scores(model, figure) is not None:
            return None
        results = [stage.result(self._root) for stage in self._stages(model, figure)]
        finished = [result for result in results if result is not None]
        if len(finished) < len(results):
            return None
        for result in finished:
            if "missing" in result:
                return str(result["missing"])
        measured = set.intersection(*(set(result["units"]) for result in finished))
        if not measured:
            return "the data has nothing to compare with"
        return f"the data gives {', '.join(sorted(measured))} alone"

    def difference(self, model: str, baseline: str, figure: str) -> Comparison | None:
        """A model's figure less that of another one, on the same seeds and images."""
        mine, other = self.scores(model, figure), self.scores(baseline, figure)
        return mine.minus(other) if mine and other else None

    def compute(self, model: str) -> Compute | None:
        """What the model took; None for one that was there before, or is unfinished."""
        flops: float | None = 0.0
        seconds = 0.0
        for seed in self.spec.seeds:
            stage = self._planner.model(model, seed)
            if isinstance(stage, Given):
                return None
            for needed in closure([stage]).values():
                result = needed.result(self._root)
                if result is None:
                    return None
                if needed.kind != "data":
                    flops = added(flops, result["flops"])
                    seconds += result["seconds"]
        count = len(self.spec.seeds)
        return Compute(None if flops is None else flops / count, seconds / count)

    def verdicts(self) -> list[Verdict]:
        """Every claim by each of its figures."""
        return [
            Verdict(claim, figure, self.difference(claim.better, claim.than, figure))
            for claim in self.spec.claims
            for figure in claim.figures
        ]

    def label(self, model: str) -> str:
        """What the tables call a model."""
        return self.spec.label(model)

    def _stages(self, model: str, figure: str) -> list[Stage]:
        task = figure.partition(".")[0]
        return [self._planner.evaluation(model, task, seed) for seed in self.spec.seeds]

    def _read(self, model: str, figure: str) -> SeedScores | None:
        stages = self._stages(model, figure)
        results = [stage.result(self._root) for stage in stages]
        units = [result["units"] for result in results if result is not None]
        if len(units) < len(results):
            return None
        tables = {rows_of(stage.inputs["table"]) for stage in stages}
        metrics = parts_of(figure.partition(".")[2])
        return seed_scores(units, metrics, is_shared=len(tables) == 1)
