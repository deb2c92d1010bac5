"""`openblip data`: import, export and show."""

import json as json_library
import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Literal

import tyro

from openblip.cli.flags import Count, CountOrNone, Share, Workers
from openblip.cli.output import print_json, print_table
from openblip.data.report import ImportReport, Reason

FormatName = Literal[
    "jsonl",
    "folder",
    "webdataset",
    "table",
    "datasets",
    "coco",
    "karpathy",
    "vqa",
    "questions",
    "visual_genome",
    "captions",
    "nlvr",
]
WithoutName = Literal["duplicate_images", "duplicate_captions", "repeated_captions", "leaks"]


def import_(
    source: tyro.conf.Positional[Path],
    table: tyro.conf.Positional[str],
    /,
    *,
    format: FormatName | None = None,
    origin: Literal["web", "human"] | None = None,
    split: Literal["train", "val", "test"] | None = None,
    store: Literal["bytes", "uri"] = "bytes",
    ids: Literal["key", "sha256"] = "key",
    limit: Count | None = None,
    again: bool = False,
    image_root: Path | None = None,
    image_column: str | None = None,
    caption_column: str | None = None,
    id_column: str | None = None,
    columns: tuple[str, ...] | None = None,
    encoding: str | None = None,
    without_captions: bool = False,
    threads: Workers | None = None,
    json: bool = False,
) -> int:
    """Bring image-text pairs into a pair table, which is made if there is none.

    Reads a folder with captions.jsonl, a folder of images with .txt files, WebDataset tars,
    Parquet or CSV, datasets of the Hugging Face hub, COCO caption JSON, Karpathy JSON, lists of
    captions, questions of VQA v2 or Visual Genome, sentences of NLVR2. A stopped import goes on
    where it was. The exit code is 1 if no row was imported.
    Example: openblip data import crawl/ pairs.lance --origin web
    openblip data import photos/ photos.lance --without-captions
    openblip data import hf:organisation/name pairs.lance --origin human

    Args:
        source: file, folder or pattern; or hf:NAME or hf:NAME:CONFIG, a dataset of the hub.
        table: the pair table.
        format: how to read the source; found out by default.
        origin: web (noisy) or human (annotated); by default what an export says, or web.
        split: for every row; by default what the source says, or train.
        store: copy the image bytes, or only note where the files are.
        ids: keys of the source, or the hash of the image, which drops equal images.
        limit: stop at this many rows.
        again: read a source once more that has been imported, and add what is new by its id.
        image_root: where relative paths of a JSON or table file begin.
        image_column: Parquet/CSV column with paths or bytes.
        caption_column: Parquet/CSV column with texts.
        id_column: Parquet/CSV column with unique ids.
        columns: names of all columns of CSV/TSV files without header, such as image caption.
        encoding: of texts that are not UTF-8, such as cp1252 or utf-16.
        without_captions: also take images that have no text, such as photos to be captioned.
        threads: threads that read and decode; one per core by default.
        json: print the report as JSON.
    """
    from openblip.data.importers.driver import import_pairs

    report = import_pairs(
        source,
        table,
        format,
        origin,
        split,
        store=store,
        ids=ids,
        limit=limit,
        again=again,
        image_root=image_root,
        image_column=image_column,
        caption_column=caption_column,
        id_column=id_column,
        columns=columns,
        encoding=encoding,
        without_captions=without_captions,
        num_threads=threads,
    )
    if json:
        print_json(asdict(report))
    else:
        print(report.to_text())
    _hint(report, ids)
    return 0 if report.num_rows or report.num_known else 1


def _hint(report: ImportReport, ids: str) -> None:
    """What a person may want to do about what was left out."""
    if ids == "key" and Reason.DUPLICATE_ID in report.skipped:
        print(
            "if two sources have paths of the same name, import each with --ids sha256 into a new "
            "table: its images then go by the hash of their bytes",
            file=sys.stderr,
        )
    if Reason.MISSING_CAPTION in report.skipped and not report.num_rows:
        print(
            "none of these images has a caption; --without-captions imports them all the same",
            file=sys.stderr,
        )


