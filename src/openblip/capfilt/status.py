"""How far a CapFilt job is, read from its ledger while it runs, after a kill, or at its end."""

from collections import Counter
from dataclasses import dataclass

from openblip.capfilt.job import NEW_COLUMNS, is_committed, jobs_folder
from openblip.capfilt.ledger import STATES, Entry, Ledger, State
from openblip.capfilt.lock import lock_owner
from openblip.capfilt.store import open_store
from openblip.data.fragments import list_fragments
from openblip.data.table import PairTable
from openblip.errors import DataError

LATEST = "latest"
"""Name of the file that holds the fingerprint of the job that was started last."""


@dataclass(frozen=True, kw_only=True)
class JobStatus:
    """How far the job is that was started last on a table."""

    table: str
    fingerprint: str
    is_running: bool
    owner: str
    """host:pid of the driver that runs; empty if none does."""
    is_finished: bool
    """Whether every row has its result or a recorded reason in the table, for all to read."""
    fragments: dict[State, int]
    rows: dict[State, int]
    rows_done: int
    """Rows with a result, those of unfinished fragments included."""
    num_errors: int
    """Rows of finished fragments that have a reason instead of a result."""
    workers: int
    """At work now, or when the driver last wrote."""
    rate: float
    """Images per second of the last driver, the loading of its models included."""
    seconds_left: float | None
    """None if nobody knows, since nothing runs or nothing was finished yet."""
    cost_per_million: float | None
    """Of a million images, in the currency of the price; None without price or rate."""
    failed: tuple[str, ...]
    """Why fragments failed."""


def job_status(table: str, price_per_hour: float | None = None) -> JobStatus:
    """The status of the job that was started last on a table; changes nothing.

    Args:
        table: where the `PairTable` lies.
        price_per_hour: of one worker.

    Raises:
        DataError: there is no table, or no job has been started on it.
    """
    opened = PairTable.open(table)
    folder = open_store(jobs_folder(table))
    latest = folder.read(LATEST)
    if latest is None:
        raise DataError(
            f"no CapFilt job was started on {table}: `openblip capfilt run {table} --captioner ... "
            "--filter ...` starts one"
        )
    fingerprint = latest.decode()
    ledger = Ledger(open_store(f"{folder.uri}/{fingerprint}"))
    owner, activity = lock_owner(folder), ledger.activity()
    committed = is_finished = is_committed(opened, fingerprint)
    fragments: Counter[State] = Counter()
    rows: Counter[State] = Counter()
    entries: list[Entry] = []
    for fragment in list_fragments(opened, NEW_COLUMNS):
        entry = ledger.find(fragment.number, fragment.digest)
        state: State = "done" if committed and fragment.filled else "waiting"
        is_attached = state == "done"
        if entry is not None:
            entries.append(entry)
            is_attached = entry.state in ("done", "failed") and entry.file in fragment.files
            # Nobody works on what a driver had given out that is gone.
            state = "waiting" if entry.state == "leased" and owner is None else entry.state
        is_finished &= is_attached
        fragments[state] += 1
        rows[state] += fragment.num_rows
    seconds = activity.time - activity.session_start if activity else 0.0
    rate = activity.session_rows / seconds if activity and seconds > 0 else 0.0
    rows_done = rows["done"] + rows["failed"]
    if activity is not None and owner is not None:
        rows_done = max(rows_done, activity.rows_done)
    workers = activity.workers if activity else 0
    cost = None
    if price_per_hour is not None and rate > 0:
        cost = price_per_hour * workers * 1e6 / rate / 3600
    return JobStatus(
        table=table,
        fingerprint=fingerprint,
        is_running=owner is not None,
        owner="" if owner is None else f"{owner.host}:{owner.pid}",
        is_finished=is_finished,
        fragments={state: fragments[state] for state in STATES},
        rows={state: rows[state] for state in STATES},
        rows_done=rows_done,
        num_errors=sum(entry.num_errors for entry in entries),
        workers=workers,
        rate=rate,
        seconds_left=(len(opened) - rows_done) / rate if owner is not None and rate > 0 else None,
        cost_per_million=cost,
        failed=tuple(entry.reason for entry in entries if entry.state == "failed"),
    )
