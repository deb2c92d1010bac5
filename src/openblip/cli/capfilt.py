"""`openblip capfilt`: run, add-texts, status, select, report."""

import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from openblip.cli.data import WithoutName
from openblip.cli.flags import Backend, UsageError, WorkerFlags, takes
from openblip.cli.output import check_outputs, print_json, print_table, printable
from openblip.inference.decoding import Decoding
from openblip.runtime.ranges import Count, Finite, NotNegative, Positive, Seed, Share

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from openblip.capfilt.endpoint import Requests
    from openblip.capfilt.job import JobStatus
    from openblip.capfilt.run import CapFiltResult
    from openblip.capfilt.select import Cut, KeepRate, NoiseQuality, Rejected, Spread
    from openblip.review.certificate import Certificate
    from openblip.table.table import PairTable

_HERE = WorkerFlags()
_CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True)
class OtherCaptioners:
    """Flags of captioners that are not ours."""

    instruction: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """hf: and openai: what is said beside the image: given once for all, or once for each such
    captioner in their order; by default to describe it in one sentence, where a model is talked to.
    """
    max_new_tokens: Count = 64
    """hf: and openai: most tokens of a text."""
    image_side: Count = 1024
    """openai: longer side of the images that are sent, in pixels."""
    requests: Count = 8
    """openai: requests at once, of all workers together."""
    request_seconds: Positive = 120.0
    """openai: a request without an answer by then is made again."""
    patience: NotNegative = 600.0
    """openai: seconds for which a server that answers nothing is waited for before the job stops
    (the same command goes on)."""
    api_key_of: tuple[str, ...] = ()
    """openai: environment variable with the key: VARIABLE, or HOST=VARIABLE for each server."""

    def settings(self) -> dict[str, Any]:
        """What decides what is written."""
        several = len(self.instruction) > 1
        return {
            # One is stored as it was before there could be several.
            "instruction": self.instruction if several else next(iter(self.instruction), None),
            "max_new_tokens": self.max_new_tokens,
            "image_side": self.image_side,
        }

    def how_asked(self) -> "Requests":
        """How servers are asked."""
        from openblip.capfilt.endpoint import Requests

        return Requests(
            at_once=self.requests,
            seconds=self.request_seconds,
            patience=self.patience,
            key_of=self.api_key_of,
        )


_OTHERS = OtherCaptioners()


# As in the paper, words are drawn.
@takes(Decoding, "decoding", method="nucleus")
def run(
    table: tyro.conf.Positional[str],
    /,
    *,
    captioner: tuple[str, ...],
    filter: tuple[str, ...],
    decoding: Decoding,
    others: Annotated[OtherCaptioners, tyro.conf.arg(name="")] = _OTHERS,
    prompt: str = "a picture of ",
    given: Literal["web"] | None = None,
    given_above: Share = 0.0,
    num_captions: Count = 1,
    first_token: Literal["[ENC]", "[CLS]"] = "[ENC]",
    batch_size: Count = 32,
    seed: Seed = 0,
    backend: Backend | None = None,
    where: Annotated[WorkerFlags, tyro.conf.arg(name="")] = _HERE,
    json: bool = False,
) -> int:
    """Caption the web rows of a table and score every given and synthetic text.

    Adds columns; a stopped job goes on where it was. Example:
    openblip capfilt run pairs.lance --captioner runs/captioner --filter runs/filter
    openblip capfilt run pairs.lance --captioner openai:http://gpu:8000/v1#MODEL --filter FILTER

    Args:
        table: the pair table.
        captioner: what writes captions, one or several: a model folder, run directory, file, https
            address or hub repository of ours; hf:NAME, an image-to-text model of transformers;
            openai:URL#MODEL, a server of chat completions; texts:NAME of `capfilt add-texts`.
        filter: what scores texts, one or several: a model of ours, or a CLIP or SigLIP of
            transformers or open_clip (open_clip:ARCHITECTURE/PRETRAINED), whose cosines go into a
            column of its own; NAME=MODEL names it.
        decoding: how tokens are chosen; nucleus as in the paper.
        others: flags of captioners that are not ours.
        prompt: what a captioner of ours continues.
        given: web lets captioners that were fine-tuned with --given web read the first text of each
            row before they write, and keep its names.
        given_above: it is read only where the first filter of ours gives it a higher probability.
        num_captions: synthetic captions per image and captioner; beam search finds at most as many
            as it has beams, greedy one.
        first_token: of a matched text; [CLS] as some released models do.
        batch_size: rows that are worked on together.
        seed: decides sampled captions together with a row's id.
        backend: what computes models of ours on a processor in the place of PyTorch: ONNX Runtime,
            also in 8-bit integers, or OpenVINO.
        where: where the work is done.
        json: print the result as JSON.
    """
    from openblip.capfilt.job import CapFiltSettings
    from openblip.capfilt.run import run_capfilt

    cluster = where.cluster()
    if not captioner or not filter:
        raise UsageError(
            f"--{'captioner' if not captioner else 'filter'} has no model: name one behind it, and "
            "the table before all flags"
        )
    settings = CapFiltSettings(
        captioner=captioner if len(captioner) > 1 else captioner[0],
        filter=filter if len(filter) > 1 else filter[0],
        decoding=decoding,
        prompt=prompt,
        given=given,
        given_above=given_above,
        num_captions=num_captions,
        first_token=first_token,
        batch_size=batch_size,
        seed=seed,
        **others.settings(),
    )
    result = run_capfilt(
        table,
        settings.by_backend(backend) if backend else settings,
        processes=where.processes,
        ray=cluster,
        save_seconds=where.save_seconds,
        requests=others.how_asked(),
    )
    return _print_result(table, result, json)


