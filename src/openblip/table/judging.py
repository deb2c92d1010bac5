"""Which texts of some rows count in a view, and why the others do not.

`TextDigest` grows with those that count: by it a run knows whether it learns from what it did.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from openblip.runtime.errors import DataError
from openblip.table.rows import TEXT_SOURCES, read_meta
from openblip.table.scores import score_column, scores_among

if TYPE_CHECKING:
    import pyarrow as pa

    from openblip.table.agreement import AgreedText, AgreedTexts
    from openblip.table.views import CaptionView

REMEDY = "run `openblip capfilt run` on the table first"
LEAST_WEIGHT = 2.0**-16
"""A text that counts is never impossible, however unlikely it is right."""
TextRule = Literal["any", "short", "long", "human", "web", "synthetic", "reviewed"]
"""Which of a row's texts somebody sees, see `CaptionView.contrast_text`."""
ERROR_COLUMNS = ("capfilt_error", "image_error")
"""Columns that say why an image cannot be read, if it cannot; the first is about web rows alone."""


class Rejection(StrEnum):
    """Why a text does not count; of several reasons the first of these.

    The image's reasons come first, as they hold for all of its texts. A leak comes before a
    duplicate, so that a report counts all leaks, and whoever admits duplicates admits none of them.
    A text without words is like every other such text, so it is none of the repetitions. A repeated
    caption is flagged as a duplicate too, of its own row, and must be told before. What a threshold
    decides comes last: lowering it brings back every text that is below, and no other.
    """

    UNREADABLE = "unreadable image"
    LEAKED_IMAGE = "leaked image"
    DUPLICATE_IMAGE = "duplicate image"
    EMPTY = "empty text"
    LEAKED_TEXT = "leaked caption"
    REPEATED_TEXT = "repeated caption"
    DUPLICATE_TEXT = "duplicate caption"
    JUDGED_WRONG = "judged wrong"
    UNDECIDED = "reviewers undecided"
    UNSCORED = "not scored"
    BELOW_THRESHOLD = "below the threshold"


REJECTIONS = tuple(Rejection)
"""Code c of a verdict is `REJECTIONS[c - 1]`; 0 is no rejection."""
_CODES = {reason: code for code, reason in enumerate(REJECTIONS, 1)}


@dataclass(frozen=True)
class RejectedText:
    """A text that does not count, and why."""

    id: str
    """Of its row."""
    text: str
    source: str
    """One of `views.SOURCES`."""
    reason: Rejection
    itm: float | None
    """The filter's match probability; None where it was not read or the text was not judged."""
    score: float | None
    """The score that the view asks for, which is `itm` by default."""
    threshold: float | None
    """What `score` would have to be above; None where nothing is asked."""


@dataclass(frozen=True)
class AdmittedText:
    """A text that counts, and what is known of it."""

    text: str
    source: str
    """One of `views.SOURCES`."""
    itm: float | None
    """The filter's match probability; None where it was not read or the text was not judged."""
    captioner: str | None = None
    """Fingerprint of the model that wrote it; None for a given text, or where it was not read."""
    scores: Mapping[str, float | None] = field(default_factory=dict)
    """Further scores that were read, by name; None where the text has none."""
    agreed: "AgreedText | None" = None
    """What people have judged; None where the source is not `reviewed`."""
    weight: float = 1.0
    """How often it is drawn beside the others of its row, see `CaptionView.weights`."""


