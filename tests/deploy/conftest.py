"""The small models of the tests of inference, and one of them exported, for all tests here."""

from collections.abc import Iterator

import jaxtyping
import pytest

from openblip.inference.blip import Blip
from openblip.inference.export import Exported, export

from ..inference.conftest import blip, images, pictures, tokenizer, vqa

__all__ = ["blip", "images", "pictures", "tokenizer", "vqa"]


_EXPORTED: list[Exported] = []


@pytest.fixture(scope="session")
def exported(blip: Blip, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """A pre-trained model, with all heads, for ONNX Runtime."""
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name, reason="the extra `export` is not installed")
    # Tests of other rooms import this fixture, and the model is always the same one.
    if not _EXPORTED:
        before = jaxtyping.config.jaxtyping_disable
        jaxtyping.config.update("jaxtyping_disable", True)
        _EXPORTED.append(export(blip, tmp_path_factory.mktemp("exported") / "pretrained"))
        jaxtyping.config.update("jaxtyping_disable", before)
    return _EXPORTED[0]


@pytest.fixture(autouse=True)
def _shapes_are_not_checked() -> Iterator[None]:
    """The checks of shapes count the axes of tensors that have no size yet."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)
