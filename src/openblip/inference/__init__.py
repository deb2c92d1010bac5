"""Use of a trained model: captions, matches, answers, comparisons, embeddings, explanations."""

from openblip.inference.answers import Answer
from openblip.inference.blip import Blip
from openblip.inference.calibration import Calibration, calibrate
from openblip.inference.captions import Caption, GivenPrompt
from openblip.inference.decoding import Decoding
from openblip.inference.embedder import Embedder
from openblip.inference.explanation import Heatmap
from openblip.inference.loading import load
from openblip.inference.matching import Match

__all__ = [
    "Answer",
    "Blip",
    "Calibration",
    "Caption",
    "Decoding",
    "Embedder",
    "GivenPrompt",
    "Heatmap",
    "Match",
    "calibrate",
    "load",
]
