"""Metadata for programs that guess the type of a field from the first rows that have it."""

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from openblip.data.importers.source import META_FIELD
from openblip.data.text import json_text

_NUMBERS = ({"int", "float"}, {"list of int", "list of float"})
_LARGEST = 1 << 63
_MIXED = "mixed"


class MetaFields:
    """Which fields of metadata are of one type in all rows of an export.

    These stand beside the others; the rest becomes a text, which is of one type whatever it says.
    """

    def __init__(self) -> None:
        """Knows of no row yet."""
        self._kinds: dict[str, set[str]] = defaultdict(set)

    def add(self, meta: Mapping[str, Any]) -> None:
        """Takes note of a row."""
        for name, value in meta.items():
            if value is not None:
                self._kinds[name].add(_kind(value))

    def typed(self, meta: Mapping[str, Any]) -> dict[str, Any]:
        """The fields of a row that was added, and the rest as JSON; one that is null is absent."""
        known = {name: value for name, value in meta.items() if value is not None}
        rest = {name: known.pop(name) for name in list(known) if not self._is_plain(name)}
        fields = {name: self._number(name, value) for name, value in known.items()}
        return fields | ({META_FIELD: json_text(rest)} if rest else {})

    def _is_plain(self, name: str) -> bool:
        kinds = self._kinds[name]
        is_one = len(kinds) == 1 and _MIXED not in kinds
        return name != META_FIELD and (is_one or kinds in _NUMBERS)

    def _number(self, name: str, value: Any) -> Any:
        if self._kinds[name].isdisjoint(("float", "list of float")):
            return value
        return [float(item) for item in value] if isinstance(value, list) else float(value)


def _kind(value: Any) -> str:
    if isinstance(value, list):
        kinds = {_kind(item) for item in value}
        kind = "float" if kinds == _NUMBERS[0] else kinds.pop() if len(kinds) == 1 else _MIXED
        is_plain = kind != _MIXED and not kind.startswith("list")
        return f"list of {kind}" if is_plain else _MIXED
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        return "int" if -_LARGEST <= value < _LARGEST else _MIXED
    return {str: "text", float: "float"}.get(type(value), _MIXED)
