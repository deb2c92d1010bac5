"""Tasks by their names, and what each needs of a recipe; light, so that recipes come without torch.

Our own tasks have short names. Any other is `module:Class`: a subclass of `Task` that somebody has
written. Nothing is registered: the name is what is looked up.
"""

import inspect
from dataclasses import dataclass, is_dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from openblip.model import MedConfig
from openblip.model.config import AlbefConfig
from openblip.objectives.settings import (
    AlbefObjectives,
    CaptionerObjectives,
    ClipObjectives,
    FilterObjectives,
    NlvrObjectives,
    PretrainObjectives,
    VqaObjectives,
)
from openblip.runtime.errors import RecipeError
from openblip.runtime.references import find_object, is_reference, reference_to

if TYPE_CHECKING:
    from openblip.objectives.task import AnyTask

ExampleKind = Literal["pairs", "questions", "image pairs"]


@dataclass(frozen=True, kw_only=True)
class TaskNeeds:
    """What a task needs of a recipe and of the data."""

    settings: type[Any]
    """Of the recipe's `objectives`: a frozen dataclass, whose fields become flags."""
    model: type[MedConfig] | type[AlbefConfig] | None = MedConfig
    """Configuration of the model that may begin with fresh weights; None where it must start from
    one that was trained before."""
    examples: ExampleKind = "pairs"
    """What its batches hold: image-text pairs (`Batch`), questions (`QuestionBatch`), or sentences
    about two images (`ImagePairBatch`)."""
    ends_texts: bool = True
    """Whether its texts end with `[SEP]`."""


class _Home(NamedTuple):
    reference: str
    needs: TaskNeeds


PRETRAIN = TaskNeeds(settings=PretrainObjectives)
CAPTIONER = TaskNeeds(settings=CaptionerObjectives)
FILTER = TaskNeeds(settings=FilterObjectives)
CLIP = TaskNeeds(settings=ClipObjectives)
ALBEF = TaskNeeds(settings=AlbefObjectives, model=AlbefConfig, ends_texts=False)
VQA = TaskNeeds(settings=VqaObjectives, model=None, examples="questions")
NLVR = TaskNeeds(settings=NlvrObjectives, model=None, examples="image pairs")

_BUILT_IN = {
    "pretrain": _Home("openblip.objectives.pretrain:PretrainTask", PRETRAIN),
    "captioner": _Home("openblip.objectives.finetune:CaptionerTask", CAPTIONER),
    "filter": _Home("openblip.objectives.pretrain:FilterTask", FILTER),
    "clip": _Home("openblip.objectives.clip:ClipTask", CLIP),
    "albef": _Home("openblip.objectives.albef:AlbefTask", ALBEF),
    "vqa": _Home("openblip.objectives.finetune:VqaTask", VQA),
    "nlvr": _Home("openblip.objectives.finetune:NlvrTask", NLVR),
}


def task_name(task: "str | type[AnyTask]") -> str:
    """What a recipe stores of a task: a name of ours, or `module:Class`.

    Raises:
        RecipeError: a class that nobody could find again.
    """
    reference = task if isinstance(task, str) else reference_to(task)
    ours = (name for name, home in _BUILT_IN.items() if home.reference == reference)
    return next(ours, reference)


def is_own(task: object) -> bool:
    """Whether a name has the form of a task from outside of the package."""
    return isinstance(task, str) and is_reference(task)


def task_needs(task: str) -> TaskNeeds:
    """What a task needs; of one of ours, without its code.

    Raises:
        RecipeError: there is no such task, or its module cannot be imported.
    """
    home = _BUILT_IN.get(task)
    return find_task(task).needs if home is None else home.needs


def find_task(task: str) -> "type[AnyTask]":
    """The class of a task.

    Raises:
        RecipeError: there is none of that name, its module cannot be imported, or it lacks what a
            task has.
    """
    from openblip.objectives.task import Task

    home = _BUILT_IN.get(task)
    if home is None and not is_own(task):
        raise RecipeError(
            f"task is {task!r}; choose one of {', '.join(_BUILT_IN)}, or name a class of your own "
            "as module:Class"
        )
    found = find_object(task if home is None else home.reference)
    if not (isinstance(found, type) and issubclass(found, Task)):
        raise RecipeError(f"task {task}: this is no subclass of openblip.Task, but {found!r:.80}")
    # Asked for here, as a recipe is made: Python would complain once all data have been read.
    if inspect.isabstract(found):
        lacking = ", ".join(sorted(found.__abstractmethods__))
        raise RecipeError(f"task {task}: the class lacks {lacking}")
    needs = getattr(found, "needs", None)
    if not isinstance(needs, TaskNeeds):
        raise RecipeError(f"task {task}: the class says no `needs = TaskNeeds(settings=...)`")
    # Recipes are compared and looked up.
    frozen = is_dataclass(needs.settings) and needs.settings.__dataclass_params__.frozen  # type: ignore[attr-defined]
    if not frozen:
        raise RecipeError(
            f"task {task}: needs.settings is {needs.settings!r:.80}; give a class with "
            "@dataclass(frozen=True, kw_only=True)"
        )
    return found
