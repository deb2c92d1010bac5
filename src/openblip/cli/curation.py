"""`openblip data duplicates` and `openblip data leakage`."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from openblip.cli.flags import Range, Share, Workers
from openblip.cli.output import check_outputs, print_json

if TYPE_CHECKING:
    from openblip.data.curation.duplicates import DuplicateReport
    from openblip.data.curation.leakage import LeakReport
    from openblip.data.curation.nearness import Nearness
    from openblip.data.table import PairTable


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
        from openblip.data.curation.nearness import Nearness

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
            from openblip.capfilt.embeddings import embed_table

            for table in tables:
                embed_table(table, self.model)


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
    from openblip.data.curation.duplicate_pairs import duplicate_pairs, write_duplicates_page
    from openblip.data.curation.duplicates import flag_duplicates
    from openblip.evaluation.results_file import check_results_path, save_records

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
    from openblip.data.patterns import matching_paths
    from openblip.data.table import PairTable
    from openblip.inference.image_sources import ImageSources, is_table, scratch_table

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
    from openblip.data.curation.leakage import flag_leaks
    from openblip.data.table import PairTable

    opened, other = PairTable.open(table), PairTable.open(evaluation)
    search.embed(*([opened] if other.uri == opened.uri else [opened, other]))
    report = flag_leaks(opened, other, split, search.nearness(), num_threads=search.threads)
    _print(report, json)
    return 1 if check and report.num_leaking_images else 0


def _print(report: "DuplicateReport | LeakReport", json: bool) -> None:
    if json:
        print_json(asdict(report))
    else:
        print(report.to_text())
