"""The tables and verdicts of a comparison, written as Markdown, as CSV, and as one HTML page."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from openblip.comparison.findings import Findings, verdict
from openblip.comparison.spec import TableSpec
from openblip.metrics.bootstrap import Difference
from openblip.runtime.atomic import replace_file
from openblip.runtime.charts import bars
from openblip.runtime.page import Page
from openblip.runtime.progress import duration
from openblip.sources.delimited import csv_text

_CANNOT, _NOT_YET = "-", "?"
# Two-sided level at which a difference is marked.
_LEVEL = 0.05
# Of a gain that is next to nothing, the number of images says that alone.
_MANY = 1_000_000
_NEEDED = (
    "Needed: about how many test images would decide a gain of this size, at a level of 5 % and in "
    "four tests of five; more seeds, where no number of images would."
)


@dataclass(frozen=True)
class _Chart:
    """Values with their intervals, by name."""

    title: str
    values: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float]]


@dataclass(frozen=True)
class Section:
    """A heading with a table and what belongs to it."""

    title: str
    text: str
    header: list[str]
    rows: list[list[str]]
    notes: list[str] = field(default_factory=list)
    """Below it: why figures are missing."""
    charts: list[_Chart] = field(default_factory=list)


def sections(findings: Findings) -> list[Section]:
    """All tables of the report, the claims first."""
    made = [_claims(findings)] if findings.spec.claims else []
    for table in findings.spec.tables:
        if table.layout == "gains":
            made.append(_gains(findings, table))
            continue
        make = _by_model if table.layout == "models" else _by_figure
        made += [make(findings, table), _differences(findings, table)]
    return made


def _claims(findings: Findings) -> Section:
    rows = [
        [
            found.claim.claim,
            found.figure,
            found.word,
            _difference(findings, found.claim.better, found.claim.than, found.figure),
            f"{findings.spec.label(found.claim.better)} - {findings.spec.label(found.claim.than)}",
        ]
        for found in findings.verdicts()
    ]
    pairs = (pair for claim in findings.spec.claims for pair in claim.pairs())
    return Section(
        "Claims",
        "A claim holds where the whole interval of the difference lies above zero, does not hold "
        "where it lies below, and is not decided where it contains zero.",
        ["claim", "figure", "verdict", "difference, 95 % interval", "of"],
        rows,
        _reasons(findings, pairs),
    )


def _by_model(findings: Findings, table: TableSpec) -> Section:
    header = ["model", *table.figures, "FLOP", "time"]
    rows = [
        [
            findings.spec.label(model),
            *(_cell(findings, model, figure) for figure in table.figures),
            *_compute(findings, model),
        ]
        for model in table.models
    ]
    return _section(findings, table, header, rows)


def _by_figure(findings: Findings, table: TableSpec) -> Section:
    header = ["task", "metric", *map(findings.spec.label, table.models)]
    rows = [
        [*_split(figure), *(_cell(findings, model, figure) for model in table.models)]
        for figure in table.figures
    ]
    computes = [_compute(findings, model) for model in table.models]
    for place, name in enumerate(("FLOP", "time")):
        rows.append(["compute", name, *(compute[place] for compute in computes)])
    return _section(findings, table, header, rows)


def _section(
    findings: Findings, table: TableSpec, header: list[str], rows: list[list[str]]
) -> Section:
    notes, charts = _reasons(findings, table.pairs()), list(_charts(findings, table))
    return Section(table.title, table.text, header, rows, notes, charts)


def _reasons(findings: Findings, pairs: Iterable[tuple[str, str]]) -> list[str]:
    """Why figures have no value, once for each reason and the figures that it is about."""
    figures: dict[tuple[str, str], list[str]] = {}
    for model, figure in dict.fromkeys(pairs):
        if why := findings.why_missing(model, figure):
            figures.setdefault((findings.spec.label(model), why), []).append(figure)
    labels: dict[tuple[str, str], list[str]] = {}
    for (label, why), own in figures.items():
        labels.setdefault((", ".join(own), why), []).append(label)
    return [
        f"{', '.join(own)} {'has' if len(own) == 1 else 'have'} no {names}: {why}."
        for (names, why), own in labels.items()
    ]


def _differences(findings: Findings, table: TableSpec) -> Section:
    baseline = table.baseline or table.models[0]
    others = [model for model in table.models if model != baseline]
    rows = [
        [
            findings.spec.label(model),
            *(_difference(findings, model, baseline, figure) for figure in table.figures),
        ]
        for model in others
    ]
    return Section(
        f"{table.title}: differences to {findings.spec.label(baseline)}",
        "Paired: the same seeds and the same images.",
        ["model", *table.figures],
        rows,
    )


def _gains(findings: Findings, table: TableSpec) -> Section:
    names = dict.fromkeys(findings.spec.label(row.baseline) for row in table.rows)
    gain = f"gain over {' or '.join(names)}"
    header = [*table.header, "model", "figure", "value", gain, "images", "needed"]
    rows = [
        [
            *row.labels,
            findings.spec.label(row.model),
            row.figure,
            _cell(findings, row.model, row.figure),
            _difference(findings, row.model, row.baseline, row.figure),
            *_images(findings, row.model, row.baseline, row.figure),
        ]
        for row in table.rows
    ]
    section = _section(findings, table, header, rows)
    return replace(section, text=f"{section.text} {_NEEDED}".strip())


def _images(findings: Findings, model: str, baseline: str, figure: str) -> list[str]:
    """How many test images there are, and about how many would decide a gain of this size."""
    mine, other = findings.scores(model, figure), findings.scores(baseline, figure)
    if not mine or not other:
        return [_absent(findings, figure, model, baseline)] * 2
    if verdict(mine.minus(other)) != "not decided":
        return [f"{mine.num_images:,}", "enough"]
    needed = mine.images_needed(other)
    if needed is None:
        return [f"{mine.num_images:,}", "more seeds"]
    return [f"{mine.num_images:,}", f"{needed:,}" if needed <= _MANY else f"over {_MANY:,}"]


def _charts(findings: Findings, table: TableSpec) -> Iterator[_Chart]:
    by_figure: dict[str, dict[str, None]] = {}
    for model, figure in table.pairs():
        by_figure.setdefault(figure, {})[model] = None
    for figure, models in by_figure.items():
        found = {findings.spec.label(m): s for m in models if (s := findings.scores(m, figure))}
        intervals = {name: scores.interval() for name, scores in found.items()}
        if found:
            yield _Chart(
                figure,
                {name: i.estimate for name, i in intervals.items()},
                {name: (i.low, i.high) for name, i in intervals.items()},
            )


def _cell(findings: Findings, model: str, figure: str) -> str:
    scores = findings.scores(model, figure)
    if scores is None:
        return _absent(findings, figure, model)
    estimate, low, high = scores.interval()
    return f"{estimate:.1f} [{low:.1f}, {high:.1f}]"


def _difference(findings: Findings, model: str, baseline: str, figure: str) -> str:
    difference = findings.difference(model, baseline, figure)
    return signed(difference) if difference else _absent(findings, figure, model, baseline)


def _absent(findings: Findings, figure: str, *models: str) -> str:
    """What stands for a value that there is not, or not yet."""
    cannot = any(findings.why_missing(model, figure) for model in models)
    return _CANNOT if cannot else _NOT_YET


def _compute(findings: Findings, model: str) -> list[str]:
    if findings.spec.models[model].is_given:
        return [_CANNOT, _CANNOT]
    compute = findings.compute(model)
    if compute is None:
        return [_NOT_YET, _NOT_YET]
    flops = _CANNOT if compute.flops is None else f"{compute.flops:.2e}"
    return [flops, duration(compute.seconds)]


def _split(figure: str) -> list[str]:
    task, _, metric = figure.partition(".")
    return [task, metric]


def signed(difference: Difference) -> str:
    """A difference with its interval and its p-value; a star below 0.05."""
    star = "*" if difference.p_value < _LEVEL else ""
    return (
        f"{difference.difference:+.1f} [{difference.low:+.1f}, {difference.high:+.1f}]{star} "
        f"p {difference.p_value:.3f}"
    )


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
    text = _markdown(findings, parts)
    for name, content in (
        (MARKDOWN_FILE, text),
        (CSV_FILE, _figures_csv(findings)),
        (CLAIMS_FILE, _claims_csv(findings)),
    ):
        # Not forced to the disk: whatever is lost is written again from the stages.
        with replace_file(folder / name, durable=False) as unfinished:
            unfinished.write_text(content, encoding="utf-8")
    _page(findings, parts).save(folder / PAGE_FILE)
    return text


def _markdown(findings: Findings, parts: Sequence[Section]) -> str:
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


def _figures_csv(findings: Findings) -> str:
    """Every figure of every table with its interval, its difference to the baseline, its cost."""
    rows: list[list[object]] = [[*_FIGURES, *_AGAINST, *_COMPUTE]]
    for table in findings.spec.tables:
        baselines = {(row.model, row.figure): row.baseline for row in table.rows}
        for model, figure in dict.fromkeys(table.pairs()):
            # A baseline of gains has none itself: it stands beside itself, which gives no
            # difference.
            baseline = baselines.get((model, figure), table.baseline or (*table.models, model)[0])
            rows.append([table.title, model, figure, *_values(findings, model, figure, baseline)])
    return csv_text(rows)


def _claims_csv(findings: Findings) -> str:
    """Every claim by each of its figures."""
    header = ["claim", "better", "than", "figure", "difference", "low", "high", "p_value"]
    rows: list[list[object]] = [[*header, "verdict"]]
    for found in findings.verdicts():
        claim = found.claim
        difference = found.difference or [""] * 4
        rows.append([claim.claim, claim.better, claim.than, found.figure, *difference, found.word])
    return csv_text(rows)


def _values(findings: Findings, model: str, figure: str, baseline: str) -> list[object]:
    scores, compute = findings.scores(model, figure), findings.compute(model)
    # Value, low, high, seeds, images, by_seed of `_FIGURES`.
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
    # A `|` in a cell would end it.
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
