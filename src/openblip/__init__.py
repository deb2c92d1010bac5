"""OpenBLIP: vision-language pre-training, and the cleaning of image-text data.

The names below are loaded when they are first used, so that `import openblip` takes no time.
"""

import importlib
from typing import TYPE_CHECKING, Any

from openblip.errors import (
    CheckpointError,
    DataError,
    MissingHead,
    OpenBlipError,
    RecipeError,
    StorageError,
    TextTruncated,
    TrainingError,
)

if TYPE_CHECKING:
    from openblip import metrics
    from openblip.data.importers.driver import import_pairs
    from openblip.data.table import PairTable
    from openblip.data.views import CaptionView
    from openblip.inference import (
        Answer,
        Blip,
        Calibration,
        Caption,
        Decoding,
        Heatmap,
        Match,
        calibrate,
        load,
    )

__version__ = "0.1.0"
__all__ = [
    "Answer",
    "Blip",
    "Calibration",
    "Caption",
    "CaptionView",
    "CheckpointError",
    "DataError",
    "Decoding",
    "Heatmap",
    "Match",
    "MissingHead",
    "OpenBlipError",
    "PairTable",
    "RecipeError",
    "StorageError",
    "TextTruncated",
    "TrainingError",
    "calibrate",
    "import_pairs",
    "load",
    "metrics",
]

_HOMES = {
    "Answer": "openblip.inference",
    "Blip": "openblip.inference",
    "Calibration": "openblip.inference",
    "Caption": "openblip.inference",
    "CaptionView": "openblip.data.views",
    "Decoding": "openblip.inference",
    "Heatmap": "openblip.inference",
    "Match": "openblip.inference",
    "PairTable": "openblip.data.table",
    "calibrate": "openblip.inference",
    "import_pairs": "openblip.data.importers.driver",
    "load": "openblip.inference",
}


def __getattr__(name: str) -> Any:
    if name == "metrics":
        return importlib.import_module("openblip.metrics")
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'openblip' has no attribute {name!r}")
