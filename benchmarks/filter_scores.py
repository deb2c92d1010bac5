"""How well single scores and their combination find noise whose kind is known.

    python benchmarks/filter_scores.py TABLE --output benchmarks/results/filter_scores.md
    python benchmarks/filter_scores.py flickr8k/stages/capfilt-*/pairs.lance --scored

TABLE has been scored by `openblip capfilt run`, and its web rows say in `meta.noise` what they are
(benchmarks/flickr8k_noise.py, or the embedded world). It gets the scores of `openblip capfilt
scores` and the fit of `openblip capfilt fit`, which looks at no kind: it learns from human pairs of
the table and corruptions of them. Then every score rejects web texts by a threshold. Told is the
best precision at a recall of 0.8 and 0.9, for each kind of noise against true texts and for all of
it; and the combination less the best single score, with the middle 95 % over web images drawn
anew. The best single score is chosen with knowledge of the truth, which the combination has not.
With `--scored` tables have scores and fit already, as those of `benchmarks/flickr8k.yaml`, and are
only read.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from openblip.capfilt.combination import DIRECTIONS, area, gain_interval, precision_at
from openblip.capfilt.fit import FitReport, FitSettings, fit_table
from openblip.capfilt.scores import ScoreSettings, score_table
from openblip.capfilt.select import fit_report
from openblip.table.rows import read_meta
from openblip.table.scores import RIGHT, score_column, scores_among
from openblip.table.table import PairTable

GOALS = {("all noise", 0.8): 0.85, ("boilerplate", 0.9): 0.95}
RECALLS = (0.8, 0.9)
Scores = dict[str, NDArray[np.float64]]


def read(table: PairTable) -> tuple[Scores, NDArray[np.str_], NDArray[np.int64]]:
    """Scores of the web texts whose kind is known, more being better; their kinds and rows."""
    names = scores_among(table.columns, "captions")
    columns = [score_column("captions", name) for name in names]
    found: list[tuple[float, ...]] = []
    kinds: list[str] = []
    rows: list[int] = []
    first = 0
    for batch in table.scan(["origin", "meta", *columns]):
        for number, row in enumerate(batch.to_pylist()):
            kind = read_meta(str(first + number), row["meta"]).get("noise")
            lists = [row[column] for column in columns]
            if row["origin"] != "web" or not kind or any(values is None for values in lists):
                continue
            texts = list(zip(*lists, strict=True))
            found += texts
            kinds += [str(kind)] * len(texts)
            rows += [first + number] * len(texts)
        first += batch.num_rows
    matrix, known = np.array(found, dtype=np.float64), np.array(kinds)
    return directed(names, matrix, known == "true"), known, np.array(rows)


def directed(names: list[str], matrix: NDArray[np.float64], true: NDArray[np.bool_]) -> Scores:
    """Each score in the direction in which more is better; of those without one the better way."""
    scores = {}
    for name, values in zip(names, matrix.T, strict=True):
        known = np.where(np.isfinite(values), values, np.nanmedian(values))
        direction = DIRECTIONS.get(name, 1) or (1 if area(known, true) >= 0.5 else -1)
        scores[name] = direction * known
    return scores


def groups_of(kinds: NDArray[np.str_]) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    """Each kind of noise, and all of it."""
    for kind in sorted(set(kinds.tolist()) - {"true"}):
        yield kind, kinds == kind
    yield "all noise", kinds != "true"


def precisions(
    scores: Scores, kinds: NDArray[np.str_], recall: float
) -> dict[str, dict[str, float]]:
    """By score and kind, precision of rejecting that kind among true texts."""
    found: dict[str, dict[str, float]] = {name: {} for name in scores}
    for kind, noisy in groups_of(kinds):
        inside = noisy | (kinds == "true")
        for name, values in scores.items():
            found[name][kind] = precision_at(values[inside], noisy[inside], recall)
    return found


def of_recall(
    scores: Scores, kinds: NDArray[np.str_], rows: NDArray[np.int64], recall: float
) -> list[str]:
    """A table of precisions, and the differences from the best single score of each kind."""
    found = precisions(scores, kinds, recall)
    names = [kind for kind, _ in groups_of(kinds)]
    lines = [
        f"\n## Precision at a recall of {recall:g}\n",
        f"| score | AUC | {' | '.join(names)} |",
        f"| --- | ---: | {' | '.join('---:' for _ in names)} |",
    ]
    true = kinds == "true"
    order = sorted(scores, key=lambda name: -found[name]["all noise"])
    for name in order:
        cells = " | ".join(f"{found[name][kind]:.3f}" for kind in names)
        shown = f"**{name}** (combination)" if name == RIGHT else name
        lines.append(f"| {shown} | {area(scores[name], true):.3f} | {cells} |")
    lines += [
        "\n| noise | best single score | combination less it | 95 % interval | goal |",
        "| --- | --- | ---: | --- | --- |",
    ]
    for kind, noisy in groups_of(kinds):
        inside = noisy | true
        single = max((n for n in scores if n != RIGHT), key=lambda name: found[name][kind])

        def measure(
            values: NDArray[np.float64], right: NDArray[np.bool_], weights: NDArray[np.float64]
        ) -> float:
            return precision_at(values, ~right, recall, weights)

        low, high = gain_interval(
            scores[RIGHT][inside],
            scores[single][inside],
            ~noisy[inside],
            rows[inside],
            measure=measure,
        )
        goal = GOALS.get((kind, recall))
        reached = found[RIGHT][kind]
        verdict = "met" if goal is not None and reached >= goal else "missed"
        told = f"{goal:.2f}: {verdict}" if goal is not None else ""
        lines.append(
            f"| {kind} | {single} ({found[single][kind]:.3f}) | "
            f"{reached - found[single][kind]:+.3f} | {low:+.3f} to {high:+.3f} | {told} |"
        )
    return lines


def calibration(kinds: NDArray[np.str_], scores: Scores) -> list[str]:
    """What share of web texts is right in each tenth of the probability."""
    right, told = kinds == "true", scores[RIGHT]
    lines = [
        "\n## Is the probability one?\n",
        "| probability | mean | share that is right | texts |",
        "| --- | ---: | ---: | ---: |",
    ]
    for low in np.arange(10) / 10:
        inside = (told >= low) & (told < low + 0.1 + 1e-9 * (low > 0.85))
        if inside.any():
            lines.append(
                f"| {low:.1f} to {low + 0.1:.1f} | {told[inside].mean():.3f} | "
                f"{right[inside].mean():.3f} | {inside.sum():,} |"
            )
    return lines


def fit_lines(report: FitReport) -> list[str]:
    """How the combination was made."""
    lines = ["\n## The fit\n"]
    for found in report.fits:
        told = found.told
        weights = ", ".join(
            f"{name} {lost:.3f}" + ("" if weight is None else f" ({weight:+.2f})")
            for name, lost, weight in told["importance"]
        )
        lines.append(
            f"- **{found.source} texts:** {told['model']}, {told['calibration']} calibration, "
            f"{told['texts']:,} texts of {report.images:,} human images. On corruptions of unseen "
            f"images: AUC {told['auc']:.3f}, best single score {told['single']} "
            f"{told['single_auc']:.3f}, difference {told['gain']:+.3f} ({told['gain_low']:+.3f} to "
            f"{told['gain_high']:+.3f}), calibration error {told['error']:.3f}; estimated share of "
            f"right texts in the table {100 * found.share:.0f} % (by {found.share_from}). AUC lost "
            f"without each score (weight): {weights}."
        )
    return lines + [f"- left out: {line}" for line in report.left_out]


def fitted(table: str, options: argparse.Namespace) -> FitReport:
    """The table has its scores and their combination afterwards."""
    filters = tuple(options.filter)
    score_table(PairTable.open(table), ScoreSettings(filters=filters, seed=options.seed))
    settings = FitSettings(
        filters=filters,
        captioners=tuple(options.captioner),
        images=options.images,
        seed=options.seed,
    )
    return fit_table(PairTable.open(table), settings)


def stage_of(table: str) -> str:
    """Which stage of a comparison has made a table, such as "half_judged, seed 0: "."""
    told = Path(table).parent / "stage.json"
    return f"{json.loads(told.read_text(encoding='utf-8'))['name']}: " if told.exists() else ""


def of_table(table: PairTable) -> list[str]:
    """What its scores find."""
    scores, kinds, rows = read(table)
    counts = ", ".join(f"{(kinds == k).sum():,} {k}" for k in sorted(set(kinds.tolist())))
    lines = [f"\n{stage_of(table.uri)}{table.uri}: {len(kinds):,} web texts ({counts})."]
    for recall in RECALLS:
        lines += of_recall(scores, kinds, rows, recall)
    return lines + calibration(kinds, scores)


def stored(table: str) -> FitReport:
    """The fit that a table has."""
    told = fit_report(PairTable.open(table))
    if told is None:
        sys.exit(f"{table} has no fit; leave out --scored")
    return FitReport.of(told)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tables", nargs="+", metavar="TABLE")
    parser.add_argument("--scored", action="store_true", help="scores and fit are there")
    parser.add_argument("--filter", nargs="*", default=[])
    parser.add_argument("--captioner", nargs="*", default=[])
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()

    lines = [
        "# Scores of a text, and their combination",
        f"\n`{' '.join(['python', *sys.argv])}`",
    ]
    for table in options.tables:
        report = stored(table) if options.scored else fitted(table, options)
        lines += of_table(PairTable.open(table)) + fit_lines(report)
    text = "\n".join(lines) + "\n"
    print(text)
    if options.output:
        options.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
