"""The multimodal mixture of encoder-decoder (MED): modules that map tensors to tensors.

The names below are loaded when they are first used: configurations are read without torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from openblip.model.attention import KeyValueCache
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

_HOMES = {
    "AttentionRecord": "memory",
    "ImageMemory": "memory",
    "KeyValueCache": "attention",
    "Med": "med",
    "MedConfig": "config",
    "Memories": "memory",
    "TextConfig": "config",
    "TextPass": "text",
    "VisionConfig": "config",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"openblip.model.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'openblip.model' has no attribute {name!r}")
