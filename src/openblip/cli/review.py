"""`openblip capfilt review`, and the certificate in `openblip capfilt select`."""

import getpass
import sys
from dataclasses import asdict, fields, replace
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import tyro

from openblip.cli.flags import takes
from openblip.cli.output import check_outputs, print_json, print_table
from openblip.cli.studio import DEFAULT_PORT, Port, check_studio, tell_address
from openblip.review.sampling import ReviewSettings
from openblip.runtime.ranges import Share

if TYPE_CHECKING:
    from openblip.review.certificate import Certificate
    from openblip.review.estimates import ReviewEstimates
    from openblip.review.session import ReviewProgress, ReviewSession
    from openblip.table.table import PairTable

_SHOWN_POINTS = 12


@takes(ReviewSettings)
def review(
    table: tyro.conf.Positional[str],
    /,
    *,
    settings: ReviewSettings,
    precision: Share = 0.9,
    confidence: Share = 0.95,
    partly_is_right: bool = False,
    reviewer: str | None = None,
    export_sample: Path | None = None,
    verdicts: Path | None = None,
    json: bool = False,
    port: Port = DEFAULT_PORT,
    open: bool = True,
) -> int:
    """Draw texts for people to judge, and say what their verdicts tell of the filter.

    Opens the studio's page for it, where a verdict is one key. Without a browser: export a sample,
    fill in its column verdict (right, wrong, partly, unsure), and read it: then precision and
    recall with their intervals are printed, and the threshold that is certified.

    Example: openblip capfilt review pairs.lance --precision 0.9
    openblip capfilt review pairs.lance --export-sample sample.csv
    openblip capfilt review pairs.lance --verdicts sample.csv --precision 0.9

    Args:
        table: a table that `openblip capfilt run` has scored.
        settings: what is drawn.
        precision: at least this share of what is kept shall be right.
        confidence: of the certificate.
        partly_is_right: a text with a wrong detail counts as right; else it does not.
        reviewer: who judges; by default the name of the account.
        export_sample: write the drawn texts as CSV, with their images beside it.
        verdicts: read the verdicts in such a file; nothing is recorded if a line is wrong.
        json: print what the verdicts tell as JSON, and open no page.
        port: of the page; 0 for any that is free.
        open: open the page in the browser.
    """
    if not json and export_sample is None and verdicts is None:
        name = getpass.getuser() if reviewer is None else reviewer
        shown = {"precision": precision, "confidence": confidence, "name": name}
        shown["partly"] = "1" if partly_is_right else None
        return _in_browser(table, settings, shown, port, open)
    from openblip.review.session import ReviewSession
    from openblip.review.spreadsheet import read_sheet
    from openblip.table.table import PairTable

    check_outputs({"--export-sample": export_sample})
    name = getpass.getuser() if reviewer is None else reviewer
    opened = PairTable.open(table)
    settings = replace(settings, score=told_score(opened, settings.score))
    session = ReviewSession.open(opened, settings, partly_is_right=partly_is_right)
    report = None if verdicts is None else read_sheet(session, verdicts, name)
    if report is not None:
        print(f"{verdicts}: {report}", file=sys.stderr)
    if export_sample is not None:
        _export(session, export_sample, name, settings.size)
    progress, estimates = session.progress(name), session.estimates()
    found = None if settings.by == "rejected" else session.certify(precision, confidence)
    if json:
        print_json(
            {
                "sample": session.sample.name,
                "progress": asdict(progress),
                "estimates": estimates.as_plain(),
                "certificate": found and certificate_json(found),
                **({} if report is None else {"sheet": asdict(report)}),
            }
        )
        return 0
    _print_progress(table, session, progress)
    if settings.by != "rejected" and not estimates.current.kept:
        _print_that_none_is_kept(session, settings.threshold)
    if progress.judged:
        _print_estimates(estimates)
    print(found or "reviewed are rejected texts alone: no certificate for what is kept")
    return 0


def _print_that_none_is_kept(session: "ReviewSession", threshold: float) -> None:
    scores = session.sample.frame.itm
    print(
        f"at the threshold {threshold:g} no text is kept, so that only rejected ones are drawn: "
        f"scores lie from {scores.min():.3g} to {scores.max():.3g}; give --threshold"
    )


def _export(session: "ReviewSession", file: Path, reviewer: str, size: int) -> None:
    from openblip.review.spreadsheet import write_sheet

    count, drawn = write_sheet(session, file, reviewer, size), len(session.items)
    # An earlier command may have drawn more.
    more = f", the first of {drawn:,} that are drawn (--size)" if count < drawn else ""
    print(f"{file}: {count:,} texts to judge{more}", file=sys.stderr)


