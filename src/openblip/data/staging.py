"""Columns that stand in a table and are not shown: made ready before their change, or put away.

A change makes its columns visible in one step, a renaming. Whoever is killed on the way leaves
columns that nobody sees; their names tell when the change began, so that only those of a change
that must be dead are removed, never those of another process that still works.
"""

import re
import time
import uuid
from collections.abc import Sequence

LEFTOVER_SECONDS = 3600.0
"""A change that began so long ago is dead; it takes seconds, and clocks differ by less."""
_HIDDEN = re.compile(r"__(?:staged|replaced)_(\d+)_[0-9a-f]{8}$")


class Staging:
    """The hidden names of one change: of new columns, and of the old ones that they replace."""

    def __init__(self, names: Sequence[str], existing: Sequence[str]) -> None:
        """Draws names that no other change has.

        Args:
            names: of the new columns.
            existing: which of them the table has already.
        """
        change = f"{int(time.time())}_{uuid.uuid4().hex[:8]}"
        self.names, self.existing = list(names), list(existing)
        self.staged = [f"{name}__staged_{change}" for name in names]
        self.replaced = [f"{name}__replaced_{change}" for name in existing]

    def renames(self) -> list[dict[str, str]]:
        """What makes the new columns visible, for Lance's `alter_columns`."""
        away = zip(self.existing, self.replaced, strict=True)
        into = zip(self.staged, self.names, strict=True)
        return [{"path": path, "name": name} for path, name in [*away, *into]]

    def is_visible(self, columns: set[str]) -> bool:
        """Whether a table with these columns has been changed by `renames`."""
        return columns.isdisjoint(self.staged) and columns.issuperset(self.names + self.replaced)


def is_hidden(column: str) -> bool:
    """Whether a column is not visible yet, or no more."""
    return _HIDDEN.search(column) is not None


def is_leftover(column: str) -> bool:
    """Whether a column is hidden and its change is dead."""
    found = _HIDDEN.search(column)
    return found is not None and time.time() - int(found[1]) > LEFTOVER_SECONDS
