"""What a CapFilt job is: its settings, fingerprint, folder and columns, and how far it is.

The status is read from table and ledger alone: while the job runs, after a kill, or at its end.
Whoever asks for it need not load PyTorch.
"""

import hashlib
import json
import platform
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from openblip.capfilt.captioners import (
    captioner_print,
    check_captioners,
    check_prints,
    column_name,
    divided,
    unrepeatable,
)
from openblip.capfilt.endpoint import Requests
from openblip.jobs.ledger import (
    STATES,
    Activity,
    Entry,
    Ledger,
    State,
    Store,
    decoded,
    open_store,
)
from openblip.jobs.lock import lock_owner
from openblip.jobs.run import LATEST
from openblip.jobs.units import Kind, Pieces, rows_in
from openblip.runtime.errors import CheckpointError, DataError, RecipeError
from openblip.sources.row_images import check_reachable
from openblip.table.columns import Fragment, list_fragments
from openblip.table.scores import TEXT_COLUMNS, further_columns, score_column
from openblip.table.table import PairTable

if TYPE_CHECKING:
    import pyarrow as pa

    from openblip.capfilt.filters import NamedFilter
    from openblip.inference.decoding import Decoding
    from openblip.jobs.columns import ColumnWorker

METADATA_KEY = "capfilt"
CAPFILT = Kind(name="capfilt", title="CapFilt", status="openblip capfilt status")


def job_columns(scores: Sequence[str]) -> tuple[str, ...]:
    """The columns of a job whose filters give these scores."""
    of_texts = [score_column(texts, name) for texts in TEXT_COLUMNS.values() for name in scores]
    return "synthetic", "synthetic_logprob", "synthetic_captioner", *of_texts, "capfilt_error"


NEW_COLUMNS = job_columns(("itm", "itc"))
"""The columns of a job with one filter, which is ours."""
SYNTHETIC_ERROR = "synthetic_error"
"""Column of jobs with captioners of others: why one of them wrote nothing about a row."""
# Settings of captioners that are not ours; what jobs of ours have noted does not know them.
_OF_OTHERS = ("instruction", "max_new_tokens", "image_side")


def _nucleus() -> "Decoding":
    from openblip.inference.decoding import Decoding

    return Decoding(method="nucleus", top_p=0.9)


