"""Runs a CapFilt job over a table: plans, computes, and commits the new columns."""

import time
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from openblip.batches.unknown_words import warn_of_unknown_words
from openblip.capfilt.captioners import divided, given_text
from openblip.capfilt.endpoint import Requests
from openblip.capfilt.job import METADATA_KEY, SYNTHETIC_ERROR, CapFiltJob, CapFiltSettings
from openblip.checkpoints.reading import find_model, read_outline
from openblip.inference.captions import cut_given
from openblip.inference.embedder import is_published_clip
from openblip.inference.loading import load_tokenizer
from openblip.jobs.columns import TableColumns
from openblip.jobs.pools import RayCluster, ThisMachine, open_pool
from openblip.jobs.run import Run
from openblip.runtime.errors import DataError, OpenBlipWarning, RecipeError
from openblip.sources.row_images import check_reachable
from openblip.table.columns import column_state
from openblip.table.table import PairTable

# Rows whose captions are looked at for words that the filter does not know, and how far.
_SAMPLED_ROWS, _SAMPLED_AT_ONCE, _READ_TOKENS = 1024, 32, 35


@dataclass(frozen=True)
class CapFiltResult:
    """What a finished job did."""

    rows: int
    """Rows of the table."""
    computed: int
    """Rows that this call worked on; the others were done before."""
    errors: int
    """Rows without result; column `capfilt_error` says why."""
    refused: int
    """Rows about which a captioner wrote nothing; column `synthetic_error` says which, and why."""
    failed: tuple[str, ...]
    """Why fragments could not be read; a later call tries them again."""
    seconds: float
    replaced: int | None = None
    """Version of the table that still has the texts and scores of another job, which these took
    the place of; None where there were none."""


def run_capfilt(
    table: str | Path,
    settings: CapFiltSettings,
    *,
    processes: int | None = None,
    ray: RayCluster | None = None,
    save_seconds: float = 10.0,
    requests: Requests | None = None,
) -> CapFiltResult:
    """Caption and score the web rows of a table; the results become columns of it.

    The result depends on the table, the models and the settings alone. A job that was stopped at
    any moment goes on where it was; one that is complete is not done again, and a table that has
    grown gets only its new rows done. Every CPU worker computes with one thread: the number of
    threads would change the last bits of a score.

    Args:
        table: where the `PairTable` lies.
        settings: models, decoding and seed.
        processes: default: one for each GPU, or for each core where there is none. One computes in
            this process.
        ray: workers of a Ray cluster instead of processes of this machine.
        save_seconds: unfinished fragments are saved so often; what a killed worker loses.
        requests: how the servers of `openai:` captioners are asked.

    Raises:
        RecipeError: a setting is out of range.
        DataError, CheckpointError, MissingHead: if table or models cannot be used.
        JobLockedError: another job works on the table.
        EndpointError: a server gives no captions any more.
        OpenBlipError: the job cannot go on; what is finished is kept.
    """
    started = time.perf_counter()
    place = ray or ThisMachine(processes=processes)
    opened = PairTable.open(str(table))
    check_reachable(opened)
    if not len(opened):
        raise DataError(f"{table} has no rows: `openblip data import SOURCE {table}` adds some")
    job = CapFiltJob.prepare(str(table), settings, requests)
    shared = _shared(job, place.num_workers())
    run = Run(job, TableColumns(job), lambda: open_pool(shared, place, save_seconds))
    # Without a note the columns may be of this job, whose last start was killed at the end.
    is_other = column_state(opened, METADATA_KEY) != {} and not job.is_committed(opened)
    replaced = opened.version if is_other and "synthetic" in opened.columns else None
    if not run.look().is_complete:
        _warn_of_unknown_words(job)
        run.complete()
    opened = PairTable.open(job.table_uri)
    return CapFiltResult(
        rows=len(opened),
        computed=run.computed,
        errors=opened.count_values("capfilt_error"),
        refused=opened.count_values(SYNTHETIC_ERROR) if SYNTHETIC_ERROR in job.columns else 0,
        failed=tuple(run.failed.values()),
        seconds=time.perf_counter() - started,
        replaced=replaced,
    )


def _warn_of_unknown_words(job: CapFiltJob) -> None:
    """Judge the prompt and a sample of the captions here: each worker sees only a part of them."""
    rows, settings = _sampled_rows(PairTable.open(job.table_uri)), job.settings
    texts = [text for row in rows if row["origin"] == "web" for text in row["captions"] or []]
    # A published CLIP reads any word, in pieces.
    for source in (plan.source for plan in job.filters if not is_published_clip(plan.source)):
        tokenizer = load_tokenizer(source)
        captions = [tokenizer.cleaning.caption(text) for text in texts]
        what = f"captions of {len(rows):,} rows"
        # Once: another filter with the same vocabulary would say the same.
        if warn_of_unknown_words(tokenizer, captions, _READ_TOKENS, what):
            break
    if settings.given:
        _check_given(settings, rows)
    for captioner in settings.captioners:
        if divided(captioner)[0] != "ours":
            continue
        tokenizer = load_tokenizer(captioner)
        if warn_of_unknown_words(tokenizer, [settings.prompt], _READ_TOKENS, "prompts"):
            break


def _check_given(settings: CapFiltSettings, rows: Sequence[dict[str, Any]]) -> None:
    """Warn of given texts that are cut.

    Raises:
        RecipeError: no captioner reads any.
    """
    ours = [source for source in settings.captioners if divided(source)[0] == "ours"]
    outlines = {source: read_outline(find_model(source)) for source in ours}
    readers = {source: found for source, found in outlines.items() if found.given_tokens}
    if not readers:
        raise RecipeError(
            f"--given {settings.given}: none of {', '.join(settings.captioners)} was fine-tuned to "
            "read a given text; `openblip finetune captioner ... --given web` makes one"
        )
    given = [given_text(row["captions"] or ()) for row in rows if row["origin"] == "web"]
    for source, found in readers.items():
        if cut := cut_given(found.tokenizer, given, found.given_tokens):
            warnings.warn(
                f"{source} reads the first {found.given_tokens} tokens of a given text; of "
                f"{len(given):,} that were looked at {cut:,} are longer, and are cut: a captioner "
                "that is fine-tuned with a higher --data.given-tokens reads more",
                OpenBlipWarning,
                stacklevel=2,
            )


def _sampled_rows(table: PairTable) -> list[dict[str, Any]]:
    sampled = range(0, len(table), max(len(table) // _SAMPLED_ROWS, 1))
    rows: list[dict[str, Any]] = []
    for start in range(0, len(sampled), _SAMPLED_AT_ONCE):
        some = sampled[start : start + _SAMPLED_AT_ONCE]
        # A damaged part of the table is told of as a failed fragment, and does not stop the rest.
        with suppress(DataError):
            rows += table.take(some, ["captions", "origin"]).to_pylist()
    return rows


def _shared(job: CapFiltJob, workers: int) -> CapFiltJob:
    """The job of each of some workers, which together make as many requests as one would."""
    return replace(job, requests=job.requests.shared(workers))
