"""Which texts of a table count: a view is a choice of sources and a threshold, not a copy."""

import math
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import numpy as np

from openblip.runtime.errors import DataError, OpenBlipWarning, RecipeError
from openblip.table.agreement import AgreedText, AgreedTexts
from openblip.table.flags import DUPLICATES, LEAKS, corrected_words, what_is_unchecked
from openblip.table.judging import (
    ERROR_COLUMNS,
    REJECTIONS,
    REMEDY,
    AdmittedText,
    JudgedTexts,
    RejectedText,
    TextDigest,
    TextRule,
    data_sets,
    judge,
    string_values,
)
from openblip.table.rows import TEXT_SOURCES
from openblip.table.scores import (
    PROBABILITIES,
    RIGHT,
    score_column,
    scores_among,
    stale_right,
)
from openblip.table.table import SPLITS, PairTable

if TYPE_CHECKING:
    import pyarrow as pa

SOURCES = (*TEXT_SOURCES, "reviewed")
_COLUMN_OF = {"human": "captions", "web": "captions", "synthetic": "synthetic"}
TOLD_COLUMNS = ("captions_itm", "synthetic_itm", "synthetic_captioner")
"""Columns of what is told of a text besides whether it counts."""
WEIGHTS = ("equal", "calibrated")
WITHOUT = ("duplicate_images", "duplicate_captions", "repeated_captions", "leaks")
_CHECK_OF = {name: LEAKS if name == "leaks" else DUPLICATES for name in WITHOUT}
_COMMAND_OF = {
    DUPLICATES: "openblip data duplicates TABLE",
    LEAKS: "openblip data leakage TABLE EVALUATION_TABLE",
}


