"""A model that says the same of nearly everything: its figures need to be read with that."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

_SHARE = 0.95
# Of few examples the right answers may be all the same.
_LEAST = 10
_LONGEST = 60


@dataclass(frozen=True)
class Dominant:
    """What a model says of nearly all examples."""

    text: str
    count: int
    """Examples of which it says so."""
    of: int
    """Examples."""

    def __str__(self) -> str:
        """One line for people."""
        text = self.text if len(self.text) <= _LONGEST else f"{self.text[:_LONGEST]}..."
        return f"nearly all results are the same: {self.count:,} of {self.of:,} are {text!r}"


def dominant(texts: Iterable[str]) -> Dominant | None:
    """What at least 95 % of ten or more results say; None where there is no such text."""
    counts = Counter(texts)
    total = counts.total()
    if total < _LEAST:
        return None
    ((text, count),) = counts.most_common(1)
    return Dominant(text, count, total) if count >= _SHARE * total else None
