"""Workers that units are handed to: in this process, in several of this machine, or Ray's.

The only file that touches Ray, which places its workers on the machines of a cluster.
"""

import multiprocessing
import os
import platform
import signal
import socket
import threading
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Protocol

from openblip.jobs.units import Event, Job, Unit, UnitDone, Waiting
from openblip.runtime.errors import (
    OpenBlipError,
    OpenBlipWarning,
    RecipeError,
    install_extra,
    tell_warnings,
)
from openblip.runtime.threads import num_usable_cores, wait_without_spinning

MAX_FAILED_STARTS = 5


@dataclass(frozen=True, kw_only=True)
class ThisMachine:
    """Where the workers run when they are processes of this machine."""

    processes: int | None = None
    """None: one for each GPU, or for each core where there is none. 1 is this process itself."""
    device: str | None = None
    """Of all of them, such as `cpu`; None: a GPU after the other, or the processor."""

    def __post_init__(self) -> None:
        if self.processes is not None and self.processes < 1:
            raise RecipeError(f"--processes {self.processes}: at least 1 process does the work")

    def devices(self) -> list[str]:
        """Where each process computes."""
        import torch

        gpus = torch.cuda.device_count() if self.device is None else 0
        alone = gpus or (1 if self.device not in (None, "cpu") else num_usable_cores())
        numbers = range(self.processes or alone)
        return [f"cuda:{number % gpus}" if gpus else self.device or "cpu" for number in numbers]

    def num_workers(self) -> int:
        """How many will share what all of them may ask for."""
        return len(self.devices())


@dataclass(frozen=True, kw_only=True)
class RayCluster:
    """Where the workers run when Ray places them."""

    address: str = "local"
    """Of a cluster, such as `auto` or `ray://head:10001`; "local" starts one on this machine."""
    workers: int | None = None
    """Most workers at a time; None takes all room that the cluster has, now or later."""
    gpus_per_worker: float | None = None
    """None: one where the cluster has GPUs, none elsewhere."""

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise RecipeError(f"--workers {self.workers}: at least 1 worker does the work")

    def num_workers(self) -> int:
        """As of `ThisMachine`; 1 where nobody knows."""
        return self.workers or 1


@dataclass(frozen=True)
class Died:
    """A worker is gone, with all that it had not saved."""

    reason: str


@dataclass(frozen=True)
class Report:
    """What a worker said: how its unit goes, the unit's end, an error; or its death."""

    worker: str
    """host:pid"""
    event: Event | OpenBlipError | Died


class Pool(Protocol):
    """Workers that have opened the job, as the driver sees them."""

    dies_with_driver: bool
    """Whether a worker's death is the driver's."""

    def size_hint(self) -> int:
        """About how many workers there will be."""
        ...

    def num_working(self) -> int:
        """Workers that have loaded what they compute with."""
        ...

    def idle(self, num_units: int) -> list[str]:
        """Workers without a unit; lost ones are replaced while there are units to hand out.

        Raises:
            OpenBlipError: no worker can be started.
        """
        ...

    def start(self, worker: str, unit: Unit) -> None:
        """Hand a unit to an idle worker."""
        ...

    def reports(self, seconds: float) -> Iterator[Report]:
        """What workers have said; waits for the first report, but no longer than `seconds`."""
        ...

    def kill(self, worker: str) -> None:
        """End a worker that does not report any more."""
        ...

    def close(self) -> None:
        """End all workers."""
        ...


def open_pool(job: Job, place: ThisMachine | RayCluster, save_seconds: float) -> Pool:
    """The workers of a job at a place, which begin to load.

    Args:
        job: what they are given.
        place: where they run.
        save_seconds: finished batches are saved so often; what a killed worker loses.

    Raises:
        OpenBlipError: there are no such workers, or the only one cannot begin.
    """
    if isinstance(place, RayCluster):
        return RayWorkers(job, place, save_seconds)
    devices = place.devices()
    if len(devices) == 1:
        return OneProcess(job, devices[0], save_seconds)
    return ManyProcesses(job, devices, save_seconds)


def _worker_name() -> str:
    """This process, as the ledger names it."""
    return f"{platform.node()}:{os.getpid()}"


