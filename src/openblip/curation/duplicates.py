"""Near-duplicate images and captions within each split of a table, flagged and kept.

Which of several near images is kept is a question of order (`Keep`). Pairs that were found can be
looked at as records and as a page.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from openblip.curation.marks import Marks, count_errors, embedding_model, mark_images
from openblip.curation.near_texts import repeated_texts
from openblip.curation.nearness import Nearness, repeated_images
from openblip.runtime.errors import DataError, RecipeError
from openblip.runtime.page import CardText, Page
from openblip.runtime.threads import default_threads, ordered_map
from openblip.sources.images import ImageHeader, read_header
from openblip.sources.row_images import encoded_image, image_path, image_rows, stream_images
from openblip.table.flags import (
    DUPLICATES,
    IMAGE_FLAGS,
    TableTexts,
    row_ids,
    string_column,
    text_column,
    text_flags,
    write_flags,
)
from openblip.table.storage import is_object_address
from openblip.table.table import SPLITS, PairTable

_MAX_EXAMPLES = 10
Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Copies:
    """An image that is kept, and those that repeat it."""

    kept: str
    """Its id."""
    count: int
    """How many repeat it."""
    examples: list[str]
    """Ids of the first few."""


Keep = Literal["first", "largest", "newest"]
"""Which of several near images is kept: the first in the order of the table; that with the most
pixels; or that of the latest date, of equal dates the one that was imported last. The date is that
of the camera (EXIF: taken, else changed); where there is none the modification time of the file; an
image without either counts as the oldest."""


@dataclass
class DuplicateReport:
    """What was found; stored under `duplicates` in the table's metadata."""

    table: str
    nearness: Nearness
    """When two things counted as the same."""
    model: str | None = None
    """Fingerprint of the model whose embeddings were compared."""
    num_images: int = 0
    """Rows of the table."""
    num_unreadable: int = 0
    """Images that cannot be read; the column `image_error` says why."""
    duplicates: dict[str, int] = field(default_factory=dict)
    """Images that repeat another of their split, by split."""
    num_same_file: int = 0
    """Those of them that are byte for byte the image that is kept."""
    num_texts: dict[str, int] = field(default_factory=dict)
    """Texts, by column."""
    repeated_texts: dict[str, int] = field(default_factory=dict)
    """Texts that repeat another of their split, by column."""
    repeated_in_row: dict[str, int] = field(default_factory=dict)
    """Those of them that repeat a text of their own image."""
    most_copied: list[Copies] = field(default_factory=list)
    """Images with the most copies."""
    keep: Keep = "first"
    """Which of several near images is kept."""

    def to_text(self) -> str:
        """The report for people, several lines."""
        found = ", ".join(f"{split} {count:,}" for split, count in self.duplicates.items())
        lines = [
            f"{self.table}: {self.num_images:,} images, near-duplicates by {self.nearness.by}: "
            f"{found or 'none'} ({self.num_same_file:,} of them the same file)"
        ]
        if self.num_unreadable:
            lines.append(f"unreadable (column image_error): {self.num_unreadable:,}")
        lines += [
            f"{column}: {self.repeated_texts[column]:,} of {count:,} texts repeat another, "
            f"{self.repeated_in_row[column]:,} of them one of the same image"
            for column, count in self.num_texts.items()
            if count
        ]
        for copies in self.most_copied:
            more = ", ..." if copies.count > len(copies.examples) else ""
            lines.append(f"  {copies.kept}: again as {', '.join(copies.examples)}{more}")
        return "\n".join(lines)


