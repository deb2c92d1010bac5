"""The paths that a user means by a pattern or a range."""

import re
from pathlib import Path

from openblip.errors import DataError

_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")


def matching_paths(source: str) -> list[Path]:
    """The path of this name, or else those of a pattern or a range, sorted; none if none is there.

    Args:
        source: a path, a pattern such as `shards/*.tar`, or a range such as
            `shards/{00000..00041}.tar`.

    Raises:
        DataError: a path of a range does not exist.
    """
    path = Path(source)
    if path.exists():
        return [path]
    if braces := _BRACES.search(source):
        first, last = braces[1], braces[2]
        numbers = (f"{n:0{len(first)}d}" for n in range(int(first), int(last) + 1))
        found = [Path(source.replace(braces[0], number, 1)) for number in numbers]
        if missing := [path for path in found if not path.exists()]:
            raise DataError(f"{source}: {missing[0]} does not exist ({len(missing)} are missing)")
        return found
    if any(mark in source for mark in "*?["):
        anchor = Path(path.anchor or ".")
        pattern = str(path.relative_to(path.anchor)) if path.anchor else source
        return sorted(anchor.glob(pattern), key=str)
    return []
