"""`openblip capfilt scores` and `fit`: more is said of texts, and one probability made of it."""

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

import tyro

from openblip.cli.output import print_json, print_table
from openblip.runtime.ranges import Count, Seed

if TYPE_CHECKING:
    from openblip.capfilt.fit import SourceFit


def scores(
    table: tyro.conf.Positional[str],
    /,
    *,
    filter: tuple[str, ...] = (),
    neighbours: Count = 10,
    sample: Count = 2048,
    batch_size: Count = 32,
    seed: Seed = 0,
    device: str | None = None,
    json: bool = False,
) -> int:
    """Say more of each given and synthetic text than its filter does, in columns of their own.

    Whether text and image are nearer to each other than to their neighbours, whether the captioner
    writes the same, how common a text is in the table, and what further filters say. A stopped
    call goes on where it was.

    Example: openblip capfilt scores pairs.lance
    openblip capfilt scores pairs.lance --filter runs/filter openai/clip-vit-base-patch32

    Args:
        table: a table that `openblip capfilt run` has scored.
        filter: models, as of capfilt run; texts and images are compared in the space of the first,
            and each one that has not scored the table yet does. By default those that have.
        neighbours: how many of the nearest texts (and images) of the sample normalise a cosine.
        sample: rows of the table among which neighbours are looked for.
        batch_size: rows that are read and scored together.
        seed: decides which rows are in the sample.
        device: default: the GPU where there is one.
        json: print the result as JSON.
    """
    from openblip.capfilt.scores import ScoreSettings, score_table
    from openblip.table.scores import stale_right
    from openblip.table.table import PairTable

    settings = ScoreSettings(
        filters=filter, neighbours=neighbours, sample=sample, batch_size=batch_size, seed=seed
    )
    report = score_table(PairTable.open(table), settings, device=device)
    if line := stale_right(PairTable.open(table)):
        print(line, file=sys.stderr)
    if json:
        print_json(asdict(report))
        return 0
    print(f"{table}: {report.rows} rows computed; scores of its texts: {', '.join(report.scores)}")
    for line in report.missing:
        print(f"not there: {line}")
    return 0


def fit(
    table: tyro.conf.Positional[str],
    /,
    *,
    filter: tuple[str, ...] = (),
    captioner: tuple[str, ...] = (),
    images: Count = 1000,
    folds: Count = 5,
    batch_size: Count = 32,
    seed: Seed = 0,
    partly_is_right: bool = False,
    device: str | None = None,
    json: bool = False,
) -> int:
    """Fit one calibrated probability, the score right, to all scores of a table.

    Learns from human pairs of the table and typed corruptions of them, and from reviewed verdicts.
    Needs `openblip capfilt scores`, and the extra fit (scikit-learn).

    Example: openblip capfilt fit pairs.lance
    openblip capfilt select pairs.lance --score right

    Args:
        table: with human pairs, and scored.
        filter: where the models of the table's scores lie now; by default where they were.
        captioner: where the captioners of the table's job lie now; the same.
        images: human images whose texts are corrupted, drawn by the seed where there are more.
        folds: of the cross-validation.
        batch_size: images that are scored together.
        seed: decides images, corruptions, folds and models.
        partly_is_right: a reviewed text with a wrong detail counts as right.
        device: default: the GPU where there is one.
        json: print the report as JSON.
    """
    from openblip.capfilt.fit import FitSettings, fit_table
    from openblip.table.table import PairTable

    settings = FitSettings(
        filters=filter,
        captioners=captioner,
        images=images,
        folds=folds,
        batch_size=batch_size,
        seed=seed,
        partly_is_right=partly_is_right,
    )
    report = fit_table(PairTable.open(table), settings, device=device)
    if json:
        print_json(report.as_plain())
        return 0
    kinds = ", ".join(f"{count} {kind}" for kind, count in report.texts.items())
    print(f"{table}: {report.images} human images: {kinds}")
    for line in report.left_out:
        print(f"left out: {line}")
    for found in report.fits:
        _print_fit(found)
    return 0


def _print_fit(found: "SourceFit") -> None:
    told = found.told
    losses = ", ".join(f"{name} {loss:.4f}" for name, loss in told["losses"].items())
    print(
        f"\n{found.source} texts: {told['model']} (out-of-fold loss: {losses}), "
        f"{told['calibration']} calibration, error {told['error']:.3f}; "
        f"{told['texts']} texts, {told['reviewed']} of them reviewed"
    )
    print(
        f"AUC {told['auc']:.3f}; best single score: {told['single']} {told['single_auc']:.3f}; "
        f"difference {told['gain']:+.3f} ({told['gain_low']:+.3f} to {told['gain_high']:+.3f}); "
        f"{100 * found.share:.0f} % of the table's texts are right (by {found.share_from})"
    )
    rows = [
        [name, f"{lost:.4f}", "" if weight is None else f"{weight:+.2f}"]
        for name, lost, weight in told["importance"]
    ]
    print_table(["score", "AUC lost without it", "weight in logistic regression"], rows)
    kinds = [
        [kind["kind"], str(kind["texts"]), f"{kind['combination']:.3f}", f"{kind['single']:.3f}"]
        for kind in told["kinds"]
    ]
    header = ["kind of noise", "texts", f"precision at recall {told['recall']:g}"]
    print_table([*header, f"by {told['single']} alone"], kinds)
    bins = [[f"{p:.2f}", f"{share:.2f}", str(count)] for p, share, count in told["reliability"]]
    print_table(["told probability", "share that is right", "texts"], bins)
