"""What is reviewed: the texts in question, why some are drawn more often, and the drawn sample.

The sample is stored beside the table, in `TABLE.samples/`, so that several reviewers, and a server
that was started again, see the same texts in the same order. Its name follows from the settings and
from all scores: after another CapFilt there is another sample, and a column that was added, or a
larger size, changes nothing.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from openblip.review.strata import Design, Kind, draw, is_probability, stratify
from openblip.runtime.atomic import replace_file
from openblip.runtime.documents import read_text
from openblip.runtime.errors import DataError, RecipeError
from openblip.runtime.ranges import Count, CountOrNone, Finite, Seed, check_ranges
from openblip.table.judging import data_sets, string_values
from openblip.table.rows import listed
from openblip.table.scores import (
    AUTO_SCORE,
    PROBABILITIES,
    TEXT_COLUMNS,
    FlatScores,
    check_scored,
    columns_of,
    flat_scores,
    join_scores,
    named_score,
)
from openblip.table.storage import ObjectFolder, is_object_address
from openblip.table.table import PairTable

SCORED_SOURCES = tuple(TEXT_COLUMNS)
# Of names of samples; a change of how strata are made needs another one.
_FORMAT = 1
# Of scores that are no probabilities: from those, shares were computed that are none.
_FORMAT_OF_OTHERS = 2
_MOST_DATA_SETS = 20


@dataclass(frozen=True, kw_only=True)
class ReviewSettings:
    """Which texts are reviewed, and which of them come more often than by chance alone."""

    by: Literal[
        "threshold", "accepted", "rejected", "disagreement", "given-synthetic", "source", "search"
    ] = "threshold"
    """What comes more often: texts that decide about thresholds; the surest acceptances; the
    surest rejections; texts on which ITM and ITC disagree; images of which the filter keeps the
    given text and not the synthetic one, or the reverse; equally many of each source and data set;
    or texts of some rows alone, which a search has found."""
    sources: tuple[Literal["web", "synthetic"], ...] = ("web", "synthetic")
    """Given texts of web rows, or the captioner's, or both."""
    threshold: Finite = 0.5
    """The current one: a text is kept if its score is above it."""
    score: str = AUTO_SCORE
    """Which score is compared with the threshold: `itm`, the filter's match probability; `itc`;
    `right`, the calibrated probability of `openblip capfilt fit`; that of another filter by its
    name; or `auto`: `right` where the table has it, else `itm`."""
    size: Count = 400
    """Texts that are drawn; more can be drawn later, and those that are there stay."""
    seed: Seed = 0
    """Decides what is drawn."""
    datasets: tuple[str, ...] = ()
    """Texts of these data sets alone, by the `source` in the `meta` of rows."""
    rows: tuple[CountOrNone, ...] = ()
    """With by=search: numbers of the rows whose texts are reviewed."""

    def __post_init__(self) -> None:
        """Checks every field.

        Raises:
            RecipeError: names the field.
        """
        check_ranges(self)
        if self.score in (AUTO_SCORE, *PROBABILITIES) and not 0 <= self.threshold <= 1:
            raise RecipeError(f"threshold is {self.threshold:g}; give a number from 0 to 1")
        if not self.sources or not set(self.sources) <= set(SCORED_SOURCES):
            raise RecipeError(
                f"sources must be some of {listed(SCORED_SOURCES)}, which a filter scores. Got "
                f"{self.sources}."
            )
        if self.by not in _KINDS:
            raise RecipeError(f"by must be one of {listed(_KINDS)}. Got {self.by!r}.")
        if bool(self.rows) != (self.by == "search"):
            raise RecipeError("rows and by=search go together: give both, or none of them")
        if self.by == "given-synthetic" and len(self.sources) < 2:
            raise RecipeError("by=given-synthetic compares both sources; leave sources out")


