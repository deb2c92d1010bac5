"""A view of a pair table as files that other programs read, and that an import reads back."""

import json
import re
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from openblip.atomic import replace_folder
from openblip.data.export_formats import WRITERS, ExportedPair, ExportLayout
from openblip.data.images import image_suffix, open_image
from openblip.data.parallel import default_threads, ordered_map
from openblip.data.reading import encoded_image
from openblip.data.report import Example, is_import_state
from openblip.data.table import PairTable
from openblip.data.views import AdmittedText, CaptionView, ViewIndex, split_rows
from openblip.errors import DataError
from openblip.progress import Progress, duration

REPORT_NAME = "export.json"
"""The file in a destination that says what was exported."""
FORMATS = tuple(WRITERS)
_READ_ROWS = 32
_MAX_EXAMPLES = 10
_NUMBER = re.compile(r"0|[1-9][0-9]{0,17}")


@dataclass
class ExportReport:
    """What an export wrote, from what, and what it left out; stored as `export.json`."""

    table: str
    """Address of the table."""
    version: int
    """Version of the table that was read."""
    format: str
    """One of `FORMATS`."""
    view: CaptionView
    """Which texts were to be exported."""
    num_images: int = 0
    """Images that were written."""
    num_texts: dict[str, int] = field(default_factory=dict)
    """Texts that were written, by source."""
    num_without_text: int = 0
    """Images of the split that the view leaves no text of; they are left out."""
    num_unreadable: int = 0
    """Images that have texts but cannot be read; they are left out."""
    unreadable: list[Example] = field(default_factory=list)
    """The first few of them."""
    seconds: float = 0.0
    """Time that it took."""
    table_metadata: dict[str, Any] = field(default_factory=dict)
    """What is stored with the table, such as the settings of CapFilt and the fingerprints of
    captioner and filter."""

    def to_text(self) -> str:
        """The report for people, several lines."""
        texts = ", ".join(f"{count:,} {source}" for source, count in self.num_texts.items())
        lines = [
            f"{self.num_images:,} images with {texts or 'no'} texts exported from {self.table} "
            f"as {self.format} in {duration(self.seconds)}"
        ]
        if self.num_without_text:
            lines.append(f"left out, no text admitted: {self.num_without_text:,}")
        if self.num_unreadable:
            lines.append(f"left out, image unreadable: {self.num_unreadable:,}")
            lines += [f"  {example.where}: {example.detail}" for example in self.unreadable]
        return "\n".join(lines)


def export_pairs(
    table: PairTable,
    destination: str | Path,
    format: str,
    view: CaptionView,
    *,
    shard_size: int = 10_000,
    overwrite: bool = False,
    num_threads: int | None = None,
    show_progress: bool = True,
) -> ExportReport:
    """Writes the images of a view with their admitted texts into a folder, in bounded memory.

    The folder appears, whole and with an `export.json`, when everything is written, or not at all.

    Args:
        table: where the pairs are.
        destination: the folder; must not be there, or be empty.
        format: `webdataset`, `parquet`, `coco` or `jsonl`.
        view: which split, and which of its texts.
        shard_size: images in a file of the formats that have several files; at least 1.
        overwrite: replace an earlier export that is there.
        num_threads: that read images; None for one for each core, 2 to 16.
        show_progress: on stderr.

    Raises:
        DataError: the destination is taken, an option is wrong, or the view admits no text.
        OSError: the files cannot be written.
    """
    if format not in WRITERS:
        raise DataError(f"unknown format {format!r}: give one of {', '.join(FORMATS)}")
    if shard_size < 1:
        raise DataError(f"shard_size must be at least 1 image. Got {shard_size}.")
    destination = Path(destination)
    _check_free(destination, overwrite)
    index = view.resolve(table)
    report = ExportReport(table.uri, table.version, format, view, table_metadata=_metadata(table))
    report.num_without_text = split_rows(table, view.split).size - len(index)
    layout = ExportLayout(shard_size, view.split, format == "coco" and _has_number_ids(index))
    began = time.monotonic()
    progress = Progress("exporting", len(index), "images", enabled=show_progress)
    with replace_folder(destination) as folder, progress:
        pairs = _pairs(index, report, progress, num_threads or default_threads())
        WRITERS[format](folder, pairs, layout)
        report.seconds = time.monotonic() - began
        stored = json.dumps(asdict(report), ensure_ascii=False, indent=2)
        (folder / REPORT_NAME).write_text(stored + "\n", encoding="utf-8")
    return report