@dataclass(frozen=True, eq=False)
class JudgedTexts:
    """The texts of one source in some rows, one after the other, and what becomes of them."""

    lengths: NDArray[np.int64]
    """Texts of this source in each row."""
    texts: "pa.Array"
    scores: NDArray[np.float64]
    """Those that the view asks for, NaN for a text that has none or whose score was not read."""
    itm: NDArray[np.float64]
    """Match probabilities, likewise; the same where the view asks for these."""
    thresholds: NDArray[np.float64]
    """What each score must be above, NaN where it need not."""
    captioners: NDArray[np.object_]
    """Fingerprint of the captioner that wrote each text, None for a given text, or where it was
    not read."""
    codes: NDArray[np.uint8]
    """0 for a text that counts, else its rejection, see `REJECTIONS`."""
    agreed: "Sequence[AgreedText]" = ()
    """Of the texts that people have judged, what was agreed; of other sources nothing."""
    further: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    """All scores but `itm` and `itc` that were read, by name; NaN as above."""
    weights: NDArray[np.float64] | None = None
    """How often each is drawn beside others, above 0 and at most 1; None for all alike."""

    @property
    def rows(self) -> NDArray[np.int64]:
        """The row of each text, counted from the first of the rows."""
        return np.repeat(np.arange(len(self.lengths)), self.lengths)

    def num_admitted(self) -> NDArray[np.int64]:
        """How many texts of each row count."""
        running = np.concatenate([[0], np.cumsum(self.codes == 0)])
        ends = np.cumsum(self.lengths)
        counts: NDArray[np.int64] = running[ends] - running[ends - self.lengths]
        return counts

    def picked(self, places: NDArray[np.int64]) -> "JudgedTexts":
        """The texts at some places, in order."""
        import pyarrow as pa

        return JudgedTexts(
            np.bincount(self.rows[places], minlength=len(self.lengths)),
            self.texts.take(pa.array(places, pa.int64())),
            self.scores[places],
            self.itm[places],
            self.thresholds[places],
            self.captioners[places],
            self.codes[places],
            further={name: own[places] for name, own in self.further.items()},
            weights=None if self.weights is None else self.weights[places],
        )


def judge(
    batch: "pa.RecordBatch",
    view: "CaptionView",
    source: str,
    start: int = 0,
    agreed: "AgreedTexts | None" = None,
) -> JudgedTexts:
    """What becomes of the texts of one source.

    Args:
        batch: rows with `view.columns`. Reasons that concern the image apply if their columns
            are there; scores are told also without a threshold if theirs are.
        view: the rules.
        source: one of `views.SOURCES`.
        start: number of the first row, for errors.
        agreed: what people have judged, for a view that has `reviewed` among its sources. A text
            about which they agree is one of `reviewed`, and none of the source that it stands in.

    Raises:
        DataError: a row has another number of scores, or flags, than of texts.
    """
    numbers = np.arange(start, start + batch.num_rows)
    if agreed is None:
        return _judge_column(batch, view, source, numbers)
    if source == "reviewed":
        return _judge_reviewed(batch, view, numbers, agreed)
    judged = _judge_column(batch, view, source, numbers)
    begins = np.cumsum(judged.lengths) - judged.lengths
    stays = np.ones(len(judged.texts), dtype=bool)
    for row in agreed.places_in(batch["id"]).tolist():
        for text in agreed.of_row(batch["id"][row].as_py()):
            if text.source == source and text.is_decided:
                stays[begins[row] + text.place] = False
    return judged if stays.all() else judged.picked(np.flatnonzero(stays))


def _judge_column(
    batch: "pa.RecordBatch", view: "CaptionView", source: str, numbers: NDArray[np.int64]
) -> JudgedTexts:
    own = _Own(batch, source, numbers)
    scores, itm = own.scores_and_itm(view.score, is_required=source != "human")
    row_thresholds = _row_thresholds(batch, own.mask, view, source, numbers)
    thresholds = np.repeat(row_thresholds, own.own_lengths)
    codes = _codes(own, view, source)
    has_threshold = ~np.isnan(thresholds)
    is_needed = has_threshold | (view.needs_scores and source != "human")
    codes[(codes == 0) & is_needed & np.isnan(scores)] = _CODES[Rejection.UNSCORED]
    # A comparison with NaN is False, so what is left has a score.
    below = (codes == 0) & has_threshold & ~(scores > thresholds)
    codes[below] = _CODES[Rejection.BELOW_THRESHOLD]
    weights = None if source == "human" else _weights(scores, codes, own, view)
    told = own.captioners(), codes, (), own.further(), weights
    return JudgedTexts(own.lengths, own.texts, scores, itm, thresholds, *told)


def _weights(
    scores: NDArray[np.float64], codes: NDArray[np.uint8], own: "_Own", view: "CaptionView"
) -> NDArray[np.float64] | None:
    """What a view makes of the scores of texts that count; None where it weighs all alike."""
    if not view.needs_scores:
        return None
    counts = codes == 0
    if wrong := np.flatnonzero(counts & ~((scores >= 0) & (scores <= 1))).tolist():
        row = int(np.repeat(own.numbers[own.mask], own.own_lengths)[wrong[0]])
        raise DataError(
            f"row {row}: the score {view.score} of a text in {own.column} is {scores[wrong[0]]:g}, "
            "which is no probability: weights need one, such as itm or right"
        )
    with np.errstate(divide="ignore"):
        odds = np.log(scores) - np.log1p(-scores)
    # The logistic function as this overflows nowhere: odds may be infinite.
    likely = 0.5 * (1 + np.tanh(0.5 * odds / view.weight_temperature))
    return np.where(counts, np.maximum(likely, max(view.weight_floor, LEAST_WEIGHT)), 0.0)


