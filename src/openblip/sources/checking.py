"""An entry of a source becomes a row, or is left out: the checks, and what the report counts.

Whoever imports, one process or many, decides about an entry here and nowhere else.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Self

from openblip.runtime.documents import escaped, has_halves
from openblip.runtime.errors import DataError
from openblip.sources.images import open_image
from openblip.sources.report import ImportReport, Reason
from openblip.sources.row_images import read_image_file
from openblip.sources.source import (
    SOURCES_FIELD,
    Entry,
    Found,
    Refused,
    SourceOptions,
    is_file,
)
from openblip.sources.splits import FileSplits, SourceRoot, SplitConflict, row_split
from openblip.table.rows import in_utf8
from openblip.table.table import PairRow

Store = Literal["bytes", "uri"]
Ids = Literal["key", "sha256"]
_DEFAULT_ORIGIN = "web"
_HUMAN_SOURCES = {"human", "reviewed"}


@dataclass(frozen=True, kw_only=True)
class ImportSettings:
    """What decides which rows an import makes of a source."""

    source: str
    format: str | None
    origin: str | None
    split: str | None
    store: Store
    ids: Ids
    options: SourceOptions
    without_captions: bool = False

    def fingerprint(self) -> str:
        """16 hex digits that tell this import from others into the same table."""
        decided = asdict(self) | {"origin": self.origin or _DEFAULT_ORIGIN}
        # Imports that were begun before there were these settings are known by what they had.
        if not self.without_captions:
            del decided["without_captions"]
        for name in ("columns", "encoding"):
            if decided["options"][name] is None:
                del decided["options"][name]
        values = json.dumps(decided, sort_keys=True, default=str)
        return hashlib.sha256(values.encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the report counts of an entry: a row, or something that was left out."""

    where: str
    num_records: int
    reason: str = ""
    """Why it was left out, a `Reason`; empty for a row."""
    detail: str = ""
    row_id: str = ""
    split: str = ""
    said_by: str = ""
    """Who said which split the row is in."""
    num_captions: int = 0
    notes: tuple[tuple[str, str, str], ...] = ()
    """What is remarkable about the row: reason, place and detail."""

    def count(self, report: ImportReport) -> None:
        """Adds it to a report."""
        if self.reason:
            report.skip(Reason(self.reason), self.where, self.detail, self.num_records)
            return
        report.count_row(self.split, self.num_captions, self.said_by, self.num_records)
        for reason, where, detail in self.notes:
            report.note(Reason(reason), where, detail)

    def known(self, again: bool, other_texts: Sequence[str] | None = None) -> "Outcome":
        """The outcome of the row if its id is in the table, or was met before in the source.

        Args:
            again: the source had been imported before, so that known ids are expected.
            other_texts: those of the source, if the row in the table has another content.
        """
        reason = Reason.ALREADY_IMPORTED if again else Reason.DUPLICATE_ID
        detail = f"id {self.row_id!r} is in the table"
        if other_texts is not None:
            reason = Reason.OTHER_CONTENT
            detail += " with another image, other texts or in another split"
            detail += f"; here: {_shown(other_texts)}"
            detail += f", {self.split}"
        return Outcome(self.where, self.num_records, reason.value, detail)

    def to_json(self) -> str:
        """Itself on one line."""
        return json.dumps([getattr(self, name) for name in self.__slots__])

    @classmethod
    def from_json(cls, line: str | bytes) -> Self:
        """What `to_json` wrote."""
        values = dict(zip(cls.__slots__, json.loads(line), strict=True))
        notes = tuple((reason, where, detail) for reason, where, detail in values.pop("notes"))
        return cls(**values, notes=notes)


@dataclass(frozen=True)
class Checked:
    """An entry that was looked at: its row, if it has one."""

    entry: Entry
    row: PairRow | None
    outcome: Outcome


