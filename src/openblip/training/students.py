"""Which model a run trains: a fresh one, one that was trained before, or one made out of it."""

from openblip.errors import CheckpointError
from openblip.interop.reading import read_model
from openblip.interop.sources import find_model
from openblip.model import Med, MedConfig
from openblip.model.albef import Albef
from openblip.model.config import AlbefConfig
from openblip.model.nlvr import Nlvr, NlvrConfig
from openblip.model.vqa import Vqa, VqaConfig
from openblip.tasks.named import find_task, task_name
from openblip.tasks.protocol import Student
from openblip.training.config import Recipe

StudentConfig = MedConfig | AlbefConfig | VqaConfig | NlvrConfig


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
    student = find_task(task_name(recipe.task)).student_from(loaded.model)
    if student is None:
        raise CheckpointError(
            f"{loaded.source}: a {loaded.kind} model, which the task {recipe.task!r} cannot start "
            "from"
        )
    return student