def _judge_reviewed(
    batch: "pa.RecordBatch",
    view: "CaptionView",
    numbers: NDArray[np.int64],
    agreed: "AgreedTexts",
) -> JudgedTexts:
    """The texts that people have judged, whatever column they stand in."""
    import pyarrow as pa

    places = agreed.places_in(batch["id"])
    rows = batch.take(pa.array(places, pa.int64()))
    found: list[tuple[int, AgreedText, int, str | None, dict[str, float]]] = []
    for source in TEXT_SOURCES:
        if ("synthetic" if source == "synthetic" else "captions") not in rows.schema.names:
            continue
        own = _Own(rows, source, numbers[places])
        codes = _codes(own, view, "reviewed")
        scores, itm = own.scores_and_itm(view.score, is_required=False)
        read = {"": scores, "itm": itm, **own.further()}
        captioners, begins = own.captioners(), np.cumsum(own.lengths) - own.lengths
        for row, key in enumerate(rows["id"].to_pylist()):
            for text in (text for text in agreed.of_row(key) if text.source == source):
                # What nothing is decided of is one of its own source, where the view has that.
                if text.is_decided or source not in view.sources:
                    at = begins[row] + text.place
                    code = _agreed_code(text, int(codes[at]), agreed.leaks(text))
                    # Other words have not been scored.
                    told = {} if text.is_edited else {n: v[at] for n, v in read.items()}
                    found.append((int(places[row]), text, code, captioners[at], told))
    found.sort(key=lambda entry: entry[0])
    of_texts = np.array([row for row, *_ in found], dtype=np.int64)
    names = {"", "itm"}.union(*(told for *_, told in found))
    values = {name: np.array([t.get(name, np.nan) for *_, t in found]) for name in names}
    return JudgedTexts(
        np.bincount(of_texts, minlength=batch.num_rows),
        pa.array([text.words or text.text for _, text, *_ in found], pa.string()),
        values.pop("").astype(np.float64),
        values.pop("itm").astype(np.float64),
        np.full(len(found), np.nan),
        np.array([captioner for *_, captioner, _ in found], dtype=object),
        np.array([code for _, _, code, *_ in found], dtype=np.uint8),
        [text for _, text, *_ in found],
        values,
    )


def _agreed_code(text: "AgreedText", code: int, leaks: bool | None) -> int:
    """The code of a judged text, given that of the text which the table has.

    Args:
        text: as it was judged.
        code: of the words that the table has.
        leaks: whether its corrected words stand in an evaluation split, where that is known.
    """
    # Other words are no repetition of those that the table has. A leak may still be in them, until
    # they have been looked at themselves.
    of_words = [Rejection.EMPTY, Rejection.REPEATED_TEXT, Rejection.DUPLICATE_TEXT]
    of_words += [] if leaks is None else [Rejection.LEAKED_TEXT]
    if text.is_edited and code in [_CODES[reason] for reason in of_words]:
        code = 0
    if code == 0 and leaks:
        return _CODES[Rejection.LEAKED_TEXT]
    if code == 0 and not text.is_decided:
        return _CODES[Rejection.UNDECIDED]
    if code == 0 and text.words is None:
        return _CODES[Rejection.JUDGED_WRONG]
    return code


def _codes(own: "_Own", view: "CaptionView", source: str) -> NDArray[np.uint8]:
    """For each text the reason that is none of its score's."""
    codes = np.zeros(len(own.texts), dtype=np.uint8)
    for reason, applies in _image_reasons(own.batch, own.mask, view, source).items():
        codes[(codes == 0) & np.repeat(applies, own.own_lengths)] = _CODES[reason]
    for reason, applies in _text_reasons(own, view).items():
        codes[(codes == 0) & applies] = _CODES[reason]
    return codes


