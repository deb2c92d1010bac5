"""Neighbouring records of one image, as lists with a record for each caption have them."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from openblip.data.importers.source import Entry, Found
from openblip.data.importers.splits import both_splits


def merged(entries: Iterable[Entry]) -> Iterator[Entry]:
    """The entries, neighbours of one image file and id as one with the texts of all.

    Where their metadata differ, those of the first count. Splits that differ are both said.
    """
    held: Entry | None = None
    for entry in entries:
        if isinstance(held, Found) and isinstance(entry, Found) and _is_same(held, entry):
            held = _together(held, entry)
            continue
        if held is not None:
            yield held
        held = entry
    if held is not None:
        yield held


def _is_same(first: Found, second: Found) -> bool:
    is_file = isinstance(first.image, Path)
    return is_file and (first.image, first.key) == (second.image, second.key)


def _together(first: Found, second: Found) -> Found:
    return replace(
        first,
        cursor=second.cursor,
        captions=[*first.captions, *second.captions],
        split=both_splits(first.split, second.split),
        meta={**second.meta, **first.meta},
        may_lack_captions=first.may_lack_captions and second.may_lack_captions,
        num_records=first.num_records + second.num_records,
        remarks=(*first.remarks, *second.remarks),
    )
