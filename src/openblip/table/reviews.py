"""The verdicts of people on the texts of a table: a log beside it that only ever grows.

Beside a local table lies `TABLE.reviews.jsonl`, a line a record. In an object store, where nothing
can be appended to, each group of records is an object of its own below `TABLE.reviews/`, numbered
without a gap: whoever comes first takes the next number. No record is changed or removed by
anybody; what was a mistake is taken back by a further record.

| killed | is there for readers | what the next writer does |
| --- | --- | --- |
| before the write | an empty file, or none | writes |
| while the line is written | all earlier records | ends the torn line with a mark, then writes |
| before the append returned | the record, which nobody was told is there | writes |
"""

import hashlib
import json
import os
import threading
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from math import isfinite
from pathlib import Path
from typing import Any, Literal, Self, get_args
from uuid import uuid4

from openblip.runtime.atomic import force_to_disk
from openblip.runtime.documents import json_text
from openblip.runtime.errors import DataError, UnwritableError
from openblip.runtime.locks import in_turn
from openblip.runtime.threads import ordered_map
from openblip.table.rows import TEXT_SOURCES, listed
from openblip.table.storage import ObjectFolder, is_object_address

Verdict = Literal["right", "wrong", "partly", "unsure"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
PARTIAL_SAMPLES = ("accepted-", "rejected-", "given-synthetic-", "search-", "datasets-")
"""How names of samples begin that were drawn from a part of a table's texts, chosen by their scores
or by somebody: no share of all texts follows from their verdicts."""
# Behind a torn line; no whole line ends so, as JSON of an object ends with a brace.
_TORN = b" #torn"
_READERS = 16


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


@dataclass(frozen=True, kw_only=True)
class ReviewRecord:
    """One verdict of one person on one text, or that an earlier record is taken back."""

    key: str = field(default_factory=lambda: uuid4().hex)
    """Of this record; unique."""
    verdict: Verdict | None = None
    """`partly`: a detail is wrong. None takes an earlier record back."""
    undoes: str | None = None
    """Key of the record that is taken back: a verdict, or one that took something back."""
    row: str
    """Id of the row."""
    source: str
    """One of `TEXT_SOURCES`."""
    place: int
    """Which of the row's texts of that source, from 0."""
    text: str
    """As it was shown: the verdict is on these words, wherever the row has them later."""
    edited: str | None = None
    """The text as the reviewer corrected it."""
    reviewer: str
    """Who judged."""
    time: str = field(default_factory=_now)
    """ISO 8601 with its zone, which is UTC where the time is not given."""
    table_version: int
    """Version of the table from which the text was shown."""
    itm: float | None = None
    """Match probability as shown."""
    itc: float | None = None
    """Similarity as shown."""
    filter: str | None = None
    """Fingerprint of the model that gave the scores."""
    sample: str | None = None
    """Name of the drawn sample that the text is of; None for a free look."""
    probability: float | None = None
    """With which the text was drawn into the sample, above 0; None for a free look."""
    stratum: str | None = None
    """Name of the part of the table that it was drawn from."""

    def __post_init__(self) -> None:
        """Checks every field.

        Raises:
            DataError: names it.
        """
        values = vars(self)
        for name, kinds in _KINDS.items():
            value = values[name]
            # By the type itself first: a log has many lines. A bool is no number to us.
            if type(value) not in kinds and (
                not isinstance(value, kinds) or isinstance(value, bool)
            ):
                raise DataError(f"{name} is {value!r:.60}, not {_kind_names(kinds)}")
            if isinstance(value, float) and not isfinite(value):
                raise DataError(f"{name} is {value}, no finite number")
        if (self.verdict is None) is (self.undoes is None):
            raise DataError("it must have either a verdict or a record that it undoes")
        if self.verdict is not None and self.verdict not in VERDICTS:
            raise DataError(f"verdict is {self.verdict!r:.60}, none of {listed(VERDICTS)}")
        if self.source not in TEXT_SOURCES:
            raise DataError(f"source is {self.source!r:.60}, none of {listed(TEXT_SOURCES)}")
        if self.place < 0 or self.table_version < 0:
            raise DataError("place and table_version must not be negative")
        if self.probability is not None and not 0 < self.probability <= 1:
            raise DataError(f"probability is {self.probability}, not above 0 and at most 1")
        if self.edited is not None and not self.edited.strip():
            raise DataError("edited is empty: judge a text without a remedy wrong, and do not edit")


_TEXT, _TEXT_OR_NONE = (str,), (str, type(None))
_KINDS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("key", "row", "source", "text", "reviewer", "time"), _TEXT),
    **dict.fromkeys(("verdict", "undoes", "edited", "filter", "sample", "stratum"), _TEXT_OR_NONE),
    **dict.fromkeys(("place", "table_version"), (int,)),
    **dict.fromkeys(("itm", "itc", "probability"), (float, int, type(None))),
}
_KIND_NAMES = {str: "text", int: "a whole number", float: "a number", type(None): "null"}
_FIELDS = tuple(entry.name for entry in fields(ReviewRecord))


