"""`openblip compare`."""

from pathlib import Path
from typing import Annotated

import tyro

from openblip.cli.output import check_outputs, print_json, print_table
from openblip.runtime.ranges import Seed, Workers


def compare(
    file: tyro.conf.Positional[Path],
    /,
    *,
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None,
    jobs: Workers = 1,
    seeds: tuple[Seed, ...] = (),
    plan: bool = False,
    json: bool = False,
) -> int:
    """Train and evaluate what is missing of a comparison, and write its tables.

    The YAML file lists data, models, tasks and seeds, the tables to print and the claims to check
    (docs/compare.md). A stopped comparison goes on with the same command; after a change of the
    file only what depends on it is done again. Example:
    openblip compare benchmarks/ablations.yaml -o ablations --jobs 2

    Args:
        file: the comparison.
        output: folder of the stages and the report; by default named as the file.
        jobs: processes side by side; each computes with its share of the cores.
        seeds: in the place of those in the file: some of them first, or more.
        plan: only list the stages, and which of them are finished.
        json: print the verdicts on the claims, and where the report is, as JSON.
    """
    from openblip.comparison.run import compare as run
    from openblip.comparison.run import read_comparison
    from openblip.comparison.tables import PAGE_FILE

    folder = output if output is not None else Path(file.stem)
    if plan:
        rows = read_comparison(file, folder, seeds).stages
        print_table(
            ["stage", "name", "folder", "finished"],
            [[row.kind, row.name, row.folder, "yes" if row.is_finished else "no"] for row in rows],
        )
        return 0
    check_outputs({"-o": folder}, are_folders=True)
    compared = run(file, folder, jobs=jobs, seeds=seeds)
    if json:
        verdicts = [
            {"claim": v.claim.claim, "figure": v.figure, "verdict": v.word}
            for v in compared.findings.verdicts()
        ]
        print_json({"report": str(folder / PAGE_FILE), "claims": verdicts})
        return 0
    print(compared.text)
    print(f"report: {folder / PAGE_FILE}")
    return 0