def export(
    table: tyro.conf.Positional[str],
    destination: tyro.conf.Positional[Path],
    /,
    *,
    format: Literal["webdataset", "parquet", "coco", "jsonl", "huggingface"] = "webdataset",
    sources: tuple[Literal["human", "web", "synthetic"], ...] = ("human", "web"),
    itm: Share | None = None,
    itm_of: tuple[str, ...] = (),
    without: tuple[WithoutName, ...] = (),
    split: tuple[Literal["train", "val", "test"], ...] = ("train",),
    rejected: bool = False,
    shard_size: Count = 10_000,
    overwrite: bool = False,
    threads: Workers | None = None,
    json: bool = False,
) -> int:
    """Write the images of a pair table with the texts that count, for other programs.

    The folder appears when everything is written, with an export.json that says what is in it.
    The exit code is 1 if an image could not be read; the others are written all the same.
    Example: openblip data export pairs.lance shards/ --sources human web synthetic --itm 0.5

    Args:
        table: the pair table.
        destination: a folder that is not there, or empty.
        format: tars, Parquet, COCO caption JSON with images, captions.jsonl with images, or a
            dataset folder of the Hugging Face hub with its card.
        sources: human texts, web texts, synthetic texts of CapFilt.
        itm: web and synthetic texts stay above this match probability; all stay by default.
        itm_of: thresholds by source or data set, such as web=0.5 synthetic=0.3 cc12m/web=0.6.
        without: leave out what `data duplicates` and `data leakage` have flagged.
        split: the rows to export; several for huggingface.
        rejected: write rejected texts with their reasons into rejected.jsonl beside.
        shard_size: images in one tar or Parquet file.
        overwrite: replace an earlier export.
        threads: threads that read images; one per core by default.
        json: print the report as JSON.
    """
    from openblip.data.export import export_pairs
    from openblip.data.table import PairTable
    from openblip.data.views import CaptionView

    report = export_pairs(
        PairTable.open(table),
        destination,
        format,
        CaptionView(sources=sources, itm=itm, itm_of=itm_of, without=without, split=split[0]),
        splits=split,
        with_rejected=rejected,
        shard_size=shard_size,
        overwrite=overwrite,
        num_threads=threads,
    )
    if json:
        print_json(asdict(report))
    else:
        print(report.to_text())
    return 1 if report.num_unreadable else 0


def show(table: tyro.conf.Positional[str], /, *, rows: CountOrNone = 3, json: bool = False) -> int:
    """What is in a pair table: rows by split and origin, texts, columns, examples.

    Example: openblip data show pairs.lance

    Args:
        table: the pair table.
        rows: how many rows to show.
        json: print JSON.
    """
    from openblip.data.table import PairTable

    opened = PairTable.open(table)
    images: Counter[tuple[str, str]] = Counter()
    texts: Counter[tuple[str, str]] = Counter()
    for batch in opened.scan(["split", "origin", "captions"]):
        for row in batch.to_pylist():
            images[row["split"], row["origin"]] += 1
            texts[row["split"], row["origin"]] += len(row["captions"] or [])
    if json:
        counts = [
            {"split": s, "origin": o, "images": n, "captions": texts[s, o]}
            for (s, o), n in sorted(images.items())
        ]
        print_json({"rows": len(opened), "columns": list(opened.columns), "counts": counts})
        return 0
    print(f"{table}: {len(opened)} images, version {opened.version}")
    print_table(
        ["split", "origin", "images", "captions"],
        [[s, o, str(n), str(texts[s, o])] for (s, o), n in sorted(images.items())],
    )
    print(f"columns: {', '.join(opened.columns)}")
    shown = [name for name in opened.columns if name != "image"]
    for example in opened.take(range(min(rows, len(opened))), shown).to_pylist():
        known = {name: value for name, value in example.items() if value is not None}
        print(json_library.dumps(known, ensure_ascii=False, default=_in_words))
    return 0


def _in_words(value: object) -> str:
    """A value of a column of somebody else that JSON has no form for."""
    return f"{len(value)} bytes" if isinstance(value, bytes) else str(value)
