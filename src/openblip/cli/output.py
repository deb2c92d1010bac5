"""How commands print results: aligned tables for people, JSON for programs."""

import json
import os
import re
import sys
import unicodedata
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from openblip.runtime.atomic import check_output, is_stream
from openblip.runtime.documents import with_nulls
from openblip.runtime.errors import DataError, RecipeError, UnwritableError, one_line

if TYPE_CHECKING:
    from openblip.inference.many_images import ImageCounts
    from openblip.metrics.accuracy import Dominant

_HEAD_BYTES = 8192


def announce(prog: str) -> None:
    """Say on standard error that a command begins, before it imports or reads anything heavy.

    Of the processes that torchrun starts, the first one says it.
    """
    if is_first_process():
        print(f"{prog}: loading ...", file=sys.stderr, flush=True)


def is_first_process() -> bool:
    """Whether this is the only process of a command, or the first of those that torchrun starts."""
    # RANK alone may be the number of a task in somebody's array of jobs, each with its own share.
    return "MASTER_ADDR" not in os.environ or os.environ.get("RANK", "0") == "0"


def check_outputs(paths: Mapping[str, Path | None], *, are_folders: bool = False) -> None:
    """Nothing, if a command can write all that it was asked to: asked before its work begins.

    Args:
        paths: by the flag that names them; None was not asked for.
        are_folders: whether they are to be folders.

    Raises:
        UnwritableError: one cannot be written, or what is there is no text, such as an image or a
            model, which a text shall not replace; names the flag.
        RecipeError: two are the same.
    """
    flags: dict[Path, str] = {}
    for flag, path in paths.items():
        if path is None:
            continue
        check_output(path, flag, is_folder=are_folders)
        if not are_folders and path.is_file() and is_binary(path):
            raise UnwritableError(
                f"{flag} {path}: is there, and no text that could be an earlier result; give "
                "another name"
            )
        other = flags.setdefault(path.resolve(), flag)
        if other != flag and not is_stream(path):
            raise RecipeError(f"{other} and {flag} are the same file, {path}: give two names")


def check_texts(texts: Sequence[str], what: str) -> None:
    """Nothing, if there are texts behind an image, and none of them is blank.

    Raises:
        DataError: says what each of them is.
    """
    if not texts:
        raise DataError(f"no {what} was given; put one or more behind the image")
    if not all(text.strip() for text in texts):
        raise DataError(f"a {what} is empty; leave it out, or write one")


def is_binary(path: Path) -> bool:
    """Whether a file that is there holds bytes that no text has."""
    with path.open("rb") as stream:
        return b"\0" in stream.read(_HEAD_BYTES)


# Control characters, halves of surrogate pairs, and what turns the direction of all that follows.
_UNSAFE = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    """A name, or another text of somebody else, without what would change a terminal.

    All else stays as it is: scripts need their spaces and joiners.
    """
    return _UNSAFE.sub("?", text)


def print_each(name: str, columns: Sequence[str]) -> None:
    """A line about one of many images, its columns divided by tabs, written at once."""
    plain = [" ".join(column.split()) for column in (name, *columns)]
    print("\t".join(map(printable, plain)), flush=True)


def end_of_each(prog: str, counts: "ImageCounts") -> int:
    """The exit code of a command over many images, whose last line says how many there were."""
    print(f"{prog}: {counts.done:,} images, {counts.failed:,} failed", file=sys.stderr)
    if counts.interrupted:
        return 130
    return 1 if counts.failed else 0


def print_json(value: object) -> None:
    """One line of JSON on standard output; escaped where the output's encoding lacks a letter.

    A number that is none becomes null: JSON has no NaN.
    """
    plain = with_nulls(value)
    text = json.dumps(plain, ensure_ascii=False, allow_nan=False)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeError:
        text = json.dumps(plain, allow_nan=False)
    print(text)


def dominant_json(found: "Dominant | None") -> dict[str, object]:
    """What a model says of nearly everything, or null, as a field of a result."""
    return {"dominant": None if found is None else asdict(found)}


def complain(prog: str, message: object) -> None:
    """One line on standard error, in the name of a command."""
    print(f"{prog}: {one_line(message)}", file=sys.stderr)


def replace_what_cannot_be_shown() -> None:
    """From now on a letter that the terminal's encoding lacks is a question mark, no error."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError):  # a caller's own stream
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]


def print_dominant(found: "Dominant | None") -> None:
    """Where a model says the same of nearly everything, that comes first."""
    if found is not None:
        print(found)


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns as wide as their widest cell; the first flush left, the others flush right."""
    widths = [max(_width(row[place]) for row in [header, *rows]) for place in range(len(header))]
    for row in [header, *rows]:
        gaps = [" " * (most - _width(cell)) for cell, most in zip(row, widths, strict=True)]
        cells = [row[0] + gaps[0], *map(str.__add__, gaps[1:], row[1:])]
        print("  ".join(cells).rstrip())


def _width(text: str) -> int:
    """Places of a terminal that a text takes: two a Han character, none a mark above a letter."""
    wide = sum(unicodedata.east_asian_width(character) in "WF" for character in text)
    return len(text) + wide - sum(unicodedata.category(character) == "Mn" for character in text)
