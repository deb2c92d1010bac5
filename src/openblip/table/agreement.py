"""What the reviewers of a table agree on: which of its texts are right, and in which words.

Each reviewer has one vote on a text: that it counts as it is, that it counts as that reviewer has
corrected it, or that it does not count. `unsure` is no vote. More than half of the votes decide, so
that of two reviewers who differ none does.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from openblip.runtime.documents import has_halves
from openblip.table.flags import normalised
from openblip.table.reviews import ReviewRecord, Verdict, text_key
from openblip.table.rows import in_utf8

if TYPE_CHECKING:
    import pyarrow as pa

    from openblip.table.table import PairTable


_FEW = 2048


@dataclass(frozen=True)
class AgreedText:
    """A text of a row that has verdicts, and what they come to."""

    source: str
    """One of `TEXT_SOURCES`."""
    place: int
    """Which of the row's texts of that source."""
    text: str
    """As the table has it."""
    records: tuple[ReviewRecord, ...]
    """The verdicts that stand, one for each reviewer."""

    @cached_property
    def _decision(self) -> tuple[bool, str | None]:
        """Whether most votes are for one thing, and the words that then count."""
        votes = Counter(vote(record) for record in self.records if record.verdict != "unsure")
        if not votes:
            return False, None
        words, count = votes.most_common(1)[0]
        # More than half: two reviewers who differ have decided nothing.
        return (True, words) if 2 * count > votes.total() else (False, None)

    @property
    def is_decided(self) -> bool:
        """Whether it counts, or does not, by its verdicts; else they say nothing."""
        return self._decision[0]

    @property
    def words(self) -> str | None:
        """What counts: the text, or as it was corrected; None for nothing."""
        return self._decision[1]

    @property
    def is_edited(self) -> bool:
        """Whether it counts in other words than the table has."""
        return self.words not in (None, self.text)

    @property
    def verdict(self) -> Verdict | None:
        """That of most of those who have decided, of several the one that came first."""
        deciding = [r.verdict for r in self.deciding]
        return Counter(deciding).most_common(1)[0][0] if deciding else None

    @property
    def deciding(self) -> tuple[ReviewRecord, ...]:
        """The verdicts of those who have decided; none where nothing is."""
        if not self.is_decided:
            return ()
        voters = (record for record in self.records if record.verdict != "unsure")
        return tuple(record for record in voters if vote(record) == self.words)


def vote(record: ReviewRecord) -> str | None:
    """The words that a verdict lets count; None for none. That of `unsure` is no vote at all."""
    corrected = correction(record)
    if corrected is not None:
        return corrected
    return record.text if record.verdict == "right" else None


def correction(record: ReviewRecord) -> str | None:
    """The text as its reviewer has corrected it, as a table can hold it; None if it was not."""
    edited = None if record.edited is None else in_utf8(record.edited).strip()
    return None if edited == record.text else edited