def _in_browser(
    table: str, settings: ReviewSettings, shown: dict[str, Any], port: int, open_browser: bool
) -> int:
    check_studio()
    from openblip.studio.app import Studio
    from openblip.studio.guard import Access
    from openblip.studio.server import serve
    from openblip.table.scores import check_scored
    from openblip.table.table import PairTable

    # Before a page is opened on which nothing could be judged.
    opened = PairTable.open(table)
    settings = replace(settings, score=told_score(opened, settings.score))
    check_scored(opened, settings.score)
    studio = Studio(table)
    changed = {
        each.name: getattr(settings, each.name)
        for each in fields(settings)
        if getattr(settings, each.name) != each.default
    }
    values = {name: value for name, value in shown.items() if value is not None}
    room = f"#review?{urlencode({**values, 'settings': dumps(changed)})}"
    serve(studio, Access(), port, tell_address, open_browser, room)
    return 0


def told_score(table: "PairTable", score: str) -> str:
    """The score that is meant; says on standard error which `auto` means, and of an old fit."""
    from openblip.table.scores import AUTO_SCORE, RIGHT, named_score, sources_with, stale_right

    named = named_score(table, score)
    if score == AUTO_SCORE and named != RIGHT and sources_with(table, RIGHT):
        print(
            "by the filter's own probability (itm): not all scored texts have that of all scores "
            "together; `openblip capfilt scores` and `fit` make it anew",
            file=sys.stderr,
        )
    if named == RIGHT != score:
        print(
            "by the probability of all scores together (--score right, of `openblip capfilt fit`); "
            "--score itm takes the filter's own",
            file=sys.stderr,
        )
    if named == RIGHT and (line := stale_right(table)):
        print(line, file=sys.stderr)
    return named


def certificate_of(
    table: "PairTable",
    precision: float | None,
    confidence: float,
    partly_is_right: bool,
    score: str = "auto",
) -> "Certificate | None":
    """The certificate that the verdicts on a table give, of its review with the most of them.

    None where no precision is asked for.

    Raises:
        DataError: there is no verdict.
    """
    from openblip.review.session import ReviewSession

    if precision is None:
        return None
    session = ReviewSession.most_reviewed(table, partly_is_right=partly_is_right, score=score)
    if elsewhere := session.progress("").elsewhere:
        drawn = session.sample.settings
        print(
            f"of several reviews the one with the most labels counts, {session.sample.name} "
            f"({', '.join(drawn.sources)}, around {drawn.threshold:g}); {elsewhere:,} verdicts of "
            "others do not: `openblip capfilt review` with their flags has theirs",
            file=sys.stderr,
        )
    return session.certify(precision, confidence)


def certificate_json(found: "Certificate") -> dict[str, object]:
    """A certificate as a field of a result."""
    return {**asdict(found), "keeps": found.keeps, "text": str(found)}


def _print_progress(table: str, session: "ReviewSession", progress: "ReviewProgress") -> None:
    given = ", ".join(f"{count:,} {verdict}" for verdict, count in progress.verdicts.items())
    several = progress.reviewers > 1
    of_several = f": verdicts of {progress.reviewers:,} reviewers" if several else ""
    print(
        f"{table}: {progress.judged:,} of {progress.in_sample:,} drawn texts are judged "
        f"({given or 'no verdict yet'}{of_several}); review {session.sample.name}"
    )
    if progress.passed_over:
        print(
            f"{progress.passed_over:,} texts before the last judged one have no verdict: judge "
            "them too, or say unsure; left out for what they show, they make the numbers wrong"
        )
    if progress.stale:
        print(f"{progress.stale:,} verdicts are on texts that have changed; they do not count")
    if progress.elsewhere:
        print(f"{progress.elsewhere:,} verdicts are of other reviews; they do not count in this")


def _print_estimates(estimates: "ReviewEstimates") -> None:
    every = max(1, len(estimates.points) // _SHOWN_POINTS)
    rows = [
        [
            f"{point.threshold:g}",
            f"{100 * point.keeps:.1f} %",
            f"{point.labels:,}",
            str(point.precision),
            "-" if point.recall is None else str(point.recall),
        ]
        for place, point in enumerate(estimates.points)
        if place % every == 0 or point is estimates.current
    ]
    print_table(["threshold", "keeps", "labels", "precision (95 %)", "recall (95 %)"], rows)
    if estimates.unsure:
        print(f"{estimates.unsure:,} of {estimates.labels:,} texts: nobody could tell")
    found = estimates.calibration
    if found is not None:
        print(
            f"match probabilities: temperature {found.temperature:.2f}, calibration error "
            f"{found.ece_before:.3f}, with it {found.ece_after:.3f}"
        )
    for pair in estimates.agreement.pairs:
        print(
            f"{pair.first} and {pair.second} have both judged {pair.texts:,} texts: kappa "
            f"{pair.kappa:.2f}"
        )
    if len(estimates.agreement.pairs) > 1:
        print(f"all reviewers together: alpha {estimates.agreement.alpha:.2f}")
