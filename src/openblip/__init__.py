"""OpenBLIP: vision-language pre-training, and the cleaning of image-text data."""

from openblip.errors import (
    CheckpointError,
    DataError,
    MissingHead,
    OpenBlipError,
    RecipeError,
    TrainingError,
)

__version__ = "0.1.0"
__all__ = [
    "CheckpointError",
    "DataError",
    "MissingHead",
    "OpenBlipError",
    "RecipeError",
    "TrainingError",
]
