"""Small models whose attention is far from uniform."""

import importlib.util
import sys
from collections.abc import Callable
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from openblip.model import Med, MedConfig, TextConfig, VisionConfig

VISION = VisionConfig(image_size=32, patch_size=8, width=24, depth=3, heads=2)
TEXT = TextConfig(vocab_size=50, width=32, depth=3, heads=4, ffn_width=64, max_positions=20)
CONFIG = MedConfig(vision=VISION, text=TEXT, embed_dim=8)

MakeMed = Callable[..., Med]


@pytest.fixture
def config() -> MedConfig:
    return CONFIG


@pytest.fixture
def without_type_checks(monkeypatch: pytest.MonkeyPatch) -> Callable[[ModuleType], ModuleType]:
    """Gives a module as users have it: types of arguments are not checked before its own checks."""

    def load(module: ModuleType) -> ModuleType:
        name = f"{module.__name__.rpartition('.')[2]}_without_type_checks"
        spec = importlib.util.spec_from_file_location(name, module.__file__)
        assert spec is not None
        assert spec.loader is not None
        loaded = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, loaded)
        spec.loader.exec_module(loaded)
        return loaded

    return load


@pytest.fixture
def redraw() -> Callable[[nn.Module], None]:
    """Draws all weights anew, larger than a model begins with."""

    def draw(module: nn.Module) -> None:
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))

    return draw


@pytest.fixture
def make_med(redraw: Callable[[nn.Module], None]) -> MakeMed:
    """Makes a model in evaluation mode; arguments change its vision, text or own settings."""

    def make(vision: dict[str, Any] | None = None, **changes: Any) -> Med:
        text = {
            k: changes.pop(k) for k in ("sharing", "dropout", "checkpoint_layers") if k in changes
        }
        config = replace(
            CONFIG, vision=replace(VISION, **(vision or {})), text=replace(TEXT, **text), **changes
        )
        med = Med(config)
        redraw(med)
        return med.eval()

    return make


@pytest.fixture
def med(make_med: MakeMed) -> Med:
    return make_med()


@pytest.fixture
def images() -> Tensor:
    """Three images."""
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def ids() -> Tensor:
    """Six texts of seven tokens."""
    return torch.randint(5, 50, (6, 7), generator=torch.Generator().manual_seed(2))


@pytest.fixture
def mask() -> Tensor:
    """Lengths of those texts; one has no padding, one has two tokens."""
    lengths = torch.tensor([7, 4, 2, 6, 3, 5])
    return torch.arange(7) < lengths[:, None]
