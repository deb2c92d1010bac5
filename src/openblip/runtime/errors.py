"""Every error that OpenBLIP raises on purpose, and every warning."""

import re
import warnings
from collections.abc import Callable
from typing import TextIO

_LONGEST = 440
# Colours and other commands to a terminal, and where in its own source a library failed.
_NOT_FOR_READERS = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|,? ?(?:at )?/\S*\.rs:\d+(?::\d+)?")


class OpenBlipError(Exception):
    """Something a user can mend: the message names the file, row or flag and the remedy."""


class CheckpointError(OpenBlipError):
    """A checkpoint is missing, damaged, or does not have the expected keys and shapes."""


class MissingHead(OpenBlipError):  # noqa: N818 - a fixed public name
    """The loaded checkpoint cannot do what was asked; names the kind of checkpoint that can."""


class DataError(OpenBlipError):
    """A table, an image or a caption is missing, damaged or too few."""


class StorageError(OpenBlipError):
    """An object store or a disk fails, or refuses; nothing that was finished is lost."""


class MissingExtra(StorageError):  # noqa: N818 - as `MissingHead`
    """The packages with which object stores are reached are not installed."""


class UnwritableError(StorageError, OSError):
    """A file or folder cannot be written: there is no room or permission, or something in the way.

    What was to be written has left nothing behind.
    """


class RecipeError(OpenBlipError):
    """A setting is out of range, or two settings contradict each other."""


class TrainingError(OpenBlipError):
    """Training cannot go on: a non-finite loss, or a run directory of another recipe."""


class OtherRunError(TrainingError):
    """A run directory belongs to another recipe."""


def install_extra(name: str) -> str:
    """The remedy where the packages of an extra are missing, for the end of a message."""
    return f"pip install 'openblip[{name}]'"


def one_line(message: object) -> str:
    """A message of anybody as one line for a person, of at most 440 characters.

    The middle of a longer one is left out: its begin says what is wrong, its end what helps.
    """
    text = " ".join(_NOT_FOR_READERS.sub("", str(message)).split())
    text = "".join(mark if mark.isprintable() else "?" for mark in text)
    if len(text) <= _LONGEST:
        return text
    return f"{text[: _LONGEST - 155]} ... {text[-150:]}"


class OpenBlipWarning(UserWarning):
    """Something that a user should know about a result."""


def tell_warnings(tell: Callable[[object], None]) -> None:
    """Has this process tell warnings to a user, who has no use for the line of code.

    Args:
        tell: is given each, that of a library with its kind.
    """

    def show_plainly(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        is_ours = issubclass(category, OpenBlipWarning)
        tell(message if is_ours else f"{category.__name__}: {message}")

    warnings.showwarning = show_plainly


class MetricLeftOut(OpenBlipWarning):
    """A metric could not be computed, by no fault of what it judges; the message has the reason."""


class TextTruncated(OpenBlipWarning):
    """The model did not see the end of a text; the message names the word at which it is cut."""


class UntrainedHead(OpenBlipWarning):
    """A model is asked for what its last training was not for; names a model that can do it."""


class UnknownWords(OpenBlipWarning):
    """The model's vocabulary lacks words of a text, which it reads as `[UNK]`; names some."""