@dataclass(frozen=True, kw_only=True)
class CapFiltSettings:
    """Everything besides the table that decides what a job writes."""

    captioner: str | tuple[str, ...]
    """The captioners: model folders or run directories of ours, `hf:NAME`, `openai:URL#MODEL` or
    `texts:NAME`. Each writes `num_captions` texts for an image (or has its own, `texts:`); those of
    the first one come first."""
    filter: str | tuple[str, ...]
    """Model folders or run directories of the filters; CLIP and SigLIP of others too. The first
    that is ours gives `itm` and `itc`; each other one gives a score of its own name, which may be
    given as `NAME=MODEL`."""
    decoding: "Decoding" = field(default_factory=_nucleus)
    """How captions are written: nucleus sampling with p = 0.9 in the paper (section 3.3)."""
    prompt: str = "a picture of "
    """What the captioner was fine-tuned to continue."""
    num_captions: int = 1
    """Synthetic captions per image and captioner: one by the greedy method, and at most `num_beams`
    by beam search."""
    first_token: Literal["[ENC]", "[CLS]"] = "[ENC]"
    """First token of a text that is matched: `[ENC]` as trained; `[CLS]` as some releases do."""
    batch_size: int = 32
    """Consecutive rows of a fragment that are read, captioned and scored together."""
    seed: int = 0
    """With a row's id it decides the row's sampled captions."""
    given: Literal["web"] | None = None
    """`web` lets captioners of ours that were fine-tuned for it read the row's first text before
    they write."""
    given_above: float = 0.0
    """It is read only where the first filter of ours gives it more: what does not fit the image
    would bring its names along. 0 has every text read."""
    instruction: str | tuple[str, ...] | None = None
    """What `hf:` and `openai:` captioners are told beside the image: one for all, or one for each
    in their order; None: to describe it in one sentence, where a model is talked to, else nothing.
    """
    max_new_tokens: int = 64
    """Most tokens of a text of an `hf:` or `openai:` captioner; `decoding.max_length` is ours."""
    image_side: int = 1024
    """Longer side of the images that `openai:` captioners get, in pixels; smaller ones stay."""

    def __post_init__(self) -> None:
        if self.num_captions < 1 or self.batch_size < 1:
            raise RecipeError("num_captions and batch_size must be at least 1")
        if self.max_new_tokens < 1 or self.image_side < 1:
            raise RecipeError("max_new_tokens and image_side must be at least 1")
        if self.given not in (None, "web"):
            raise RecipeError(f"given is {self.given!r}; there is web, or nothing")
        if not 0 <= self.given_above < 1 or (self.given_above and not self.given):
            raise RecipeError(
                f"given_above is {self.given_above:g}; give a probability from 0 to below 1, and "
                "given=web with it"
            )
        check_captioners(self)
        _ = self.instructions
        if not self.filters or len(set(self.filters)) < len(self.filters):
            raise RecipeError(f"give one or several filters, each once: {self.filter}")

    @property
    def captioners(self) -> tuple[str, ...]:
        """The captioners in the order of their texts."""
        return (self.captioner,) if isinstance(self.captioner, str) else tuple(self.captioner)

    @property
    def filters(self) -> tuple[str, ...]:
        """The filters in the order of their columns."""
        return (self.filter,) if isinstance(self.filter, str) else tuple(self.filter)

    def by_backend(self, backend: str | None) -> "CapFiltSettings":
        """The same with models of ours that a backend computes; those of others stay.

        Raises:
            RecipeError: there is no such backend, or a model is named with another one.
        """
        from openblip.capfilt.filters import on_backend
        from openblip.checkpoints.reading import with_backend

        return replace(
            self,
            captioner=tuple(
                with_backend(source, backend) if divided(source)[0] == "ours" else source
                for source in self.captioners
            ),
            filter=tuple(on_backend(text, backend) for text in self.filters),
        )

    @property
    def has_others(self) -> bool:
        """Whether a captioner is none of ours."""
        return any(divided(source)[0] != "ours" for source in self.captioners)

    @property
    def instructions(self) -> dict[str, str | None]:
        """What each `hf:` and `openai:` captioner is told beside the image, in their order.

        Raises:
            RecipeError: there are several, and not as many as such captioners.
        """
        told = [source for source in self.captioners if divided(source)[0] in ("hf", "openai")]
        if self.instruction is None or isinstance(self.instruction, str):
            return dict.fromkeys(told, self.instruction)
        if len(self.instruction) != len(told):
            raise RecipeError(
                f"{len(self.instruction)} instructions for {len(told)} captioners that take one"
                f"{': ' * bool(told)}{', '.join(told)}; give one for all, or one for each in their "
                "order"
            )
        return dict(zip(told, self.instruction, strict=True))

    def stored(self) -> dict[str, Any]:
        """The settings by name; those of others' captioners only where there is one.

        So jobs that were begun before these were known go on.
        """
        values = asdict(self)
        unknown = () if self.has_others else _OF_OTHERS
        unknown = unknown if self.given else (*unknown, "given")
        unknown = unknown if self.given_above else (*unknown, "given_above")
        return {name: value for name, value in values.items() if name not in unknown}


