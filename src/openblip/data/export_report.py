"""What an export wrote and left out."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from openblip.data.report import Example
from openblip.data.views import CaptionView
from openblip.progress import duration


@dataclass
class SplitCounts:
    """What became of one split."""

    num_images: int = 0
    """Images that were written."""
    num_texts: dict[str, int] = field(default_factory=dict)
    """Texts that were written, by source."""
    rejected: dict[str, dict[str, int]] = field(default_factory=dict)
    """Texts that the view rejects, by source and reason."""
    num_without_text: int = 0
    """Images that the view leaves no text of; they are left out."""


@dataclass
class ExportReport:
    """What an export wrote, from what, and what it left out; stored as `export.json`."""

    table: str
    """Address of the table."""
    version: int
    """Version of the table that was read."""
    format: str
    """One of `FORMATS`."""
    view: CaptionView
    """Which texts were to be exported; its split is the first of several."""
    num_images: int = 0
    """Images that were written."""
    num_texts: dict[str, int] = field(default_factory=dict)
    """Texts that were written, by source."""
    splits: dict[str, SplitCounts] = field(default_factory=dict)
    """The same and what was rejected, by split."""
    num_without_text: int = 0
    """Images of the splits that the view leaves no text of; they are left out."""
    num_unreadable: int = 0
    """Images that have texts but cannot be read; they are left out."""
    unreadable: list[Example] = field(default_factory=list)
    """The first few of them."""
    seconds: float = 0.0
    """Time that it took."""
    table_metadata: dict[str, Any] = field(default_factory=dict)
    """What is stored with the table, such as the settings of CapFilt and the fingerprints of
    captioner and filter."""

    @property
    def rejected(self) -> dict[str, int]:
        """Texts that the view rejects, by reason."""
        counts: Counter[str] = Counter()
        for split in self.splits.values():
            for reasons in split.rejected.values():
                counts.update(reasons)
        return dict(counts)

    def to_text(self) -> str:
        """The report for people, several lines."""
        texts = ", ".join(f"{count:,} {source}" for source, count in self.num_texts.items())
        lines = [
            f"{self.num_images:,} images with {texts or 'no'} texts exported from {self.table} "
            f"as {self.format} in {duration(self.seconds)}"
        ]
        if self.rejected:
            reasons = (f"{count:,} {reason}" for reason, count in self.rejected.items())
            lines.append(f"rejected texts: {', '.join(reasons)}")
        if self.num_without_text:
            lines.append(f"left out, no text admitted: {self.num_without_text:,}")
        if self.num_unreadable:
            lines.append(f"left out, image unreadable: {self.num_unreadable:,}")
            lines += [f"  {example.where}: {example.detail}" for example in self.unreadable]
        return "\n".join(lines)
