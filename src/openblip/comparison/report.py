"""Writes a comparison as Markdown, as CSV, and as one HTML page."""

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

from openblip.atomic import replace_file
from openblip.comparison.findings import Findings
from openblip.comparison.tables import Section, sections
from openblip.page import Page, bars

MARKDOWN_FILE, CSV_FILE, CLAIMS_FILE, PAGE_FILE = (
    "report.md",
    "figures.csv",
    "claims.csv",
    "report.html",
)
_FIGURES = ("table", "model", "figure", "value", "low", "high", "seeds", "images", "by_seed")
_AGAINST = ("baseline", "difference", "difference_low", "difference_high", "p_value")
_COMPUTE = ("flops", "seconds")


def write_reports(findings: Findings, folder: Path) -> str:
    """Write all files of the report into a folder; the Markdown is returned too."""
    parts = sections(findings)
    text = markdown(findings, parts)
    for name, content in (
        (MARKDOWN_FILE, text),
        (CSV_FILE, figures_csv(findings)),
        (CLAIMS_FILE, claims_csv(findings)),
    ):
        with replace_file(folder / name, durable=False) as unfinished:
            unfinished.write_text(content, encoding="utf-8")
    _page(findings, parts).save(folder / PAGE_FILE)
    return text


def markdown(findings: Findings, parts: Sequence[Section]) -> str:
    """The report as Markdown."""
    spec = findings.spec
    lines = [f"# {spec.title}", "", *_paragraph(spec.text), *_paragraph(_how(findings))]
    for part in parts:
        lines += [f"## {part.title}", "", *_paragraph(part.text)]
        lines += [_line(part.header), _line("---" for _ in part.header)]
        lines += [*map(_line, part.rows), ""]
        for note in part.notes:
            lines += _paragraph(note)
    return "\n".join(lines)


def figures_csv(findings: Findings) -> str:
    """Every figure of every table with its interval, its difference to the baseline, its cost."""
    rows: list[list[object]] = [[*_FIGURES, *_AGAINST, *_COMPUTE]]
    for table in findings.spec.tables:
        baselines = {(row.model, row.figure): row.baseline for row in table.rows}
        for model, figure in dict.fromkeys(table.pairs()):
            baseline = baselines.get((model, figure), table.baseline or (*table.models, model)[0])
            rows.append([table.title, model, figure, *_values(findings, model, figure, baseline)])
    return _csv(rows)


def claims_csv(findings: Findings) -> str:
    """Every claim by each of its figures."""
    header = ["claim", "better", "than", "figure", "difference", "low", "high", "p_value"]
    rows: list[list[object]] = [[*header, "verdict"]]
    for found in findings.verdicts():
        claim = found.claim
        difference = found.difference or [""] * 4
        rows.append([claim.claim, claim.better, claim.than, found.figure, *difference, found.word])
    return _csv(rows)


def _values(findings: Findings, model: str, figure: str, baseline: str) -> list[object]:
    scores, compute = findings.scores(model, figure), findings.compute(model)
    values: list[object] = [""] * 6
    if scores is not None:
        by_seed = " ".join(f"{value:.2f}" for value in scores.of_seeds)
        values = [*scores.interval(), len(scores.seeds), scores.num_images, by_seed]
    difference = findings.difference(model, baseline, figure) if model != baseline else None
    values += [baseline, *(difference or [""] * 4)]
    if compute is None:
        return [*values, "", ""]
    return [*values, "" if compute.flops is None else compute.flops, compute.seconds]


def _page(findings: Findings, parts: Sequence[Section]) -> Page:
    spec = findings.spec
    page = Page(spec.title, spec.text)
    page.note(_how(findings))
    for part in parts:
        page.section(part.title, part.text)
        page.table(part.header, part.rows)
        for note in part.notes:
            page.note(note)
        page.charts(
            bars(chart.title, chart.values, intervals=chart.intervals) for chart in part.charts
        )
    return page


def _how(findings: Findings) -> str:
    seeds = ", ".join(map(str, findings.spec.seeds))
    return (
        f"Means over the seeds {seeds}, in per cent (CIDEr and ROUGE-L times 100), with 95 % "
        "bootstrap intervals over seeds and images; * marks differences with p below 0.05. FLOP "
        "and time are those of training and CapFilt, with all that the model needs, for one seed."
    )


def _paragraph(text: str) -> list[str]:
    return [text.strip(), ""] if text.strip() else []


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _csv(rows: Iterable[Iterable[object]]) -> str:
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows(rows)
    return stream.getvalue()