class AgreedTexts:
    """The texts of one version of a table that have verdicts, by row."""

    def __init__(
        self,
        rows: Mapping[str, Sequence[AgreedText]],
        num_stale: int,
        leaks: Sequence[Mapping[str, str | None]] = (),
    ) -> None:
        """Use `of`."""
        self._rows, self._leaks = rows, leaks
        self.num_stale = num_stale

    @classmethod
    def of(cls, table: "PairTable", leaks: Sequence[Mapping[str, str | None]] = ()) -> Self:
        """What `table.verdicts` come to.

        Args:
            table: where the texts are.
            leaks: of `corrected_words`, where these matter.

        Raises:
            DataError, StorageError: the verdicts or the table are damaged, or cannot be reached.
        """
        verdicts = table.verdicts()
        current = current_verdicts(table, verdicts)
        of_text = defaultdict[tuple[str, str, int], list[ReviewRecord]](list)
        for record in current:
            of_text[text_key(record)].append(record)
        rows = defaultdict[str, list[AgreedText]](list)
        for (row, source, place), records in sorted(of_text.items()):
            rows[row].append(AgreedText(source, place, records[0].text, tuple(records)))
        return cls(rows, len(verdicts) - len(current), leaks)

    def leaks(self, text: AgreedText) -> bool | None:
        """Whether the words that somebody has corrected a text to stand in an evaluation split.

        None where nobody knows: a check has not looked at them, or none was asked about.
        """
        if not (self._leaks and text.is_edited):
            return None
        words = normalised(text.words or "")
        if any(found.get(words) for found in self._leaks):
            return True
        return False if all(words in found for found in self._leaks) else None

    def is_unchecked(self, text: AgreedText) -> bool:
        """Whether it was corrected, leaks matter, and nobody knows of its words."""
        return bool(self._leaks) and text.is_edited and self.leaks(text) is None

    def of_row(self, row: str) -> Sequence[AgreedText]:
        """Those of the row of an id, by source and place."""
        return self._rows.get(row, ())

    def corrections(self, row: str) -> Iterator[dict[str, Any]]:
        """What reviewers have corrected in the texts of a row, as plain values.

        `counts` says whether most of them agree that the corrected words count.
        """
        for text in self.of_row(row):
            for record in text.records:
                if (corrected := correction(record)) is not None:
                    yield {
                        "id": row,
                        "source": text.source,
                        "place": text.place,
                        "given": text.text,
                        "corrected": corrected,
                        "verdict": record.verdict,
                        "reviewer": record.reviewer,
                        "time": record.time,
                        "counts": text.words == corrected,
                    }

    def counts(self) -> dict[str, int]:
        """How many texts were judged, what became of them, and how many verdicts are stale."""
        counts = dict.fromkeys(("judged", "right", "corrected", "wrong", "undecided"), 0)
        for text in (text for texts in self._rows.values() for text in texts):
            counts["judged"] += 1
            if not text.is_decided:
                counts["undecided"] += 1
            elif text.words is None:
                counts["wrong"] += 1
            else:
                counts["corrected" if text.is_edited else "right"] += 1
        return {**counts, "stale": self.num_stale}

    def places_in(self, ids: "pa.Array") -> NDArray[np.int64]:
        """Which of some rows have any, counted from the first of them."""
        # For the rows of a batch a look at each takes less time than to make a set of Arrow's.
        if len(ids) < _FEW:
            found = [place for place, key in enumerate(ids.to_pylist()) if key in self._rows]
            return np.array(found, dtype=np.int64)
        return _places(ids, self._values)

    @cached_property
    def _values(self) -> "pa.Array":
        import pyarrow as pa

        return pa.array(list(self._rows), pa.string())


def current_verdicts(table: "PairTable", verdicts: Iterable[ReviewRecord]) -> list[ReviewRecord]:
    """Those on a text that still stands where it was judged; the others are stale.

    Args:
        table: where the texts are.
        verdicts: such as `ReviewLog.standing` gives.
    """
    import pyarrow as pa

    records = list(verdicts)
    # A table has no id that UTF-8 cannot hold, and Arrow refuses it.
    rows = {record.row for record in records if not has_halves(record.row)}
    ids = pa.array(list(rows), pa.string())
    if not len(ids):
        return []
    # The ids of all rows, and the texts of those alone that were judged.
    numbers, start = [], 0
    for batch in table.scan(["id"]):
        numbers.append(start + _places(batch["id"], ids))
        start += batch.num_rows
    columns = ["id", "origin", "captions", *({"synthetic"} & set(table.columns))]
    texts: dict[tuple[str, str, int], str] = {}
    for row in table.take(np.concatenate(numbers), columns).to_pylist() if numbers else ():
        lists = {row["origin"]: row["captions"]}
        if row["origin"] == "web":
            lists["synthetic"] = row.get("synthetic")
        for source, several in lists.items():
            texts |= {(row["id"], source, n): text for n, text in enumerate(several or ())}
    # By its words: where texts were made anew, others stand in the same places.
    return [record for record in records if texts.get(text_key(record)) == record.text]


def _places(ids: "pa.Array", wanted: "pa.Array") -> NDArray[np.int64]:
    import pyarrow.compute as pc

    is_wanted = pc.is_in(ids, wanted.cast(ids.type))
    return np.flatnonzero(is_wanted.to_numpy(zero_copy_only=False))