def _kind_names(kinds: tuple[type, ...]) -> str:
    shown = [kind for kind in kinds if kind is not int or float not in kinds]
    return " or ".join(_KIND_NAMES[kind] for kind in shown)


class ReviewLog:
    """The verdicts beside one table, for any number of readers and writers at once.

    Safe to use from many threads, processes and machines. Repeated reading is cheap: what was read
    is remembered, and only what has been added since is read.
    """

    def __init__(self, place: "_LogFile | _LogObjects") -> None:
        """Use `of`."""
        self._place = place
        self._lock = threading.Lock()
        self._records: list[ReviewRecord] = []
        self._keys: set[str] = set()
        self._standing: dict[tuple[str | int | None, ...], ReviewRecord] = {}
        self._num_seen = 0

    @classmethod
    def of(cls, table_uri: str) -> Self:
        """The log of the table at a path or address, which need not have one yet.

        Raises:
            StorageError: the packages, credentials or region for an object store are missing.
        """
        uri = table_uri.rstrip("/")
        if is_object_address(uri):
            return cls(_LogObjects(f"{uri}.reviews"))
        table = Path(uri.removeprefix("file://"))
        # By whatever name a table is opened, it has one log.
        table = table.resolve() if table.is_symlink() else table
        return cls(_LogFile(table.with_name(f"{table.name}.reviews.jsonl")))

    @property
    def where(self) -> str:
        """Path of the file, or address of the objects."""
        return self._place.where

    def append(self, records: Sequence[ReviewRecord]) -> None:
        """Adds records, all of them or none; returns when they are on the disk or in the store.

        After an error it may be called again with the same records: a key counts once.

        Raises:
            UnwritableError, StorageError: they cannot be written; nothing was added.
            DataError: what is there already is damaged (only of an object store is it read).
        """
        if not records:
            return
        content = "".join(json_text(vars(record)) + "\n" for record in records).encode()
        with self._lock:
            self._place.append(content)

    def records(self) -> list[ReviewRecord]:
        """All records in the order in which they were added.

        Raises:
            DataError: a line is none of a log; names it. A last line that is torn is left out.
            StorageError: the object store cannot be reached.
        """
        with self._lock:
            return list(self._read())

    def standing(self, *, by_review: bool = False) -> list[ReviewRecord]:
        """The verdicts that hold: not taken back, and the last of each reviewer on each text.

        Args:
            by_review: the last in each review, since what follows from it is of its own sample.

        Raises:
            DataError, StorageError: as `records`.
        """
        with self._lock:
            records = self._read()
            added = records[self._num_seen :]
            # A record that takes one back can bring an older one to light: all anew.
            if self._num_seen > len(records) or any(record.undoes for record in added):
                self._standing.clear()
                added = _not_undone(records)
            for record in added:
                about = (record.reviewer, *text_key(record), record.text, record.sample)
                self._standing.pop(about, None)
                self._standing[about] = record
            self._num_seen = len(records)
            every = list(self._standing.values())
        latest: dict[object, ReviewRecord] = {}
        for record in every if not by_review else ():
            told = (record.reviewer, *text_key(record), record.text)
            latest.pop(told, None)
            latest[told] = record
        return every if by_review else list(latest.values())

    def _read(self) -> list[ReviewRecord]:
        added, begins_anew, unfinished = self._place.read()
        if begins_anew:
            self._records.clear()
            self._standing.clear()
            self._num_seen = 0
            self._keys.clear()
        self._records += self._unknown(added)
        self._keys.update(record.key for record in added)
        return [*self._records, *self._unknown(unfinished)] if unfinished else self._records

    def _unknown(self, records: Sequence[ReviewRecord]) -> list[ReviewRecord]:
        """Without those that are there already: whoever got an error may append once more."""
        first = {record.key: record for record in reversed(records)}
        return [r for r in records if r.key not in self._keys and first[r.key] is r]


