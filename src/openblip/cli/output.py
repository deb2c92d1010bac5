"""How commands print results: aligned tables for people, JSON for programs."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from openblip.atomic import check_output, is_stream
from openblip.errors import RecipeError


def check_outputs(paths: Mapping[str, Path | None], *, are_folders: bool = False) -> None:
    """Nothing, if a command can write all that it was asked to: asked before its work begins.

    Args:
        paths: by the flag that names them; None was not asked for.
        are_folders: whether they are to be folders.

    Raises:
        UnwritableError: one cannot be written; names the flag.
        RecipeError: two are the same.
    """
    flags: dict[Path, str] = {}
    for flag, path in paths.items():
        if path is None:
            continue
        check_output(path, flag, is_folder=are_folders)
        other = flags.setdefault(path.resolve(), flag)
        if other != flag and not is_stream(path):
            raise RecipeError(f"{other} and {flag} are the same file, {path}: give two names")


def print_json(value: object) -> None:
    """One line of JSON on standard output."""
    print(json.dumps(value, ensure_ascii=False))


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns as wide as their widest cell; the first flush left, the others flush right."""
    widths = [max(len(row[place]) for row in [header, *rows]) for place in range(len(header))]
    for row in [header, *rows]:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        print("  ".join(cells).rstrip())
