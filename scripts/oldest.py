"""Prints the oldest versions that pyproject.toml allows, as pip's constraints: `make test-oldest`.

The lower bounds there are the single source: what a bound names is what is installed, so that a
bound that is no release, or two bounds that exclude each other, fail at once.
"""

import re
import sys
import tomllib
from pathlib import Path

REQUIREMENT = re.compile(r"(?P<name>[\w.-]+)(?:\[[\w,]+\])?>=(?P<bound>[\d.]+)")


def oldest(project: dict) -> dict[str, str]:
    """Package name to its lower bound, over the dependencies and every extra."""
    extras = project["optional-dependencies"].values()
    bounds: dict[str, str] = {}
    for requirement in [*project["dependencies"], *(each for extra in extras for each in extra)]:
        match = REQUIREMENT.fullmatch(requirement)
        if match is None:
            raise SystemExit(f"pyproject.toml: {requirement!r} names no lower bound alone")
        name, bound = match["name"], match["bound"]
        if bounds.setdefault(name, bound) != bound:
            raise SystemExit(f"pyproject.toml: {name} has two bounds: {bounds[name]} and {bound}")
    return bounds


if __name__ == "__main__":
    path = Path(__file__).parent.parent / "pyproject.toml"
    project = tomllib.loads(path.read_text(encoding="utf-8"))["project"]
    sys.stdout.writelines(f"{name}=={bound}\n" for name, bound in oldest(project).items())