@dataclass(frozen=True, eq=False)
class Frame:
    """The texts that may be drawn; position i of every array is one text."""

    rows: NDArray[np.int64]
    """Row of the table."""
    places: NDArray[np.int64]
    """Which of the row's texts of this source."""
    sources: NDArray[np.int8]
    """Number of the source in `SCORED_SOURCES`."""
    data_sets: NDArray[np.int64] | None
    """Number of the row's data set in `names`; None where they were not read."""
    names: tuple[str, ...]
    """Of data sets."""
    itm: NDArray[np.float64]
    itc: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.rows)

    def part(self, chosen: NDArray[np.bool_]) -> "Frame":
        """Those texts alone."""
        own = None if self.data_sets is None else self.data_sets[chosen]
        return Frame(
            self.rows[chosen],
            self.places[chosen],
            self.sources[chosen],
            own,
            self.names,
            self.itm[chosen],
            self.itc[chosen],
        )

    def digest(self) -> str:
        """Another one where a text, its place or its score is another."""
        total = hashlib.blake2b(digest_size=8)
        for array in (self.rows, self.places, self.sources, self.itm, self.itc):
            total.update(np.ascontiguousarray(array).tobytes())
        return total.hexdigest()


@dataclass(frozen=True, eq=False)
class Sample:
    """Drawn texts in the order in which they are shown."""

    name: str
    settings: ReviewSettings
    frame: Frame
    design: Design
    order: NDArray[np.int64]
    """Position in the frame of each drawn text, (size,)."""
    strata: NDArray[np.int64]
    """Stratum of each drawn text, (size,)."""

    @cached_property
    def probabilities(self) -> NDArray[np.float64]:
        """With which each drawn text is among so many of its stratum, (size,)."""
        drawn = np.bincount(self.strata, minlength=len(self.design.sizes))
        return np.asarray((drawn / np.maximum(self.design.sizes, 1))[self.strata])

    @property
    def scope(self) -> str:
        """What its estimates are about, in words; empty where that is all scored texts."""
        settings = self.settings
        words = [f"{len(self.frame):,} {' and '.join(settings.sources)} texts"]
        if settings.datasets:
            words.append(f"of {listed(settings.datasets)}")
        if settings.by == "search":
            words.append(f"in the {len(set(settings.rows)):,} rows that were given")
        if settings.by == "given-synthetic":
            words.append("of rows that have both")
        is_all = len(words) == 1 and set(settings.sources) == set(SCORED_SOURCES)
        return "" if is_all else " ".join(words)


def open_sample(table: PairTable, settings: ReviewSettings) -> Sample:
    """The sample of a table that these settings mean: as it was drawn before, or drawn now.

    Raises:
        DataError: the table is not scored, has no such texts, or the stored sample is damaged.
        RecipeError: a row does not exist.
        StorageError, UnwritableError: it cannot be stored.
    """
    settings = replace(settings, score=named_score(table, settings.score))
    frame = read_frame(table, settings)
    bins = (4, 3) if len(settings.sources) == 1 and settings.by == "threshold" else (3, 2)
    if settings.by not in ("threshold", "search", "source"):
        bins = (1, 1)
    kinds = [kind for kind in _KINDS[settings.by](frame, settings) if kind.members.any()]
    design, of_text = stratify(
        frame.itm, frame.sources, SCORED_SOURCES, settings.threshold, kinds, bins
    )
    lowest = 0.0 if settings.score in PROBABILITIES else -np.inf
    design = replace(
        design,
        floor=settings.threshold if settings.by == "accepted" else lowest,
        is_one_sided=settings.by in ("accepted", "rejected"),
    )
    name = _name(frame, settings)
    store = SampleStore(table.uri)
    stored = store.read(name)
    order = _placed(stored, frame, f"{store.where}/{name}.json")
    if len(order) < min(settings.size, len(frame)):
        further = draw(design, of_text, settings.size, settings.seed)
        # What was shown stays, whatever another version of NumPy draws.
        fresh = further[~np.isin(further, order)]
        # A smaller size than before takes nothing away: it may have verdicts.
        order = np.concatenate([order, fresh])[: max(settings.size, len(order))]
        store.write(name, _document(table, settings, design, frame, order))
    return Sample(name, settings, frame, design, order, of_text[order])


