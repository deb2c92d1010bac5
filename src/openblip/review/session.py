"""A review: texts are shown one after the other, verdicts are recorded, and conclusions drawn.

Any number of reviewers, threads, processes and servers may work on one review: the sample and the
log of verdicts are on the disk, and nothing else is needed to go on after a kill.
"""

import threading
import time
from collections import Counter, defaultdict
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np

from openblip.review.certificate import Certificate, certify
from openblip.review.estimates import ReviewEstimates, estimate
from openblip.review.sampling import (
    SCORED_SOURCES,
    ReviewSettings,
    Sample,
    SampleStore,
    open_sample,
)
from openblip.review.strata import Labels
from openblip.runtime.errors import DataError, RecipeError
from openblip.table.columns import column_state
from openblip.table.reviews import ReviewLog, ReviewRecord, Verdict
from openblip.table.scores import (
    AUTO_SCORE,
    TEXT_COLUMNS,
    check_scored,
    named_score,
    score_column,
)
from openblip.table.table import PairTable

# Every fifth text is shown to each reviewer, so that their agreement can be measured; the others
# are divided between them.
_SHARED_EVERY = 5
# Key of CapFilt's settings in the metadata of a table.
_CAPFILT = "capfilt"
# What was handed out so long ago, and not judged, is handed out to others too.
_HELD_SECONDS = 60.0


@dataclass(frozen=True)
class ReviewItem:
    """A drawn text, and what is shown of it."""

    key: str
    """Unique within the review: row, source and place."""
    row_number: int
    row: str
    """Id of the row."""
    source: str
    """"web" or "synthetic"."""
    place: int
    """Which of the row's texts of this source."""
    text: str
    itm: float
    """The score that is compared with the threshold, by default the match probability."""
    itc: float | None
    """Cosine; None where the table has none."""
    stratum: str
    """Name of the part of the table that it was drawn from."""
    probability: float
    """With which it was drawn into the sample."""
    others: tuple[tuple[str, str, float | None], ...]
    """The row's other texts: source, text, the same score."""


@dataclass(frozen=True)
class ReviewProgress:
    """How far a review is."""

    in_sample: int
    """Texts that were drawn."""
    judged: int
    """Those with a verdict."""
    judged_by_me: int
    """Those with a verdict of the reviewer who asks."""
    passed_over: int
    """Those without a verdict that come before one with a verdict. Left out for what they show,
    and not by chance, they would make all estimates wrong."""
    reviewers: int
    verdicts: dict[str, int]
    """How often each verdict was given, by all reviewers."""
    stale: int
    """Verdicts on texts that the table no longer has in their place; they do not count."""
    elsewhere: int
    """Verdicts on texts of this table that belong to another sample, or to none."""