class OneProcess:
    """The only worker, in the driver's own process."""

    dies_with_driver = True

    def __init__(self, job: Job, device: str, save_seconds: float) -> None:
        self._worker = job.open_worker(device, save_seconds, decode_threads(device, 1))
        self._unit: Unit | None = None

    def size_hint(self) -> int:
        """One."""
        return 1

    def num_working(self) -> int:
        """One."""
        return 1

    def idle(self, num_units: int) -> list[str]:
        """See `Pool.idle`."""
        return [] if self._unit else [_worker_name()]

    def start(self, worker: str, unit: Unit) -> None:
        """See `Pool.start`; `reports` computes it."""
        self._unit = unit

    def reports(self, seconds: float) -> Iterator[Report]:
        """Computes the unit; reports as it goes."""
        if self._unit is None:
            return
        try:
            for event in self._worker.compute(self._unit):
                if isinstance(event, UnitDone):
                    self._unit = None
                yield Report(_worker_name(), event)
        except OpenBlipError as error:
            self._unit = None
            yield Report(_worker_name(), error)

    def kill(self, worker: str) -> None:
        """Nobody else could."""

    def close(self) -> None:
        """See `Pool.close`."""
        self._worker.close()


class _Child:
    """A worker's process and the pipe to it."""

    def __init__(self, job: Job, device: str, save_seconds: float, threads: int) -> None:
        # Spawned, since neither CUDA nor the table's reader survives a fork.
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        # The child takes the environment over, and loads PyTorch before any of our code runs.
        wait_without_spinning()
        self.process: BaseProcess = context.Process(
            target=_serve, args=(job, device, save_seconds, threads, theirs), daemon=False
        )
        self.process.start()
        theirs.close()
        self.device = device
        self.name = f"{platform.node()}:{self.process.pid}"
        self.is_ready = False
        self.is_busy = False

    def receive(self) -> object:
        """The next message, or `Died`."""
        try:
            return self.connection.recv()
        except (EOFError, OSError):
            self.process.join(timeout=10)
            return Died(_exit_reason(self.process.exitcode))

    def end(self) -> None:
        """Kill it: whatever it has not saved is not worth waiting for."""
        self.process.kill()
        self.process.join()
        self.connection.close()


class ManyProcesses:
    """A worker for each device, each in a process of this machine."""

    dies_with_driver = False

    def __init__(self, job: Job, devices: Sequence[str], save_seconds: float) -> None:
        self._job, self._devices, self._save_seconds = job, list(devices), save_seconds
        self._children: dict[str, _Child] = {}
        self._warnings: set[str] = set()
        """What a child has warned of: each of the others will, too."""
        self._failed_starts = 0

    def size_hint(self) -> int:
        """One for each device."""
        return len(self._devices)

    def num_working(self) -> int:
        """See `Pool.num_working`."""
        return sum(child.is_ready for child in self._children.values())

    def idle(self, num_units: int) -> list[str]:
        """See `Pool.idle`."""
        free = list(self._devices)
        for child in self._children.values():
            free.remove(child.device)
        num_free = sum(not child.is_busy for child in self._children.values())
        threads = decode_threads(self._devices[0], len(self._devices))
        for device in free[: max(num_units - num_free, 0)]:
            child = _Child(self._job, device, self._save_seconds, threads)
            self._children[child.name] = child
        return [c.name for c in self._children.values() if c.is_ready and not c.is_busy]

    def start(self, worker: str, unit: Unit) -> None:
        """See `Pool.start`."""
        child = self._children[worker]
        child.is_busy = True
        # The death of a worker that has just died is reported like any other.
        with suppress(OSError):
            child.connection.send(unit)

    def reports(self, seconds: float) -> Iterator[Report]:
        """See `Pool.reports`."""
        children = {child.connection: child for child in self._children.values()}
        if not children:
            time.sleep(seconds)
            return
        for connection in wait(list(children), seconds):
            assert isinstance(connection, Connection)
            child = children[connection]
            event = child.receive()
            if event == "ready":
                child.is_ready, self._failed_starts = True, 0
            elif isinstance(event, Died):
                self.kill(child.name)
                if child.is_busy:
                    yield Report(child.name, event)
                elif not child.is_ready:
                    self._count_failed_start(event)
            elif isinstance(event, OpenBlipWarning):
                self._warn_once(event)
            else:
                child.is_busy = not isinstance(event, UnitDone | OpenBlipError)
                assert isinstance(event, int | Waiting | UnitDone | Counter | OpenBlipError)
                yield Report(child.name, event)

    def kill(self, worker: str) -> None:
        """See `Pool.kill`."""
        self._children.pop(worker).end()

    def close(self) -> None:
        """See `Pool.close`."""
        for child in self._children.values():
            child.end()
        self._children.clear()

    def _warn_once(self, warning: OpenBlipWarning) -> None:
        # Not left to the filters of `warnings`, which forget whenever anybody changes them.
        if str(warning) not in self._warnings:
            self._warnings.add(str(warning))
            warnings.warn(warning, stacklevel=2)

    def _count_failed_start(self, died: Died) -> None:
        self._failed_starts += 1
        if self._failed_starts >= MAX_FAILED_STARTS:
            raise OpenBlipError(
                f"{self._failed_starts} {self._job.kind.title} processes in a row died while they "
                f"loaded the models ({died.reason}): use fewer --processes, or look at the "
                "messages above"
            )


