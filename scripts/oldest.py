"""Prints the oldest versions that pyproject.toml allows, as pip's constraints: `make test-oldest`.

The lower bounds there are the single source: what a bound names is what is installed, so that a
bound that is no release, or two bounds that exclude each other, fail at once.
"""

import re
import sys
import tomllib
from pathlib import Path

REQUIREMENT = re.compile(r"(?P<name>[\w.-]+)(?:\[[\w,]+\])?>=(?P<bound>[\d.]+)")
OWN_EXTRAS = re.compile(r"openblip\[[\w,]+\]")


def oldest(pyproject: dict) -> dict[str, str]:
    """Package name to its lower bound, over the dependencies, every extra and every group.

    An extra or a group may take others in: `openblip[ray]`, `{include-group = "test"}`.
    """
    project = pyproject["project"]
    lists = [project["dependencies"], *project["optional-dependencies"].values()]
    lists += pyproject["dependency-groups"].values()
    every = [each for own in lists for each in own if not isinstance(each, dict)]
    bounds: dict[str, str] = {}
    for requirement in (each for each in every if not OWN_EXTRAS.fullmatch(each)):
        match = REQUIREMENT.fullmatch(requirement)
        if match is None:
            raise SystemExit(f"pyproject.toml: {requirement!r} names no lower bound alone")
        name, bound = match["name"], match["bound"]
        if bounds.setdefault(name, bound) != bound:
            raise SystemExit(f"pyproject.toml: {name} has two bounds: {bounds[name]} and {bound}")
    return bounds


if __name__ == "__main__":
    path = Path(__file__).parent.parent / "pyproject.toml"
    bounds = oldest(tomllib.loads(path.read_text(encoding="utf-8")))
    sys.stdout.writelines(f"{name}=={bound}\n" for name, bound in bounds.items())
