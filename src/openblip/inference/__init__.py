"""Use of a trained model: captions, matches and embeddings of images and texts."""

from openblip.inference.blip import Blip
from openblip.inference.captions import Caption
from openblip.inference.decoding import Decoding
from openblip.inference.loading import load
from openblip.inference.scoring import Match

__all__ = ["Blip", "Caption", "Decoding", "Match", "load"]