@dataclass(frozen=True)
class CapFiltJob:
    """Settings and models at work on a table, however many rows it has today."""

    settings: CapFiltSettings
    table_uri: str
    captioners: tuple[str, ...]
    """What the captioners are in their order, see `captioner_print`."""
    filters: "tuple[NamedFilter, ...]"
    """What the filters are, in their order."""
    fingerprint: str
    """16 hexadecimal digits that change when a model or a setting does; where a model lies does
    not count, only what it is."""
    requests: Requests = field(default_factory=Requests)
    """How servers are asked; decides nothing of what is written."""
    kind: ClassVar[Kind] = CAPFILT

    @classmethod
    def prepare(
        cls, table_uri: str, settings: CapFiltSettings, requests: Requests | None = None
    ) -> "CapFiltJob":
        """The job of these settings on a table; reads the models' files once.

        Raises:
            CheckpointError, DataError: a model is not there, or texts that are named.
        """
        from openblip.capfilt.filters import name_filters

        table_uri = table_uri.rstrip("/")
        captioners = tuple(captioner_print(source, table_uri) for source in settings.captioners)
        filters = name_filters(settings.filters)
        if settings.given_above and not any(one.matches for one in filters):
            raise RecipeError("given_above needs a filter of ours, which tells a match: add one")
        values = {
            **settings.stored(),
            "decoding": settings.decoding.stored(),
            "captioner": _one_or_list(captioners),
            "filter": _one_or_list([one.fingerprint for one in filters]),
        }
        # What a score is called decides what is written, as what it is does.
        scores = [list(one.scores) for one in filters]
        if scores != [["itm", "itc"]]:
            values["scores"] = scores
        # Sorted: a field that changes its place in the settings makes no other job.
        digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]
        return cls(settings, table_uri, captioners, filters, digest, requests or Requests())

    @property
    def captioner_names(self) -> tuple[str, ...]:
        """What `synthetic_captioner` says of the texts of each captioner."""
        pairs = zip(self.settings.captioners, self.captioners, strict=True)
        return tuple(column_name(source, planned) for source, planned in pairs)

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that it writes."""
        columns = job_columns([score for one in self.filters for score in one.scores])
        return (*columns, SYNTHETIC_ERROR) if self.settings.has_others else columns

    @property
    def filled_by(self) -> tuple[str, ...]:
        """All columns: they have always been written together."""
        return self.columns

    @property
    def error_column(self) -> str:
        """Why a row has neither texts nor scores."""
        return "capfilt_error"

    @property
    def batch_size(self) -> int:
        """Rows that are captioned and scored together."""
        return self.settings.batch_size

    @property
    def folder(self) -> Store:
        """Ledger and unfinished work of this job."""
        return open_store(f"{CAPFILT.folder(self.table_uri)}/{self.fingerprint}")

    @property
    def results(self) -> Store:
        """The table's own data files."""
        return open_store(f"{self.table_uri}/data")

    def open_worker(self, device: str, save_seconds: float, decode_threads: int) -> "ColumnWorker":
        """A worker of this process, with all models; see `Job.open_worker`."""
        from openblip.capfilt.computer import CapFiltComputer
        from openblip.jobs.columns import ColumnWorker

        computer, table = CapFiltComputer(self, device), PairTable.open(self.table_uri)
        # This machine need not be that of the driver.
        check_reachable(table)
        return ColumnWorker(self, computer, table, save_seconds, decode_threads)

    def is_committed(self, table: PairTable) -> bool:
        """Whether a table has all columns of the job, and they are its own."""
        return is_committed(table, self.fingerprint, self.columns)

    def columns_left_by(self, table: PairTable) -> list[str]:
        """Columns beside those of the job that are about texts which it replaces."""
        ours = {*NEW_COLUMNS, SYNTHETIC_ERROR, *further_columns(table.columns)}
        return [name for name in table.columns if name in ours and name not in self.columns]

    def noted(self, num_rows: int) -> dict[str, str]:
        """What the table's metadata says of the job whose columns it has, of any number of rows."""
        return {METADATA_KEY: self.description()}

    def description(self) -> str:
        """Settings and fingerprints as JSON, for the table's metadata."""
        values = {
            **self.settings.stored(),
            "captioner_fingerprint": _one_or_list(self.captioner_names),
            "filter_fingerprint": _one_or_list([one.fingerprint for one in self.filters]),
            "fingerprint": self.fingerprint,
        }
        # What others read of a job, an export's card for one, says what cannot be had again.
        if lines := unrepeatable(self.settings):
            values["unrepeatable"] = lines
        if self.columns != NEW_COLUMNS:
            values["columns"] = self.columns
            values["scores"] = [one.scores for one in self.filters]
        return json.dumps(values)

    def check_models(self) -> None:
        """Reads the models' files again, on the machine of a worker that has loaded them.

        Raises:
            CheckpointError: a model is another one than that of the job.
        """
        from openblip.inference.embedder import embedder_fingerprint

        check_prints(self, platform.node())
        for one in self.filters:
            if (found := embedder_fingerprint(one.source)) != one.fingerprint:
                raise CheckpointError(
                    f"{one.source} on {platform.node()} is the model {found}, but the job began "
                    f"with {one.fingerprint}: put the same files there on every machine, or start "
                    "the job anew"
                )


def is_committed(table: PairTable, fingerprint: str, columns: Sequence[str]) -> bool:
    """Whether the table has all columns of a job, and they are its own."""
    stored = table.metadata.get(METADATA_KEY, "")
    # With the quote before it, since `captioner_fingerprint` is another field.
    return f'"fingerprint": "{fingerprint}"' in stored and set(columns) <= set(table.columns)


def _one_or_list(fingerprints: Sequence[str]) -> str | list[str]:
    """Of one model its fingerprint, of several a list of theirs."""
    return fingerprints[0] if len(fingerprints) == 1 else list(fingerprints)


def column_schema(columns: Sequence[str]) -> "pa.Schema":
    """Arrow types of a job's columns."""
    import pyarrow as pa

    types = dict.fromkeys(columns, pa.list_(pa.float32()))
    types["synthetic"] = types["synthetic_captioner"] = pa.list_(pa.string())
    types |= {name: pa.string() for name in ("capfilt_error", SYNTHETIC_ERROR) if name in types}
    return pa.schema(list(types.items()))


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
    num_refused: int
    """Rows about which a captioner wrote nothing: of the table if it is finished, else those that
    the last driver has met."""
    tokens_read: float
    """Tokens an image that servers have read for the last driver, as they counted them."""
    tokens_written: float
    """Tokens an image that they have written."""
    num_cut: int
    """Texts of the last driver that ended at `max_new_tokens`."""
    unrepeatable: tuple[str, ...]
    """Captioners that may write something else when they are asked again, and why."""


