"""`openblip data`: import, export, show, duplicates, leakage."""

import json as json_library
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from openblip.cli.flags import UsageError, WorkerFlags
from openblip.cli.output import check_outputs, print_json, print_table
from openblip.runtime.ranges import Count, CountOrNone, Range, Share, Workers
from openblip.sources.report import ExportReport, ImportReport, Reason

if TYPE_CHECKING:
    from openblip.curation.duplicates import DuplicateReport
    from openblip.curation.leakage import LeakReport
    from openblip.curation.nearness import Nearness
    from openblip.table.table import PairTable

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
SourceName = Literal["human", "web", "synthetic", "reviewed"]
_GIVEN: tuple[SourceName, ...] = ("human", "web")
_REVIEWED: tuple[SourceName, ...] = ("reviewed",)
_SHORTEST_VECTOR = 16
WithoutName = Literal["duplicate_images", "duplicate_captions", "repeated_captions", "leaks"]


@dataclass(frozen=True, kw_only=True)
class _ManyWorkers:
    """Many workers, for a source in many files."""

    processes: Workers | None = None
    """read tars, tables and parts of a folder side by side, in so many processes of this machine;
    the table is the same as without."""
    ray: str | None = None
    """address of a Ray cluster whose machines do it; local for a cluster of this one."""
    workers: Count | None = None
    """with --ray: most workers at a time; default: all room that the cluster has."""

    def options(self) -> dict[str, Any]:
        """For `import_pairs`."""
        return {"processes": self.processes, "ray": WorkerFlags(**asdict(self)).cluster()}


# Its flags stand among the command's own.
_ManyFlags = Annotated[_ManyWorkers, tyro.conf.arg(name="")]


