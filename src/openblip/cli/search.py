"""`openblip index` and `openblip search`."""

import shlex
import sys
import tempfile
import webbrowser
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from openblip.cli.flags import Backend, UsageError, WorkerFlags
from openblip.cli.output import check_outputs, print_json, print_table, printable
from openblip.runtime.progress import duration
from openblip.runtime.ranges import Count, CountOrNone, Positive, Share

if TYPE_CHECKING:
    from openblip.index.build import IndexReport
    from openblip.index.search import Found

_Workers = Annotated[WorkerFlags, tyro.conf.arg(name="")]
_HERE = WorkerFlags()


def build(
    place: tyro.conf.Positional[str],
    /,
    *,
    model: str | None = None,
    table: str | None = None,
    batch_size: Count = 32,
    where: _Workers = _HERE,
    device: str | None = None,
    backend: Backend | None = None,
    json: bool = False,
) -> int:
    """Embed the images of a folder or a pair table, so that they can be searched.

    A folder gets a hidden table in it, which refers to the files; a pair table gets a column. A
    stopped command goes on where it was. The exit code is 1 if no image could be read.
    Example: openblip index build photos/

    Args:
        place: a folder of images, or a pair table.
        model: what embeds: a checkpoint with an itc head (one with an itm head too re-ranks), or a
            published CLIP; by default the model of the index that is there, or else the published
            base model.
        table: where the table of a folder goes; by default FOLDER/.openblip/index.lance.
        batch_size: images at once.
        where: where the rows of a table are embedded; a folder is embedded by this process.
        device: cpu, cuda, mps; by default the best that there is.
        backend: what computes the model on a processor in the place of PyTorch: ONNX Runtime, also
            in 8-bit integers, or OpenVINO. The index is updated and searched by the same.
        json: print the result as JSON.
    """
    from openblip.index.build import build_index

    report = build_index(
        place,
        model,
        table=table,
        batch_size=batch_size,
        device=device,
        processes=where.processes,
        ray=where.cluster(),
        save_seconds=where.save_seconds,
        backend=backend,
    )
    return _print_report(report, json)


def update(
    place: tyro.conf.Positional[str],
    /,
    *,
    batch_size: Count = 32,
    where: _Workers = _HERE,
    device: str | None = None,
    json: bool = False,
) -> int:
    """Bring an index up to date: new, edited, moved and deleted files, and rows that came later.

    Only images whose content is new are embedded. A stopped command goes on where it was.
    Example: openblip index update photos/

    Args:
        place: a folder or a pair table that has an index.
        batch_size: images at once.
        where: where the rows of a table are embedded; a folder is embedded by this process.
        device: cpu, cuda, mps; by default the best that there is.
        json: print the result as JSON.
    """
    from openblip.index.build import update_index

    report = update_index(
        place,
        batch_size=batch_size,
        device=device,
        processes=where.processes,
        ray=where.cluster(),
        save_seconds=where.save_seconds,
    )
    return _print_report(report, json)


def show(place: tyro.conf.Positional[str], /, *, json: bool = False) -> int:
    """What the index of a folder or a pair table covers, and of which model it is.

    Example: openblip index show photos/

    Args:
        place: a folder or a pair table that has an index.
        json: print JSON.
    """
    from openblip.index.build import describe_index

    return _print_report(describe_index(place), json, has_worked=False)


def _print_report(report: "IndexReport", json: bool, has_worked: bool = True) -> int:
    # Nothing is done where no image could be read, and not all where a part of the table could not.
    code = int(has_worked and (0 < report.rows == report.unreadable or bool(report.failed)))
    for reason in report.failed:
        print(f"failed, the same command tries again: {reason}", file=sys.stderr)
    if json:
        print_json(asdict(report))
        return code
    if has_worked:
        changes = f" ({report.changes})" if report.changes is not None else ""
        print(f"{report.embedded:,} images embedded in {duration(report.seconds)}{changes}")
    print(f"index   {report.table}")
    print(f"model   {report.model or 'not known'}")
    told = f"{report.rows:,}"
    if report.missing:
        told += f", {report.missing:,} of them not embedded yet: `openblip index update` does that"
    if report.unreadable:
        told += f", {report.unreadable:,} of them with images that cannot be read"
    print(f"rows    {told}")
    for reason in report.reasons:
        print(f"        {printable(reason)}")
    if report.unreadable > len(report.reasons):
        print(f"        and {report.unreadable - len(report.reasons):,} more")
    vectors = report.vectors
    covers = "none: a scan is as fast"
    if vectors is not None:
        covers = f"{vectors.kind} over {vectors.num_rows:,} rows"
    print(f"vectors {covers}")
    if report.left_out:
        print(f"left out: {printable(report.left_out)}", file=sys.stderr)
    return code


