"""A view of a pair table as files that other programs read, and that an import reads back."""

import json
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from openblip.runtime.atomic import check_output, replace_folder
from openblip.runtime.documents import json_text
from openblip.runtime.errors import DataError
from openblip.runtime.ignored import refuse_without_effect
from openblip.runtime.locks import only_one
from openblip.runtime.progress import Progress
from openblip.runtime.threads import default_threads, ordered_map
from openblip.sources.cards import write_card
from openblip.sources.coco import CocoIds
from openblip.sources.export_formats import (
    ExportedPair,
    ExportLayout,
    MetaFields,
    ToldFields,
    Writer,
    write_coco,
    write_huggingface,
    write_jsonl,
    write_parquet,
    write_webdataset,
)
from openblip.sources.images import image_suffix, open_image
from openblip.sources.report import Example, ExportReport, SplitCounts, is_import_state
from openblip.sources.row_images import encoded_image
from openblip.table.agreement import AgreedTexts
from openblip.table.judging import AdmittedText
from openblip.table.rows import IdSet, read_meta
from openblip.table.scores import further_columns, further_scores, scores_without_effect
from openblip.table.table import PairTable
from openblip.table.views import TOLD_COLUMNS, CaptionView, ViewIndex, split_rows

# The file in a destination that says what was exported.
_REPORT_NAME = "export.json"
# The file in a destination with the texts that were rejected, where they are asked for.
_REJECTED_NAME = "rejected.jsonl"
# The file in a destination with what reviewers have corrected, where it is asked for.
_EDITS_NAME = "edits.jsonl"
WRITERS: dict[str, Writer] = {
    "webdataset": write_webdataset,
    "parquet": write_parquet,
    "coco": write_coco,
    "jsonl": write_jsonl,
    "huggingface": write_huggingface,
}
FORMATS = tuple(WRITERS)
# Rows that are read at once, images included.
_READ_ROWS = 32
_MAX_EXAMPLES = 10


def export_pairs(
    table: PairTable,
    destination: str | Path,
    format: str,
    view: CaptionView,
    *,
    splits: Sequence[str] = (),
    shard_size: int = 10_000,
    with_rejected: bool = False,
    with_edits: bool = False,
    overwrite: bool = False,
    num_threads: int | None = None,
    show_progress: bool = True,
) -> ExportReport:
    """Writes the images of a view with their admitted texts into a folder, in bounded memory.

    The folder appears, whole and with an `export.json`, when everything is written, or not at all.

    Args:
        table: where the pairs are.
        destination: the folder; must not be there, or be empty.
        format: `webdataset`, `parquet`, `coco`, `jsonl` or `huggingface`.
        view: which split, and which of its texts.
        splits: of the format `huggingface`: these instead of the view's.
        shard_size: images in a file of the formats that have several files; at least 1.
        with_rejected: write the texts that the view rejects, with the reasons, into
            `rejected.jsonl` beside.
        with_edits: write the texts of these splits that reviewers have corrected, as they were
            given and as they were corrected, into `edits.jsonl` beside.
        overwrite: replace an earlier export that is there.
        num_threads: that read images; None for one for each core, 2 to 16.
        show_progress: on stderr.

    Raises:
        DataError: the destination is taken, an option is wrong, or the view admits no text.
        RecipeError: the view has a threshold or a score that changes nothing.
        UnwritableError: the files cannot be written.
        OpenBlipError: another process exports into the same place.
    """
    if format not in WRITERS:
        raise DataError(f"unknown format {format!r}: give one of {', '.join(FORMATS)}")
    if shard_size < 1:
        raise DataError(f"shard_size must be at least 1 image. Got {shard_size}.")
    if len(splits) > 1 and format != "huggingface":
        raise DataError(f"the format {format} holds one split: give one, or choose huggingface")
    names, why = scores_without_effect(view)
    refuse_without_effect(view, names, why)
    destination = Path(destination)
    _check_free(destination, overwrite)
    check_output(destination, "DESTINATION", is_folder=True)
    views = [replace(view, split=split) for split in dict.fromkeys(splits)] or [view]
    indexes = [some.resolve(table) for some in views]
    report = ExportReport(
        table.uri, table.version, format, views[0], table_metadata=_metadata(table)
    )
    for index in indexes:
        counts = report.splits[index.view.split] = SplitCounts(rejected=index.num_rejected)
        counts.num_without_text = split_rows(table, index.view.split).size - len(index)
        report.num_without_text += counts.num_without_text
    coco_ids = CocoIds(table, views[0].split) if format == "coco" else None
    fields = _meta_fields(indexes[0]) if format == "webdataset" else MetaFields()
    told = ToldFields("reviewed" in view.sources, further_scores(table.columns))
    report.scores = told.scores
    layout = ExportLayout(shard_size, views[0].split, fields, coco_ids, told)
    began = time.monotonic()
    progress = Progress("exporting", sum(map(len, indexes)), "images", enabled=show_progress)
    with _only_export(destination, overwrite), replace_folder(destination) as folder, progress:
        threads = num_threads or default_threads()
        WRITERS[format](folder, _pairs(indexes, report, progress, threads), layout)
        if format == "huggingface":
            write_card(folder, report)
        if with_rejected:
            _write_rejected(folder / _REJECTED_NAME, indexes)
        if with_edits:
            report.num_edits = _write_edits(folder / _EDITS_NAME, indexes)
        report.seconds = time.monotonic() - began
        stored = json.dumps(asdict(report), ensure_ascii=False, indent=2)
        (folder / _REPORT_NAME).write_text(stored + "\n", encoding="utf-8")
    return report


