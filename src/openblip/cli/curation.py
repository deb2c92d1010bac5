"""`openblip data duplicates` and `openblip data leakage`."""

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from openblip.cli.flags import Range, Share, Workers
from openblip.cli.output import print_json

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
    table: tyro.conf.Positional[str], /, *, search: _Flags = _Search(), json: bool = False
) -> int:
    """Flag near-duplicate images and captions within each split; no row is removed.

    Adds columns that say which row is kept instead; a view leaves the others out with
    `--without duplicate_images`. A stopped run goes on where it was, and a table that has grown is
    extended. Example: openblip data duplicates pairs.lance

    Args:
        table: the pair table.
        search: how near-duplicates are searched.
        json: print the report as JSON.
    """
    from openblip.data.curation.duplicates import flag_duplicates
    from openblip.data.table import PairTable

    opened = PairTable.open(table)
    search.embed(opened)
    _print(flag_duplicates(opened, search.nearness(), num_threads=search.threads), json)
    return 0


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
