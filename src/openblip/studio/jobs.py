"""Long work from the page: the same commands as in a terminal, of which each goes on where it was.

What may be started is a fixed list, and so are the models and places: a page names them, it never
gives a path or a flag.
"""

import re
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openblip.index.noted import FOLDER_TABLE
from openblip.runtime.errors import DataError, TrainingError
from openblip.studio.models import ROLES, Role, declared_heads
from openblip.studio.processes import JobFolder, StartedJob
from openblip.studio.routes import Asked, Refused, Route, get, post
from openblip.studio.traces import SeenWork, Traces
from openblip.table.storage import is_object_address
from openblip.training.watching import find_runs

if TYPE_CHECKING:
    from openblip.studio.app import Studio

_LOOKING_SECONDS = 1.5
_MOST_SHOWN = 20
_MOST_CAPTIONS, _MOST_PROCESSES = 10, 64
# No slash, so that a page names no folder; no dot or hyphen first, so that the file is not hidden
# and no flag.
_FILE_NAME = re.compile(r"\w[\w .-]{0,99}\.(?:jsonl|csv|txt|json)")
# As many as `Decoding` has by default.
_BEAMS = 3
_METHODS = ("beam", "nucleus", "greedy")
# What a model must have been trained for, one head of these: to write, to score, to embed.
_USES = {
    "captions": frozenset({"lm"}),
    "scores": frozenset({"itc", "itm"}),
    "embeddings": frozenset({"itc"}),
}
_ALL_HEADS = frozenset({"itc", "itm", "lm"})
# Of a model that says nothing of itself, what it was given for says it.
_GIVEN_FOR: Mapping[Role, frozenset[str]] = {
    "captioner": _USES["captions"],
    "filter": _USES["scores"],
    "vqa": frozenset(),
}
Given = Mapping[str, Any]


@dataclass(frozen=True)
class OfferedModel:
    """A model that a job may use."""

    source: str
    heads: frozenset[str]
    """What it was trained for, as far as that is known."""

    def uses(self) -> list[str]:
        """What it is offered for, of `_USES`."""
        return [use for use, heads in _USES.items() if heads & self.heads]


@dataclass(frozen=True, kw_only=True)
class Workplace:
    """What jobs may work on, and with which models."""

    table: str
    """Path or address of the table; of a folder, that of its index."""
    folder: Path | None
    """The folder of images, where the studio shows one."""
    models: Mapping[str, OfferedModel]
    """By the names that the page shows."""
    indexed_by: str | None = None
    """The model of the index; None where there is none."""

    @property
    def collection(self) -> str:
        """What captions and an index are of, as a command line names it."""
        return self.table if self.folder is None else str(self.folder)

    @property
    def output_folder(self) -> Path:
        """Where a file of captions may be written.

        Raises:
            DataError: the table is in an object store.
        """
        if self.folder is not None:
            return self.folder
        if is_object_address(self.table):
            raise DataError(
                f"{self.table} has no folder of this machine beside it: caption it from the "
                "command line (`openblip caption TABLE -o FILE`)"
            )
        return Path(self.table).absolute().parent


