"""The oldest versions are the lower bounds of pyproject.toml, each of them said once."""

import importlib.util
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def oldest() -> Callable[[dict], dict[str, str]]:
    spec = importlib.util.spec_from_file_location("oldest", ROOT / "scripts/oldest.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.oldest


def project(*core: str, groups: dict[str, list] | None = None, **extras: list[str]) -> dict:
    own = {"dependencies": list(core), "optional-dependencies": extras}
    return {"project": own, "dependency-groups": groups or {}}


def test_every_requirement_of_ours_has_a_lower_bound(oldest) -> None:
    ours = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    found = set(oldest(ours))
    assert found >= {"torch", "pylance", "transformers", "pillow", "pytest", "ruff", "mkdocs"}


def test_groups_count_and_what_they_take_in_counts_once(oldest) -> None:
    groups = {"test": ["openblip[ray]", "pytest>=9.0"], "lint": [{"include-group": "test"}]}
    ours = project("torch>=2.8", ray=["ray>=2.50"], groups=groups)
    assert oldest(ours) == {"torch": "2.8", "ray": "2.50", "pytest": "9.0"}


def test_bounds_of_extras_count_and_what_a_package_is_asked_for_does_not(oldest) -> None:
    ours = project("torch>=2.8", test=["moto[s3,server]>=5.1", "torch>=2.8"])
    assert oldest(ours) == {"torch": "2.8", "moto": "5.1"}


@pytest.mark.parametrize("requirement", ["torch", "torch<3", "torch>=2.8,<3"])
def test_a_requirement_without_a_lower_bound_alone_is_an_error(oldest, requirement: str) -> None:
    with pytest.raises(SystemExit, match="names no lower bound alone"):
        oldest(project(requirement))


def test_two_bounds_of_a_package_are_an_error(oldest) -> None:
    with pytest.raises(SystemExit, match=r"torch has two bounds: 2\.8 and 2\.9"):
        oldest(project("torch>=2.8", test=["torch>=2.9"]))
