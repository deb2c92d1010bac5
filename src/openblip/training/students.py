"""Which model a run trains: a fresh one, one that was trained before, or one made out of it."""

from collections.abc import Callable

from openblip.errors import CheckpointError
from openblip.interop.reading import read_model
from openblip.interop.sources import find_model
from openblip.model import Med, MedConfig
from openblip.model.albef import Albef
from openblip.model.config import AlbefConfig
from openblip.model.derived import nlvr_from, vqa_from
from openblip.model.nlvr import Nlvr, NlvrConfig
from openblip.model.vqa import Vqa, VqaConfig
from openblip.tasks.protocol import Student
from openblip.training.config import Recipe, TaskName

StudentConfig = MedConfig | AlbefConfig | VqaConfig | NlvrConfig

_TRAINED: dict[TaskName, type[Student]] = {"albef": Albef, "vqa": Vqa, "nlvr": Nlvr}
_MADE_FROM: dict[TaskName, Callable[[Med], Student]] = {"vqa": vqa_from, "nlvr": nlvr_from}


def new_student(config: StudentConfig) -> Student:
    """A model with fresh weights."""
    match config:
        case MedConfig():
            return Med(config)
        case AlbefConfig():
            return Albef(config)
        case VqaConfig():
            return Vqa(config)
        case NlvrConfig():
            return Nlvr(config)


def starting_model(recipe: Recipe) -> Student:
    """The model that a recipe's `init_from` gives its task.

    One for questions or for two images is made out of a pre-trained MED, or goes on from one of its
    own kind.

    Raises:
        CheckpointError: if it is another model, or cannot be read.
    """
    assert recipe.init_from is not None, "a recipe that starts from a model"
    loaded = read_model(find_model(recipe.init_from))
    wanted = _TRAINED.get(recipe.task, Med)
    if isinstance(loaded.model, wanted):
        return loaded.model
    if recipe.task in _MADE_FROM and isinstance(loaded.model, Med):
        return _MADE_FROM[recipe.task](loaded.model)
    raise CheckpointError(
        f"{loaded.source}: a {loaded.kind} model, which the task {recipe.task!r} cannot start from"
    )
