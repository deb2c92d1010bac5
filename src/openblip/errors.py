"""Every error that OpenBLIP raises on purpose."""


class OpenBlipError(Exception):
    """Something a user can mend: the message names the file, row or flag and the remedy."""


class CheckpointError(OpenBlipError):
    """A checkpoint is missing, damaged, or does not have the expected keys and shapes."""


class MissingHead(OpenBlipError):  # noqa: N818 - a fixed public name
    """The loaded checkpoint cannot do what was asked; names the kind of checkpoint that can."""


class DataError(OpenBlipError):
    """A table, an image or a caption is missing, damaged or too few."""


class RecipeError(OpenBlipError):
    """A setting is out of range, or two settings contradict each other."""


class TrainingError(OpenBlipError):
    """Training cannot go on: a non-finite loss, or a run directory of another recipe."""
