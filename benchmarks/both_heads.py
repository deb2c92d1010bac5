"""What matching adds to contrast: the same models, images and seeds, ranked both ways.

    DATA=FOLDER python benchmarks/both_heads.py benchmarks/flickr8k.yaml flickr8k --seeds 0 1 2

Reads what `openblip compare` has found. Told is the recall by both heads together less that by
contrast alone, with a 95 % interval over seeds and images.
"""

import argparse
from pathlib import Path

from openblip.comparison.run import read_comparison

FIGURES = ("mean", "R@1", "R@10")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("comparison", type=Path)
    parser.add_argument("output", type=Path, help="what `openblip compare -o` was given")
    parser.add_argument("--seeds", type=int, nargs="*", default=[])
    options = parser.parse_args()

    findings = read_comparison(options.comparison, options.output, options.seeds)
    print(f"| model | {' | '.join(FIGURES)} |")
    print(f"| --- |{' --- |' * len(FIGURES)}")
    for model in findings.spec.models:
        cells = []
        for figure in FIGURES:
            both = findings.scores(model, f"retrieval.{figure}")
            contrast = findings.scores(model, f"contrast.{figure}")
            if both is None or contrast is None:
                break
            more = both.minus(contrast)
            cells.append(
                f"{more.difference:+.2f} [{more.low:+.2f}, {more.high:+.2f}] p {more.p_value:.3f}"
            )
        else:
            print(f"| {model} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