def flag_duplicates(
    table: PairTable,
    nearness: Nearness | None = None,
    *,
    keep: Keep = "first",
    num_threads: int | None = None,
    show_progress: bool = True,
) -> DuplicateReport:
    """Finds images and texts that repeat others of their split, and notes whom in new columns.

    `duplicate_of` has the id of the image that is kept. `captions_duplicate_of` and
    `synthetic_duplicate_of` have, for each text, the id of the image with the text that is kept:
    the image's own id if the image has the text twice. Null is kept. No row is removed: a view
    with `without` leaves them out.

    Kept is the first in this order: images of human origin before those of the web, then as `keep`
    says; of texts, in the order of the table, those of kept images first, then given before
    synthetic ones.

    Args:
        table: gets the columns, and those of `mark_images`.
        nearness: thresholds; those of an embedding need `embed_table` first.
        keep: see `Keep`.
        num_threads: that read images; None for one for each core, 2 to 16.
        show_progress: on stderr.

    Raises:
        DataError: embeddings are needed, and are not there.
    """
    nearness = nearness or Nearness()
    mark_images(table, num_threads=num_threads, show_progress=show_progress)
    report = DuplicateReport(table.uri, nearness, num_images=len(table), keep=keep)
    if nearness.needs_embeddings:
        report.model = embedding_model(table)["model"]
    report.num_unreadable = count_errors(table).total()
    split, is_web = _splits(table)
    order = _keeping_order(table, is_web, keep, num_threads)
    images = _image_leaders(table, nearness, split, order, report)
    texts = TableTexts.read(table)
    demoted = np.zeros(len(table), dtype=bool)
    demoted[list(images)] = True
    columns = {IMAGE_FLAGS[DUPLICATES]: _named(table, images)}
    rank = np.empty(len(table), dtype=np.int64)
    # The last key of `lexsort` decides first.
    rank[np.lexsort((np.arange(len(table)), is_web, demoted))] = np.arange(len(table))
    kept_rows = _text_leaders(texts, split, rank, nearness.text, report)
    for column, rows in kept_rows.items():
        ids = row_ids(table, rows[rows >= 0])
        values = [ids.get(row) for row in rows.tolist()]
        columns[text_flags(column, DUPLICATES)] = text_column(texts, column, values)
    import pyarrow as pa

    write_flags(table, DUPLICATES, table.uri, pa.table(columns), asdict(report))
    return report


def _splits(table: PairTable) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """The number of each row's split, and whether it is from the web."""
    splits, is_web = [np.zeros(0, np.int64)], [np.zeros(0, bool)]
    for batch in table.scan(["split", "origin"]):
        names = batch["split"].to_numpy(zero_copy_only=False)
        splits.append(np.array([SPLITS.index(name) for name in names], dtype=np.int64))
        is_web.append(batch["origin"].to_numpy(zero_copy_only=False) == "web")
    return np.concatenate(splits), np.concatenate(is_web).astype(bool)


def _image_leaders(
    table: PairTable,
    nearness: Nearness,
    split: NDArray[np.int64],
    order: Rows,
    report: DuplicateReport,
) -> dict[int, int]:
    marks = Marks.read(table, nearness.needs_embeddings)
    leaders: dict[int, int] = {}
    # Split by split: what two splits share is a leak, which another check looks for.
    for number, name in enumerate(SPLITS):
        rows = order[split[order] == number]
        found = repeated_images(marks.take(rows), nearness)
        if found:
            report.duplicates[name] = len(found)
        leaders |= {int(rows[place]): int(rows[kept]) for place, kept in found.items()}
    same = [marks.digests[row] == marks.digests[kept] for row, kept in leaders.items()]
    report.num_same_file = int(sum(same))
    report.most_copied = _most_copied(table, leaders)
    return leaders


def _most_copied(table: PairTable, leaders: dict[int, int]) -> list[Copies]:
    counts = Counter(leaders.values())
    # Rows of equal counts in the order of the table.
    most = sorted(counts, key=lambda row: (-counts[row], row))[:_MAX_EXAMPLES]
    again: dict[int, list[int]] = {row: [] for row in most}
    for row in sorted(leaders):
        several = again.get(leaders[row])
        if several is not None and len(several) < 3:
            several.append(row)
    rows = np.array([*most, *(row for some in again.values() for row in some)], dtype=np.int64)
    ids = row_ids(table, rows)
    return [Copies(ids[row], counts[row], [ids[other] for other in again[row]]) for row in most]


def _named(table: PairTable, leaders: dict[int, int]) -> object:
    ids = row_ids(table, np.array(list(leaders.values()), dtype=np.int64))
    return string_column(len(table), {row: ids[kept] for row, kept in leaders.items()})


def _text_leaders(
    texts: TableTexts,
    split: NDArray[np.int64],
    rank: Rows,
    least: float,
    report: DuplicateReport,
) -> dict[str, Rows]:
    """For each text of each column the row of the text it repeats, or -1."""
    rows = np.concatenate([texts.rows(column) for column in texts.columns])
    numbers = np.concatenate([texts.numbers[column] for column in texts.columns])
    kept = np.full(len(rows), -1, dtype=np.int64)
    for of_split in range(len(SPLITS)):
        inside = np.flatnonzero((split[rows] == of_split) & (numbers >= 0))
        # Stable: what stands in one row stays in its order, given texts before synthetic ones.
        inside = inside[np.argsort(rank[rows[inside]], kind="stable")]
        kept[inside] = _repeated(texts.distinct, numbers[inside], rows[inside], least)
    ends = np.cumsum([len(texts.numbers[column]) for column in texts.columns])
    found = dict(zip(texts.columns, np.split(kept, ends[:-1]), strict=True))
    for column, of in found.items():
        report.num_texts[column] = len(of)
        report.repeated_texts[column] = int((of >= 0).sum())
        report.repeated_in_row[column] = int((of == texts.rows(column)).sum())
    return found