def fitting(texts: Sequence[AdmittedText], rule: TextRule) -> Sequence[AdmittedText]:
    """Those of a row's texts that a rule takes, see `CaptionView.contrast_text`; all, if none."""
    if rule in ("short", "long"):
        # By letters: there is not a space between words in every language.
        ordered = sorted(texts, key=lambda text: len(text.text), reverse=rule == "long")
        return ordered[: (len(ordered) + 1) // 2]
    return [text for text in texts if text.source == rule] or texts


def string_values(column: "pa.Array") -> NDArray[np.object_]:
    """The texts of a column as objects, None for a null."""
    return np.asarray(column.to_numpy(zero_copy_only=False), dtype=object)


class _Own:
    """The texts of one source: lists of the rows of a mask, flat, and lists beside them."""

    def __init__(self, batch: "pa.RecordBatch", source: str, numbers: NDArray[np.int64]) -> None:
        is_human = string_values(batch["origin"]) == "human"
        self.batch, self.numbers = batch, numbers
        self.mask = is_human if source == "human" else ~is_human
        self.column = "synthetic" if source == "synthetic" else "captions"
        lists = self._lists(self.column)
        self.own_lengths = _lengths(lists)
        self.texts = lists.flatten()
        self.lengths = np.zeros(batch.num_rows, dtype=np.int64)
        self.lengths[self.mask] = self.own_lengths

    def scores_and_itm(
        self, score: str, is_required: bool
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """A score of the texts, and their match probabilities; NaN where there are none."""
        itm = self._scores("itm", is_required)
        return (itm if score == "itm" else self._scores(score, is_required)), itm

    def further(self) -> dict[str, NDArray[np.float64]]:
        """All scores that were read besides `itm` and `itc`, NaN where a text has none."""
        names = scores_among(self.batch.schema.names, self.column)
        return {name: self._scores(name, False) for name in names if name not in ("itm", "itc")}

    def _scores(self, score: str, is_required: bool) -> NDArray[np.float64]:
        scores = np.full(len(self.texts), np.nan)
        name = score_column(self.column, score)
        if name in self.batch.schema.names:
            places, lists = self._beside(name, REMEDY if is_required else None)
            # Nulls become NaN.
            scores[places] = lists.flatten().to_numpy(zero_copy_only=False)
        return scores

    def captioners(self) -> NDArray[np.object_]:
        """Who wrote the texts, None where it is not known."""
        captioners = np.full(len(self.texts), None, dtype=object)
        name = f"{self.column}_captioner"
        if name in self.batch.schema.names:
            places, lists = self._beside(name, REMEDY)
            captioners[places] = string_values(lists.flatten())
        return captioners

    def flagged(self, name: str) -> "tuple[NDArray[np.bool_], pa.Array]":
        """Which texts have a flag, and the flags of all."""
        places, lists = self._beside(name, "run `openblip data duplicates` and `leakage` again")
        flags = lists.flatten()
        has_flag = np.zeros(len(self.texts), dtype=bool)
        has_flag[places] = flags.is_valid().to_numpy(zero_copy_only=False)
        return has_flag, flags

    def repeated(self, name: str) -> NDArray[np.bool_]:
        """Which texts are flagged with the id of their own row."""
        has_flag, flags = self.flagged(name)
        ids = np.repeat(string_values(self.batch["id"])[self.mask], self.own_lengths)
        has_flag[has_flag] = string_values(flags.drop_null()) == ids[has_flag]
        return has_flag

    def _lists(self, name: str) -> "pa.Array":
        import pyarrow as pa

        column = self.batch[name]
        return column if self.mask.all() else column.filter(pa.array(self.mask))

    def _beside(self, name: str, remedy: str | None) -> "tuple[NDArray[np.int64], pa.Array]":
        """Which texts have a value in another column of lists, and the lists of these."""
        import pyarrow as pa

        lists = self._lists(name)
        others = _lengths(lists)
        wrong = np.flatnonzero((others != self.own_lengths) & (others != 0))
        # A row without any value was not looked at (it failed, or came later).
        if wrong.size and remedy is not None:
            place = int(wrong[0])
            row = int(self.numbers[self.mask][place])
            raise DataError(
                f"row {row}: {self.own_lengths[place]} texts in {self.column} but "
                f"{others[place]} values in {name}: {remedy}"
            )
        has_values = (others == self.own_lengths) & (others > 0)
        places = np.flatnonzero(np.repeat(has_values, self.own_lengths))
        return places, lists.filter(pa.array(has_values))


def _image_reasons(
    batch: "pa.RecordBatch", mask: NDArray[np.bool_], view: "CaptionView", source: str
) -> dict[Rejection, NDArray[np.bool_]]:
    columns = {Rejection.UNREADABLE: list(ERROR_COLUMNS)}
    if source in ("human", "reviewed"):
        # Its error may be that of a batch or fragment as a whole; of people's it reads no image,
        # and whoever judges a text sees one.
        columns[Rejection.UNREADABLE].remove("capfilt_error")
    if "leaks" in view.without:
        columns[Rejection.LEAKED_IMAGE] = ["leak_of"]
    if "duplicate_images" in view.without:
        columns[Rejection.DUPLICATE_IMAGE] = ["duplicate_of"]
    reasons: dict[Rejection, NDArray[np.bool_]] = {}
    for reason, names in columns.items():
        for name in names:
            if name in batch.schema.names:
                is_set = batch[name].is_valid().to_numpy(zero_copy_only=False)[mask]
                reasons[reason] = reasons.get(reason, np.zeros_like(is_set)) | is_set
    return reasons


def _text_reasons(own: _Own, view: "CaptionView") -> dict[Rejection, NDArray[np.bool_]]:
    import pyarrow.compute as pc

    trimmed = pc.utf8_length(pc.utf8_trim_whitespace(own.texts)).fill_null(0)
    reasons = {Rejection.EMPTY: np.asarray(trimmed.to_numpy(zero_copy_only=False) == 0)}
    if "leaks" in view.without:
        reasons[Rejection.LEAKED_TEXT] = own.flagged(f"{own.column}_leak_of")[0]
    if "repeated_captions" in view.without:
        reasons[Rejection.REPEATED_TEXT] = own.repeated(f"{own.column}_duplicate_of")
    if "duplicate_captions" in view.without:
        reasons[Rejection.DUPLICATE_TEXT] = own.flagged(f"{own.column}_duplicate_of")[0]
    return reasons


def _row_thresholds(
    batch: "pa.RecordBatch",
    mask: NDArray[np.bool_],
    view: "CaptionView",
    source: str,
    numbers: NDArray[np.int64],
) -> NDArray[np.float64]:
    """What the scores of each row of the mask must be above, NaN for nothing."""
    if source == "human":
        return np.full(int(mask.sum()), np.nan)
    thresholds = view.thresholds
    general = thresholds.get(source, np.nan if view.itm is None else view.itm)
    if not view.names_data_sets:
        return np.full(int(mask.sum()), general)
    names = data_sets(string_values(batch["meta"])[mask], numbers[mask])
    of_name = {
        name: thresholds.get(f"{name}/{source}", thresholds.get(name, general))
        for name in set(names)
    }
    return np.array([of_name[name] for name in names], dtype=np.float64)


def data_sets(metas: NDArray[np.object_], numbers: NDArray[np.int64] | None = None) -> list[str]:
    """What the source of each row calls itself in its `meta`, empty where it does not.

    Args:
        metas: of the rows.
        numbers: of the rows, for errors; by default counted from 0.

    Raises:
        DataError: one is no object.
    """
    if numbers is None:
        numbers = np.arange(len(metas))
    return [
        str(read_meta(str(number), meta).get("source", ""))
        for number, meta in zip(numbers, metas, strict=True)
    ]


def _lengths(column: "pa.Array") -> NDArray[np.int64]:
    """Number of values in each list, 0 for a null."""
    lengths = column.value_lengths().fill_null(0)
    return np.asarray(lengths.to_numpy(zero_copy_only=False), dtype=np.int64)


_SIZE = 8


class TextDigest:
    """Grows with texts and their rows; how many of them come at once makes no difference."""

    def __init__(self) -> None:
        self._rows = hashlib.blake2b(digest_size=_SIZE)
        self._texts = hashlib.blake2b(digest_size=_SIZE)
        self._scores: hashlib.blake2b | None = None

    def add(
        self,
        rows: NDArray[np.int64],
        texts: Iterable[str],
        scores: NDArray[np.float64] | None = None,
    ) -> None:
        """Counts texts in.

        Args:
            rows: of each text, int64 (texts,).
            texts: as they are stored.
            scores: by which they are weighed, (texts,); None for texts that are not.
        """
        self._rows.update(rows.astype("<i8").tobytes())
        self._texts.update("\0".join([*texts, ""]).encode())
        if scores is not None:
            # Not the weights: logarithms differ in their last digit from one processor to the next.
            self._scores = self._scores or hashlib.blake2b(digest_size=_SIZE)
            self._scores.update(scores.astype("<f8").tobytes())

    def digest(self) -> bytes:
        """Equal for the same texts, and scores, in the same rows and order, on every machine."""
        # Without scores nothing more: runs on texts that are not weighed keep their digest.
        weighed = b"" if self._scores is None else self._scores.digest()
        return self._rows.digest() + self._texts.digest() + weighed