def import_(
    source: tyro.conf.Positional[str],
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
    where: _ManyFlags = _ManyWorkers(),
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
    openblip data import 's3://bucket/crawl/*.tar' pairs.lance --processes 16

    Args:
        source: file, folder, pattern, hf:NAME[:CONFIG], or an s3:// or gs:// address of shards.
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
        threads: that read and decode; one per core by default, one with --processes.
        where: many workers, for a source in many files.
        json: print the report as JSON.
    """
    from openblip.sources.importing import import_pairs

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
        **where.options(),
    )
    _print(report, json)
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
    if Reason.MISSING_CAPTION in report.skipped and not (report.num_rows or report.num_known):
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
    sources: tuple[SourceName, ...] = _GIVEN,
    reviewed: bool = False,
    itm: Share | None = None,
    score: str = "itm",
    itm_of: tuple[str, ...] = (),
    without: tuple[WithoutName, ...] = (),
    split: tuple[Literal["train", "val", "test"], ...] = ("train",),
    rejected: bool = False,
    edits: bool = False,
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
        sources: human texts, web texts, synthetic texts of CapFilt, reviewed texts that people have
            judged right or corrected.
        reviewed: only reviewed texts, with their verdicts; short for --sources reviewed.
        itm: web and synthetic texts stay above this match probability (or other score); all stay by
            default.
        score: which one is compared: itm, itc, right (openblip capfilt fit), or another that the
            table has.
        itm_of: thresholds by source or data set, such as web=0.5 synthetic=0.3 cc12m/web=0.6.
        without: leave out what `data duplicates` and `data leakage` have flagged.
        split: the rows to export; several for huggingface.
        rejected: write rejected texts with their reasons into rejected.jsonl beside.
        edits: write what reviewers have corrected, before and after, into edits.jsonl beside.
        shard_size: images in one tar or Parquet file.
        overwrite: replace an earlier export.
        threads: threads that read images; one per core by default.
        json: print the report as JSON.
    """
    from openblip.sources.export import export_pairs
    from openblip.table.table import PairTable
    from openblip.table.views import CaptionView

    if reviewed and sources not in (_GIVEN, _REVIEWED):
        raise UsageError("--reviewed is --sources reviewed: give one of the two")
    chosen = _REVIEWED if reviewed else sources
    report = export_pairs(
        PairTable.open(table),
        destination,
        format,
        CaptionView(
            sources=chosen, itm=itm, score=score, itm_of=itm_of, without=without, split=split[0]
        ),
        splits=split,
        with_rejected=rejected,
        with_edits=edits,
        shard_size=shard_size,
        overwrite=overwrite,
        num_threads=threads,
    )
    _print(report, json)
    return 1 if report.num_unreadable else 0


def show(table: tyro.conf.Positional[str], /, *, rows: CountOrNone = 3, json: bool = False) -> int:
    """What is in a pair table: rows by split and origin, texts, verdicts, columns, examples.

    Example: openblip data show pairs.lance

    Args:
        table: the pair table.
        rows: how many rows to show.
        json: print JSON.
    """
    from openblip.table.agreement import AgreedTexts
    from openblip.table.table import PairTable

    opened = PairTable.open(table)
    verdicts = AgreedTexts.of(opened).counts()
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
        columns = list(opened.columns)
        about = {"rows": len(opened), "columns": columns, "counts": counts, "verdicts": verdicts}
        print_json(about)
        return 0
    print(f"{table}: {len(opened)} images, version {opened.version}")
    print_table(
        ["split", "origin", "images", "captions"],
        [[s, o, str(n), str(texts[s, o])] for (s, o), n in sorted(images.items())],
    )
    if any(verdicts.values()):
        said = ", ".join(f"{count:,} {what}" for what, count in verdicts.items() if count)
        print(f"texts that people have judged: {said}")
    print(f"columns: {', '.join(opened.columns)}")
    shown = [name for name in opened.columns if name != "image"]
    for example in opened.take(range(min(rows, len(opened))), shown).to_pylist():
        known = {name: _brief(value) for name, value in example.items() if value is not None}
        print(json_library.dumps(known, ensure_ascii=False, default=_in_words))
    return 0


def _brief(value: object) -> object:
    """An embedding by its length: nobody reads its numbers."""
    if not isinstance(value, list) or len(value) < _SHORTEST_VECTOR:
        return value
    is_vector = all(isinstance(number, float) for number in value)
    return f"{len(value)} numbers" if is_vector else value


def _in_words(value: object) -> str:
    """A value of a column of somebody else that JSON has no form for."""
    return f"{len(value)} bytes" if isinstance(value, bytes) else str(value)


@dataclass(frozen=True, kw_only=True)
class _Search:
    """How near-duplicates are searched.

    Attributes:
        model: a model with an itc head, for embeddings; none is needed for hashes.
        by: hash (and colours), embedding, or both; by default both with a model, else hash.
        radius: most bits of 64 in which perceptual hashes differ.
        colour: most that a value of the 4 x 4 thumbnails differs, of 255.
        cosine: least cosine of embeddings.
        text: least similarity of captions; 1 for equality up to case and punctuation.
        threads: threads that read images; one per core by default.
    """

    model: str | None = None
    by: Literal["hash", "embedding", "both"] | None = None
    radius: Annotated[int, Range(0, 64)] = 6
    colour: Annotated[int, Range(0, 255)] = 24
    cosine: Annotated[float, Range(-1, 1)] = 0.95
    text: Share = 0.9
    threads: Workers | None = None

    def nearness(self) -> "Nearness":
        from openblip.curation.nearness import Nearness

        return Nearness(
            by=self.by or ("both" if self.model else "hash"),
            radius=self.radius,
            colour=self.colour,
            cosine=self.cosine,
            text=self.text,
        )

    def embed(self, *tables: "PairTable") -> None:
        """The embeddings of the model; without one those that the tables have are used."""
        if self.model is not None and self.nearness().needs_embeddings:
            from openblip.index.embeddings import embed_table

            for table in tables:
                for reason in embed_table(table, self.model).failed:
                    print(f"failed, the same command tries again: {reason}", file=sys.stderr)


# Its flags stand among the command's own.
_Flags = Annotated[_Search, tyro.conf.arg(name="")]


def duplicates(
    place: tyro.conf.Positional[str],
    /,
    *,
    keep: Literal["first", "largest", "newest"] = "first",
    page: Path | None = None,
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None,
    search: _Flags = _Search(),
    json: bool = False,
) -> int:
    """Find near-duplicate images and captions within each split; none is removed.

    To a pair table, columns are added that say which row is kept instead; a view leaves the others
    out with `--without duplicate_images`. A stopped run goes on where it was, and a table that has
    grown is extended. Images in folders and archives are only compared; the exit code is 1 if some
    cannot be read.
    Example: openblip data duplicates pairs.lance
    openblip data duplicates photos/ --keep largest --page duplicates.html -o duplicates.csv

    Args:
        place: a pair table; or a folder, a quoted pattern or a tar archive with images.
        keep: of near images, human before web ones: the first in order; the largest in pixels; or
            the newest, by the camera's date, else the file's, else the order.
        page: write a page there (HTML) with kept images and their copies side by side.
        output: write every pair there, with distances and sizes, as .csv or .json.
        search: how near-duplicates are searched.
        json: print the report as JSON.
    """
    from openblip.curation.duplicates import duplicate_pairs, flag_duplicates, write_duplicates_page
    from openblip.evaluation.results import check_results_path, save_records

    check_outputs({"--page": page, "-o": output})
    if output is not None:
        check_results_path(output)
    with _opened(place) as (table, unreadable):
        search.embed(table)
        nearness, threads = search.nearness(), search.threads
        report = flag_duplicates(table, nearness, keep=keep, num_threads=threads)
        report.table = place
        _print(report, json)
        pairs = []
        if page is not None or output is not None:
            pairs = duplicate_pairs(table, nearness, threads)
        if output is not None:
            save_records(output, [asdict(pair) for pair in pairs])
        if page is not None:
            write_duplicates_page(table, pairs, page, place)
        return 1 if unreadable() else 0


@contextmanager
def _opened(place: str) -> "Iterator[tuple[PairTable, Callable[[], int]]]":
    """A pair table, or one of the images of a place for as long as it is needed.

    Beside it what counts, and tells, the images that cannot be read: of a table its own column
    does that.
    """
    from openblip.inference.image_sources import ImageSources, scratch_table
    from openblip.sources.paths import is_table, matching_paths
    from openblip.table.table import PairTable

    if is_table(place) or not matching_paths(place):
        yield PairTable.open(place), lambda: 0
        return
    failures: list[str] = []
    with TemporaryDirectory(prefix="openblip-") as folder:
        table = scratch_table(ImageSources([place]), Path(folder) / "t.lance", failures.append)

        def unreadable() -> int:
            for batch in table.scan(["id", "image_error"]):
                for row in batch.to_pylist():
                    if row["image_error"]:
                        failures.append(f"{row['id']}: {row['image_error']}")
            for failure in failures:
                print(f"openblip data duplicates: {failure}", file=sys.stderr)
            return len(failures)

        yield table, unreadable


def leakage(
    table: tyro.conf.Positional[str],
    evaluation: tyro.conf.Positional[str],
    /,
    *,
    split: Literal["train", "val", "test"] = "test",
    search: _Flags = _Search(),
    check: bool = False,
    json: bool = False,
) -> int:
    """Flag training images and captions that stand in an evaluation split; no row is removed.

    Adds columns that say where they stand; a view leaves them out with `--without leaks`. Several
    evaluations may be checked one after the other. Example:
    openblip data leakage pairs.lance coco.lance --split test

    Args:
        table: the pair table whose training rows are checked.
        evaluation: the pair table with the evaluation split; may be the same.
        split: the evaluation split.
        search: how near-duplicates are searched.
        check: end with exit code 1 if an image leaks.
        json: print the report as JSON.
    """
    from openblip.curation.leakage import flag_leaks
    from openblip.table.table import PairTable

    opened, other = PairTable.open(table), PairTable.open(evaluation)
    search.embed(*([opened] if other.uri == opened.uri else [opened, other]))
    report = flag_leaks(opened, other, split, search.nearness(), num_threads=search.threads)
    _print(report, json)
    return 1 if check and report.num_leaking_images else 0


def _print(
    report: "ImportReport | ExportReport | DuplicateReport | LeakReport", json: bool
) -> None:
    if json:
        print_json(asdict(report))
    else:
        print(report.to_text())