def search(
    place: tyro.conf.Positional[str],
    queries: tyro.conf.Positional[tuple[str, ...]] = (),
    /,
    *,
    image: tuple[Path, ...] = (),
    without: Annotated[tuple[str, ...], tyro.conf.arg(name="not")] = (),
    like: tuple[str, ...] = (),
    weights: tuple[Positive, ...] = (),
    where: str | None = None,
    k: Annotated[Count, tyro.conf.arg(aliases=["-k"])] = 20,
    rerank: CountOrNone | Literal["auto"] = "auto",
    threshold: Share = 0.5,
    model: str | None = None,
    cache: str = "2GB",
    page: Path | None = None,
    open: bool = False,
    device: str | None = None,
    json: bool = False,
    csv: bool = False,
) -> int:
    """Find images of an indexed folder or pair table, by texts and images.

    Contrast (ITC) finds candidates; the first of them are ranked by the probability that they
    match (ITM). Several texts must all fit. Make the index with `openblip index build`.
    Example: openblip search photos/ "two dogs on a beach" --not "a ball" --page found.html

    Args:
        place: an indexed folder or pair table.
        queries: texts that shall fit, all of them.
        image: image files: what is found shall look like each.
        without: texts that shall not fit.
        like: rows, by id or number: what is found shall look like each, and is another.
        weights: how much each text counts, as many as there are texts: exponents of their
            probabilities, 1 by default.
        where: what rows must fulfil, as SQL: "split = 'test' and width > 1000".
        k: how many images.
        rerank: how many candidates are matched; auto: those whose contrast comes close; 0: none.
        threshold: probability below which nothing counts as found.
        model: where the model of the index is now, if it has moved.
        cache: room on disk for states of images that were matched, such as 2GB; 0: none.
        page: a page of the images that were found.
        open: show the page in the browser.
        device: cpu, cuda, mps; by default the best that there is.
        json: print JSON.
        csv: print a table for a spreadsheet.
    """
    from openblip.index.build import outdated_index
    from openblip.index.query import Query
    from openblip.index.search import Searcher, write_page
    from openblip.index.states import parse_size

    if json and csv:
        raise UsageError("--json and --csv: give one of them")
    check_outputs({"--page": page})
    query = Query(texts=queries, images=image, without=without, like=like, weights=weights)
    searcher = Searcher.open(place, model, device=device, cache_bytes=parse_size(cache))
    found = searcher.find(query, k, where=where, rerank=rerank, threshold=threshold)
    if open and page is None:
        page = Path(tempfile.mkdtemp(prefix="openblip-")) / "found.html"
    if page is not None:
        write_page(page, searcher.table, query, found)
    outdated = outdated_index(searcher.table, [hit.row for hit in found.hits])
    _print_found(found, outdated.count, json, csv)
    if outdated.count:
        told = f"{outdated}: openblip index update {shlex.quote(place)}"
        print(f"openblip search: {told}", file=sys.stderr)
    if page is not None:
        print(f"page: {page}", file=sys.stderr)
        if open:
            webbrowser.open(page.absolute().as_uri())
    return 0


def _print_found(found: "Found", outdated: int, json: bool, csv: bool) -> None:
    if json:
        about = {"found": not found.nothing, "threshold": found.threshold, "outdated": outdated}
        print_json({"hits": [asdict(hit) for hit in found.hits], **about, **found.counts()})
        return
    if csv:
        from openblip.sources.delimited import csv_text

        header = ["place", "row", "id", "itm", "itc", "image_uri"]
        rows = [
            [place, hit.row, hit.id, _number(hit.itm, ""), _number(hit.itc, ""), hit.image_uri]
            for place, hit in enumerate(found.hits, 1)
        ]
        print(csv_text([header, *rows]), end="")
        return
    print(f"openblip search: {found}", file=sys.stderr)
    if not found.hits:
        print("nothing found: no row fulfils what was asked")
        return
    if found.nothing:
        asked = f" among the {found.matched} that were matched" if found.matched else ""
        print(f"nothing found above {found.threshold:g}{asked}; nearest:")
    shown = [[printable(hit.id), _number(hit.itm), _number(hit.itc)] for hit in found.hits]
    print_table(["image", "match probability (ITM)", "ITC cosine"], shown)


def _number(value: float | None, none: str = "-") -> str:
    return none if value is None else f"{value:.4f}"
