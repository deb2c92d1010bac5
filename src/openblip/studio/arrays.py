"""What a table says of its rows and texts, as small arrays: by them rows are chosen and sorted.

All arrays are about one version of the table, so that no answer mixes two. Each is read at its
first use, in one scan that leaves the images alone, and kept: a million rows with two texts each
take some 40 MB.
"""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from openblip.runtime.memory import large_blocks_returned, trim_memory
from openblip.table.flags import IMAGE_FLAGS, text_flags
from openblip.table.judging import REJECTIONS, Rejection, data_sets, judge, string_values
from openblip.table.rows import TEXT_SOURCES
from openblip.table.scores import named_score, score_column, scores_of, sources_with
from openblip.table.table import SPLITS, PairTable
from openblip.table.views import CaptionView

if TYPE_CHECKING:
    import pyarrow as pa

_T = TypeVar("_T")
COLUMN_OF = {"human": "captions", "web": "captions", "synthetic": "synthetic"}
"""Where the texts of a source stand."""
FLAGS = {
    "duplicate image": 1,
    "leaked image": 2,
    "duplicate caption": 4,
    "leaked caption": 8,
    "unreadable image": 16,
}
"""What checks and jobs have said of a row, as bits."""
_BELOW = 1 + REJECTIONS.index(Rejection.BELOW_THRESHOLD)
# Fewer calls for each row than the table's own default; a batch of texts is some megabytes.
_BATCH = 32768


