"""What an import took over, and what it left out and why."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any, Self

from openblip.data.text import encodable
from openblip.progress import duration

_KEY_PREFIX = "import/"
_MAX_EXAMPLES = 10


class Reason(StrEnum):
    """Why something of a source is not in the table, or is remarkable."""

    BAD_RECORD = "bad record"
    DUPLICATE_ID = "duplicate id"
    IMAGE_TOO_LARGE = "image too large"
    MISSING_CAPTION = "missing caption"
    MISSING_IMAGE = "missing image"
    NO_CAPTIONS = "imported without captions"
    """The source says outright that there are none; no view admits the row."""
    TRUNCATED_ARCHIVE = "truncated archive"
    UNREADABLE_IMAGE = "unreadable image"
    UNSAFE_MEMBER = "unsafe archive member"
    UNSAFE_PATH = "unsafe path"


@dataclass(frozen=True)
class Example:
    """One thing that was left out."""

    where: str
    """File, and member or line."""
    detail: str
    """What is wrong with it."""


@dataclass
class ImportReport:
    """The outcome of one import, over all the times that it was interrupted and restarted."""

    source: str
    """Where the pairs came from."""
    uri: str
    """The table they went to."""
    format: str
    """How the source was read."""
    num_rows: int = 0
    """Rows that were imported."""
    num_captions: int = 0
    """Their texts."""
    splits: dict[str, int] = field(default_factory=dict)
    """Imported rows of each split."""
    skipped: dict[str, int] = field(default_factory=dict)
    """How many things were left out, by reason."""
    noted: dict[str, int] = field(default_factory=dict)
    """How many imported rows are remarkable, by reason."""
    examples: dict[str, list[Example]] = field(default_factory=dict)
    """The first few of each reason."""
    seconds: float = 0.0
    """Time spent, pauses between restarts not counted."""
    complete: bool = False
    """Whether the source was read to its end."""

    def __post_init__(self) -> None:
        # Names of files may be no Unicode; what is shown and stored must be.
        self.source, self.uri = encodable(self.source), encodable(self.uri)

    @property
    def num_skipped(self) -> int:
        """Number of things that were left out, for whatever reason."""
        return sum(self.skipped.values())

    def count_row(self, split: str, num_captions: int) -> None:
        """Counts an imported row."""
        self.num_rows += 1
        self.num_captions += num_captions
        self.splits[split] = self.splits.get(split, 0) + 1
        if num_captions == 0:
            self.noted[Reason.NO_CAPTIONS.value] = self.noted.get(Reason.NO_CAPTIONS.value, 0) + 1

    def skip(self, reason: Reason, where: str, detail: str) -> None:
        """Counts something that was left out; `detail` may begin with the place, as errors do."""
        self.skipped[reason.value] = self.skipped.get(reason.value, 0) + 1
        several = self.examples.setdefault(reason.value, [])
        if len(several) < _MAX_EXAMPLES:
            said = detail.removeprefix(f"{where}: ")[:500]
            several.append(Example(encodable(where), encodable(said)))

    def to_text(self) -> str:
        """The report for people, several lines."""
        state = "" if self.complete else " (not yet to its end)"
        lines = [
            f"{self.num_rows:,} rows with {self.num_captions:,} captions imported from "
            f"{self.source} ({self.format}){state} into {self.uri} in {duration(self.seconds)}"
        ]
        if self.splits:
            lines.append("splits: " + ", ".join(f"{n} {c:,}" for n, c in self.splits.items()))
        if self.skipped:
            lines.append(f"left out: {self.num_skipped:,}")
            lines += self._reasons()
        if self.noted:
            lines += [f"{reason}: {count:,}" for reason, count in self.noted.items()]
        return "\n".join(lines)

    def to_json(self) -> str:
        """The report as a JSON object; `from_json` reads it back."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The report that `to_json` wrote."""
        return cls.from_dict(json.loads(text))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The report of the plain values that `dataclasses.asdict` gives."""
        examples = {
            reason: [Example(**example) for example in several]
            for reason, several in values["examples"].items()
        }
        return cls(**{**values, "examples": examples})

    def _reasons(self) -> list[str]:
        lines = []
        for reason, count in sorted(self.skipped.items(), key=lambda item: -item[1]):
            several = self.examples[reason]
            lines.append(f"  {reason}: {count:,}")
            lines += [f"    {example.where}: {example.detail}" for example in several]
            if count > len(several):
                lines.append(f"    and {count - len(several):,} more")
        return lines


def metadata_key(fingerprint: str) -> str:
    """The entry of a table's metadata that holds the state of an import."""
    return f"{_KEY_PREFIX}{fingerprint}"


def is_import_state(key: str) -> bool:
    """Whether an entry of a table's metadata holds the state of an import."""
    return key.startswith(_KEY_PREFIX)
