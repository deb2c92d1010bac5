"""What a CapFilt job is: its settings, fingerprint, folder and columns, and how far it is.

The status is read from table and ledger alone: while the job runs, after a kill, or at its end.
Whoever asks for it need not load PyTorch.
"""

import hashlib
import json
import platform
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Literal

from openblip.capfilt.ledger import STATES, Entry, Ledger, State, Store, open_store
from openblip.capfilt.lock import lock_owner
from openblip.runtime.errors import CheckpointError, DataError, RecipeError
from openblip.table.columns import list_fragments
from openblip.table.table import PairTable

if TYPE_CHECKING:
    import pyarrow as pa

    from openblip.inference import Decoding

METADATA_KEY = "capfilt"
NEW_COLUMNS = (
    "synthetic",
    "synthetic_logprob",
    "synthetic_captioner",
    "captions_itm",
    "captions_itc",
    "synthetic_itm",
    "synthetic_itc",
    "capfilt_error",
)


def _nucleus() -> "Decoding":
    from openblip.inference import Decoding

    return Decoding(method="nucleus", top_p=0.9)


@dataclass(frozen=True, kw_only=True)
class CapFiltSettings:
    """Everything besides the table that decides what a job writes."""

    captioner: str | tuple[str, ...]
    """Model folders or run directories of the captioners. Each writes `num_captions` texts for an
    image; those of the first one come first."""
    filter: str
    """Model folder or run directory of the filter."""
    decoding: "Decoding" = field(default_factory=_nucleus)
    """How captions are written: nucleus sampling with p = 0.9 in the paper (section 3.3)."""
    prompt: str = "a picture of "
    """What the captioner was fine-tuned to continue."""
    num_captions: int = 1
    """Synthetic captions per image and captioner."""
    first_token: Literal["[ENC]", "[CLS]"] = "[ENC]"
    """First token of a text that is matched: `[ENC]` as trained; `[CLS]` as some releases do."""
    batch_size: int = 32
    """Consecutive rows of a fragment that are read, captioned and scored together."""
    seed: int = 0
    """With a row's id it decides the row's sampled captions."""

    def __post_init__(self) -> None:
        if self.num_captions < 1 or self.batch_size < 1:
            raise RecipeError("num_captions and batch_size must be at least 1")
        if not self.captioners or len(set(self.captioners)) < len(self.captioners):
            raise RecipeError(f"give one or several captioners, each once: {self.captioner}")

    @property
    def captioners(self) -> tuple[str, ...]:
        """The captioners in the order of their texts."""
        return (self.captioner,) if isinstance(self.captioner, str) else tuple(self.captioner)

    @property
    def models(self) -> tuple[str, ...]:
        """The captioners and the filter."""
        return (*self.captioners, self.filter)


@dataclass(frozen=True)
class CapFiltJob:
    """Settings and models at work on a table, however many rows it has today."""

    settings: CapFiltSettings
    table_uri: str
    models: tuple[str, ...]
    """Fingerprints of the captioners in their order, and of the filter."""
    fingerprint: str
    """16 hexadecimal digits that change when a model or a setting does; where a model lies does
    not count, only what it is."""

    @classmethod
    def plan(cls, table_uri: str, settings: CapFiltSettings) -> "CapFiltJob":
        """The job of these settings on a table; reads the models' files once.

        Raises:
            CheckpointError: a model is not there.
        """
        from openblip.checkpoints.reading import model_fingerprint

        models = tuple(model_fingerprint(model) for model in settings.models)
        values = {
            **asdict(settings),
            "decoding": settings.decoding.stored(),
            "captioner": _one_or_list(models[:-1]),
            "filter": models[-1],
        }
        digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode())
        return cls(settings, table_uri.rstrip("/"), models, digest.hexdigest()[:16])

    @property
    def folder(self) -> Store:
        """Ledger and unfinished work of this job."""
        return open_store(f"{jobs_folder(self.table_uri)}/{self.fingerprint}")

    @property
    def data_folder(self) -> Store:
        """The table's own data files."""
        return open_store(f"{self.table_uri}/data")

    def num_batches(self, num_rows: int) -> int:
        """Batches of a fragment, the short last one included."""
        return -(-num_rows // self.settings.batch_size)

    def batch_rows(self, batch: int, num_rows: int) -> range:
        """Rows of a batch, counted from the first of its fragment, which has `num_rows`."""
        size = self.settings.batch_size
        return range(batch * size, min((batch + 1) * size, num_rows))

    def description(self) -> str:
        """Settings and fingerprints as JSON, for the table's metadata."""
        return json.dumps(
            {
                **asdict(self.settings),
                "captioner_fingerprint": _one_or_list(self.models[:-1]),
                "filter_fingerprint": self.models[-1],
                "fingerprint": self.fingerprint,
            }
        )

    def check_models(self) -> None:
        """Reads the models' files again, on the machine of a worker that has loaded them.

        Raises:
            CheckpointError: a model is another one than that of the job.
        """
        from openblip.checkpoints.reading import model_fingerprint

        for source, planned in zip(self.settings.models, self.models, strict=True):
            if (found := model_fingerprint(source)) != planned:
                raise CheckpointError(
                    f"{source} on {platform.node()} is the model {found}, but the job began with "
                    f"{planned}: put the same files there on every machine, or start the job anew"
                )


def jobs_folder(table_uri: str) -> str:
    """Where the jobs of a table keep their files, beside it."""
    return f"{table_uri.rstrip('/')}.capfilt"


def is_committed(table: PairTable, fingerprint: str) -> bool:
    """Whether the table has all of CapFilt's columns, and they are those of a job."""
    stored = table.metadata.get(METADATA_KEY, "")
    return f'"fingerprint": "{fingerprint}"' in stored and set(NEW_COLUMNS) <= set(table.columns)


def _one_or_list(captioners: tuple[str, ...]) -> str | list[str]:
    """Of one captioner its fingerprint, of several a list of theirs."""
    return captioners[0] if len(captioners) == 1 else list(captioners)


def column_schema() -> "pa.Schema":
    """Arrow types of `NEW_COLUMNS`."""
    import pyarrow as pa

    types = dict.fromkeys(NEW_COLUMNS, pa.list_(pa.float32()))
    types["synthetic"] = types["synthetic_captioner"] = pa.list_(pa.string())
    types["capfilt_error"] = pa.string()
    return pa.schema(list(types.items()))


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
