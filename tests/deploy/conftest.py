"""The small models of the tests of inference, and one of them exported, for all tests here."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jaxtyping
import pytest

from openblip.inference.blip import Blip
from openblip.inference.export import Exported, export

from ..inference.conftest import blip, images, pictures, tokenizer, vqa

__all__ = ["blip", "images", "pictures", "tokenizer", "vqa"]


@pytest.fixture(scope="session")
def exported(blip: Blip, made_once: Callable[..., Any]) -> Exported:
    """A pre-trained model, with all heads, for ONNX Runtime; the same one for all rooms."""
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name, reason="the extra `export` is not installed")

    def make(folder: Path) -> Exported:
        before = jaxtyping.config.jaxtyping_disable
        jaxtyping.config.update("jaxtyping_disable", True)
        try:
            return export(blip, folder / "pretrained")
        finally:
            jaxtyping.config.update("jaxtyping_disable", before)

    return made_once("exported", make)


@pytest.fixture(autouse=True)
def _shapes_are_not_checked() -> Iterator[None]:
    """The checks of shapes count the axes of tensors that have no size yet."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)
