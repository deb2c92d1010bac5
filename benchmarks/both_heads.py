"""What matching adds to contrast: the same models, images and seeds, ranked both ways.

    DATA=FOLDER python benchmarks/both_heads.py benchmarks/flickr8k.yaml flickr8k --seeds 0 1 2
    DATA=FOLDER python benchmarks/both_heads.py benchmarks/flickr8k.yaml flickr8k --task weighed

Reads what `openblip compare` has found. Told is the recall by both heads together less that by
contrast alone, with a 95 % interval over seeds and images: of each model, and the mean over all.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from openblip.comparison.findings import SeedScores
from openblip.comparison.run import read_comparison

FIGURES = ("mean", "R@1", "R@10")


def difference(both: SeedScores, contrast: SeedScores) -> str:
    more = both.minus(contrast)
    return f"{more.difference:+.2f} [{more.low:+.2f}, {more.high:+.2f}] p {more.p_value:.3f}"


def mean_of(models: Sequence[SeedScores]) -> SeedScores:
    """The mean of a figure over models, which saw the same seeds and images."""
    seeds = zip(*(scores.seeds for scores in models), strict=True)
    # A figure is a mean over metrics: those of all models are as many more.
    return SeedScores(tuple(np.concatenate(of_models) for of_models in seeds), models[0].is_shared)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("comparison", type=Path)
    parser.add_argument("output", type=Path, help="what `openblip compare -o` was given")
    parser.add_argument("--task", default="retrieval", help="which ranks by both heads")
    parser.add_argument("--seeds", type=int, nargs="*", default=[])
    options = parser.parse_args()

    findings = read_comparison(options.comparison, options.output, options.seeds)
    lines = [f"| model | {' | '.join(FIGURES)} |", f"| --- |{' --- |' * len(FIGURES)}"]
    found: dict[str, list[tuple[SeedScores, SeedScores]]] = {figure: [] for figure in FIGURES}
    for model, spec in findings.spec.models.items():
        if spec.trained_as in ("clip", "unimodal"):
            continue  # has contrast alone
        pairs = [
            (findings.scores(model, f"{options.task}.{f}"), findings.scores(model, f"contrast.{f}"))
            for f in FIGURES
        ]
        measured = [(both, contrast) for both, contrast in pairs if both and contrast]
        if len(measured) < len(FIGURES):
            continue
        for figure, pair in zip(FIGURES, measured, strict=True):
            found[figure].append(pair)
        lines.append(f"| {model} | {' | '.join(difference(*pair) for pair in measured)} |")
    if not found[FIGURES[0]]:
        sys.exit(
            f"{options.output} holds no model that {options.comparison} ranks both ways; run "
            f"`openblip compare {options.comparison} -o {options.output}` first"
        )
    if len(found[FIGURES[0]]) > 1:
        means = [difference(*map(mean_of, zip(*found[f], strict=True))) for f in FIGURES]
        lines.append(f"| mean of these | {' | '.join(means)} |")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
