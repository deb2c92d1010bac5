"""What an import or an export took over, and what it left out and why."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Self

from openblip.runtime.documents import encodable
from openblip.runtime.progress import duration

if TYPE_CHECKING:
    from openblip.table.views import CaptionView

_KEY_PREFIX = "import/"
ESCAPED_IDS = "escaped_ids"
"""Of the state of an import: whether the table had no rows before, so that all ids are such."""
# Of each reason: the report goes into the table with every commit, whatever there is to say.
_MAX_EXAMPLES = 10


class Reason(StrEnum):
    """Why something of a source is not in the table, or is remarkable."""

    ALREADY_IMPORTED = "already in the table"
    """Read again on demand; the row of that id is left as it is."""
    OTHER_CONTENT = "already in the table, with another image, other texts or in another split"
    """As above; what the source says of the image now is not what the row says."""
    BAD_RECORD = "bad record"
    CONTRADICTION = "contradiction"
    """Two things that a source says cannot both hold."""
    DUPLICATE_ID = "duplicate id"
    EMPTY_FILE = "empty file"
    HIDDEN_FILE = "hidden file"
    """Of the system, or of a program: `.DS_Store`, `__MACOSX`, `Thumbs.db`."""
    IMAGE_TOO_LARGE = "image too large"
    LIKE_MISSING = "like a missing image of a list"
    """A list names one that is not there, and may mean this: its record may be of another split."""
    MISSING_CAPTION = "missing caption"
    MISSING_IMAGE = "missing image"
    NO_CAPTIONS = "imported without captions"
    """The source says that there are none, or the user; no view admits the row."""
    OTHER_FILE = "other file"
    """Neither an image nor something that belongs to one."""
    OTHER_ORIGIN = "texts of another origin"
    """A captioner's texts in a row of web texts; or the row is said to be `human`, and is not."""
    OTHER_MEMBER = "other member of a sample"
    """Beside the image and its texts; the sample is taken without it."""
    OF_BROKEN_LIST = "beside a list that breaks off"
    """Its rest may say more of the image, as that it is of the test split."""
    REPEATED_COLUMN = "several columns of one name"
    """The first of them is read, the others are metadata."""
    REPLACED_CHARACTERS = "characters replaced"
    """Halves of surrogate pairs in a text, which no Unicode text can hold, became `?`."""
    SPLIT_LIST = "list of a split that was not understood"
    """By its name it says the split of images; if so, these have come without it."""
    TRUNCATED_ARCHIVE = "truncated archive"
    UNREADABLE_FILE = "unreadable file or folder"
    """The system refuses it, it is a link to nothing, or neither file nor folder."""
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
    num_records: int = 1
    """Files, members or records that it is: an image, and those with its texts."""


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
    num_seen: int = 0
    """Files, members or records that were read: `num_used` and `num_skipped` together."""
    num_used: int = 0
    """Those that became rows; several may become one."""
    splits: dict[str, int] = field(default_factory=dict)
    """Imported rows of each split."""
    split_from: dict[str, dict[str, int]] = field(default_factory=dict)
    """For each split, how many of its rows are in it by whose word."""
    skipped: dict[str, int] = field(default_factory=dict)
    """How many files, members or records were left out, by reason."""
    noted: dict[str, int] = field(default_factory=dict)
    """How much is remarkable about imported rows, by reason."""
    examples: dict[str, list[Example]] = field(default_factory=dict)
    """The first few of each reason."""
    seconds: float = 0.0
    """Time spent, pauses between restarts not counted."""
    complete: bool = False
    """Whether the source was read to its end."""
    completed: str = ""
    """When that was, in UTC; empty before."""
    nothing_read: bool = field(default=False, compare=False)
    """Whether this is the report of an import that was complete before, and nothing was read."""

    def __post_init__(self) -> None:
        # Names of files may be no Unicode; what is shown and stored must be.
        self.source, self.uri = encodable(self.source), encodable(self.uri)

    @property
    def num_skipped(self) -> int:
        """Number of things that were left out, for whatever reason."""
        return sum(self.skipped.values())

    @property
    def num_known(self) -> int:
        """Number of things that are in the table from an earlier import of the source."""
        known = (Reason.ALREADY_IMPORTED, Reason.OTHER_CONTENT)
        return sum(self.skipped.get(reason.value, 0) for reason in known)

    def count_row(
        self, split: str, num_captions: int, said_by: str = "", num_records: int = 1
    ) -> None:
        """Counts an imported row, the split of which is `said_by` somebody."""
        self.num_rows += 1
        self.num_captions += num_captions
        self.num_seen += num_records
        self.num_used += num_records
        _add(self.splits, split)
        if said_by:
            _add(self.split_from.setdefault(split, {}), said_by)

    def skip(self, reason: Reason, where: str, detail: str, num_records: int = 1) -> None:
        """Counts something that was left out; `detail` may begin with the place, as errors do."""
        self.num_seen += num_records
        _add(self.skipped, reason.value, num_records)
        self._exemplify(reason, where, detail, num_records)

    def note(self, reason: Reason, where: str, detail: str) -> None:
        """Counts something remarkable about a row that was imported."""
        _add(self.noted, reason.value)
        self._exemplify(reason, where, detail)

    def add(self, other: "ImportReport") -> None:
        """Counts what the report of what follows in the source counts."""
        for name in ("num_rows", "num_captions", "num_seen", "num_used"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for counts, others in [
            (self.splits, other.splits),
            (self.skipped, other.skipped),
            (self.noted, other.noted),
            *((self.split_from.setdefault(s, {}), said) for s, said in other.split_from.items()),
        ]:
            for key, number in others.items():
                _add(counts, key, number)
        for reason, examples in other.examples.items():
            several = self.examples.setdefault(reason, [])
            several += examples[: _MAX_EXAMPLES - len(several)]

    def finish(self) -> None:
        """Notes that the source was read to its end."""
        self.complete = True
        self.completed = datetime.now(UTC).isoformat(timespec="seconds")

    def to_text(self) -> str:
        """The report for people, several lines."""
        state = "" if self.complete else " (not yet to its end)"
        if self.nothing_read:
            state = " (before; nothing read now: --limit allows no more)"
        if self.nothing_read and self.complete:
            since = f"complete since {self.completed or 'an earlier call'}"
            state = f" ({since}; nothing read now: --again reads it for what is new)"
        lines = [
            f"{self.num_rows:,} rows with {self.num_captions:,} captions imported from "
            f"{self.source} ({self.format}){state} into {self.uri} in {duration(self.seconds)}"
        ]
        if self.complete and not (self.num_rows or self.num_known):
            lines.append(f"nothing in it could be used: {self.uri} is as it was before")
        if self.splits:
            lines.append("splits: " + ", ".join(map(self._split_line, self.splits)))
        if self.skipped:
            lines.append(
                f"left out: {self.num_skipped:,} of {self.num_seen:,} files, members or records"
            )
            lines += self._reasons(self.skipped)
        if Reason.OTHER_CONTENT.value in self.skipped:
            lines.append(
                "rows stay as they are, with image, texts and split that they have: import the "
                "source into a new table to take it as it is now"
            )
        if self.noted:
            lines.append("imported, but noted:")
            lines += self._reasons(self.noted)
        return "\n".join(lines)

    def _split_line(self, split: str) -> str:
        said_by = self.split_from.get(split, {})
        who = ", ".join(
            name if len(said_by) == 1 else f"{name} {count:,}" for name, count in said_by.items()
        )
        return f"{split} {self.splits[split]:,}" + (f" ({who})" if who else "")

    def _exemplify(self, reason: Reason, where: str, detail: str, num_records: int = 1) -> None:
        several = self.examples.setdefault(reason.value, [])
        if len(several) < _MAX_EXAMPLES:
            # Errors of other libraries may quote the whole record.
            said = detail.removeprefix(f"{where}: ")[:500]
            several.append(Example(_shown(where), _shown(said), num_records))

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

    def _reasons(self, counts: Mapping[str, int]) -> list[str]:
        lines = []
        for reason, count in sorted(counts.items(), key=lambda item: -item[1]):
            several = self.examples.get(reason, [])
            lines.append(f"  {reason}: {count:,}")
            for example in several:
                beside = f" (with {example.num_records - 1:,} beside it)"
                where = example.where + beside * (example.num_records > 1)
                lines.append(f"    {where}: {example.detail}")
            more = count - sum(example.num_records for example in several)
            if several and more > 0:
                lines.append(f"    and {more:,} more")
        return lines


def _shown(text: str) -> str:
    """A text on one line, without what a terminal would take for a command."""
    plain = (mark if mark.isprintable() else repr(mark)[1:-1] for mark in encodable(text))
    return "".join(plain)


def _add(counts: dict[str, int], name: str, number: int = 1) -> None:
    counts[name] = counts.get(name, 0) + number


def metadata_key(fingerprint: str) -> str:
    """The entry of a table's metadata that holds the state of an import."""
    return f"{_KEY_PREFIX}{fingerprint}"


def is_import_state(key: str) -> bool:
    """Whether an entry of a table's metadata holds the state of an import."""
    return key.startswith(_KEY_PREFIX)


def has_escaped_ids(metadata: Mapping[str, str]) -> bool:
    """Whether a table with this metadata began with an import that escaped what looks escaped."""
    states = (json.loads(text) for key, text in metadata.items() if is_import_state(key))
    return any(state.get(ESCAPED_IDS, False) for state in states)


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
    view: "CaptionView"
    """Which texts were to be exported; its split is the first of several."""
    num_images: int = 0
    """Images that were written."""
    num_texts: dict[str, int] = field(default_factory=dict)
    """Texts that were written, by source."""
    splits: dict[str, SplitCounts] = field(default_factory=dict)
    """The same and what was rejected, by split."""
    num_without_text: int = 0
    """Images of the splits that the view leaves no text of; they are left out."""
    num_edits: int = 0
    """Corrections of reviewers that were written, where they were asked for."""
    num_unreadable: int = 0
    """Images that have texts but cannot be read; they are left out."""
    unreadable: list[Example] = field(default_factory=list)
    """The first few of them."""
    seconds: float = 0.0
    """Time that it took."""
    scores: tuple[str, ...] = ()
    """Further scores of texts that were written, besides the match probability."""
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
        if self.num_edits:
            lines.append(f"corrections of reviewers, in edits.jsonl: {self.num_edits:,}")
        if self.num_without_text:
            lines.append(f"left out, no text admitted: {self.num_without_text:,}")
        if self.num_unreadable:
            lines.append(f"left out, image unreadable: {self.num_unreadable:,}")
            lines += [
                f"  {_shown(example.where)}: {_shown(example.detail)}"
                for example in self.unreadable
            ]
        if self.format == "coco" and set(self.num_texts) - {"web"}:
            # What an import takes texts for of which nothing is said.
            lines.append(
                "COCO has no place for who wrote a text: an import of these files takes all of "
                "them for web texts, unless --origin human is given"
            )
        return "\n".join(lines)
