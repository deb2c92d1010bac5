"""OpenBLIP: vision-language pre-training, and the cleaning of image-text data.

The names below are loaded when they are first used, so that `import openblip` takes no time.
`docs/api.md` shows each of them at work.
"""

import importlib
from typing import TYPE_CHECKING, Any

from openblip.runtime.errors import (
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
    from openblip import metrics, recipes
    from openblip.batches.image_pairs import ImagePairBatch
    from openblip.batches.loader import Batch, PairLoader
    from openblip.batches.mixture import WeightedIndex
    from openblip.batches.questions import QuestionBatch
    from openblip.batches.tokenizer import TextTokenizer
    from openblip.capfilt.job import CapFiltSettings
    from openblip.capfilt.run import run_capfilt
    from openblip.evaluation.captioning import evaluate_caption
    from openblip.evaluation.classification import evaluate_classification
    from openblip.evaluation.filtering import evaluate_filter
    from openblip.evaluation.nlvr import evaluate_nlvr
    from openblip.evaluation.retrieval import evaluate_retrieval
    from openblip.evaluation.video import evaluate_video, evaluate_videoqa
    from openblip.evaluation.vqa import evaluate_vqa
    from openblip.index.search import Hit, search
    from openblip.inference.answers import Answer
    from openblip.inference.blip import Blip
    from openblip.inference.calibration import Calibration, calibrate
    from openblip.inference.captions import Caption
    from openblip.inference.decoding import Decoding
    from openblip.inference.explanation import Heatmap
    from openblip.inference.loading import load
    from openblip.inference.matching import Match
    from openblip.model import Med, MedConfig, TextConfig, VisionConfig
    from openblip.objectives.named import TaskNeeds
    from openblip.objectives.task import Collectives, StepOutput, StepPosition, Task, TaskContext
    from openblip.sources.importing import import_pairs
    from openblip.table.table import PairRow, PairTable
    from openblip.table.views import CaptionView
    from openblip.training.recipe import (
        DataConfig,
        OptimiserConfig,
        Recipe,
        ScheduleConfig,
        TrainConfig,
    )
    from openblip.training.run import TrainResult, train

__all__ = [
    "Answer",
    "Batch",
    "Blip",
    "Calibration",
    "CapFiltSettings",
    "Caption",
    "CaptionView",
    "CheckpointError",
    "Collectives",
    "DataConfig",
    "DataError",
    "Decoding",
    "Heatmap",
    "Hit",
    "ImagePairBatch",
    "Match",
    "Med",
    "MedConfig",
    "MissingHead",
    "OpenBlipError",
    "OptimiserConfig",
    "PairLoader",
    "PairRow",
    "PairTable",
    "QuestionBatch",
    "Recipe",
    "RecipeError",
    "ScheduleConfig",
    "StepOutput",
    "StepPosition",
    "StorageError",
    "Task",
    "TaskContext",
    "TaskNeeds",
    "TextConfig",
    "TextTokenizer",
    "TextTruncated",
    "TrainConfig",
    "TrainResult",
    "TrainingError",
    "VisionConfig",
    "WeightedIndex",
    "calibrate",
    "evaluate_caption",
    "evaluate_classification",
    "evaluate_filter",
    "evaluate_nlvr",
    "evaluate_retrieval",
    "evaluate_video",
    "evaluate_videoqa",
    "evaluate_vqa",
    "import_pairs",
    "load",
    "metrics",
    "recipes",
    "run_capfilt",
    "search",
    "train",
]

__version__ = "0.2.0"

_MODULES = ("metrics", "recipes")
_NAMES_IN = {
    "capfilt.job": ("CapFiltSettings",),
    "capfilt.run": ("run_capfilt",),
    "batches.image_pairs": ("ImagePairBatch",),
    "index.search": (
        "Hit",
        "search",
    ),
    "sources.importing": ("import_pairs",),
    "batches.loader": (
        "Batch",
        "PairLoader",
    ),
    "batches.mixture": ("WeightedIndex",),
    "batches.questions": ("QuestionBatch",),
    "table.table": (
        "PairRow",
        "PairTable",
    ),
    "batches.tokenizer": ("TextTokenizer",),
    "table.views": ("CaptionView",),
    "evaluation.captioning": ("evaluate_caption",),
    "evaluation.classification": ("evaluate_classification",),
    "evaluation.filtering": ("evaluate_filter",),
    "evaluation.nlvr": ("evaluate_nlvr",),
    "evaluation.retrieval": ("evaluate_retrieval",),
    "evaluation.video": (
        "evaluate_video",
        "evaluate_videoqa",
    ),
    "evaluation.vqa": ("evaluate_vqa",),
    "inference.answers": ("Answer",),
    "inference.blip": ("Blip",),
    "inference.calibration": ("Calibration", "calibrate"),
    "inference.captions": ("Caption",),
    "inference.decoding": ("Decoding",),
    "inference.explanation": ("Heatmap",),
    "inference.loading": ("load",),
    "inference.matching": ("Match",),
    "model": (
        "Med",
        "MedConfig",
        "TextConfig",
        "VisionConfig",
    ),
    "objectives.named": ("TaskNeeds",),
    "objectives.task": (
        "Collectives",
        "StepOutput",
        "StepPosition",
        "Task",
        "TaskContext",
    ),
    "training.recipe": (
        "DataConfig",
        "OptimiserConfig",
        "Recipe",
        "ScheduleConfig",
        "TrainConfig",
    ),
    "training.run": (
        "TrainResult",
        "train",
    ),
}
_HOMES = {name: home for home, names in _NAMES_IN.items() for name in names}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"openblip.{name}")
    if name in _HOMES:
        return getattr(importlib.import_module(f"openblip.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'openblip' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