class Jobs:
    """Jobs on one collection: those that a studio has started, and what is seen of others."""

    def __init__(self, workplace: Workplace) -> None:
        """Starts and reads nothing yet."""
        self.workplace = workplace
        self._folder = JobFolder(_state_folder(workplace.table))
        self._traces = Traces(workplace.table, workplace.folder)
        self._lock = threading.Lock()
        self._seen: list[SeenWork] = []
        self._looked = 0.0

    def start(self, kind: str, given: Given) -> str:
        """Start a job, or go on with one that was stopped; its id.

        Args:
            kind: "caption", "capfilt" or "index".
            given: its settings.

        Raises:
            DataError: there is no such kind, model or setting, or one is out of range; or the same
                work is being done already.
        """
        words = _words(self.workplace, kind, given)
        with self._lock:
            for job in self._folder.jobs():
                # The command line is all that decides what a job does.
                if job.words == words and self._folder.state(job) == "running":
                    raise DataError("this job is running already: see its progress")
            return self._folder.start(kind, words).id

    def again(self, job_id: str) -> str:
        """Start what an ended job did once more: it goes on where that was; the id of the new job.

        Raises:
            DataError: there is no such job, or it runs.
        """
        with self._lock:
            job = self._folder.find(job_id)
            if self._folder.state(job) == "running":
                raise DataError("this job is running: stop it first")
            return self._folder.start(job.kind, job.words).id

    def stop(self, job_id: str) -> None:
        """Ask a job to stop in order.

        Raises:
            DataError: there is no such job, or it has ended, or runs on another machine.
        """
        self._folder.stop(job_id)

    def told(self) -> dict[str, Any]:
        """Everything that the page shows of jobs."""
        with self._lock:
            jobs = self._folder.jobs()
            started = [self._row(job) for job in jobs[:_MOST_SHOWN]]
            # However many pages ask: to look is to read a ledger and to open the table.
            if time.monotonic() - self._looked > _LOOKING_SECONDS:
                self._seen = self._traces.seen()
                self._looked = time.monotonic()
            own = {job.pid for job in jobs if self._folder.state(job) == "running"}
            written = {row["output"] for row in started if row["state"] == "running"}
            kinds = {row["kind"] for row in started if row["state"] == "running"}
            return {
                "jobs": started,
                "older": max(len(jobs) - _MOST_SHOWN, 0),
                "folder": str(self._folder.path),
                "seen": [
                    {**asdict(work), "seconds_left": work.seconds_left}
                    for work in self._seen
                    if work.pid not in own
                    and work.place not in written
                    # Of an index the process is not seen: it is that of the job which runs.
                    and not (work.kind == "index" and work.is_running and "index" in kinds)
                ],
            }

    def forms(self) -> dict[str, Any]:
        """What the page may offer: models by name, and where captions would go."""
        try:
            output: str | None = str(self.workplace.output_folder)
        except DataError:
            output = None
        return {
            "collection": self.workplace.collection,
            "is_folder": self.workplace.folder is not None,
            "models": [
                {"name": name, "uses": model.uses()}
                for name, model in self.workplace.models.items()
            ],
            "index": self.workplace.indexed_by,
            "output_folder": output,
            "methods": list(_METHODS),
        }

    def _row(self, job: StartedJob) -> dict[str, Any]:
        progress = self._folder.progress(job)
        told = {} if progress is None else {**asdict(progress), "left": progress.seconds_left}
        words = job.words
        return {
            "id": job.id,
            "kind": job.kind,
            "state": self._folder.state(job),
            "began": job.began,
            "command": " ".join(("openblip", *words)),
            "output": words[words.index("-o") + 1] if "-o" in words else None,
            "progress": told,
            "lines": self._folder.last_lines(job),
        }


def _state_folder(table: str) -> Path:
    """Where jobs keep their files: beside a local table, else in the working directory."""
    place = table.rstrip("/").removeprefix("file://")
    return Path(f"{place.rsplit('/', 1)[-1] if is_object_address(table) else place}.jobs")


def _words(place: Workplace, kind: str, given: Given) -> tuple[str, ...]:
    """The command line of a job, from settings that are all checked."""
    if kind not in _KINDS:
        raise DataError(f"no job is called {kind!r}: there are {', '.join(_KINDS)}")
    make, known = _KINDS[kind]
    if unknown := [name for name in given if name not in known]:
        raise DataError(f"{unknown[0]!r} is no setting of {kind}: there are {', '.join(known)}")
    return tuple(make(place, given))


def _caption(place: Workplace, given: Given) -> list[str]:
    name = given.get("output", "captions.jsonl")
    if not isinstance(name, str) or not _FILE_NAME.fullmatch(name):
        raise DataError(
            f"output is {name!r}: give the name of a file, such as captions.jsonl (or .csv, .txt, "
            ".json)"
        )
    method, count = (
        _choice(given, "method", _METHODS),
        _count(given, "num_captions", _MOST_CAPTIONS),
    )
    if method == "greedy" and count != "1":
        raise DataError(f"greedy decoding finds one caption, not {count}: choose beam or nucleus")
    # A search finds as many captions as it is wide.
    beams = ["--num-beams", count] if method == "beam" and int(count) > _BEAMS else []
    return [
        *("caption", place.collection),
        *("--model", _model(place, given, "model", "captions")),
        *("-o", str(place.output_folder / name)),
        *("--method", method),
        *beams,
        *("--num-captions", count),
    ]


def _capfilt(place: Workplace, given: Given) -> list[str]:
    if place.folder is not None:
        raise DataError(
            "CapFilt works on a pair table: import the folder with its texts first "
            "(`openblip data import FOLDER TABLE`)"
        )
    return [
        *("capfilt", "run", place.table),
        *("--captioner", _model(place, given, "captioner", "captions")),
        *("--filter", _model(place, given, "filter", "scores")),
        *("--num-captions", _count(given, "num_captions", _MOST_CAPTIONS)),
        *("--processes", _count(given, "processes", _MOST_PROCESSES)),
    ]


