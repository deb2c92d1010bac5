"""The tables of a comparison as text, whatever they are written into."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from openblip.comparison.findings import Findings, pairs_of
from openblip.comparison.spec import TableSpec
from openblip.evaluation.metrics.bootstrap import Comparison
from openblip.progress import duration

_CANNOT, _NOT_YET = "-", "?"
# Two-sided level at which a difference is marked.
_LEVEL = 0.05


@dataclass(frozen=True)
class Chart:
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
    charts: list[Chart] = field(default_factory=list)


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
            f"{findings.label(found.claim.better)} - {findings.label(found.claim.than)}",
            signed(found.difference),
        ]
        for found in findings.verdicts()
    ]
    return Section(
        "Claims",
        "A claim holds where the whole interval of the difference lies above zero, does not hold "
        "where it lies below, and is not decided where it contains zero.",
        ["claim", "figure", "verdict", "difference", "by, and 95 % interval"],
        rows,
    )


def _by_model(findings: Findings, table: TableSpec) -> Section:
    header = ["model", *table.figures, "FLOP", "time"]
    rows = [
        [
            findings.label(model),
            *(_cell(findings, model, figure) for figure in table.figures),
            *_compute(findings, model),
        ]
        for model in table.models
    ]
    return _section(findings, table, header, rows)


def _by_figure(findings: Findings, table: TableSpec) -> Section:
    header = ["task", "metric", *map(findings.label, table.models)]
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
    return Section(table.title, table.text, header, rows, charts=list(_charts(findings, table)))


def _differences(findings: Findings, table: TableSpec) -> Section:
    baseline = table.baseline or table.models[0]
    others = [model for model in table.models if model != baseline]
    rows = [
        [
            findings.label(model),
            *(signed(findings.difference(model, baseline, figure)) for figure in table.figures),
        ]
        for model in others
    ]
    return Section(
        f"{table.title}: differences to {findings.label(baseline)}",
        "Paired: the same seeds and the same images.",
        ["model", *table.figures],
        rows,
    )


def _gains(findings: Findings, table: TableSpec) -> Section:
    names = dict.fromkeys(findings.label(row.baseline) for row in table.rows)
    header = [*table.header, "model", "figure", "value", f"gain over {' or '.join(names)}"]
    rows = [
        [
            *row.labels,
            findings.label(row.model),
            row.figure,
            _cell(findings, row.model, row.figure),
            signed(findings.difference(row.model, row.baseline, row.figure)),
        ]
        for row in table.rows
    ]
    return _section(findings, table, header, rows)


def _charts(findings: Findings, table: TableSpec) -> Iterator[Chart]:
    by_figure: dict[str, dict[str, None]] = {}
    for model, figure in pairs_of(table):
        by_figure.setdefault(figure, {})[model] = None
    for figure, models in by_figure.items():
        found = {findings.label(m): s for m in models if (s := findings.scores(m, figure))}
        intervals = {name: scores.interval() for name, scores in found.items()}
        if found:
            yield Chart(
                figure,
                {name: i.estimate for name, i in intervals.items()},
                {name: (i.low, i.high) for name, i in intervals.items()},
            )


def _cell(findings: Findings, model: str, figure: str) -> str:
    scores = findings.scores(model, figure)
    if scores is None:
        return _CANNOT if findings.is_finished(model, figure) else _NOT_YET
    estimate, low, high = scores.interval()
    return f"{estimate:.1f} [{low:.1f}, {high:.1f}]"


def _compute(findings: Findings, model: str) -> list[str]:
    compute = findings.compute(model)
    return [f"{compute.flops:.2e}", duration(compute.seconds)] if compute else [_CANNOT, _CANNOT]


def _split(figure: str) -> list[str]:
    task, _, metric = figure.partition(".")
    return [task, metric]


def signed(difference: Comparison | None) -> str:
    """A difference with its interval and its p-value; a star below 0.05."""
    if difference is None:
        return _CANNOT
    star = "*" if difference.p_value < _LEVEL else ""
    return (
        f"{difference.difference:+.1f} [{difference.low:+.1f}, {difference.high:+.1f}]{star} "
        f"p {difference.p_value:.3f}"
    )