def _repeated(distinct: list[str], numbers: Rows, rows: Rows, least: float) -> Rows:
    """The row of the text that each text, of those in order, repeats; -1 where it is kept.

    Texts are compared once for each number; what is found is said of all by indices:

        numbers    7  3  7  7     "a dog", "a cat", "a dog", "a dog"; those to keep come first
        rows       0  0  1  1
        unique     3  7           numbers once; inverse 1 0 1 1, first 1 0
        meaning    1  0  1  1     as inverse, but the kept text's place for one that is near it
        original   0  1  0  0     the place where the kept text comes first
        result    -1 -1  0  1     kept, kept, repeats row 0, and repeats a text of its own row

    The last is no question of which text is kept: a row has a text twice whatever others have. So
    (row, meaning) is looked up as one number, row * len(unique) + meaning, in which no two pairs
    are equal as meaning < len(unique); its first place is a row's own original.

    Args:
        distinct: the normalised texts.
        numbers: of the texts among them, those that are to be kept first.
        rows: of each text.
        least: similarity from which on a text repeats another.
    """
    if not numbers.size:
        return np.empty(0, dtype=np.int64)
    unique, first, inverse = np.unique(numbers, return_index=True, return_inverse=True)
    order = np.argsort(first)
    near = repeated_texts([distinct[number] for number in unique[order].tolist()], least)
    stands_for = np.arange(len(unique))
    for place, kept in near.items():
        stands_for[order[place]] = order[kept]
    meaning = stands_for[inverse]
    original = first[meaning]
    places = np.arange(len(numbers))
    of_row = np.where(original == places, -1, rows[original])
    _, own, back = np.unique(rows * len(unique) + meaning, return_index=True, return_inverse=True)
    return np.where((own[back] != places), rows, of_row)


# What a page shows; the records have everything.
_GROUPS, _COPIES = 100, 8


@dataclass(frozen=True, kw_only=True)
class DuplicatePair:
    """An image that is kept, and one that repeats it."""

    kept: str
    """Id of the image that is kept."""
    duplicate: str
    """Id of the other one."""
    split: str
    kept_width: int
    """Pixels; 0 where they cannot be read any more."""
    kept_height: int
    width: int
    """Of the duplicate."""
    height: int
    bits: int
    """In which the perceptual hashes differ, of 64."""
    colour: int
    """Most that a value of the 4 x 4 thumbnails differs, of 255."""
    cosine: float | None
    """Of the embeddings; None where they were not compared."""
    same_file: bool
    """Whether the files are equal byte for byte."""


def duplicate_pairs(
    table: PairTable, nearness: Nearness, num_threads: int | None = None
) -> list[DuplicatePair]:
    """Every pair that `flag_duplicates` has found, by the row of the image that is kept.

    Args:
        table: that was checked.
        nearness: what the check compared.
        num_threads: that read images' headers.
    """
    ids: list[str] = []
    splits: list[str] = []
    kept_as: list[str | None] = []
    for batch in table.scan(["id", "split", IMAGE_FLAGS[DUPLICATES]]):
        ids += batch["id"].to_pylist()
        splits += batch["split"].to_pylist()
        kept_as += batch[IMAGE_FLAGS[DUPLICATES]].to_pylist()
    row_of = {row_id: row for row, row_id in enumerate(ids)}
    found = sorted((row_of[kept], row) for row, kept in enumerate(kept_as) if kept is not None)
    # Each once: a kept image stands in many pairs, and every header is a file to open.
    rows = np.unique(np.array(found, dtype=np.int64))
    headers = dict(zip(rows.tolist(), _read_headers(table, rows, num_threads), strict=True))
    marks = Marks.read(table, nearness.needs_embeddings)
    pairs = []
    for first, second in found:
        # Differences of uint8 would wrap around below zero.
        colours = marks.thumbnails[[first, second]].astype(np.int16)
        cosine = None
        if marks.embeddings is not None:
            cosine = round(float(marks.embeddings[first] @ marks.embeddings[second]), 4)
        pairs.append(
            DuplicatePair(
                kept=ids[first],
                duplicate=ids[second],
                split=splits[second],
                kept_width=headers[first].width,
                kept_height=headers[first].height,
                width=headers[second].width,
                height=headers[second].height,
                bits=int(marks.hashes[first] ^ marks.hashes[second]).bit_count(),
                colour=int(np.abs(colours[0] - colours[1]).max()),
                cosine=cosine,
                same_file=bool(marks.digests[first] == marks.digests[second]),
            )
        )
    return pairs