@dataclass(frozen=True)
class Checks:
    """The checks of one import. Image by image, in many threads or processes at once."""

    settings: ImportSettings
    root: SourceRoot
    files: FileSplits
    """What the source says in all places of the splits of image files."""

    def check(self, entry: Entry) -> Checked:
        """The row of an entry, if its image decodes and it contradicts nothing."""
        refused, row, said_by = self._judged(entry)
        if refused is not None:
            outcome = Outcome(
                refused.where, entry.num_records, refused.reason.value, refused.detail
            )
            return Checked(entry, None, outcome)
        assert row is not None
        assert isinstance(entry, Found)
        return Checked(entry, row, _outcome(entry, row, said_by))

    def _judged(self, entry: Entry) -> tuple[Refused | None, PairRow | None, str]:
        if isinstance(entry, Refused):
            return entry, None, ""

        def refused(reason: Reason, detail: str) -> tuple[Refused, None, str]:
            return Refused(entry.where, entry.cursor, reason, detail), None, ""

        # What costs nothing comes first: only what passes is read and decoded.
        captions = [text.strip() for text in entry.captions if text.strip()]
        may_lack = entry.may_lack_captions or self.settings.without_captions
        if not captions and not may_lack:
            return refused(Reason.MISSING_CAPTION, "no text that is not blank")
        try:
            said = row_split(entry, self.root, self.settings.split)
            split, said_by = self.files.agreed(entry, *said)
        except SplitConflict as error:
            return refused(Reason.CONTRADICTION, str(error))
        except DataError as error:
            return refused(Reason.BAD_RECORD, str(error))
        if isinstance(entry.image, Path) and not is_file(entry.image):
            return refused(Reason.MISSING_IMAGE, f"there is no file {entry.image}")
        try:
            return None, self._row(entry, captions, split), said_by
        except DataError as error:
            return refused(_reason(error), str(error))

    def _row(self, entry: Found, captions: list[str], split: str) -> PairRow:
        is_file = isinstance(entry.image, Path)
        encoded = read_image_file(entry.image) if isinstance(entry.image, Path) else entry.image
        # Decoded whole, as no header tells that a file breaks off.
        width, height = open_image(encoded, entry.where).size
        # An exported row has the id that it has in a table.
        key = entry.key if SOURCES_FIELD in entry.meta else escaped(entry.key or "")
        use_key = key and self.settings.ids == "key"
        keep_bytes = self.settings.store == "bytes" or not is_file
        return PairRow(
            id=(key or "") if use_key else hashlib.sha256(encoded).hexdigest(),
            image=encoded if keep_bytes else None,
            image_uri=None if keep_bytes else str(entry.image),
            width=width,
            height=height,
            captions=captions,
            origin=self.settings.origin or _told_origin(entry.meta, captions),
            split=split,
            meta=entry.meta,
        )


def _shown(texts: Sequence[str]) -> str:
    """The first few texts, for a report."""
    shown = ", ".join(repr(text[:100]) for text in texts[:3])
    return (shown + (", ..." if len(texts) > 3 else "")) or "none"


def _outcome(entry: Found, row: PairRow, said_by: str) -> Outcome:
    notes = []
    if not row.captions:
        is_said = entry.may_lack_captions
        why = "the source says that there are none" if is_said else "there is no text of it"
        notes.append((Reason.NO_CAPTIONS.value, entry.where, why))
    if (other := _other_sources(row)) is not None:
        notes.append((Reason.OTHER_ORIGIN.value, entry.where, other))
    if damaged := [text for text in row.captions if has_halves(text)]:
        shown = f"stored as {in_utf8(damaged[0])!r}"
        notes.append((Reason.REPLACED_CHARACTERS.value, entry.where, shown))
    notes += [(remark.reason.value, remark.where, remark.detail) for remark in entry.remarks]
    return Outcome(
        entry.where,
        entry.num_records,
        row_id=row.id,
        split=row.split,
        said_by=said_by,
        num_captions=len(row.captions),
        notes=tuple(notes),
    )


def _told_origin(meta: Mapping[str, Any], captions: Sequence[str]) -> str:
    """That of the row that was exported; `web` for a row that says nothing."""
    said = meta.get(SOURCES_FIELD)
    if not isinstance(said, list) or len(said) != len(captions):
        return _DEFAULT_ORIGIN
    # What people have judged is as good as what they have written.
    return "human" if said and {*map(str, said)} <= _HUMAN_SOURCES else _DEFAULT_ORIGIN


def _other_sources(row: PairRow) -> str | None:
    """Which texts of a row are by its metadata of another origin than the row; None for none."""
    said = row.meta.get(SOURCES_FIELD)
    own = _HUMAN_SOURCES if row.origin == "human" else {row.origin}
    others = [name for name in map(str, said) if name not in own] if isinstance(said, list) else []
    counts = ", ".join(f"{others.count(name)} {name}" for name in dict.fromkeys(others))
    return f"of its texts {counts}, which count as {row.origin} here" if others else None


def _reason(error: DataError) -> Reason:
    # Sizes are checked from the header, before anything is decoded.
    is_size = "pixels" in str(error) or "bytes, more than" in str(error)
    return Reason.IMAGE_TOO_LARGE if is_size else Reason.UNREADABLE_IMAGE
