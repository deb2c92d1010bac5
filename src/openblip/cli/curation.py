"""`openblip data duplicates` and `openblip data leakage`."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Literal

import tyro

from openblip.cli.output import print_json

if TYPE_CHECKING:
    from openblip.data.table import PairTable


def duplicates(
    table: tyro.conf.Positional[str],
    /,
    *,
    model: str | None = None,
    by: Literal["hash", "embedding", "both"] | None = None,
    radius: int = 6,
    colour: int = 24,
    cosine: float = 0.95,
    text: float = 0.9,
    threads: int | None = None,
    json: bool = False,
) -> int:
    """Flag near-duplicate images and captions within each split; no row is removed.

    Adds columns that say which row is kept instead; a view leaves the others out with
    `--without duplicate_images`. A stopped run goes on where it was, and a table that has grown is
    extended. Example: openblip data duplicates pairs.lance

    Args:
        table: the pair table.
        model: a model with an itc head, for embeddings; none is needed for hashes.
        by: hash (and colours), embedding, or both; by default both with a model, else hash.
        radius: most bits of 64 in which perceptual hashes differ.
        colour: most that a value of the 4 x 4 thumbnails differs, of 255.
        cosine: least cosine of embeddings.
        text: least similarity of captions; 1 for equality up to case and punctuation.
        threads: threads that read images; one per core by default.
        json: print the report as JSON.
    """
    from openblip.data.curation.duplicates import flag_duplicates
    from openblip.data.curation.nearness import Nearness
    from openblip.data.table import PairTable

    nearness = Nearness(
        by=by or ("both" if model else "hash"),
        radius=radius,
        colour=colour,
        cosine=cosine,
        text=text,
    )
    opened = PairTable.open(table)
    if nearness.needs_embeddings:
        _embed(opened, model)
    report = flag_duplicates(opened, nearness, num_threads=threads)
    if json:
        print_json(asdict(report))
    else:
        print(report.to_text())
    return 0


def leakage(
    table: tyro.conf.Positional[str],
    evaluation: tyro.conf.Positional[str],
    /,
    *,
    split: Literal["train", "val", "test"] = "test",
    model: str | None = None,
    by: Literal["hash", "embedding", "both"] | None = None,
    radius: int = 6,
    colour: int = 24,
    cosine: float = 0.95,
    text: float = 0.9,
    check: bool = False,
    threads: int | None = None,
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
        model: a model with an itc head, for embeddings; none is needed for hashes.
        by: hash (and colours), embedding, or both; by default both with a model, else hash.
        radius: most bits of 64 in which perceptual hashes differ.
        colour: most that a value of the 4 x 4 thumbnails differs, of 255.
        cosine: least cosine of embeddings.
        text: least similarity of captions; 1 for equality up to case and punctuation.
        check: end with exit code 1 if an image leaks.
        threads: threads that read images; one per core by default.
        json: print the report as JSON.
    """
    from openblip.data.curation.leakage import flag_leaks
    from openblip.data.curation.nearness import Nearness
    from openblip.data.table import PairTable

    nearness = Nearness(
        by=by or ("both" if model else "hash"),
        radius=radius,
        colour=colour,
        cosine=cosine,
        text=text,
    )
    opened, other = PairTable.open(table), PairTable.open(evaluation)
    if nearness.needs_embeddings:
        _embed(opened, model)
        if other.uri != opened.uri:
            _embed(other, model)
    report = flag_leaks(opened, other, split, nearness, num_threads=threads)
    if json:
        print_json(asdict(report))
    else:
        print(report.to_text())
    return 1 if check and report.num_leaking_images else 0


def _embed(table: "PairTable", model: str | None) -> None:
    """The embeddings of a model; without one those that the table has are used."""
    if model is not None:
        from openblip.capfilt.embeddings import embed_table

        embed_table(table, model)