def text_key(record: ReviewRecord) -> tuple[str, str, int]:
    """Row, source and place of the text that a record is about."""
    return record.row, record.source, record.place


def verdicts_digest(verdicts: Iterable[ReviewRecord]) -> str:
    """12 hexadecimal digits that change when other verdicts stand."""
    keys = "\n".join(sorted(record.key for record in verdicts))
    return hashlib.sha256(keys.encode("utf-8", "surrogatepass")).hexdigest()[:12]


def _not_undone(records: Sequence[ReviewRecord]) -> list[ReviewRecord]:
    """The verdicts that were not taken back, in order."""
    taken_back: set[str] = set()
    left = []
    # From the last: whether a record holds depends on later ones alone, and those are known by
    # then, also where one takes back what took something back.
    for record in reversed(records):
        if record.key in taken_back:
            continue
        if record.undoes is not None:
            taken_back.add(record.undoes)
        else:
            left.append(record)
    return left[::-1]


class _LogFile:
    """A log that is one file."""

    def __init__(self, path: Path) -> None:
        self.where = str(path)
        self._path = path
        self._begin()

    def _begin(self) -> None:
        self._num_bytes = self._num_lines = 0
        self._number: int | None = None

    def append(self, content: bytes) -> None:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with in_turn(self._path), self._path.open("r+b", buffering=0) as file:
                size = file.seek(0, os.SEEK_END)
                # Before the first byte: where there is one, the name is known to be on the disk.
                if size == 0:
                    force_to_disk(self._path.parent)
                content = self._end_of_torn_line(file, size) + content
                file.seek(size)
                try:
                    if file.write(content) != len(content):
                        raise OSError("no room for all of it")
                    os.fsync(file.fileno())
                except OSError:
                    # Nobody was told that it is there; a part of it would be another record.
                    with suppress(OSError):
                        file.truncate(size)
                    raise
        except OSError as error:
            raise UnwritableError(
                f"{self._path}: the verdict cannot be recorded ({error.strerror or error}): make "
                "room or give permission, on a file system that has locks"
            ) from error

    def _end_of_torn_line(self, file: Any, size: int) -> bytes:
        """What must be written first, so that what a killed process left has an end."""
        if size == 0:
            return b""
        file.seek(size - 1)
        if file.read(1) == b"\n":
            return b""
        file.seek(0)
        last = file.read().rpartition(b"\n")[2]
        # Whole but for its end (an editor removes such), it is a record all the same.
        return b"\n" if _is_json(last) else _TORN + b"\n"

    def read(self) -> tuple[list[ReviewRecord], bool, list[ReviewRecord]]:
        """What was added since the last call; whether that begins anew; a last line without end."""
        try:
            with self._path.open("rb") as file:
                status = os.fstat(file.fileno())
                begins_anew = self._num_bytes > status.st_size or self._number != status.st_ino
                if begins_anew:
                    self._begin()
                file.seek(self._num_bytes)
                content = file.read()
        except FileNotFoundError:
            self._begin()
            return [], True, []
        except OSError as error:
            raise DataError(f"{self._path}: cannot be read ({error.strerror or error})") from error
        whole, end, last = content.rpartition(b"\n")
        added = _parse(whole, self.where, self._num_lines)
        num_lines = self._num_lines + content.count(b"\n")
        unfinished = _parse(last, self.where, num_lines) if _is_json(last) else []
        # Only now: what follows an error is read again.
        self._number, self._num_lines = status.st_ino, num_lines
        self._num_bytes += len(whole) + len(end)
        return added, begins_anew, unfinished