def read_frame(table: PairTable, settings: ReviewSettings) -> Frame:
    """The texts that settings admit, which name a score, in the order of sources and rows.

    Raises:
        DataError: the table is not scored, or has no such texts.
        RecipeError: a row does not exist.
    """
    check_scored(table, settings.score)
    if wrong := [row for row in settings.rows if not 0 <= row < len(table)]:
        raise RecipeError(
            f"there is no row {wrong[0]} in {table.uri}, which has rows 0 to {len(table) - 1}"
        )
    by_data_set = bool(settings.datasets) or settings.by == "source"
    columns = ["origin", *columns_of(table, settings.score), *(["meta"] if by_data_set else [])]
    parts: dict[str, list[FlatScores]] = {source: [] for source in settings.sources}
    row_names: list[str] = []
    start = 0
    for batch in table.scan(columns, batch_size=65536):
        for source, own in parts.items():
            own.append(flat_scores(batch, source, start, table.uri, settings.score))
        if by_data_set:
            numbers = np.arange(start, start + batch.num_rows)
            row_names += data_sets(string_values(batch["meta"]), numbers)
        start += batch.num_rows
    frame = _joined({source: join_scores(own) for source, own in parts.items()}, row_names)
    frame = frame.part(_chosen(table, frame, settings))
    if not len(frame):
        raise DataError(
            f"{table.uri} has no scored text for by={settings.by}, "
            f"sources={' '.join(settings.sources)} at the threshold {settings.threshold:g}; "
            "`openblip capfilt select` shows what there is"
        )
    return frame


def _joined(flat: dict[str, FlatScores], row_names: list[str]) -> Frame:
    every = join_scores(list(flat.values()))
    codes = [
        np.full(len(own), SCORED_SOURCES.index(source), np.int8) for source, own in flat.items()
    ]
    names, of_row = (
        np.unique(np.array(row_names, dtype=object), return_inverse=True)
        if row_names
        else (np.zeros(0, dtype=object), None)
    )
    # `row_names` has every row of the table, so that a text's row is its place there.
    own_sets = None if of_row is None else of_row[every.rows]
    sources = np.concatenate([np.zeros(0, np.int8), *codes])
    return Frame(
        every.rows, every.places, sources, own_sets, tuple(names.tolist()), every.itm, every.itc
    )


def _chosen(table: PairTable, frame: Frame, settings: ReviewSettings) -> NDArray[np.bool_]:
    """Which texts of all may be drawn."""
    chosen = np.ones(len(frame), dtype=bool)
    if settings.datasets:
        assert frame.data_sets is not None
        if unknown := [name for name in settings.datasets if name not in frame.names]:
            there = listed(filter(None, frame.names)) or "none: `source` in the meta of rows"
            raise DataError(f"{table.uri} has no data set {unknown[0]!r}; it has {there}")
        chosen &= np.isin(frame.data_sets, [frame.names.index(n) for n in settings.datasets])
    if settings.by == "accepted":
        chosen &= frame.itm > settings.threshold
    elif settings.by == "rejected":
        chosen &= frame.itm <= settings.threshold
    elif settings.by == "search":
        chosen &= np.isin(frame.rows, settings.rows)
    elif settings.by == "given-synthetic":
        given, made = (frame.rows[frame.sources == code] for code in range(2))
        chosen &= np.isin(frame.rows, np.intersect1d(given, made))
    return chosen


def _by_threshold(frame: Frame, settings: ReviewSettings) -> list[Kind]:
    return [Kind("", np.ones(len(frame), dtype=bool), 1.0)]


def _accepted(frame: Frame, settings: ReviewSettings) -> list[Kind]:
    return _graded(_ranks(frame.itm), "highest", {0.9: 0.45, 0.7: 0.25, 0.4: 0.18, 0.0: 0.12})


def _rejected(frame: Frame, settings: ReviewSettings) -> list[Kind]:
    return _graded(_ranks(-frame.itm), "lowest", {0.9: 0.45, 0.7: 0.25, 0.4: 0.18, 0.0: 0.12})


