"""Every image that repeats another, beside that one: as records and as a page."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np

from openblip.data.curation.flags import DUPLICATES, IMAGE_FLAGS
from openblip.data.curation.marks import Marks
from openblip.data.curation.nearness import Nearness
from openblip.data.curation.preference import read_headers
from openblip.data.reading import table_images
from openblip.data.table import PairTable
from openblip.page import CardText, Page

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
    rows = np.unique(np.array(found, dtype=np.int64))
    headers = dict(zip(rows.tolist(), read_headers(table, rows, num_threads), strict=True))
    marks = Marks.read(table, nearness.needs_embeddings)
    pairs = []
    for first, second in found:
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
        f"{subject}: {len(pairs):,} images repeat one of {len(groups):,} that are kept. "
        "Nothing was removed.",
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
        images = table_images(
            table, [row_of[name] for name in (kept, *(p.duplicate for p in shown))]
        )
        page.cards((image, [text]) for image, text in zip(images, texts, strict=True))
    return page.save(path)


def _card_text(pair: DuplicatePair) -> CardText:
    distance = "same file" if pair.same_file else f"{pair.bits} bits, colour {pair.colour}"
    if pair.cosine is not None:
        distance += f", cosine {pair.cosine:.3f}"
    return CardText(pair.duplicate, f"{pair.width} x {pair.height} · {distance}", "rejected")