def add_texts(
    table: tyro.conf.Positional[str],
    file: tyro.conf.Positional[Path],
    /,
    *,
    name: str,
    replace: bool = False,
    filter: str | None = None,
    json: bool = False,
) -> int:
    """Put texts made elsewhere beside the rows of a table: a captioner texts:NAME of a job.

    Example: openblip capfilt add-texts pairs.lance captions.jsonl --name captioner2

    Args:
        table: the pair table.
        file: JSON lines with id or image, and text, texts, caption or captions; what
            `openblip caption` writes is one.
        name: of the captioner, as the column synthetic_captioner will say it.
        replace: texts of this name that are there.
        filter: score them at once with this filter, as a job whose only captioner they are.
        json: print the result as JSON.
    """
    from openblip.capfilt.texts import add_texts as add
    from openblip.capfilt.texts import check_only_texts

    if filter is not None:
        check_only_texts(table, name)
    added = add(table, file, name, replace=replace)
    if json:
        print_json(asdict(added))
    else:
        print(
            f"{table}: {added.texts:,} texts for {added.rows:,} rows; {added.without:,} web rows "
            "have none"
        )
    told = {
        "ids or images that no row has": added.unknown,
        "names of images that several rows have, whose texts were left out": added.ambiguous,
        "records without an id or a text": added.refused,
    }
    for what, left in told.items():
        if left.count:
            print(f"{what}: {printable(str(left))}", file=sys.stderr)
    if added.repeated:
        print(f"texts given twice, taken once: {added.repeated:,}", file=sys.stderr)
    if added.of_people:
        print(
            f"rows of origin human, to which a job adds nothing: {added.of_people:,}",
            file=sys.stderr,
        )
    if filter is None:
        if not json:
            print(f"next: openblip capfilt run {table} --captioner texts:{name} --filter FILTER")
        return 0
    return _score_texts(table, name, filter, json)


def _score_texts(table: str, name: str, filter: str, json: bool) -> int:
    from openblip.capfilt.job import CapFiltSettings
    from openblip.capfilt.run import run_capfilt

    settings = CapFiltSettings(captioner=f"texts:{name}", filter=filter)
    return _print_result(table, run_capfilt(table, settings), json)


