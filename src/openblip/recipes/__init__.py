"""Runs as functions that return one typed `Recipe`; numbers from the paper stand here.

The names below are loaded when they are first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from openblip.recipes.baselines import albef, clip
    from openblip.recipes.finetune import captioner, filter_, nlvr, retrieval, shared, vqa
    from openblip.recipes.pretrain import base, large, small, tiny

__all__ = [
    "albef",
    "base",
    "captioner",
    "clip",
    "filter_",
    "large",
    "nlvr",
    "retrieval",
    "shared",
    "small",
    "tiny",
    "vqa",
]

_HOMES = {
    **dict.fromkeys(("albef", "clip"), "baselines"),
    **dict.fromkeys(("captioner", "filter_", "nlvr", "retrieval", "shared", "vqa"), "finetune"),
    **dict.fromkeys(("base", "large", "small", "tiny"), "pretrain"),
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"openblip.recipes.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'openblip.recipes' has no attribute {name!r}")
