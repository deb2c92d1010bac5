"""Ways in which a file, a value or a column goes wrong; every choice is a `random.Random`'s."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa

ODD_TEXTS = (
    "",
    " ",
    "\n",
    "\ufeff",
    "\x1b[31mred\x1b[0m",
    "n\u00e4\u00efve \u2603 \U0001f600",
    "\ud800",
    "\u202e\u200b",
    "a" * 3000,
    "../../etc/passwd",
    "s3://bucket/key",
    "https://example.com/x.jpg",
    "=1+1",
    "null",
    "NaN",
)
ODD_NUMBERS = (0, -1, -3, 1, 2**31, 2**63, -(2**63), 10**30, 0.5, -0.5, 1e308, 1e-320)
_ODD_VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    float("nan"),
    float("inf"),
    [],
    {},
    [None],
    [[]],
    {"": None},
    *ODD_NUMBERS,
    *ODD_TEXTS,
)


def odd_value(random: Random) -> Any:
    """A value where another was expected."""
    if random.random() < 0.05:
        deep: Any = 1
        for _ in range(random.choice((20, 500, 3000))):
            deep = [deep] if random.random() < 0.5 else {"a": deep}
        return deep
    return random.choice(_ODD_VALUES)


def damaged_value(random: Random, value: Any) -> Any:
    """The value with one part of it, however deep, replaced, removed, repeated or renamed."""
    places = list(_places(value, ()))
    if not places:
        return odd_value(random)
    *path, last = random.choice(places)
    inner = value
    for step in path:
        inner = inner[step]
    how = random.randrange(4)
    if how == 0:
        del inner[last]
    elif how == 1 and isinstance(inner, dict):
        inner[random.choice((*ODD_TEXTS[:9], f"{last}s"))] = inner.pop(last)
    elif how == 1:
        inner.append(inner[last])
    else:
        inner[last] = odd_value(random)
    return value


def _places(value: Any, path: tuple[Any, ...]) -> Any:
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in list(items):
        yield (*path, key)
        if isinstance(item, dict | list):
            yield from _places(item, (*path, key))


def dumped(value: Any) -> str:
    """JSON, as far as Python goes: what is nested deeper is written by hand."""
    try:
        return json.dumps(value, ensure_ascii=True)
    except (RecursionError, ValueError):
        return "[" * 5000 + "]" * 5000


def damaged_bytes(random: Random, content: bytes) -> bytes:
    """The content with some of it flipped, cut, doubled, or put into another encoding."""
    if not content:
        return b"\0"
    at = random.randrange(len(content))
    edits: tuple[Callable[[], bytes], ...] = (
        lambda: content[:at],
        lambda: content[at:],
        lambda: b"",
        lambda: _flipped(random, content, 1),
        lambda: _flipped(random, content, 20),
        lambda: content[:at] + b"\0" * 50 + content[at:],
        lambda: content[:at] + bytes(random.randrange(256) for _ in range(30)) + content[at:],
        lambda: content + content,
        lambda: b"\xef\xbb\xbf" + content,
        lambda: b"\xff\xfe" + content.decode("latin-1").encode("utf-16-le"),
        lambda: content.replace(b"\n", b"\r"),
        lambda: content.replace(b'"', b"'"),
        lambda: b"<!DOCTYPE html><html><body>404</body></html>",
        lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
        lambda: b"[" * 5000,
        lambda: bytes(random.randrange(256) for _ in range(2000)),
    )
    return random.choice(edits)()


def _flipped(random: Random, content: bytes, count: int) -> bytes:
    changed = bytearray(content)
    for _ in range(count):
        changed[random.randrange(len(changed))] ^= 1 << random.randrange(8)
    return bytes(changed)


def put_odd_file(random: Random, path: Path, with_pipes: bool = True) -> None:
    """Something that is no ordinary file, where one was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        path.rmdir()
    path.unlink(missing_ok=True)
    kind = random.choice(("folder", "pipe", "zero", "loop", "gone", "dangling", "null", "empty"))
    if kind == "pipe" and not with_pipes:
        kind = "zero"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "empty":
        path.touch()
    elif kind != "gone":
        target = {"zero": "/dev/zero", "loop": path.name, "dangling": "nothing", "null": os.devnull}
        path.symlink_to(target[kind])


def damaged_column(random: Random, name: str, column: pa.Array) -> pa.Array:
    """A column of the same length with other values, or of another type."""
    size = len(column)
    values = column.to_pylist()
    how = random.randrange(7)
    if how == 0:
        return pa.array(range(size), pa.int64())
    if how == 1:
        return pa.nulls(size, column.type)
    if how == 2:
        return pa.nulls(size)
    if how == 3:
        return pa.array([float("nan")] * size)
    if how == 4 and pa.types.is_list(column.type):
        return pa.array([[None] if v else v for v in values], column.type)
    if how == 5 and pa.types.is_list(column.type):
        # Another number of values than of texts, or numbers that are none.
        odd = float("nan") if pa.types.is_floating(column.type.value_type) else ""
        return pa.array([(v or []) + [odd] * random.randrange(3) for v in values], column.type)
    if pa.types.is_string(column.type):
        odd_texts = [t for t in ODD_TEXTS if "\ud800" not in t] + ["[]", "3", '{"questions": 7}']
        odd_texts += ['{"questions": [{}]}', '{"pairs": [[]], "label": {}}', "[" * 2000]
        where = random.randrange(size)
        return pa.array(
            [random.choice(odd_texts) if n == where else v for n, v in enumerate(values)]
        )
    return pa.array([str(v)[:20] for v in values])