def _index(place: Workplace, given: Given) -> list[str]:
    if given.get("model") is None:
        return ["index", "update", place.collection]
    model = _model(place, given, "model", "embeddings")
    return ["index", "build", place.collection, "--model", model]


_KINDS: dict[str, tuple[Callable[[Workplace, Given], list[str]], tuple[str, ...]]] = {
    "caption": (_caption, ("model", "output", "method", "num_captions")),
    "capfilt": (_capfilt, ("captioner", "filter", "num_captions", "processes")),
    "index": (_index, ("model",)),
}


def _model(place: Workplace, given: Given, name: str, use: str) -> str:
    chosen = given.get(name)
    if not isinstance(chosen, str) or chosen not in place.models:
        raise DataError(
            f"{name} is {chosen!r}, none of the models that the studio was started with "
            f"({', '.join(place.models) or 'there is none'})"
        )
    model = place.models[chosen]
    if use not in model.uses():
        raise DataError(
            f"{name} is {chosen}, which was not trained for {use}: choose another, or start the "
            "studio with one"
        )
    return model.source


def _choice(given: Given, name: str, known: tuple[str, ...]) -> str:
    value = given.get(name, known[0])
    if value not in known:
        raise DataError(f"{name} is {value!r}, none of {', '.join(known)}")
    return str(value)


def _count(given: Given, name: str, most: int) -> str:
    value = given.get(name, 1)
    # Not `isinstance`: JSON's true is a bool, and that an int.
    if type(value) is not int or not 1 <= value <= most:
        raise DataError(f"{name} is {value!r}: give a whole number from 1 to {most}")
    return str(value)


def routes(studio: "Studio") -> list[Route]:
    """`/api/jobs` and what starts, stops and repeats one."""
    opened: Jobs | None = None
    lock = threading.Lock()

    def jobs() -> Jobs:
        nonlocal opened
        with lock:
            workplace = _workplace(studio)
            if opened is None:
                opened = Jobs(workplace)
            # Models may have come: a run has ended, or an index tells of its own.
            opened.workplace = workplace
            return opened

    def start(asked: Asked) -> dict[str, str]:
        given = asked.values.get("settings", {})
        if not isinstance(given, dict):
            raise Refused(400, "settings must be an object")
        return {"id": jobs().start(asked.text("kind"), given)}

    def stop(asked: Asked) -> dict[str, str]:
        jobs().stop(asked.text("id"))
        return {"id": asked.text("id")}

    def forms(asked: Asked) -> dict[str, Any]:
        # A job may have made the index.
        studio.refresh()
        return jobs().forms()

    return [
        get("/api/jobs", lambda asked: jobs().told()),
        get("/api/jobs/forms", forms),
        post("/api/jobs", start),
        post("/api/jobs/{id}/stop", stop),
        post("/api/jobs/{id}/again", lambda asked: {"id": jobs().again(asked.text("id"))}),
    ]


def _workplace(studio: "Studio") -> Workplace:
    place = studio.need_place()
    if place.folder is not None:
        table = str(place.folder / FOLDER_TABLE)
    else:
        # A later server may be started elsewhere.
        is_remote = is_object_address(place.name)
        table = place.name if is_remote else str(Path(place.name).absolute())
    return Workplace(
        table=table,
        folder=place.folder,
        models=_models(studio),
        indexed_by=place.index.model if place.index is not None else None,
    )


def _models(studio: "Studio") -> dict[str, OfferedModel]:
    """The models that the studio was given, and those that runs below its folder have made."""
    found = {}
    for role in ROLES:
        if (source := studio.models.source_of(role)) is not None:
            heads = declared_heads(source)
            found[f"{role}: {source}"] = OfferedModel(
                source, _GIVEN_FOR[role] if heads is None else heads
            )
    if studio.runs is not None:
        with suppress(TrainingError):
            for run in find_runs([studio.runs]):
                if (run / "checkpoints" / "last" / "model.safetensors").is_file():
                    heads = declared_heads(str(run))
                    found[f"run: {run.relative_to(studio.runs)}"] = OfferedModel(
                        str(run.absolute()), _ALL_HEADS if heads is None else heads
                    )
    return found
