"""How commands print results: aligned tables for people, JSON for programs."""

import json
import os
import sys
from collections.abc import Sequence


def announce(prog: str) -> None:
    """Say on standard error that a command begins, before it imports or reads anything heavy.

    Of the processes that torchrun starts, the first one says it.
    """
    if os.environ.get("RANK", "0") == "0":
        print(f"{prog}: loading ...", file=sys.stderr, flush=True)


def print_each(name: str, columns: Sequence[str]) -> None:
    """A line about one of many images, its columns divided by tabs, written at once."""
    plain = [" ".join(column.split()) for column in (name, *columns)]
    print("\t".join(plain), flush=True)


def end_of_each(prog: str, done: int, failed: int, interrupted: bool) -> int:
    """The exit code of a command over many images, whose last line says how many there were."""
    print(f"{prog}: {done:,} images, {failed:,} failed", file=sys.stderr)
    if interrupted:
        return 130
    return 1 if failed else 0


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
