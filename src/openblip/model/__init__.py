"""The multimodal mixture of encoder-decoder (MED): modules that map tensors to tensors."""

from openblip.model.cache import KeyValueCache
from openblip.model.config import MedConfig, TextConfig, VisionConfig
from openblip.model.med import Med
from openblip.model.memory import AttentionRecord, ImageMemory, Memories
from openblip.model.text import TextPass

__all__ = [
    "AttentionRecord",
    "ImageMemory",
    "KeyValueCache",
    "Med",
    "MedConfig",
    "Memories",
    "TextConfig",
    "TextPass",
    "VisionConfig",
]