def decode_threads(device: str, sharing: int) -> int:
    """Threads that read and decode for one worker, of `sharing` on this machine.

    Beside a CPU that computes with one thread one decoding thread keeps up; a GPU needs more.
    """
    if device == "cpu":
        return 1
    return min(max((os.cpu_count() or 1) // sharing, 1), 8)


def _serve(
    job: Job, device: str, save_seconds: float, threads: int, connection: Connection
) -> None:
    # Ctrl-C reaches the whole process group; the parent ends its workers in order.
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    # Threads that decode warn, too, and two messages at once would be none.
    sending = threading.RLock()

    def send(event: object) -> None:
        with sending:
            connection.send(event)

    def tell(message: object) -> None:
        with suppress(OSError):  # the driver is gone
            send(message if isinstance(message, OpenBlipWarning) else OpenBlipWarning(message))

    tell_warnings(tell)
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):  # the driver is gone
        try:
            worker = job.open_worker(device, save_seconds, threads)
        except OpenBlipError as error:
            send(error)
            return
        send("ready")
        while True:
            unit = connection.recv()
            try:
                for event in worker.compute(unit):
                    send(event)
            except OpenBlipError as error:
                send(error)


def _exit_reason(code: int | None) -> str:
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        return f"{name}, often for want of memory" if name == "SIGKILL" else name
    return f"exit code {code}"


_MAX_CPUS = 8


class RayWorkers:
    """Actors, as many as are wanted and the cluster has room for; it may grow and shrink.

    One that cannot be placed waits in Ray's queue and starts when a machine joins; one that dies
    is asked for again.
    """

    dies_with_driver = False

    def __init__(self, job: Job, cluster: RayCluster, save_seconds: float) -> None:
        """Connects to the cluster, or starts one on this machine.

        Raises:
            OpenBlipError: Ray is not installed, or there is no such cluster.
        """
        self._job, self._cluster, self._save_seconds = job, cluster, save_seconds
        self._ray = _ray()
        self._connect()
        self._need = self._resources()
        self._pending: dict[Any, Any] = {}
        """Actors that are loading or wait for room, by the reference to their name."""
        self._actors: dict[str, _Actor] = {}
        self._failed_starts = 0

    def size_hint(self) -> int:
        """The number that was asked for, or what the cluster has room for now."""
        return self._cluster.workers or max(self._room(), 1)

    def num_working(self) -> int:
        """See `Pool.num_working`."""
        return len(self._actors)

    def idle(self, num_units: int) -> list[str]:
        """See `Pool.idle`."""
        free = [name for name, actor in self._actors.items() if actor.stream is None]
        wanted = min(num_units - len(free), self._wanted()) - len(self._pending)
        for _ in range(wanted):
            actor = self._new_actor()
            self._pending[actor.name.remote()] = actor
        return free

    def start(self, worker: str, unit: Unit) -> None:
        """See `Pool.start`."""
        actor = self._actors[worker]
        actor.stream = actor.handle.compute.options(num_returns="streaming").remote(unit)

    def reports(self, seconds: float) -> Iterator[Report]:
        """See `Pool.reports`."""
        busy = {a.stream: name for name, a in self._actors.items() if a.stream is not None}
        waiting = [*self._pending, *busy]
        if not waiting:
            time.sleep(seconds)
            return
        ready, _ = self._ray.wait(waiting, num_returns=1, timeout=seconds, fetch_local=False)
        if ready:  # what else has been said meanwhile
            ready, _ = self._ray.wait(
                waiting, num_returns=len(waiting), timeout=0, fetch_local=False
            )
        for reference in ready:
            if reference in self._pending:
                yield from self._started(reference)
            else:
                yield from self._said(busy[reference], reference)

    def kill(self, worker: str) -> None:
        """See `Pool.kill`."""
        self._ray.kill(self._actors.pop(worker).handle)

    def close(self) -> None:
        """See `Pool.close`; a cluster that was started here ends with its workers."""
        for handle in [*self._pending.values(), *(a.handle for a in self._actors.values())]:
            self._ray.kill(handle)
        self._pending.clear()
        self._actors.clear()
        self._ray.shutdown()

    def _connect(self) -> None:
        address = self._cluster.address
        # Ray would print the workers' output among ours; what matters comes as a report.
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
        if address == "local":
            options["include_dashboard"] = False
            options["num_cpus"] = self._cluster.workers
        # The driver's own choice of GPUs is none of Ray's business when workers need none.
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        try:
            _check_reachable(address)
            with warnings.catch_warnings():
                # Lance warns of forks; these become Ray's own programs at once.
                warnings.filterwarnings("ignore", "lance is not fork-safe")
                self._ray.init(address=address, **options)
        except (OSError, RuntimeError, ValueError) as error:
            raise OpenBlipError(
                f"no Ray cluster at {address!r} ({error}): start one with `ray start --head`, or "
                "give --ray local"
            ) from error

    def _resources(self) -> dict[str, float]:
        have = self._ray.cluster_resources()
        gpus = self._cluster.gpus_per_worker
        if gpus is None:
            gpus = 1.0 if have.get("GPU") else 0.0
        if not gpus:
            return {"CPU": 1.0}
        # Decoding threads for a GPU: its share of the cores.
        share = int(have.get("CPU", 1) * gpus / max(have.get("GPU", 1), gpus))
        return {"CPU": float(min(max(share, 1), _MAX_CPUS)), "GPU": gpus}

    def _room(self) -> int:
        """Workers that the whole cluster holds, as it is now."""
        have = self._ray.cluster_resources()
        return int(min(have.get(name, 0.0) / amount for name, amount in self._need.items()))

    def _wanted(self) -> int:
        """Workers that should be on their way besides those that are here."""
        most = self._cluster.workers
        if most is None:
            # One more than there is room for: it starts when a machine joins.
            most = self._room() + 1
        return most - len(self._actors)

    def _new_actor(self) -> Any:
        remote = self._ray.remote(_RayWorker).options(
            num_cpus=self._need["CPU"],
            num_gpus=self._need.get("GPU", 0),
            max_restarts=0,
            runtime_env={"env_vars": wait_without_spinning()},
        )
        device = "cuda" if self._need.get("GPU") else "cpu"
        threads = int(self._need["CPU"]) if device == "cuda" else 1
        return remote.remote(self._job, device, self._save_seconds, threads)

    def _started(self, reference: Any) -> Iterator[Report]:
        handle = self._pending.pop(reference)
        try:
            name = self._ray.get(reference)
        except self._ray.exceptions.RayError as error:
            self._ray.kill(handle)
            event = _event(error)
            if not isinstance(event, Died):
                yield Report("", event)
                return
            self._failed_starts += 1
            if self._failed_starts >= MAX_FAILED_STARTS + self.size_hint():
                raise OpenBlipError(
                    f"{self._failed_starts} {self._job.kind.title} workers in a row could not "
                    f"start on the Ray cluster, the last for: {event.reason}"
                ) from error
        else:
            self._actors[name] = _Actor(handle)
            self._failed_starts = 0

    def _said(self, worker: str, stream: Any) -> Iterator[Report]:
        try:
            event = self._ray.get(next(stream))
        except StopIteration:
            return
        except self._ray.exceptions.RayError as error:
            event = _event(error)
            if isinstance(event, Died):
                self.kill(worker)
            else:
                self._actors[worker].stream = None
        else:
            if isinstance(event, UnitDone):
                self._actors[worker].stream = None
        yield Report(worker, event)


@dataclass
class _Actor:
    handle: Any
    stream: Any = None
    """What it says of its unit; None while it has none."""


class _RayWorker:
    """The actor: a worker in a process of Ray's."""

    def __init__(self, job: Job, device: str, save_seconds: float, threads: int) -> None:
        self._worker = job.open_worker(device, save_seconds, threads)

    def name(self) -> str:
        return _worker_name()

    def compute(self, unit: Unit) -> Iterator[Event]:
        yield from self._worker.compute(unit)


def _event(error: Exception) -> OpenBlipError | Died:
    """What went wrong in an actor: an error of ours, or the end of the actor."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, OpenBlipError):
        return cause
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return Died(f"{type(error).__name__}: {lines[-1].strip()}")


def _check_reachable(address: str) -> None:
    """Ray itself tries a wrong address for many minutes."""
    host, _, port = address.rpartition(":")
    if port.isdigit() and "://" not in address:
        socket.create_connection((host, int(port)), timeout=10).close()


def _ray() -> Any:
    try:
        import ray
        import ray.exceptions
    except ImportError as error:
        raise OpenBlipError(
            f"Ray is not installed: leave out --ray, or {install_extra('ray')}"
        ) from error
    return ray