def _print_result(table: str, result: "CapFiltResult", json: bool) -> int:
    if json:
        print_json(asdict(result))
    else:
        print(
            f"{table}: {result.rows} rows, {result.computed} computed in {result.seconds:.0f} s, "
            f"{result.errors} without result (column capfilt_error)"
        )
        if result.refused:
            print(f"{result.refused} without a text of some captioner (column synthetic_error)")
        if result.replaced is not None:
            print(
                "the texts and scores of another job were replaced; version "
                f"{result.replaced} of the table still has them. Verdicts on texts that changed no "
                "longer count, and a certificate needs a review of the new scores: "
                "`openblip capfilt review`"
            )
    for reason in result.failed:
        print(f"failed, the same command tries again: {reason}", file=sys.stderr)
    return 1 if result.failed else 0


def status(
    table: tyro.conf.Positional[str],
    /,
    *,
    price_per_hour: NotNegative | None = None,
    price_per_million_tokens: tuple[NotNegative, NotNegative] | None = None,
    json: bool = False,
) -> int:
    """How far the job on a table is: while it runs, after a kill, or when it is finished.

    Example: openblip capfilt status pairs.lance --price-per-hour 2.50

    Args:
        table: the pair table.
        price_per_hour: of one worker (a GPU, say); gives the cost of a million images.
        price_per_million_tokens: that an openai: captioner reads, and that it writes.
        json: print JSON.
    """
    from openblip.capfilt.job import job_status

    found = job_status(table, price_per_hour, price_per_million_tokens)
    if json:
        print_json(asdict(found))
        return 0
    state = "finished" if found.is_finished else "stopped: the same `capfilt run` goes on"
    if found.is_running:
        state = f"running ({found.owner}, {found.workers} workers)"
    print(f"{table}: job {found.fingerprint}, {state}")
    rows = [[name, str(found.fragments[name]), str(found.rows[name])] for name in found.fragments]
    print_table(["state", "fragments", "rows"], rows)
    print(*_status_lines(found), sep="\n")
    return 0


def _status_lines(found: "JobStatus") -> list[str]:
    from openblip.runtime.progress import duration

    total = sum(found.rows.values())
    line = f"{found.rows_done} of {total} rows, {found.num_errors} without result"
    if found.rate:
        line += f", {found.rate:.1f} images/s"
    if found.seconds_left is not None:
        line += f", {duration(found.seconds_left)} left"
    lines = [line]
    if found.num_refused:
        lines.append(
            f"{found.num_refused} rows without a text of some captioner (column synthetic_error)"
        )
    if found.tokens_read or found.tokens_written:
        lines.append(
            f"servers read {found.tokens_read:,.0f} and write {found.tokens_written:,.0f} tokens "
            "an image"
        )
    if found.num_cut:
        lines.append(f"{found.num_cut} texts ended at --max-new-tokens: a higher one ends fewer")
    if found.cost_per_million is not None:
        lines.append(f"a million images cost {found.cost_per_million:,.2f} at this rate and price")
    lines += [f"not repeatable: {line}" for line in found.unrepeatable]
    return lines + [f"failed: {reason}" for reason in found.failed]