@dataclass(frozen=True, kw_only=True)
class CaptionView:
    """The rows and texts that a run sees (BLIP, section 3.3: the bootstrapped dataset)."""

    sources: tuple[str, ...] = ("human", "web")
    """Of `human` (texts of annotated rows), `web` (texts of web rows), `synthetic` (the
    captioner's texts for web rows) and `reviewed` (texts of all three about which reviewers agree,
    as they have corrected them). What they agree about is left to `reviewed` by the others, so that
    a text that was judged wrong does not count."""
    itm: float | None = None
    """Web and synthetic texts count if their `score`, by default the filter's match probability
    from 0 to 1, is above this; None lets all through. Human and reviewed texts need no score."""
    split: str = "train"
    """`train`, `val` or `test`."""
    score: str = "itm"
    """Which score of a text thresholds are compared with: `itm` or `itc` of the first filter,
    `right` (calibrated, from `openblip capfilt fit`), or that of another filter by its name."""
    itm_of: tuple[str, ...] = ()
    """Thresholds that replace `itm`, as `NAME=PROBABILITY`. A name is `web` or `synthetic`; or a
    data set, as the `source` of a row's `meta` says; or both, as in `cc12m/synthetic`. The most
    exact name holds."""
    without: tuple[str, ...] = ()
    """What `openblip data duplicates` and `leakage` have flagged and is to be left out: some of
    `duplicate_images`, `duplicate_captions` (within the split), `repeated_captions` (within an
    image) and `leaks` (of images and texts)."""

    weights: Literal["equal", "calibrated"] = "equal"
    """`calibrated` weighs instead of cutting: of an image's texts one is drawn in proportion to how
    likely it is right, and the image comes as often as its likeliest text is right. That is the
    view's `score`, which must be a probability; without thresholds `right`, where the table has it.
    Human and reviewed texts weigh 1. A rule such as `contrast_text` is then a preference, since it
    may ask for texts that are hardly ever right. For training alone."""
    weight_temperature: float = 1.0
    """The logits of the probabilities are divided by it: above 1 for a filter that is too sure
    (`openblip capfilt review` fits it); towards 0 weights become a cut at a half."""
    weight_floor: float = 0.0
    """No text that counts weighs less, from 0 to 1."""

    contrast_text: TextRule = "any"
    """Which of the texts that count contrast and matching see: `short` and `long` are of the
    shorter or longer half of an image's texts, `web`, `synthetic` and so on of one source where the
    image has any, `any` is one of all. Beside `weights` it is a preference: it is followed as often
    as the likeliest text that it takes is right, beside the likeliest of the image; else one of all
    is drawn. For training alone."""
    decoder_text: TextRule = "any"
    """Which of them the decoder learns to write, likewise; drawn apart where the rules differ."""

    def __post_init__(self) -> None:
        """Checks every field."""
        unknown = [source for source in self.sources if source not in SOURCES]
        if unknown or not self.sources:
            raise RecipeError(f"sources must be some of {', '.join(SOURCES)}. Got {self.sources}.")
        if not self.score.strip():
            raise RecipeError("score is empty: name a score, such as itm")
        if self.itm is not None and not self._may_be_threshold(self.itm):
            raise RecipeError(f"itm must be {self._threshold_kind}, or None. Got {self.itm}.")
        if self.split not in SPLITS:
            raise RecipeError(f"split must be one of {', '.join(SPLITS)}. Got {self.split!r}.")
        if not set(self.without) <= set(WITHOUT):
            raise RecipeError(f"without must be some of {', '.join(WITHOUT)}. Got {self.without}.")
        self._check_weights()
        for name in ("contrast_text", "decoder_text"):
            rule, allowed = getattr(self, name), ("any", "short", "long", *self.sources)
            if rule not in allowed:
                raise RecipeError(f"{name} must be one of {', '.join(allowed)}. Got {rule!r}.")
        _ = self.thresholds

    @cached_property
    def thresholds(self) -> dict[str, float]:
        """The numbers of `itm_of` by name.

        Raises:
            RecipeError: one of them is malformed, or a name is given twice.
        """
        thresholds = {}
        for entry in self.itm_of:
            name, _, number = entry.rpartition("=")
            try:
                value = float(number)
            except ValueError:
                value = math.nan
            if name in ("", "human", "reviewed") or not self._may_be_threshold(value):
                kind = "probabilities" if self.score in PROBABILITIES else "numbers"
                raise RecipeError(
                    f"itm_of must be names with {kind}, such as web=0.5. Got {entry!r}."
                )
            if name in thresholds:
                raise RecipeError(f"itm_of gives {name!r} twice: {' and '.join(self.itm_of)}")
            thresholds[name] = value
        return thresholds

    @property
    def names_data_sets(self) -> bool:
        """Whether a threshold depends on the data set of a row."""
        return not set(self.thresholds) <= set(TEXT_SOURCES)

    @property
    def needs_scores(self) -> bool:
        """Whether texts are weighed by their scores, so that one without does not count."""
        return self.weights == "calibrated"

    @property
    def has_two_texts(self) -> bool:
        """Whether contrast and decoder may see different texts of an image."""
        return self.contrast_text != self.decoder_text

    def settled(self, table: PairTable) -> "CaptionView":
        """The view with the score by which it weighs the texts of a table, see `weights`."""
        is_open = self.needs_scores and self.score == "itm" and self.itm is None and not self.itm_of
        texts = [_COLUMN_OF[s] for s in self.sources if s not in ("human", "reviewed")]
        has_it = all(score_column(name, RIGHT) in table.columns for name in texts)
        return replace(self, score=RIGHT) if is_open and has_it and texts else self

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of the table that decide which texts of a row count."""
        columns = ["origin", "captions"]
        texts = ["captions"]
        if "synthetic" in self.sources:
            columns.append("synthetic")
            texts.append("synthetic")
        columns += [
            score_column(_COLUMN_OF[s], self.score) for s in self.sources if self._asks_score(s)
        ]
        if self.names_data_sets:
            columns.append("meta")
        if "repeated_captions" in self.without or "reviewed" in self.sources:
            columns.append("id")
        if {"repeated_captions", "duplicate_captions"} & set(self.without):
            columns += [f"{name}_duplicate_of" for name in texts]
        if "leaks" in self.without:
            columns += [f"{name}_leak_of" for name in texts]
        return tuple(columns)

    def resolve(self, table: PairTable, may_be_empty: bool = False) -> "ViewIndex":
        """The rows of `table` that have an admitted text, found in one scan without images.

        Args:
            table: where the rows are.
            may_be_empty: whether a view without rows is of use; else a source that contributes
                nothing is warned of, and an old fit, see `ViewIndex.idle_sources`, `stale_scores`.

        Raises:
            DataError: a column that the view needs is missing or out of date, a row has another
                number of scores than of texts, or no row is left.
        """
        import pyarrow as pa

        settled = self.settled(table)
        if settled != self:
            return settled.resolve(table, may_be_empty)
        self.check(table)
        admitted_rows: list[np.ndarray] = []
        # Something to join also where no batch comes: `np.concatenate` refuses an empty list.
        row_weights = [np.zeros(0, dtype=np.float32)]
        agreed = self._agreed(table)
        index = ViewIndex(table, self, np.zeros(0, dtype=np.int64), {}, {}, agreed=agreed)
        splits: Counter[str] = Counter()
        digests = {source: TextDigest() for source in self.sources}
        start = 0
        for batch in table.scan([*self.columns_in(table), "split"]):
            split = string_values(batch["split"])
            # Of all splits: where the view is empty, an error tells which ones there are.
            splits.update(split.tolist())
            inside = split == self.split
            row_counts = np.zeros(batch.num_rows, dtype=np.int64)
            weights = np.zeros(batch.num_rows if self.needs_scores else 0)
            for source in self.sources:
                judged = judge(batch, self, source, start, agreed)
                index.count(source, judged, inside)
                row_counts += np.where(inside, judged.num_admitted(), 0)
                counts = (judged.codes == 0) & inside[judged.rows]
                texts = judged.texts.filter(pa.array(counts)).to_pylist()
                scores = None if judged.weights is None else judged.scores[counts]
                digests[source].add(start + judged.rows[counts], texts, scores)
                if self.needs_scores:
                    # As likely right as the likeliest of its texts; what people say is right.
                    likely = 1.0 if judged.weights is None else judged.weights[counts]
                    np.maximum.at(weights, judged.rows[counts], likely)
            admitted_rows.append(start + np.flatnonzero(row_counts))
            if self.needs_scores:
                row_weights.append(weights[row_counts > 0].astype(np.float32))
            start += batch.num_rows
        index = replace(
            index,
            rows=np.concatenate([index.rows, *admitted_rows]),
            text_digest=b"".join(digest.digest() for digest in digests.values()),
            weights=np.concatenate(row_weights) if self.needs_scores else None,
        )
        if not (index.rows.size or may_be_empty):
            raise DataError(self._why_empty(index, splits))
        lines = [*index.stale_verdicts(), *index.unchecked_words()]
        lines += [] if may_be_empty else [*index.idle_sources(), *index.stale_scores()]
        for line in lines:
            warnings.warn(line, OpenBlipWarning, stacklevel=2)
        return index

    def admitted(
        self, batch: "pa.RecordBatch | pa.Table", agreed: AgreedTexts | None = None
    ) -> list[list[AdmittedText]]:
        """The texts of each row that count, in the order of `SOURCES`; as `ViewIndex.admitted`.

        Args:
            batch: rows with `columns`. Texts get their scores also without a threshold, and their
                captioners, if there are the columns of `TOLD_COLUMNS`.
            agreed: what reviewers agree on, for a view that has `reviewed`.
        """
        assert agreed is not None or "reviewed" not in self.sources, "use `ViewIndex.admitted`"
        admitted: list[list[AdmittedText]] = []
        for part in _record_batches(batch):
            of_row: list[list[AdmittedText]] = [[] for _ in range(part.num_rows)]
            for source in (source for source in SOURCES if source in self.sources):
                judged = judge(part, self, source, agreed=agreed)
                texts, rows = judged.texts.to_pylist(), judged.rows.tolist()
                for at in np.flatnonzero(judged.codes == 0).tolist():
                    further = {name: _number(own[at]) for name, own in judged.further.items()}
                    told = _number(judged.itm[at]), judged.captioners[at], further
                    own = judged.agreed[at] if judged.agreed else None
                    weight = 1.0 if judged.weights is None else float(judged.weights[at])
                    of_row[rows[at]].append(AdmittedText(texts[at], source, *told, own, weight))
            admitted += of_row
        return admitted

    def rejected(
        self, table: PairTable, agreed: AgreedTexts | None = None
    ) -> Iterator[RejectedText]:
        """The texts of the split that do not count, in the order of the table.

        Args:
            table: where the texts are.
            agreed: what reviewers agree on, for a view that has `reviewed`; by default as of now.

        Raises:
            DataError: as `resolve`.
        """
        settled = self.settled(table)
        if settled != self:
            yield from settled.rejected(table, agreed)
            return
        self.check(table)
        agreed = self._agreed(table) if agreed is None else agreed
        scores = [name for name in TOLD_COLUMNS if name in table.columns]
        columns = list(dict.fromkeys(["id", "split", *self.columns_in(table), *scores]))
        for batch in table.scan(columns):
            inside = string_values(batch["split"]) == self.split
            ids = string_values(batch["id"])
            found = []
            for number, source in enumerate(self.sources):
                judged = judge(batch, self, source, agreed=agreed)
                rows, texts = judged.rows, judged.texts
                for at in np.flatnonzero((judged.codes > 0) & inside[rows]).tolist():
                    text = RejectedText(
                        id=ids[rows[at]],
                        text=texts[at].as_py() or "",
                        source=source,
                        reason=REJECTIONS[judged.codes[at] - 1],
                        itm=_number(judged.itm[at]),
                        score=_number(judged.scores[at]),
                        threshold=_number(judged.thresholds[at]),
                    )
                    found.append((int(rows[at]), number, at, text))
            # By row, source and place: texts themselves cannot be compared.
            yield from (text for *_, text in sorted(found, key=lambda entry: entry[:3]))

    def columns_in(self, table: PairTable) -> list[str]:
        """Columns that decide which texts count, those that concern a whole row included."""
        flags = {"duplicate_images": "duplicate_of", "leaks": "leak_of"}
        columns = [*self.columns, *(name for name in ERROR_COLUMNS if name in table.columns)]
        columns += [column for name, column in flags.items() if name in self.without]
        if "reviewed" in self.sources:
            # People may have judged a captioner's texts as well, if there are any.
            of_captioner = CaptionView(sources=("synthetic",), without=self.without)
            columns += [name for name in of_captioner.columns if name in table.columns]
        return list(dict.fromkeys(columns))

    def check(self, table: PairTable) -> None:
        """Nothing, if the table has all columns that the view needs, and they are up to date.

        Raises:
            DataError: one is missing or out of date, or a threshold names what is not there.
        """
        for check in dict.fromkeys(_CHECK_OF[name] for name in self.without):
            unchecked = what_is_unchecked(table, check)
            if unchecked:
                raise DataError(
                    f"{table.uri}: the view leaves {', '.join(self.without)} out, but {unchecked}: "
                    f"run `{_COMMAND_OF[check]}`"
                )
        missing = [column for column in self.columns if column not in table.columns]
        if missing:
            self._check_score(table, missing)
            raise DataError(
                f"{table.uri} has no column {', '.join(missing)}, which the view "
                f"sources={self.sources}, itm={self.itm} needs: {REMEDY}"
            )
        self._check_names(table)

    def _check_score(self, table: PairTable, missing: Sequence[str]) -> None:
        """That a score which is not there is one that CapFilt's first filter gives."""
        for column in ("captions", "synthetic"):
            there = ", ".join(scores_among(table.columns, column))
            # Without any score it has not been filtered; else by a filter that gives others.
            is_other = self.score != "itm" or there
            if is_other and score_column(column, self.score) in missing:
                raise DataError(
                    f"{table.uri}: {column} have no score {self.score!r}; they have "
                    f"{there or 'none'}"
                )

    @property
    def _threshold_kind(self) -> str:
        is_probability = self.score in PROBABILITIES
        return "a probability from 0 to 1" if is_probability else "a finite number"

    def _may_be_threshold(self, value: float) -> bool:
        return 0 <= value <= 1 if self.score in PROBABILITIES else math.isfinite(value)

    def _check_weights(self) -> None:
        if self.weights not in WEIGHTS:
            raise RecipeError(f"weights must be one of {', '.join(WEIGHTS)}. Got {self.weights!r}.")
        if not (self.weight_temperature > 0 and math.isfinite(self.weight_temperature)):
            raise RecipeError(f"weight_temperature must be above 0. Got {self.weight_temperature}.")
        if not 0 <= self.weight_floor <= 1:
            raise RecipeError(f"weight_floor must be from 0 to 1. Got {self.weight_floor}.")
        if not self.needs_scores and (self.weight_temperature, self.weight_floor) != (1.0, 0.0):
            raise RecipeError(
                "weight_temperature and weight_floor change nothing without weights: give "
                "weights=calibrated too"
            )

    def _asks_score(self, source: str) -> bool:
        if source in ("human", "reviewed"):
            return False
        if self.needs_scores:
            return True
        return self.itm is not None or source in self.thresholds or self.names_data_sets

    def _agreed(self, table: PairTable) -> AgreedTexts | None:
        if "reviewed" not in self.sources:
            return None
        # The checks are of training texts.
        asks = "leaks" in self.without and self.split == "train"
        return AgreedTexts.of(table, corrected_words(table) if asks else ())

    def _check_names(self, table: PairTable) -> None:
        """A name that nothing has would leave all texts in without a word."""
        if not self.names_data_sets:
            return
        there: set[str] = set()
        for batch in table.scan(["meta"]):
            there.update(data_sets(string_values(batch["meta"])))
        known = there - {""} | {"web", "synthetic"}
        for name in self.thresholds:
            data_set, _, source = name.rpartition("/")
            if name not in known and (data_set not in there or source not in known - there):
                raise DataError(
                    f"{table.uri}: itm_of names {name!r}, which is no source and no data set "
                    f"there; it has {', '.join(sorted(known))}"
                )

    def _why_empty(self, index: "ViewIndex", splits: Counter[str]) -> str:
        where = f"{index.table.uri}: the view has no row in the split {self.split!r}"
        if not splits[self.split]:
            return f"{where}; the table has {_listed(splits)}"
        remedy = f"widen the sources or lower the {self.score} threshold"
        if "reviewed" in self.sources:
            remedy = f"judge texts with `openblip capfilt review {index.table.uri}`, or {remedy}"
        told = "; ".join([index.summary(), *index.stale_verdicts()])
        of_rows = f"of its {splits[self.split]} rows none has an admitted text"
        return f"{where}: {of_rows} ({told}): {remedy}"