def _disagreement(frame: Frame, settings: ReviewSettings) -> list[Kind]:
    if not np.isfinite(frame.itc).all() or settings.score == "itc":
        raise RecipeError("by=disagreement compares a score with the cosine ITC; give another one")
    # A probability and a cosine cannot be compared, their ranks within a source can.
    apart = np.zeros(len(frame))
    for source in np.unique(frame.sources):
        own = frame.sources == source
        apart[own] = np.abs(_ranks(frame.itm[own]) - _ranks(frame.itc[own]))
    return _graded(_ranks(apart), "disagreeing", {0.95: 0.45, 0.8: 0.3, 0.0: 0.25})


def _graded(ranks: NDArray[np.float64], name: str, attention: dict[float, float]) -> list[Kind]:
    """Kinds by rank: from each of these ranks up to the one before, with these parts."""
    kinds, above = [], np.zeros(len(ranks), dtype=bool)
    for least, part in attention.items():
        inside = (ranks >= least) & ~above
        above |= inside
        words = f"{name} {100 * (1 - least):.0f} %" if least else "others"
        kinds.append(Kind(words, inside, part))
    return kinds


def _given_synthetic(frame: Frame, settings: ReviewSettings) -> list[Kind]:
    is_kept = frame.itm > settings.threshold
    given, made = (
        np.isin(frame.rows, frame.rows[is_kept & (frame.sources == code)]) for code in range(2)
    )
    return [
        Kind("given alone kept", given & ~made, 0.35),
        Kind("synthetic alone kept", made & ~given, 0.35),
        Kind("both kept", given & made, 0.15),
        Kind("none kept", ~given & ~made, 0.15),
    ]


def _by_source(frame: Frame, settings: ReviewSettings) -> list[Kind]:
    assert frame.data_sets is not None
    codes, counts = np.unique(frame.data_sets, return_counts=True)
    # A thousand data sets with a text each could not be told apart by any number of verdicts.
    large = codes[np.argsort(-counts, kind="stable")][:_MOST_DATA_SETS]
    kinds = [
        Kind(frame.names[code], (frame.data_sets == code) & (frame.sources == source), 1.0)
        for code in large
        for source in range(len(SCORED_SOURCES))
    ]
    return [*kinds, Kind("other data sets", ~np.isin(frame.data_sets, large), 1.0)]


_KINDS: dict[str, Callable[[Frame, ReviewSettings], list[Kind]]] = {
    "threshold": _by_threshold,
    "accepted": _accepted,
    "rejected": _rejected,
    "disagreement": _disagreement,
    "given-synthetic": _given_synthetic,
    "source": _by_source,
    "search": _by_threshold,
}