class ReviewSession:
    """One review of a table; safe to use from many threads."""

    def __init__(self, table: PairTable, sample: Sample, *, partly_is_right: bool = False) -> None:
        """Reads the drawn texts; use `open`."""
        self.table, self.sample = table, sample
        self._partly_is_right = partly_is_right
        self._log = ReviewLog.of(table.uri)
        self._filter = _fingerprint(table)
        self.items = _read_items(table, sample)
        self._place = {item.key: place for place, item in enumerate(self.items)}
        self._held: dict[str, tuple[str, float]] = {}
        # Entered again: `estimates` asks for `labels`.
        self._lock = threading.RLock()
        # Of the log: verdicts that hold, by reviewer and item, and the order of first verdicts.
        self._standing: dict[str, dict[str, ReviewRecord]] = {}
        self._judged: set[str] = set()
        self._first_judged: list[str] = []
        self._num_stale = self._num_elsewhere = 0
        self._num_read = -1
        self._read_log()

    @classmethod
    def open(
        cls, table: PairTable, settings: ReviewSettings, *, partly_is_right: bool = False
    ) -> Self:
        """The review of a table that these settings mean, with all verdicts there are.

        Args:
            table: scored by CapFilt.
            settings: what is drawn; the same ones find the same sample again.
            partly_is_right: whether a text with a wrong detail counts as right.

        Raises:
            DataError: the table has no such texts, or sample or log are damaged.
            RecipeError: a row does not exist.
            StorageError, UnwritableError: the sample cannot be stored.
        """
        return cls(table, open_sample(table, settings), partly_is_right=partly_is_right)

    @classmethod
    def most_reviewed(
        cls, table: PairTable, *, partly_is_right: bool = False, score: str = AUTO_SCORE
    ) -> Self:
        """Of the stored reviews of a table as it is now, the one with the most labels.

        Args:
            table: with a log of verdicts.
            partly_is_right: whether a text with a wrong detail counts as right.
            score: only reviews of which this score decided what is kept; `auto` as in settings.

        Raises:
            DataError: there is none with a label.
        """
        score = named_score(table, score)
        others: Counter[str] = Counter()
        store = SampleStore(table.uri)
        held = ReviewLog.of(table.uri).standing(by_review=True)
        counts = Counter(record.sample for record in held)
        for name in sorted(store.names(), key=lambda name: -counts[name]):
            settings = store.settings(name)
            if settings.score != score:
                others[settings.score] += counts[name]
            # Of rejected texts alone nothing follows for those that are kept.
            if counts[name] and settings.by != "rejected" and settings.score == score:
                session = cls.open(table, settings, partly_is_right=partly_is_right)
                # After another CapFilt the same settings mean another sample.
                if session.sample.name == name and session._judged:
                    return session
        check_scored(table, score)
        told = "" if score == "itm" else f" --score {score}"
        there = "".join(
            f"; {count:,} verdicts are of a review by --score {name}"
            for name, count in others.items()
            if count
        )
        raise DataError(
            f"{table.uri} has no verdict on its texts as they are scored now: "
            f"`openblip capfilt review {table.uri}{told}` collects some{there}"
        )

    def upcoming(self, reviewer: str, count: int, skip: Collection[str] = ()) -> list[ReviewItem]:
        """The next texts for a reviewer, who has not judged them.

        First come texts that nobody else has judged or just been given, and every fifth in any
        case; then the others, so that nothing is left out if somebody goes away.

        Args:
            reviewer: whoever judges.
            count: how many at most.
            skip: keys of items that are not wanted, such as those that are shown already.
        """
        with self._lock:
            self._read_log()
            now, mine = time.monotonic(), self._standing.get(reviewer, {})
            first: list[ReviewItem] = []
            held: list[ReviewItem] = []
            judged: list[ReviewItem] = []
            for place, item in enumerate(self.items):
                if item.key in mine or item.key in skip:
                    continue
                holder, since = self._held.get(item.key, (reviewer, now))
                if place % _SHARED_EVERY == 0:
                    first.append(item)
                elif item.key in self._judged:
                    judged.append(item)
                elif holder != reviewer and now - since < _HELD_SECONDS:
                    held.append(item)
                else:
                    first.append(item)
                if len(first) == count:
                    break
            chosen = [*first, *held, *judged][:count]
            self._held.update((item.key, (reviewer, now)) for item in chosen)
            return chosen

    def record(
        self, reviewer: str, item_key: str, verdict: Verdict, edited: str | None = None
    ) -> str:
        """The key of the record of a verdict, which is on the disk.

        A later verdict of the same reviewer on the same text takes the place of the earlier one.

        Args:
            reviewer: who judges; not blank.
            item_key: of an item of this review.
            verdict: on the text as it was shown.
            edited: the text as the reviewer corrected it.

        Raises:
            DataError: there is no such item or verdict, or nobody judges.
            UnwritableError, StorageError: it could not be written; nothing was recorded.
        """
        if not reviewer.strip():
            raise DataError("a verdict needs the name of its reviewer; give one")
        item = self.item(item_key)
        changed = None if edited is None or edited.strip() == item.text.strip() else edited.strip()
        record = self._record(item, reviewer, verdict=verdict, edited=changed)
        self._log.append([record])
        with self._lock:
            self._held.pop(item_key, None)
        return record.key

    def record_all(self, verdicts: Collection[tuple[str, str, Verdict, str | None]]) -> int:
        """The number of verdicts that were recorded, all of them or none.

        They are taken in the order in which their texts were drawn: that of a spreadsheet may
        have to do with what the texts say.

        Args:
            verdicts: reviewer, key of the item, verdict, corrected text.

        Raises:
            DataError, UnwritableError, StorageError: as `record`.
        """
        self._log.append(
            [
                self._record(self.item(key), reviewer, verdict=verdict, edited=edited)
                for reviewer, key, verdict, edited in sorted(
                    verdicts, key=lambda each: self._place.get(each[1], -1)
                )
            ]
        )
        return len(verdicts)

    def undo(self, reviewer: str, item_key: str | None = None) -> ReviewItem | None:
        """The item of a reviewer's last verdict, which was taken back; None where there is none.

        Called again it takes the one before back, and so on.

        Args:
            reviewer: who judged.
            item_key: of an item whose verdict is taken back instead of the last one.

        Raises:
            UnwritableError, StorageError: it could not be written; nothing was taken back.
        """
        with self._lock:
            self._read_log()
            own = self._standing.get(reviewer, {})
            if not own or (item_key is not None and item_key not in own):
                return None
            last = own[next(reversed(own)) if item_key is None else item_key]
            item = self.item(_key(last))
            self._log.append([self._record(item, reviewer, undoes=last.key)])
            return item

    def item(self, key: str) -> ReviewItem:
        """The item of a key.

        Raises:
            DataError: there is none in this review.
        """
        if key not in self._place:
            raise DataError(
                f"{key!r:.100} is no text of the review {self.sample.name}; reload the page, or "
                "export the sample again"
            )
        return self.items[self._place[key]]

    def standing(self, reviewer: str) -> dict[str, ReviewRecord]:
        """The verdicts of a reviewer that hold, by key of the item, the last one last."""
        with self._lock:
            self._read_log()
            return dict(self._standing.get(reviewer, {}))

    def progress(self, reviewer: str) -> ReviewProgress:
        """How far the review is, seen by a reviewer."""
        with self._lock:
            self._read_log()
            every = [record for own in self._standing.values() for record in own.values()]
            counts = Counter(record.verdict for record in every)
            # Of the `last + 1` places up to it those without a verdict were passed over.
            last = max((self._place[key] for key in self._judged), default=-1)
            return ReviewProgress(
                len(self.items),
                len(self._judged),
                len(self._standing.get(reviewer, {})),
                last + 1 - len(self._judged),
                sum(bool(own) for own in self._standing.values()),
                {str(verdict): count for verdict, count in counts.most_common()},
                self._num_stale,
                self._num_elsewhere,
            )

    def labels(self) -> Labels:
        """One label for each judged text, in the order in which texts were judged first.

        Most of the reviewers who were not unsure decide. Where as many say right as say it is not,
        or all are unsure, the label is that nobody could tell.
        """
        with self._lock:
            self._read_log()
            of_text = defaultdict[str, list[float]](list)
            for own in self._standing.values():
                for key, record in own.items():
                    of_text[key].append(self._vote(record))
            keys = [key for key in self._first_judged if key in of_text]
        places = np.array([self._place[key] for key in keys], dtype=np.int64)
        votes = np.array([sum(of_text[key]) for key in keys], dtype=np.float64)
        right = np.select([votes > 0, votes < 0], [1.0, 0.0], np.nan)
        drawn = self.sample.order[places]
        return Labels(self.sample.strata[places], self.sample.frame.itm[drawn], right)

    def estimates(self) -> ReviewEstimates:
        """Precision and recall over thresholds, calibration, and agreement of reviewers."""
        with self._lock:
            labels = self.labels()
            verdicts = {
                reviewer: {key: str(record.verdict) for key, record in own.items()}
                for reviewer, own in self._standing.items()
            }
        return estimate(self.sample.design, labels, self.sample.settings.threshold, verdicts)

    def certify(self, precision: float, confidence: float = 0.95) -> Certificate:
        """The most lenient threshold above which enough texts are right; see `certificate.py`.

        Raises:
            RecipeError: a number is not inside (0, 1), or only rejected texts are reviewed.
        """
        settings = self.sample.settings
        if settings.by == "rejected":
            raise RecipeError(
                "a review of rejected texts says nothing of those that are kept: review with "
                "by=threshold for a certificate"
            )
        found = certify(
            self.sample.design,
            self.labels(),
            settings.threshold,
            precision,
            confidence,
            scope=self.sample.scope,
        )
        return replace(found, score=settings.score)

    def _vote(self, record: ReviewRecord) -> float:
        if record.verdict == "unsure":
            return 0.0
        is_right = record.verdict == "right" or (
            record.verdict == "partly" and self._partly_is_right
        )
        return 1.0 if is_right else -1.0

    def _read_log(self) -> None:
        """Takes in what was added to the log, by whomever."""
        records = self._log.records()
        if len(records) == self._num_read:
            return
        self._num_read = len(records)
        self._standing.clear()
        self._judged.clear()
        self._num_stale = self._num_elsewhere = 0
        for record in self._log.standing(by_review=True):
            place = self._place.get(_key(record)) if record.sample == self.sample.name else None
            if place is None:
                self._num_elsewhere += 1
            elif record.text != self.items[place].text:
                self._num_stale += 1
            else:
                self._standing.setdefault(record.reviewer, {})[_key(record)] = record
                self._judged.add(_key(record))
        # A text keeps its turn when its verdict is changed or taken back: what was bet on it was
        # bet then.
        own = (r for r in records if r.sample == self.sample.name and r.verdict is not None)
        self._first_judged = list(dict.fromkeys(_key(record) for record in own))

    def _record(
        self,
        item: ReviewItem,
        reviewer: str,
        *,
        verdict: Verdict | None = None,
        edited: str | None = None,
        undoes: str | None = None,
    ) -> ReviewRecord:
        return ReviewRecord(
            verdict=verdict,
            edited=edited,
            undoes=undoes,
            row=item.row,
            source=item.source,
            place=item.place,
            text=item.text,
            reviewer=reviewer,
            table_version=self.table.version,
            # The record's field is the match probability; another score is not.
            itm=item.itm if self.sample.settings.score == "itm" else None,
            itc=item.itc,
            filter=self._filter,
            sample=self.sample.name,
            probability=item.probability,
            stratum=item.stratum,
        )


