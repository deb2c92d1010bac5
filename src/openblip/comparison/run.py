"""`compare`: from a comparison file to its tables."""

from dataclasses import dataclass
from pathlib import Path

from openblip.comparison.scheduler import carry_out_all
from openblip.comparison.spec import located, read_spec
from openblip.comparison.tables import Findings, write_reports
from openblip.runtime.errors import OpenBlipError, RecipeError
from openblip.runtime.locks import only_here

STAGES_FOLDER = "stages"


class ComparisonError(OpenBlipError):
    """Stages of a comparison failed; names each with its log."""


@dataclass(frozen=True)
class Compared:
    """What a comparison came to."""

    findings: Findings
    text: str
    """The report as Markdown."""
    folder: Path
    """Where the report lies."""


def compare(path: Path, output: Path, *, jobs: int = 1) -> Compared:
    """Carry out what is missing of a comparison, and write its report.

    Every stage is kept in a folder that its fingerprint names: an interrupted comparison goes on, a
    finished one is only read, and a changed file repeats what the change concerns.

    Args:
        path: the comparison file.
        output: gets `stages/` and the report.
        jobs: processes side by side.

    Raises:
        RecipeError: the file is wrong; names the line.
        ComparisonError: stages failed. What does not need them is done, and the report written.
    """
    if jobs < 1:
        raise RecipeError(f"jobs is {jobs}; give at least 1")
    root = output / STAGES_FOLDER
    findings = plan(path, output)
    with only_here(output, "comparison"):
        failed = carry_out_all(findings.evaluations, root, jobs)
        text = write_reports(findings, output)
    if failed:
        lines = "".join(f"\n  {name}: {why}" for name, why in failed.items())
        raise ComparisonError(f"{len(failed)} stages failed; the same command tries again:{lines}")
    return Compared(findings, text, output)


def plan(path: Path, output: Path) -> Findings:
    """The comparison of a file, of which nothing is carried out.

    Raises:
        RecipeError: the file is wrong; names the line.
    """
    spec, lines = read_spec(path)
    findings = Findings(spec, output / STAGES_FOLDER)
    try:
        # Recipes and checkpoints are looked at here, so that nothing runs before all is right.
        _ = findings.evaluations
    except RecipeError as error:
        raise located(error, path, lines) from error
    return findings