@dataclass(frozen=True, eq=False)
class SourceTexts:
    """All texts of one source, row after row; position i of every array is one text."""

    rows: NDArray[np.int32]
    """Row of each text, ascending."""
    itm: NDArray[np.floating[Any]]
    """Match probability, NaN where there is none; as wide as the table's, so that nothing changes
    sides of a threshold."""
    itc: NDArray[np.float32]
    """Cosine, NaN where there is none."""
    reasons: NDArray[np.uint8]
    """Why the text does not count whatever the threshold is, 0 where that alone decides."""

    def __len__(self) -> int:
        return len(self.rows)

    def fates(self, threshold: float | None) -> NDArray[np.uint8]:
        """0 for a text that counts, else the number of its rejection (`REJECTIONS`), uint8."""
        fates = self.reasons.copy()
        if threshold is not None:
            # In float64: a float32 score and a threshold of as many digits are not the same number.
            fates[(fates == 0) & ~(self.itm > np.float64(threshold))] = _BELOW
        return fates

    def places(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Which of its row's texts of this source some are."""
        first = np.searchsorted(self.rows, self.rows[positions], side="left")
        return positions - first


@contextmanager
def frugally() -> Iterator[None]:
    """What is read inside and not kept goes back: a scan takes several times what is kept."""
    import pyarrow as pa

    with large_blocks_returned():
        yield
    pa.default_memory_pool().release_unused()
    trim_memory()


def row_flags(table: PairTable) -> dict[str, int]:
    """The columns of a table that say what `FLAGS` are about, with the bit of each."""
    columns = {}
    for check, column in IMAGE_FLAGS.items():
        word = "duplicate" if column == "duplicate_of" else "leaked"
        columns[column] = FLAGS[f"{word} image"]
        for texts in ("captions", "synthetic"):
            columns[text_flags(texts, check)] = FLAGS[f"{word} caption"]
    columns |= dict.fromkeys(("image_error", "capfilt_error"), FLAGS["unreadable image"])
    return {name: bit for name, bit in columns.items() if name in table.columns}


# Counts of texts and of words are no shares of anything: no threshold from 0 to 1 divides them.
_COUNTS = ("common", "frequency", "length", "copies")


def is_scored(table: PairTable, score: str = "itm") -> bool:
    """Whether a table has a score of the texts that it has: some are of given texts alone."""
    there = sources_with(table, score)
    return bool(there) and (score != "itm" or len(there) == 1 + ("synthetic" in table.columns))


def choosable_scores(table: PairTable) -> list[str]:
    """The scores that thresholds from 0 to 1 divide, the one that is shown first at the front."""
    there = [name for name in scores_of(table) if name not in _COUNTS and is_scored(table, name)]
    # Stable: the others stay as they stand.
    decides = named_score(table)
    return sorted(there, key=lambda name: name != decides)


def view_of(
    table: PairTable,
    threshold: float,
    split: str = "train",
    without: tuple[str, ...] = (),
    score: str = "itm",
) -> CaptionView:
    """The view of all sources that a table has; without scores it has no threshold.

    Raises:
        RecipeError: the threshold is no probability, or there is no such split or flag.
    """
    has_synthetic = "synthetic" in table.columns
    sources: tuple[str, ...] = TEXT_SOURCES if has_synthetic else TEXT_SOURCES[:2]
    if score != "itm":
        sources = tuple(n for n in sources if n in ("human", *sources_with(table, score)))
    return CaptionView(
        sources=sources,
        itm=threshold if is_scored(table, score) else None,
        split=split,
        score=score,
        without=without,
    )


class TableArrays:
    """The arrays of one version of a table; safe to use from many threads.

    Attributes:
        table: the version.
        mark: no other version has it.
    """

    def __init__(self, table: PairTable) -> None:
        """Reads no row yet."""
        self.table = table
        self.mark = table.fingerprint[:16]
        # One scan at a time: two would do the same work, and hold twice the memory.
        self._lock = threading.RLock()
        self._kept: dict[object, Any] = {}

    def __len__(self) -> int:
        return len(self.table)

    def pixels(self) -> NDArray[np.uint32]:
        """Width times height of each image, 0 where it is not known."""
        return self._once("pixels", self._read_pixels)

    def splits(self) -> NDArray[np.uint8]:
        """Place of each row's split in `SPLITS`."""
        return self._once("splits", self._read_splits)

    def flags(self) -> NDArray[np.uint8]:
        """Bits of `FLAGS` for each row."""
        return self._once("flags", self._read_flags)

    def id_ranks(self) -> NDArray[np.int32]:
        """Place of each row if they stood in the order of their ids."""
        return self._once("id_ranks", self._read_id_ranks)

    def data_sets(self) -> tuple[list[str], NDArray[np.uint16]]:
        """Names of data sets (`source` in `meta`; the empty one first), and which each row has.

        Raises:
            DataError: a row's meta is no object.
        """
        return self._once("data_sets", self._read_data_sets)

    def texts(self, without: tuple[str, ...] = (), score: str = "itm") -> dict[str, SourceTexts]:
        """All texts of the table by source, with what views that leave `without` out say of them.

        With another `score`, `itm` of the texts has its values, and sources without it are left
        out.

        Raises:
            DataError: what is left out has not been looked for, or a row has another number of
                scores than of texts.
        """
        without = tuple(sorted(set(without)))
        with self._lock:
            first, wanted = ("texts", (), "itm"), ("texts", without, score)
            # Of other choices only the last is kept; with the same score it shares all but reasons.
            for key in [key for key in self._kept if isinstance(key, tuple)]:
                if key not in (first, wanted):
                    del self._kept[key]
            if score != "itm":
                return self._once(wanted, lambda: self._read_texts(without, score))
            found = self._once(first, lambda: self._read_texts(()))
            if not without:
                return found
            return self._once(wanted, lambda: self._judged_anew(found, without))

    def matching_texts(self, words: str) -> dict[str, NDArray[np.bool_]]:
        """Which texts contain some words, upper and lower case alike; nothing is kept."""
        import pyarrow.compute as pc

        found: dict[str, list[NDArray[np.bool_]]] = {source: [] for source in self._sources()}
        columns = list(dict.fromkeys(COLUMN_OF[source] for source in found))
        for batch in self._scan(["origin", *columns]):
            for source, parts in found.items():
                texts = _own_lists(batch, source).flatten()
                hits = pc.match_substring(texts, words, ignore_case=True).fill_null(False)
                parts.append(hits.to_numpy(zero_copy_only=False))
        return {source: _joined(parts, np.bool_) for source, parts in found.items()}

    def rows_of_ids(self, ids: set[str]) -> dict[str, int]:
        """Row numbers of those ids that the table has."""
        import pyarrow as pa
        import pyarrow.compute as pc

        wanted, found, start = pa.array(sorted(ids), pa.string()), {}, 0
        for batch in self._scan(["id"]) if ids else ():
            hits = pc.is_in(batch["id"].cast(pa.string()), wanted).to_numpy(zero_copy_only=False)
            for place in np.flatnonzero(hits).tolist():
                found[batch["id"][place].as_py()] = start + place
            start += batch.num_rows
        return found

    def _once(self, key: object, make: Callable[[], _T]) -> _T:
        with self._lock:
            if key not in self._kept:
                with frugally():
                    self._kept[key] = make()
            return cast(_T, self._kept[key])

    def _sources(self) -> tuple[str, ...]:
        return view_of(self.table, 0.0).sources

    def _scan(self, columns: list[str]) -> "Iterator[pa.RecordBatch]":
        return self.table.scan(columns, batch_size=_BATCH)

    def _read_pixels(self) -> NDArray[np.uint32]:
        parts = []
        for batch in self._scan(["width", "height"]):
            sides = [batch[name].fill_null(0).to_numpy() for name in ("width", "height")]
            # The largest picture that is opened has fewer pixels than 32 bits count.
            area = np.prod(np.clip(np.array(sides, np.int64), 0, None), axis=0)
            parts.append(np.minimum(area, np.iinfo(np.uint32).max).astype(np.uint32))
        return _joined(parts, np.uint32)

    def _read_splits(self) -> NDArray[np.uint8]:
        import pyarrow as pa
        import pyarrow.compute as pc

        names = pa.array(SPLITS)
        parts = [pc.index_in(batch["split"], names).to_numpy() for batch in self._scan(["split"])]
        return _joined(parts, np.uint8)

    def _read_flags(self) -> NDArray[np.uint8]:
        columns = row_flags(self.table)
        if not columns:
            return np.zeros(len(self), np.uint8)
        return _joined([flags_of(batch, columns) for batch in self._scan(list(columns))], np.uint8)

    def _read_id_ranks(self) -> NDArray[np.int32]:
        import pyarrow as pa
        import pyarrow.compute as pc

        # In chunks, as one array of strings ends at 2 GiB.
        ids = pa.chunked_array([batch["id"] for batch in self._scan(["id"])], pa.string())
        order = pc.sort_indices(ids).to_numpy()
        ranks = np.empty(len(order), np.int32)
        ranks[order] = np.arange(len(order), dtype=np.int32)
        return ranks

    def _read_data_sets(self) -> tuple[list[str], NDArray[np.uint16]]:
        numbers: dict[str, int] = {"": 0}
        parts, start = [], 0
        # What 16 bits cannot tell apart goes without a name.
        most = np.iinfo(np.uint16).max
        for batch in self._scan(["meta"]):
            names, places = _data_set_names(batch["meta"], start)
            found = np.array([numbers.setdefault(name, len(numbers)) for name in names], np.int64)
            parts.append(np.where(found <= most, found, 0).astype(np.uint16)[places])
            start += batch.num_rows
        return list(numbers)[: most + 1], _joined(parts, np.uint16)

    def _read_texts(self, without: tuple[str, ...], score: str = "itm") -> dict[str, SourceTexts]:
        # At a threshold of 0 a text is unscored or not; what is below is decided later.
        view = view_of(self.table, 0.0, without=without, score=score)
        view.check(self.table)
        cosines = {source: f"{COLUMN_OF[source]}_itc" for source in view.sources}
        columns = [*view.columns_in(self.table), *cosines.values()]
        scanned = [name for name in dict.fromkeys(columns) if name in self.table.columns]
        parts: dict[str, list[SourceTexts]] = {source: [] for source in view.sources}
        start = 0
        for batch in self._scan(scanned):
            for source, found in parts.items():
                judged = judge(batch, view, source, start)
                reasons = np.where(judged.codes == _BELOW, 0, judged.codes)
                found.append(
                    SourceTexts(
                        (start + judged.rows).astype(np.int32),
                        judged.scores.astype(_width(batch, score_column(COLUMN_OF[source], score))),
                        beside(batch, cosines[source], judged.lengths).astype(np.float32),
                        reasons.astype(np.uint8),
                    )
                )
            start += batch.num_rows
        return {source: _all_of(found) for source, found in parts.items()}

    def _judged_anew(
        self, texts: dict[str, SourceTexts], without: tuple[str, ...]
    ) -> dict[str, SourceTexts]:
        judged = self._read_texts(without)
        return {
            source: replace(some, reasons=judged[source].reasons) for source, some in texts.items()
        }


def flags_of(batch: "pa.RecordBatch", columns: Mapping[str, int]) -> NDArray[np.uint8]:
    """Bits of `FLAGS` for each row of a batch that has the columns of `row_flags`."""
    flags = np.zeros(batch.num_rows, np.uint8)
    for name, bit in columns.items():
        flags[_has_value(batch[name])] |= bit
    return flags


def _data_set_names(metas: "pa.Array", start: int) -> tuple[list[str], NDArray[np.int64]]:
    """Names that some rows have, and for each row the place of its own among them.

    A million objects are not read one by one: where one has no other object in it, no escapes and
    one field of the name, that field can only be what a regular expression finds.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    text = metas.cast(pa.string()).fill_null("")
    named = pc.count_substring(text, '"source"')
    plain = pc.and_(
        pc.and_(pc.equal(named, 1), pc.equal(pc.count_substring(text, "{"), 1)),
        pc.invert(pc.match_substring(text, "\\")),
    )
    found = pc.extract_regex(text, r'"source"\s*:\s*"(?P<name>[^"]*)"').field("name")
    # Neither `validity` of the fields nor of the whole says alone that nothing was found.
    is_told = pc.and_(plain, pc.greater(pc.utf8_length(found).fill_null(0), 0))
    names = pc.if_else(is_told, found, "")
    asked = pc.and_(pc.greater(named, 0), pc.invert(is_told)).to_numpy(zero_copy_only=False)
    places = np.flatnonzero(asked)
    coded = names.dictionary_encode()
    known: list[str] = coded.dictionary.to_pylist()
    codes = np.array(coded.indices, np.int64)
    codes[places] = len(known) + np.arange(len(places))
    return known + data_sets(string_values(text)[places], start + places), codes


def _own_lists(batch: "pa.RecordBatch", source: str) -> "pa.Array":
    """The lists of texts of those rows that have texts of a source."""
    import pyarrow.compute as pc

    is_human = pc.equal(batch["origin"], "human")
    mask = is_human if source == "human" else pc.invert(is_human)
    return batch[COLUMN_OF[source]].filter(mask)


def beside(
    batch: "pa.RecordBatch", name: str, lengths: NDArray[np.int64]
) -> NDArray[np.floating[Any]]:
    """The numbers of a column of lists beside texts, NaN for a row that has not as many."""
    import pyarrow as pa

    values = np.full(int(lengths.sum()), np.nan)
    if name in batch.schema.names:
        others = batch[name].value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
        fits = (others == lengths) & (lengths > 0)
        own = batch[name].filter(pa.array(fits)).flatten()
        values[np.repeat(fits, lengths)] = own.to_numpy(zero_copy_only=False)
    return values


def _width(batch: "pa.RecordBatch", name: str) -> type[np.float32] | type[np.float64]:
    """The type that keeps a column's numbers."""
    import pyarrow as pa

    if name not in batch.schema.names:
        return np.float32
    kind = batch.schema.field(name).type.value_type
    return np.float32 if pa.types.is_float32(kind) or pa.types.is_float16(kind) else np.float64


def _has_value(column: "pa.Array") -> NDArray[np.bool_]:
    """Which rows have a value; of a list, at least one that is not null."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if not (pa.types.is_list(column.type) or pa.types.is_large_list(column.type)):
        return np.asarray(column.is_valid().to_numpy(zero_copy_only=False))
    has = np.zeros(len(column), bool)
    rows = pc.list_parent_indices(column).to_numpy()
    has[rows[column.flatten().is_valid().to_numpy(zero_copy_only=False)]] = True
    return has


def _joined(parts: list[Any], kind: Any) -> NDArray[Any]:
    return np.concatenate([np.zeros(0, kind), *parts]).astype(kind, copy=False)


def _all_of(parts: list[SourceTexts]) -> SourceTexts:
    """The texts of several batches, one after the other."""
    empty = SourceTexts(*(np.zeros(0, kind) for kind in (np.int32, "f4", np.float32, np.uint8)))
    names = ("rows", "itm", "itc", "reasons")
    kinds = {name: getattr(part, name).dtype for part in parts[:1] or [empty] for name in names}
    return SourceTexts(
        *(_joined([getattr(part, name) for part in parts], kinds[name]) for name in names)
    )