def write_duplicates_page(
    table: PairTable, pairs: Sequence[DuplicatePair], path: Path, subject: str
) -> Path:
    """A page with the images that are kept and their copies side by side, and which is which.

    Args:
        table: where the images are.
        pairs: of `duplicate_pairs`.
        path: where the page goes; whole or not at all.
        subject: what the page calls the collection.
    """
    groups = [(kept, list(own)) for kept, own in groupby(pairs, key=lambda pair: pair.kept)]
    page = Page(
        "Near-duplicate images",
        f"{subject}: {len(pairs):,} {'image repeats' if len(pairs) == 1 else 'images repeat'} one "
        f"of {len(groups):,} that {'is' if len(groups) == 1 else 'are'} kept. Nothing was removed: "
        "what is rejected stays in the table, and a view leaves it out.",
    )
    if len(groups) > _GROUPS:
        page.note(f"The first {_GROUPS} of {len(groups):,} kept images are shown.")
    ids = [row_id for batch in table.scan(["id"]) for row_id in batch["id"].to_pylist()]
    row_of = {row_id: row for row, row_id in enumerate(ids)}
    for kept, own in groups[:_GROUPS]:
        shown = own[:_COPIES]
        more = f", {len(own) - _COPIES} more are not shown" if len(own) > _COPIES else ""
        page.quote(f"{kept}: {len(own)} {'copy' if len(own) == 1 else 'copies'}{more}")
        size = f"{own[0].kept_width} x {own[0].kept_height}"
        texts = [CardText(kept, size, "kept"), *map(_card_text, shown)]
        rows = [row_of[name] for name in (kept, *(pair.duplicate for pair in shown))]
        images = stream_images(table, rows)
        page.cards((image, [text]) for image, text in zip(images, texts, strict=True))
    return page.save(path)


def _card_text(pair: DuplicatePair) -> CardText:
    distance = "same file" if pair.same_file else f"{pair.bits} bits, colour {pair.colour}"
    if pair.cosine is not None:
        distance += f", cosine {pair.cosine:.3f}"
    return CardText(pair.duplicate, f"{pair.width} x {pair.height} · {distance}", "rejected")


def _keeping_order(
    table: PairTable, is_web: NDArray[np.bool_], keep: Keep, num_threads: int | None = None
) -> NDArray[np.int64]:
    """All rows, those that are kept rather than others first: those of human origin, then `keep`.

    Raises:
        RecipeError: `keep` is no `Keep`.
    """
    rows = np.arange(len(table))
    if keep == "first":
        return np.lexsort((rows, is_web))
    if keep not in get_args(Keep):
        raise RecipeError(f"keep must be one of {', '.join(get_args(Keep))}. Got {keep!r}.")
    headers = _read_headers(table, rows, num_threads)
    # Both are negated, as `lexsort` ascends.
    if keep == "largest":
        return np.lexsort((rows, np.array([-header.pixels for header in headers]), is_web))
    return np.lexsort((-rows, np.array([-header.date for header in headers]), is_web))


def _read_headers(
    table: PairTable, rows: NDArray[np.int64], num_threads: int | None = None
) -> list[ImageHeader]:
    """Sizes and dates of the images of some rows; zeros for what cannot be read.

    By default as many threads read as there are cores.
    """
    threads = num_threads or default_threads()
    return list(ordered_map(_header, image_rows(table, rows), threads, num_ahead=threads + 2))


def _header(row: Mapping[str, Any]) -> ImageHeader:
    image, uri = row["image"], row["image_uri"]
    try:
        header = read_header(encoded_image(image, uri))
    except (DataError, OSError):
        return ImageHeader(0, 0, 0.0)
    if not header.date and image is None and uri and not is_object_address(uri):
        return ImageHeader(header.width, header.height, _modified(image_path(uri)))
    return header


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