def select(
    table: tyro.conf.Positional[str],
    /,
    *,
    thresholds: tuple[Finite, ...] = (),
    score: str = "auto",
    keep: tuple[str, ...] = (),
    quantiles: tuple[Share, ...] = (),
    itm_of: tuple[str, ...] = (),
    without: tuple[WithoutName, ...] = (),
    precision: Share | None = None,
    confidence: Share = _CONFIDENCE,
    partly_is_right: bool = False,
    json: bool = False,
) -> int:
    """How many web and synthetic texts stay at each threshold of a score, and why others do not.

    Runs no model. Says if the scores lie so close together that no threshold separates them.

    Example: openblip capfilt select pairs.lance --thresholds 0.3 0.5 0.7
    openblip capfilt select pairs.lance --keep 50% 80%
    openblip capfilt select pairs.lance --precision 0.9

    Args:
        table: a table that `openblip capfilt run` has scored.
        thresholds: of the score; by default 0.1 0.3 0.5 0.7 0.9 of a probability and what keeps
            90% to 10% by another score, or none with the next two.
        score: which one: itm, itc, right (openblip capfilt fit), or another that the table has;
            auto is right, where the table has it, else itm.
        keep: instead, the thresholds that keep these shares of each source, such as 50%.
        quantiles: the same by what they reject: 0.25 is the threshold that keeps 75%.
        itm_of: for the reasons: thresholds by source or data set, such as synthetic=0.3.
        without: for the reasons: leave out what `data duplicates` and `leakage` have flagged.
        precision: the threshold above which at least this share is right, by people's verdicts.
        confidence: with --precision: how certain that is to be.
        partly_is_right: with --precision: a text with a wrong detail counts as right.
        json: print JSON.
    """
    from openblip.capfilt.select import (
        DEFAULT_THRESHOLDS,
        cuts,
        empty_sources,
        keep_rates,
        noise_quality,
        read_scores,
        rejections,
        spreads,
    )
    from openblip.cli.review import certificate_json, certificate_of, told_score
    from openblip.table.scores import PROBABILITIES
    from openblip.table.table import PairTable

    opened = PairTable.open(table)
    score = told_score(opened, score)
    certificate = certificate_of(opened, precision, confidence, partly_is_right, score)
    if certificate is not None and certificate.threshold is not None:
        thresholds = (certificate.threshold, *thresholds)
    shares = [*map(_share, keep), *(1.0 - quantile for quantile in quantiles)]
    if not thresholds and not shares:
        thresholds = DEFAULT_THRESHOLDS if score in PROBABILITIES else ()
        shares = [] if thresholds else [1.0 - share for share in DEFAULT_THRESHOLDS]
    _refuse_ignored(precision, confidence, partly_is_right, not thresholds and (itm_of or without))
    scores = read_scores(opened, score)
    found = cuts(scores, shares)
    rejected = rejections(opened, thresholds, itm_of, without, score)
    rates = keep_rates(scores, thresholds)
    for line in empty_sources(rates):
        print(line, file=sys.stderr)
    quality = {value: noise_quality(scores["web"], value) for value in thresholds}
    if json:
        told = {"score": score, **_selected(rates, found, spreads(scores), rejected, quality)}
        print_json({**told, "certificate": certificate and certificate_json(certificate)})
        return _uncertified(certificate)
    print(*spreads(scores), sep="\n")
    _print_rates(rates, found, score)
    _print_reasons(rejected, quality)
    if certificate is not None:
        # The answer comes last, where it is seen: the tables may be longer than a screen.
        _print_certificate(certificate)
    return _uncertified(certificate)


def _refuse_ignored(
    precision: float | None, confidence: float, partly_is_right: bool, of_reasons: object
) -> None:
    """That nothing was said of a certificate, or of reasons, where there will be none."""
    if precision is not None:
        return
    if confidence != _CONFIDENCE or partly_is_right:
        raise UsageError(
            "--confidence and --partly-is-right change nothing without --precision: give it too"
        )
    if of_reasons:
        raise UsageError(
            "--itm-of and --without change nothing without a threshold: give --thresholds too"
        )


def _print_certificate(certificate: "Certificate") -> None:
    print(f"\n{certificate}")
    if certificate.threshold is not None and certificate.score != "itm":
        # A view goes by itm, unless it is told another score.
        flags = f"--data.view.score {certificate.score} --data.view.itm {certificate.threshold!r}"
        print(f"training: {flags}")


def _selected(
    rates: "Sequence[KeepRate]",
    found: "Sequence[Cut]",
    spreads: "Sequence[Spread]",
    rejected: "Sequence[Rejected]",
    quality: "Mapping[float, Sequence[NoiseQuality]]",
) -> dict[str, object]:
    return {
        "kept": [{**asdict(rate), "rate": rate.rate} for rate in rates],
        "cuts": [{**asdict(cut), "rate": cut.rate} for cut in found],
        "spread": [{**asdict(spread), "is_narrow": spread.is_narrow} for spread in spreads],
        "rejected": [asdict(some) for some in rejected],
        "noise": {str(value): [asdict(q) for q in own] for value, own in quality.items()},
    }