def _pairs(
    index: ViewIndex, report: ExportReport, progress: Progress, num_threads: int
) -> Iterator[ExportedPair]:
    """Yields what can be read; the report counts it, and what cannot."""
    texts: Counter[str] = Counter()

    for result in ordered_map(_read, _records(index), num_threads, num_threads * 4):
        if isinstance(result, Example):
            report.num_unreadable += 1
            if len(report.unreadable) < _MAX_EXAMPLES:
                report.unreadable.append(result)
        else:
            yield result
            report.num_images += 1
            texts.update(text.source for text in result.texts)
        progress.update(1, unreadable=report.num_unreadable)
    report.num_texts = dict(texts)


def _records(index: ViewIndex) -> Iterator[tuple[dict[str, Any], list[AdmittedText]]]:
    table = index.table
    scores = [name for name in ("captions_itm", "synthetic_itm") if name in table.columns]
    own = ["id", "image", "image_uri", "width", "height", "split", "meta"]
    columns = list(dict.fromkeys([*own, *index.view.columns, *scores]))
    for start in range(0, len(index), _READ_ROWS):
        rows = table.take(index.rows[start : start + _READ_ROWS], columns)
        yield from zip(rows.select(own).to_pylist(), index.view.admitted(rows), strict=True)


def _read(row: tuple[dict[str, Any], list[AdmittedText]]) -> ExportedPair | Example:
    """The pair of a row, or why there is none; runs in many threads at once."""
    record, texts = row
    where = f"row {record['id']!r}"
    try:
        image = encoded_image(record["image"], record["image_uri"])
        suffix = image_suffix(image, where)
        width, height = record["width"], record["height"]
        # What the table holds was decoded when it was imported; a file may have changed since.
        if record["image"] is None or width is None or height is None:
            width, height = open_image(image, where).size
    except DataError as error:
        return Example(where, str(error).removeprefix(f"{where}: ")[:500])
    return ExportedPair(
        id=record["id"],
        image=image,
        suffix=suffix,
        width=width,
        height=height,
        texts=texts,
        split=record["split"],
        meta=json.loads(record["meta"] or "{}"),
    )


def _check_free(destination: Path, overwrite: bool) -> None:
    if not destination.exists():
        return
    if not destination.is_dir():
        raise DataError(f"{destination} is a file: name a folder that is not there")
    if not any(destination.iterdir()):
        return
    if not (destination / REPORT_NAME).is_file():
        raise DataError(
            f"{destination} is not empty, and holds no export that could be replaced: "
            "choose another place"
        )
    if not overwrite:
        raise DataError(
            f"{destination} already holds an export: give --overwrite to replace it, or choose "
            "another place"
        )


def _metadata(table: PairTable) -> dict[str, Any]:
    """The table's metadata but the states of imports, JSON texts as what they say."""
    values: dict[str, Any] = {}
    for key, text in sorted(table.metadata.items()):
        if not is_import_state(key):
            try:
                values[key] = json.loads(text)
            except ValueError:
                values[key] = text
    return values


def _has_number_ids(index: ViewIndex) -> bool:
    rows = (index.rows[start : start + 8192] for start in range(0, len(index), 8192))
    return all(_are_numbers(index.table, some) for some in rows)


def _are_numbers(table: PairTable, rows: np.ndarray) -> bool:
    return all(_NUMBER.fullmatch(key) for key in table.take(rows, ["id"])["id"].to_pylist())
