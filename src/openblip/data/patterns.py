"""The paths that a user means by a pattern or a range."""

import math
import re
from collections.abc import Iterator
from pathlib import Path

from openblip.errors import DataError

_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}|\{([^{},/]*(?:,[^{},/]*)+)\}")
_MARKS = re.compile(r"[*?\[]")
_MAX_PATHS = 1_000_000


def matching_paths(source: str) -> list[Path]:
    """The path of this name, or else those of a pattern or a range; none if none is there.

    Args:
        source: a path, a pattern such as `shards/*.tar`, or one with ranges or words in braces,
            such as `shards/{00000..00041}.tar` or `{train,val}-{0..9}.parquet`.

    Raises:
        DataError: a path that is named by braces does not exist, or they name too many.
    """
    if Path(source).exists():
        return [Path(source)]
    if not _BRACES.search(source):
        return _globbed(source) if _MARKS.search(source) else []
    if math.prod(map(_num_choices, _BRACES.finditer(source))) > _MAX_PATHS:
        raise DataError(f"{source} names more than {_MAX_PATHS:,} files: give it in parts")
    named = {
        name: _globbed(name) if _MARKS.search(name) else _there(name) for name in _each(source)
    }
    if missing := [name for name, paths in named.items() if not paths]:
        raise DataError(f"{source}: {missing[0]} does not exist ({len(missing)} are missing)")
    return list(dict.fromkeys(path for paths in named.values() for path in paths))


def _each(source: str) -> Iterator[str]:
    """What a source means, with one choice of each of its braces after the other."""
    braces = _BRACES.search(source)
    if braces is None:
        yield source
        return
    before, after = source[: braces.start()], source[braces.end() :]
    for choice in _choices(braces):
        for rest in _each(after):
            yield f"{before}{choice}{rest}"


def _choices(braces: re.Match[str]) -> list[str]:
    if braces[3] is not None:
        return braces[3].split(",")
    numbers = range(int(braces[1]), int(braces[2]) + 1)
    return [f"{number:0{len(braces[1])}d}" for number in numbers]


def _num_choices(braces: re.Match[str]) -> int:
    if braces[3] is not None:
        return braces[3].count(",") + 1
    return max(0, int(braces[2]) + 1 - int(braces[1]))


def _there(name: str) -> list[Path]:
    return [Path(name)] if Path(name).exists() else []


def _globbed(pattern: str) -> list[Path]:
    path = Path(pattern)
    anchor = Path(path.anchor or ".")
    below = str(path.relative_to(path.anchor)) if path.anchor else pattern
    try:
        return sorted(anchor.glob(below), key=str)
    except ValueError as error:
        raise DataError(f"{pattern} is no pattern ({error})") from error