@dataclass(frozen=True, eq=False)
class ViewIndex:
    """What a view admits of one table: row numbers only, 8 bytes each; texts are read on demand."""

    table: PairTable
    view: CaptionView
    rows: np.ndarray
    """Row numbers with at least one admitted text, int64, ascending."""
    num_admitted: dict[str, int]
    """Texts that count, for each source."""
    num_offered: dict[str, int]
    """Texts that there are in the split, for each source."""
    num_rejected: dict[str, dict[str, int]] = field(default_factory=dict)
    """Texts of the split that do not count, for each source and reason (see `Rejection`)."""
    text_digest: bytes = b""
    """Another one where an admitted text, its row, or the score that weighs it is another."""
    agreed: AgreedTexts | None = None
    """What reviewers agreed on when the rows were found; None for a view without `reviewed`."""
    unchecked: list[AgreedText] = field(default_factory=list)
    """Texts that count in words that nobody has compared with evaluation splits, though the view
    leaves leaks out."""
    weights: np.ndarray | None = None
    """How often each row comes, float32 (rows,), above 0 and at most 1; None for all alike."""

    def __len__(self) -> int:
        return int(self.rows.size)

    def captions_of_rows(self, rows: Sequence[int] | np.ndarray) -> list[list[str]]:
        """The admitted texts of several rows, read in one call."""
        return self.admitted_texts(self.table.take(rows, self.columns))

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """Columns of the table that decide which texts of the rows count."""
        # A row that counts for a text that people have judged may have others that do not count
        # for a reason of the image's; without one, all its texts would share that reason.
        if self.agreed is None:
            return self.view.columns
        return tuple(self.view.columns_in(self.table))

    def admitted(self, batch: "pa.RecordBatch | pa.Table") -> list[list[AdmittedText]]:
        """The texts of each row that count, in the order of `SOURCES`.

        Args:
            batch: of `rows`, with `columns`, as `PairTable.take` returns them. Texts get their
                scores also without a threshold, and their captioners, if there are the columns of
                `TOLD_COLUMNS`.
        """
        return self.view.admitted(batch, self.agreed)

    def admitted_texts(self, batch: "pa.RecordBatch | pa.Table") -> list[list[str]]:
        """The same without what is told of them."""
        return [[text.text for text in texts] for texts in self.admitted(batch)]

    def stale_verdicts(self) -> list[str]:
        """A line about the verdicts whose text the table no longer has, if there are any."""
        num_stale = 0 if self.agreed is None else self.agreed.num_stale
        if not num_stale:
            return []
        return [
            f"{self.table.uri}: {num_stale:,} verdicts do not count: the texts that they are on "
            "no longer stand there, since CapFilt has run again or the table was made anew"
        ]

    def stale_scores(self) -> list[str]:
        """A line about a fit to other scores than the table has now, if it decides here."""
        asks = self.view.score == RIGHT and any(map(self.view._asks_score, self.view.sources))
        line = stale_right(self.table) if asks else None
        return [] if line is None else [line]

    def unchecked_words(self) -> list[str]:
        """A line about corrected texts in which a leak may be, if there are any."""
        if not self.unchecked:
            return []
        return [
            f"{self.table.uri}: {len(self.unchecked):,} texts count as reviewers have corrected "
            "them, and these words were not yet checked for leaks, which the view leaves out: run "
            f"`{_COMMAND_OF[LEAKS]}` again"
        ]

    def summary(self) -> str:
        """One line: how many texts of each source are admitted."""
        counts = [
            f"{source}: {self.num_admitted.get(source, 0):,} of "
            f"{self.num_offered.get(source, 0):,} texts"
            for source in self.view.sources
        ]
        weighed = "weighed " if self.view.needs_scores else ""
        by = (
            [f"{weighed}by the score {self.view.score}"]
            if weighed or self.view.score != "itm"
            else []
        )
        return ", ".join(counts + by)

    def idle_sources(self) -> list[str]:
        """A line for each source that contributes nothing: all its texts are rejected, or none is.

        That there is none is no news where nobody has named the source, nor in `val` and `test`,
        whose texts are people's.
        """
        view, lines = self.view, []
        is_named = view.sources != CaptionView.sources and view.split == "train"
        where = f"{self.table.uri}, split {view.split!r}"
        for source in view.sources:
            offered = self.num_offered.get(source, 0)
            if self.num_admitted.get(source, 0):
                continue
            if offered:
                reasons = self.num_rejected[source].items()
                why = ", ".join(f"{reason}: {number:,}" for reason, number in reasons)
                asked = [f"itm={view.itm}"] * (view.itm is not None) + list(view.itm_of)
                asked += [f"score={view.score}"] * (view.score != "itm" and bool(asked))
                at = f" at {' '.join(asked)}" if asked else ""
                lines.append(f"{where}: none of {offered:,} {source} texts counts{at} ({why})")
            elif is_named:
                beside = "reviewed" in view.sources and source != "reviewed"
                which = f"{source} texts beside the reviewed ones" if beside else f"{source} texts"
                lines.append(f"{where}: there are no {which}, which the view asks for")
        return lines

    def count(self, source: str, judged: JudgedTexts, inside: np.ndarray) -> None:
        """Adds the texts of the rows that are `inside` to the numbers."""
        codes = judged.codes[inside[judged.rows]]
        counts = np.bincount(codes, minlength=len(REJECTIONS) + 1).tolist()
        self.num_offered[source] = self.num_offered.get(source, 0) + len(codes)
        self.num_admitted[source] = self.num_admitted.get(source, 0) + counts[0]
        rejected = self.num_rejected.setdefault(source, {})
        for reason, number in zip(REJECTIONS, counts[1:], strict=True):
            if number:
                rejected[reason.value] = rejected.get(reason.value, 0) + number
        if self.agreed is not None and judged.agreed:
            agreed = self.agreed
            texts = zip(judged.agreed, (judged.codes == 0) & inside[judged.rows], strict=True)
            self.unchecked.extend(t for t, counts in texts if counts and agreed.is_unchecked(t))


def split_rows(table: PairTable, split: str) -> np.ndarray:
    """Numbers of all rows of a split, with or without texts, int64, ascending.

    Raises:
        DataError: the split has no row; names those that there are.
    """
    parts = [np.zeros(0, dtype=np.int64)]
    there: Counter[str] = Counter()
    for batch in table.scan(["split"]):
        names = string_values(batch["split"])
        # So many rows came before this batch, which is counted afterwards.
        parts.append(np.flatnonzero(names == split) + there.total())
        there.update(names.tolist())
    rows = np.concatenate(parts)
    if not rows.size:
        raise DataError(f"{table.uri} has no row in the split {split!r}; it has {_listed(there)}")
    return rows


def _listed(splits: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(splits.items())) or "no rows"


def _record_batches(batch: "pa.RecordBatch | pa.Table") -> "list[pa.RecordBatch]":
    import pyarrow as pa

    # Columns of what `take` returns may be in chunks of different lengths.
    return batch.combine_chunks().to_batches() if isinstance(batch, pa.Table) else [batch]


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