def _pairs(
    indexes: Sequence[ViewIndex], report: ExportReport, progress: Progress, num_threads: int
) -> Iterator[ExportedPair]:
    """Yields what can be read; the report counts it, and what cannot."""
    ids = IdSet()
    for index in indexes:
        counts, texts = report.splits[index.view.split], Counter[str]()
        for result in ordered_map(_read, _records(index), num_threads, num_threads * 4):
            if isinstance(result, Example):
                report.num_unreadable += 1
                if len(report.unreadable) < _MAX_EXAMPLES:
                    report.unreadable.append(result)
            else:
                if not ids.add(result.id):
                    raise DataError(
                        f"{report.table}: the id {result.id!r} is there twice, and files are named "
                        "by it: import the sources into a new table, with ids sha256"
                    )
                yield result
                counts.num_images += 1
                texts.update(text.source for text in result.texts)
            progress.update(1, unreadable=report.num_unreadable)
        counts.num_texts = dict(texts)
    report.num_images = sum(counts.num_images for counts in report.splits.values())
    together: Counter[str] = Counter()
    for counts in report.splits.values():
        together.update(counts.num_texts)
    report.num_texts = dict(together)


def _write_rejected(path: Path, indexes: Sequence[ViewIndex]) -> None:
    """A line for each text that is rejected."""
    with path.open("w", encoding="utf-8") as lines:
        for index in indexes:
            for text in index.view.rejected(index.table, index.agreed):
                line = {**asdict(text), "split": index.view.split}
                if index.view.score == "itm":
                    del line["score"]  # it stands there as `itm`
                lines.write(json.dumps(line, ensure_ascii=False) + "\n")


def _write_edits(path: Path, indexes: Sequence[ViewIndex]) -> int:
    """A line for each correction of each reviewer; how many there are."""
    table, splits = indexes[0].table, {index.view.split for index in indexes}
    agreed = indexes[0].agreed or AgreedTexts.of(table)
    count = 0
    with path.open("w", encoding="utf-8") as lines:
        for batch in table.scan(["id", "split"]):
            for row in agreed.places_in(batch["id"]).tolist():
                key, split = batch["id"][row].as_py(), batch["split"][row].as_py()
                for line in agreed.corrections(key) if split in splits else ():
                    lines.write(json_text({**line, "split": split}) + "\n")
                    count += 1
    return count


def _records(index: ViewIndex) -> Iterator[tuple[dict[str, Any], list[AdmittedText]]]:
    table = index.table
    known = [name for name in TOLD_COLUMNS if name in table.columns]
    own = ["id", "image", "image_uri", "width", "height", "split", "meta"]
    further = further_columns(table.columns)
    columns = list(dict.fromkeys([*own, *index.columns, *known, *further]))
    for start in range(0, len(index), _READ_ROWS):
        numbers = index.rows[start : start + _READ_ROWS]
        rows = table.take(numbers, columns)
        records = rows.select(own).to_pylist()
        told = index.admitted(rows)
        for number, record, texts in zip(numbers.tolist(), records, told, strict=True):
            yield {**record, "row": number}, texts


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
        meta = read_meta(repr(record["id"]), record["meta"])
    except DataError as error:
        return Example(where, str(error).removeprefix(f"{where}: ")[:500])
    return ExportedPair(
        id=record["id"],
        row=record["row"],
        image=image,
        suffix=suffix,
        width=width,
        height=height,
        texts=texts,
        split=record["split"],
        meta=meta,
    )


@contextmanager
def _only_export(destination: Path, overwrite: bool) -> Iterator[None]:
    """No other process exports there at the same time, or has since this one was started."""
    with only_one(destination, "writing an export into"):
        _check_free(destination, overwrite)
        yield


def _check_free(destination: Path, overwrite: bool) -> None:
    if not destination.exists():
        return
    if not destination.is_dir():
        raise DataError(f"{destination} is a file: name a folder that is not there")
    if not any(destination.iterdir()):
        return
    if not (destination / _REPORT_NAME).is_file():
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


def _meta_fields(index: ViewIndex) -> MetaFields:
    fields = MetaFields()
    for start in range(0, len(index), 8192):
        some = index.table.take(index.rows[start : start + 8192], ["id", "meta"])
        for row in some.to_pylist():
            fields.add(read_meta(repr(row["id"]), row["meta"]))
    return fields