def _ranks(values: NDArray[Any]) -> NDArray[np.float64]:
    """The share of values that are smaller, from 0 to below 1; equal ones have the same."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    smaller = np.cumsum(counts) - counts
    return np.asarray(smaller[places] / max(len(values), 1), dtype=np.float64)


class SampleStore:
    """The samples that were drawn from one table."""

    def __init__(self, table_uri: str) -> None:
        """Reads nothing yet."""
        place, self._objects = table_uri.rstrip("/"), None
        if is_object_address(place):
            self._objects = ObjectFolder(f"{place}.samples")
        else:
            # As the log of verdicts: one for a table, by whatever name it is opened.
            path = Path(place.removeprefix("file://"))
            place = str(path.resolve() if path.is_symlink() else path)
        self.where = f"{place}.samples"

    def names(self) -> list[str]:
        """Of all samples, in order of their names."""
        if self._objects is not None:
            files = self._objects.names()
        else:
            files = sorted(path.name for path in Path(self.where).glob("*.json"))
        return [name.removesuffix(".json") for name in files if name.endswith(".json")]

    def read(self, name: str) -> dict[str, Any] | None:
        """What is stored of a sample; None if there is none.

        Raises:
            DataError: it is damaged.
        """
        where = f"{self.where}/{name}.json"
        if self._objects is not None:
            content = self._objects.read(f"{name}.json")
            text = None if content is None else content.decode("utf-8", "replace")
        else:
            text = read_text(Path(where)) if Path(where).exists() else None
        if text is None:
            return None
        try:
            value = json.loads(text)
            if isinstance(value["settings"], dict) and isinstance(value["items"], list):
                return dict(value)
        except (ValueError, KeyError, TypeError, RecursionError):
            pass
        raise _damaged(where)

    def settings(self, name: str) -> ReviewSettings:
        """The settings that a sample was drawn with.

        Raises:
            DataError: it is damaged, or not there.
        """
        where = f"{self.where}/{name}.json"
        stored = self.read(name) or {"settings": {}, "items": []}
        try:
            values: dict[str, Any] = {
                field: tuple(value) if isinstance(value, list) else value
                for field, value in stored["settings"].items()
            }
            # As many as are drawn: whoever only looks at a review draws nothing.
            # Before there was a choice the match probability decided, and no score was stored.
            values = {"score": "itm", **values, "size": max(1, len(stored["items"]))}
            return ReviewSettings(**values)
        except (TypeError, RecipeError) as error:
            raise _damaged(where) from error

    def write(self, name: str, document: dict[str, Any]) -> None:
        """Stores a sample, whole or not at all.

        Raises:
            UnwritableError, StorageError: it cannot be written.
        """
        content = json.dumps(document, ensure_ascii=True).encode()
        if self._objects is not None:
            self._objects.write(f"{name}.json", content)
            return
        with replace_file(Path(self.where, f"{name}.json")) as path:
            path.write_bytes(content)


def _damaged(where: str) -> DataError:
    return DataError(
        f"{where} is no sample of a review: restore it from a copy, or remove it, which draws the "
        "same texts again"
    )


def _name(frame: Frame, settings: ReviewSettings) -> str:
    number = _FORMAT if is_probability(frame.itm) else _FORMAT_OF_OTHERS
    fields = {**asdict(settings), "size": None, "format": number, "texts": frame.digest()}
    # Samples of before there was a choice keep their names.
    if settings.score == "itm":
        del fields["score"]
    digest = hashlib.blake2b(json.dumps(fields, sort_keys=True).encode(), digest_size=6)
    # Of some data sets alone: see `PARTIAL_SAMPLES`.
    part = "datasets-" if settings.datasets else ""
    return f"{part}{settings.by}-{digest.hexdigest()}"


def _document(
    table: PairTable,
    settings: ReviewSettings,
    design: Design,
    frame: Frame,
    order: NDArray[np.int64],
) -> dict[str, Any]:
    strata = [
        {"name": name, "texts": int(size), "probability": float(share)}
        for name, size, share in zip(design.names, design.sizes, design.shares, strict=True)
    ]
    items = np.stack([frame.rows[order], frame.sources[order], frame.places[order]], axis=1)
    return {
        "settings": asdict(settings),
        "table_version": table.version,
        "strata": strata,
        "items": items.tolist(),
    }


def _placed(stored: dict[str, Any] | None, frame: Frame, where: str) -> NDArray[np.int64]:
    """The positions in the frame of what is stored, (items,).

    Raises:
        DataError: a text is not there, or twice: the file is damaged.
    """
    items: Sequence[Sequence[int]] = stored["items"] if stored else []
    if not items:
        return np.zeros(0, dtype=np.int64)
    try:
        wanted = np.array(items, dtype=np.int64).reshape(len(items), 3)
    except (ValueError, TypeError, OverflowError) as error:
        raise _damaged(where) from error
    # Texts stand in the order of sources, rows and places: found by one number for all three.
    most = 1 + int(max(frame.places.max(), wanted[:, 2].max()))
    lines = 1 + int(max(frame.rows.max(), wanted[:, 0].max()))
    known = (frame.sources.astype(np.int64) * lines + frame.rows) * most + frame.places
    asked = (wanted[:, 1] * lines + wanted[:, 0]) * most + wanted[:, 2]
    by_number = np.argsort(known)
    places = np.minimum(np.searchsorted(known, asked, sorter=by_number), len(known) - 1)
    order = np.asarray(by_number[places])
    if not np.array_equal(known[order], asked) or len(np.unique(order)) != len(order):
        raise _damaged(where)
    return order