class _LogObjects:
    """A log that is many objects of an object store."""

    def __init__(self, uri: str) -> None:
        self.where = uri
        self._folder = ObjectFolder(uri)
        self._is_listed = False
        self._num_objects = 0
        self._unread: list[ReviewRecord] = []

    def append(self, content: bytes) -> None:
        self._catch_up()
        # A number that is taken was taken by another writer: what is there comes before this.
        while not self._folder.create(_name(self._num_objects), content):
            self._catch_up()

    def read(self) -> tuple[list[ReviewRecord], bool, list[ReviewRecord]]:
        """As of `_LogFile`."""
        self._catch_up()
        added, self._unread = self._unread, []
        return added, False, []

    def _catch_up(self) -> None:
        """Reads what was added; what was read before an error is not read again."""
        if not self._is_listed:
            for content in ordered_map(self._folder.read, self._names(), _READERS, 2 * _READERS):
                self._take(content or b"")
            self._is_listed = True
        # Numbers have no gaps, so that one request tells whether there is more; a listing takes
        # one for every thousand objects that are there.
        while (content := self._folder.read(_name(self._num_objects))) is not None:
            self._take(content)

    def _names(self) -> list[str]:
        names = self._folder.names()
        if odd := sorted(set(names) ^ {_name(number) for number in range(len(names))}):
            raise DataError(
                f"{self.where}/{odd[0]} is missing, or no part of the log of verdicts: restore it "
                "or remove it"
            )
        return names[self._num_objects :]

    def _take(self, content: bytes) -> None:
        where = f"{self.where}/{_name(self._num_objects)}"
        self._unread += _parse(content.removesuffix(b"\n"), where, 0)
        self._num_objects += 1


def _name(number: int) -> str:
    return f"{number:010}.jsonl"


def _parse(content: bytes, where: str, num_before: int) -> list[ReviewRecord]:
    """The records of lines, of which the last has no end.

    Raises:
        DataError: names the line.
    """
    # Not `splitlines`, for which a text may hold many an end of a line.
    lines = content.split(b"\n") if content else []
    numbered: Iterable[tuple[int, bytes]] = enumerate(lines, num_before + 1)
    return [_record(line, where, number) for number, line in numbered if not line.endswith(_TORN)]


def _record(line: bytes, where: str, number: int) -> ReviewRecord:
    remedy = "restore the line from a copy, or remove it"
    try:
        values = json.loads(line.decode())
        if not isinstance(values, dict):
            raise DataError("it is no JSON object")
        if unknown := [name for name in values if name not in _FIELDS]:
            remedy = "a newer version of OpenBLIP has written it: install that"
            raise DataError(f"{unknown[0]!r} is no field of a verdict")
        if missing := [name for name in _FIELDS if name not in values]:
            raise DataError(f"it has no {missing[0]}")
        return ReviewRecord(**values)
    except (ValueError, RecursionError, DataError) as error:
        raise DataError(
            f"{where}, line {number}: is no record of a verdict ({error}): {remedy}"
        ) from error


def _is_json(line: bytes) -> bool:
    """Whether a line is whole: no begin of a JSON object is one."""
    try:
        json.loads(line.decode())
    except (ValueError, RecursionError):
        return False
    return True
