"""Files that people write, read whole: bounded, and with one line for whatever is wrong with them.

YAML is read here alone, so that every command reads it alike.

Text that UTF-8 can hold; tables of Markdown.
"""

import json
import math
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openblip.runtime.errors import DataError, OpenBlipError, one_line

if TYPE_CHECKING:
    import yaml

MOST_BYTES = 1 << 30
"""A larger file is refused unread: nobody has written it."""
_MOST_NODES = 100_000
_TOO_DEEP = "it is nested too deep"


def read_text(
    path: Path, error: type[OpenBlipError] = DataError, most_bytes: int = MOST_BYTES
) -> str:
    """The text of a regular file in UTF-8, without the mark that some programs put before it.

    Args:
        path: of the file; a pipe would block, and a device need not end.
        error: what is raised.
        most_bytes: a larger file is refused.

    Raises:
        error: the file is missing, too large, no regular file, or not in UTF-8.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise error(f"{path} is no regular file")
        if status.st_size > most_bytes:
            raise error(f"{path} has {status.st_size:,} bytes, more than {most_bytes:,}")
        # A file of /proc has no size before it is read.
        with path.open("rb") as file:
            content = file.read(most_bytes)
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as why:
        line = content[: why.start].count(b"\n") + 1
        byte = f"byte 0x{content[why.start]:02x}"
        raise error(f"{path}, line {line}: {byte} is not UTF-8: save the file as UTF-8") from why
    except (OSError, ValueError) as why:
        raise error(f"{path}: cannot be read ({getattr(why, 'strerror', None) or why})") from why


def read_json(path: Path, error: type[OpenBlipError] = DataError) -> Any:
    """The value of a JSON file.

    Raises:
        error: as `read_text`, or it is no JSON.
    """
    text = read_text(path, error)
    try:
        return json.loads(text)
    except RecursionError as why:
        raise error(f"{path}: cannot be read as JSON ({_TOO_DEEP})") from why
    except ValueError as why:
        raise error(f"{path}: cannot be read as JSON ({why})") from why


def read_yaml(path: Path, error: type[OpenBlipError] = DataError) -> tuple[Any, dict[str, int]]:
    """The value of a YAML file, and the line of each of its fields by its name with dots.

    Raises:
        error: as `read_text`; it is no YAML, or has what plain values do not: tags, keys that are
            no texts, anchors within themselves, more than 100,000 values, a field twice.
    """
    import yaml

    text = read_text(path, error)
    try:
        # Composed first: nodes know their lines, and anchors within anchors can be counted before
        # anybody builds what they stand for.
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        lines: dict[str, int] = {}
        if root is not None:
            for name, line in _fields(root, "", (), [0]):
                if name in lines:
                    raise error(f"{path}: {name} is there twice, in lines {lines[name]} and {line}")
                lines[name] = line
        return yaml.safe_load(text), lines
    except RecursionError as why:
        raise error(f"{path}: cannot be read as YAML ({_TOO_DEEP})") from why
    # The constructors of dates, numbers and keys raise whatever Python does.
    except (yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError) as why:
        raise error(f"{path}: cannot be read as YAML ({one_line(why)})") from why


def _fields(
    node: "yaml.Node", name: str, above: tuple[int, ...], count: list[int]
) -> Iterator[tuple[str, int]]:
    """Names and lines of the fields below a node, each as often as it stands there.

    Raises:
        ValueError: an anchor holds itself, or anchors in anchors make too many values.
    """
    import yaml

    count[0] += 1
    if count[0] > _MOST_NODES:
        raise ValueError(f"it has more than {_MOST_NODES:,} values, anchors counted where they go")
    if id(node) in above:
        raise ValueError(f"line {node.start_mark.line + 1} holds itself")
    above = (*above, id(node))
    prefix = f"{name}." if name else ""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise ValueError(f"line {key.start_mark.line + 1}: a key is no text")
            yield f"{prefix}{key.value}", key.start_mark.line + 1
            yield from _fields(value, f"{prefix}{key.value}", above, count)
    elif isinstance(node, yaml.SequenceNode):
        for place, value in enumerate(node.value):
            yield f"{prefix}{place}", value.start_mark.line + 1
            yield from _fields(value, f"{prefix}{place}", above, count)


_HALF = re.compile(r"[\ud800-\udfff]")
# What `escaped` writes: of a byte that is no UTF-8, of another half, of a backslash before such.
_ESCAPE = re.compile(r"\\(x[89a-f][0-9a-f]|ud[89a-f][0-9a-f]{2}|x5c)")
_LIKE_ESCAPE = re.compile(rf"\\(?={_ESCAPE.pattern[2:]})")


def encodable(text: str) -> str:
    r"""`text` as UTF-8 can hold it; any other text stays as it is.

    A byte of a file name that is no UTF-8 becomes an escape such as `\xe9`, any other half of a
    surrogate pair one such as `\ud83d`, so that names that differ in these stay different.
    """
    return _HALF.sub(_as_escape, text)


def escaped(text: str) -> str:
    r"""`text` as UTF-8 can hold it, so that no two texts become one.

    As `encodable` gives it; but a backslash that is there already, and begins what looks like an
    escape, becomes one itself (`\x5c`). All others stay as they are.
    """
    return encodable(_LIKE_ESCAPE.sub(r"\\x5c", text))


def unescaped(text: str) -> str:
    """The text of which `escaped` made this one."""
    return _ESCAPE.sub(_meaning, text)


def json_text(value: object) -> str:
    """`value` as JSON that UTF-8 can hold: halves of surrogate pairs stay escapes."""
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "backslashreplace").decode()


def with_nulls(value: object) -> object:
    """`value` as JSON can hold it: a number that is none becomes null, since JSON has no NaN."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: with_nulls(item) for name, item in value.items()}
    return [with_nulls(item) for item in value] if isinstance(value, list | tuple) else value


def has_halves(text: str) -> bool:
    """Whether UTF-8 cannot hold `text`, because it has halves of surrogate pairs."""
    return _HALF.search(text) is not None


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose cells may hold anything; line breaks become spaces."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _meaning(escape: re.Match[str]) -> str:
    code = int(escape[1].lstrip("xu"), 16)
    is_byte = escape[1][0] == "x" and code >= 0x80
    return chr(code + 0xDC00 if is_byte else code)


def _as_escape(half: re.Match[str]) -> str:
    code = ord(half[0])
    return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"\\u{code:04x}"