def job_status(
    table: str,
    price_per_hour: float | None = None,
    price_per_million_tokens: tuple[float, float] | None = None,
) -> JobStatus:
    """The status of the job that was started last on a table; changes nothing.

    Args:
        table: where the `PairTable` lies.
        price_per_hour: of one worker.
        price_per_million_tokens: that servers read, and that they write.

    Raises:
        DataError: there is no table, or no job has been started on it.
    """
    opened = PairTable.open(table)
    folder = open_store(CAPFILT.folder(table))
    latest = folder.read(LATEST)
    if latest is None:
        raise DataError(
            f"no CapFilt job was started on {table}: `openblip capfilt run {table} --captioner "
            "CAPTIONER --filter FILTER` starts one"
        )
    fingerprint = latest.decode()
    store = open_store(f"{folder.uri}/{fingerprint}")
    ledger = Ledger(store, CAPFILT.title)
    owner, activity = lock_owner(folder), ledger.activity()
    noted = _noted(folder, fingerprint)
    columns = tuple(noted.get("columns", NEW_COLUMNS))
    committed = is_finished = is_committed(opened, fingerprint, columns)
    fragments: Counter[State] = Counter()
    rows: Counter[State] = Counter()
    entries: list[Entry] = []
    unfinished: list[Fragment] = []
    for fragment in list_fragments(opened, columns):
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
        if state in ("waiting", "leased"):
            unfinished.append(fragment)
    rate = _rate(activity)
    rows_done = rows["done"] + rows["failed"] + _rows_saved(store, unfinished, noted)
    if activity is not None and owner is not None:
        # The driver counts batches, the ledger whole fragments; what the driver last wrote may be
        # older.
        rows_done = max(rows_done, activity.rows_done)
    workers = activity.workers if activity else 0
    tokens = _tokens_per_image(activity)
    counts = activity.counts if activity else {}
    has_refused = is_finished and SYNTHETIC_ERROR in columns
    num_refused = opened.count_values(SYNTHETIC_ERROR) if has_refused else counts.get("refused", 0)
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
        cost_per_million=_cost(price_per_hour, price_per_million_tokens, workers, rate, tokens),
        failed=tuple(entry.reason for entry in entries if entry.state == "failed"),
        num_refused=num_refused,
        tokens_read=tokens[0],
        tokens_written=tokens[1],
        num_cut=counts.get("cut", 0),
        unrepeatable=tuple(noted.get("unrepeatable", ())),
    )


def _rate(activity: Activity | None) -> float:
    """Rows per second of the last call alone: those before it may have had other machines."""
    seconds = activity.time - activity.session_start if activity else 0.0
    return activity.session_rows / seconds if activity and seconds > 0 else 0.0


def _rows_saved(store: Store, unfinished: Sequence[Fragment], noted: dict[str, Any]) -> int:
    """Rows of unfinished fragments whose results are saved: the next driver goes on behind them."""
    pieces = Pieces(store).all_finished()
    return sum(
        rows_in(pieces.get((one.number, one.digest), ()), one.num_rows, noted["batch_size"])
        for one in unfinished
        if "batch_size" in noted
    )


def _noted(folder: Store, fingerprint: str) -> dict[str, Any]:
    """What a job has noted of itself when it began; empty if nothing."""
    content = folder.read(f"{fingerprint}/job.json")
    return decoded(folder, f"{fingerprint}/job.json", content, dict) if content else {}


def _tokens_per_image(activity: Activity | None) -> tuple[float, float]:
    if activity is None or not activity.session_rows:
        return 0.0, 0.0
    rows = activity.session_rows
    counts = activity.counts
    return counts.get("tokens_read", 0) / rows, counts.get("tokens_written", 0) / rows


def _cost(
    price_per_hour: float | None,
    price_per_million_tokens: tuple[float, float] | None,
    workers: int,
    rate: float,
    tokens: tuple[float, float],
) -> float | None:
    """Of a million images, of what there is a price and a rate for."""
    parts = []
    if price_per_hour is not None and rate > 0:
        parts.append(price_per_hour * workers * 1e6 / rate / 3600)
    if price_per_million_tokens is not None and any(tokens):
        prices = zip(price_per_million_tokens, tokens, strict=True)
        parts.append(sum(price * number for price, number in prices))
    return sum(parts) if parts else None