def _fingerprint(table: PairTable) -> str | None:
    found = column_state(table, _CAPFILT).get("filter_fingerprint")
    return ", ".join(found) if isinstance(found, list) else found


def _key(record: ReviewRecord) -> str:
    return f"{record.row}/{record.source}/{record.place}"


def _read_items(table: PairTable, sample: Sample) -> list[ReviewItem]:
    """The drawn texts, read in one go; images are not read."""
    frame, order = sample.frame, sample.order
    score = sample.settings.score
    columns = ["id", *(c for t in TEXT_COLUMNS.values() for c in (t, score_column(t, score)))]
    columns = [name for name in columns if name in table.columns]
    rows = table.take(frame.rows[order], columns).to_pylist()
    items = []
    for place, (at, row) in enumerate(zip(order.tolist(), rows, strict=True)):
        source = SCORED_SOURCES[frame.sources[at]]
        number = int(frame.places[at])
        texts = row[TEXT_COLUMNS[source]] or []
        if number >= len(texts):
            raise DataError(
                f"row {frame.rows[at]} of {table.uri}: {len(texts)} texts in "
                f"{TEXT_COLUMNS[source]}, but more scores: run `openblip capfilt run` on the table "
                "again"
            )
        items.append(
            ReviewItem(
                f"{row['id']}/{source}/{number}",
                int(frame.rows[at]),
                row["id"],
                source,
                number,
                texts[number],
                float(frame.itm[at]),
                float(frame.itc[at]) if np.isfinite(frame.itc[at]) else None,
                sample.design.names[sample.strata[place]],
                float(sample.probabilities[place]),
                _others(row, source, number, score),
            )
        )
    return items


def _others(
    row: dict[str, Any], source: str, number: int, score: str
) -> tuple[tuple[str, str, float | None], ...]:
    found: list[tuple[str, str, float | None]] = []
    for name, column in TEXT_COLUMNS.items():
        texts, scores = row.get(column) or [], row.get(score_column(column, score)) or []
        for place, text in enumerate(texts):
            if (name, place) != (source, number):
                found.append((name, text, scores[place] if place < len(scores) else None))
    return tuple(found)