def _print_reasons(
    rejected: "Sequence[Rejected]", quality: "Mapping[float, Sequence[NoiseQuality]]"
) -> None:
    if rejected:
        print("\ntraining texts that do not count:")
        reasons = [[f"{r.threshold:g}", r.source, r.reason, str(r.count)] for r in rejected]
        print_table(["threshold", "source", "reason", "texts"], reasons)
    noise = [
        [f"{value:g}", q.kind, str(q.total), f"{q.precision:.3f}", f"{q.recall:.3f}"]
        for value, qualities in quality.items()
        for q in qualities
    ]
    if noise:
        print("\nrejection of noise whose kind is known:")
        print_table(["threshold", "kind", "texts", "precision", "recall"], noise)


def _uncertified(certificate: "Certificate | None") -> int:
    """The exit code: 1 where a certificate was asked for and there is none."""
    return 1 if certificate is not None and certificate.threshold is None else 0


def _share(text: str) -> float:
    """A share from 0 to 1 of `50%` or `0.5`."""
    from openblip.runtime.errors import RecipeError

    try:
        return float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        raise RecipeError(f"--keep {text}: write a share as 50% or 0.5") from None


def _print_rates(rates: "Sequence[KeepRate]", found: "Sequence[Cut]", score: str) -> None:
    header = ["threshold", "source", "kept", "of", "rate"]
    rows = [
        [f"{r.threshold:g}", r.source, str(r.kept), str(r.total), f"{100 * r.rate:.1f} %"]
        for r in rates
    ]
    if rows:
        print_table(header, rows)
    if not found:
        return
    shares = [
        [f"{100 * c.share:g} %", repr(c.threshold), c.source, str(c.kept), str(c.total)]
        for c in found
    ]
    rates_kept = [f"{100 * c.rate:.1f} %" for c in found]
    print_table(
        ["to keep", *header], [[*row, r] for row, r in zip(shares, rates_kept, strict=True)]
    )
    of, training = ("", "") if score == "itm" else (f"--score {score} ", ", --data.view.score")
    for share in dict.fromkeys(c.share for c in found):
        own = [f"{c.source}={c.threshold!r}" for c in found if c.share == share and c.total]
        print(
            f"to keep {100 * share:g} %: {of}--itm-of {' '.join(own)} "
            f"(training: --data.view.itm-of{training})"
        )


def report(
    table: tyro.conf.Positional[str],
    /,
    *,
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("capfilt.html"),
    threshold: Finite | None = None,
    score: str = "auto",
    precision: Share = 0.9,
    confidence: Share = 0.95,
    partly_is_right: bool = False,
    seed: Seed = 0,
) -> int:
    """Write a self-contained page of what is kept and what is rejected.

    Where people have judged texts it has the threshold that their verdicts certify.

    Example: openblip capfilt report pairs.lance -o capfilt.html

    Args:
        table: a table that `openblip capfilt run` has scored.
        output: the HTML file.
        threshold: a text is kept above it; by default 0.5 of a probability, and what keeps half
            by another score.
        score: which one is compared: itm, itc, right, or another that the table has; auto is
            right, where the table has it, else itm.
        precision: of the certificate: what share of what is kept must be right at least.
        confidence: with which that is to hold.
        partly_is_right: whether a text with a wrong detail counts as right.
        seed: which rows are shown.
    """
    from openblip.capfilt.report import write_report
    from openblip.cli.review import told_score
    from openblip.table.table import PairTable

    check_outputs({"-o": output})
    opened = PairTable.open(table)
    score = told_score(opened, score)
    written = write_report(
        opened,
        output,
        threshold=threshold,
        score=score,
        seed=seed,
        certificate=_certified(opened, precision, confidence, partly_is_right, score),
        warn=lambda line: print(line, file=sys.stderr),
    )
    print(written)
    return 0


def _certified(
    table: "PairTable", precision: float, confidence: float, partly_is_right: bool, score: str
) -> str | None:
    """What the verdicts on a table certify, or why nothing; None where nobody has judged."""
    from openblip.cli.review import certificate_of
    from openblip.runtime.errors import DataError
    from openblip.table.reviews import ReviewLog

    if not ReviewLog.of(table.uri).standing():
        return None
    try:
        return str(certificate_of(table, precision, confidence, partly_is_right, score))
    except DataError as error:
        # Verdicts that are not on today's scores: the page tells it.
        return str(error)
