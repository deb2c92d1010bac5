"""`openblip demo`."""

from pathlib import Path
from typing import Annotated

import tyro

from openblip.cli.output import check_outputs, print_table
from openblip.runtime.ranges import Seed


def demo(
    *,
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("demo"),
    seed: Seed = 0,
) -> int:
    """The whole BLIP loop on an embedded world, from nothing, in minutes on two cores.

    Pre-trains on noisy pairs, fine-tunes captioner and filter, cleans the table, trains a new
    model on the result, compares both, and writes a report page. A stopped demo goes on where it
    was. Example: openblip demo -o demo --seed 1

    Args:
        output: folder of the table, the models and the report.
        seed: of the world, the weights and every draw.
    """
    from openblip.world.demo import DemoConfig, run_demo, write_demo_report

    check_outputs({"-o": output}, are_folders=True)
    result = run_demo(output, DemoConfig(seed=seed), say=print)
    names = list(result.noisy.headline)
    print()
    print_table(
        ["trained on", *names],
        [
            [name, *(f"{scores.headline[n]:.1f}" for n in names)]
            for name, scores in (
                ("the noise", result.noisy),
                ("the bootstrapped table", result.bootstrapped),
            )
        ],
    )
    print("\nthe filter against the known noise:")
    print_table(
        ["kind", "texts", "precision", "recall"],
        [[q.kind, str(q.total), f"{q.precision:.3f}", f"{q.recall:.3f}"] for q in result.quality],
    )
    print(
        f"captions of another image at recall >= 0.8: precision "
        f"{result.other_image_precision:.3f} at threshold {result.other_image_threshold:.3f}"
    )
    print(f"\n{sum(result.seconds.values()):.0f} s; report: {write_demo_report(result)}")
    print(
        f"look at it: openblip studio {output / 'pairs.lance'} --captioner {output / 'captioner'} "
        f"--filter {output / 'filter'}"
    )
    return 0
