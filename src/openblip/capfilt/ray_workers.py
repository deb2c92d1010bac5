"""Workers that Ray places on the machines of a cluster; the only file that touches Ray."""

import os
import socket
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from openblip.capfilt.job import CapFiltJob
from openblip.capfilt.pool import MAX_FAILED_STARTS, Died, RayCluster, Report, worker_name
from openblip.capfilt.units import Unit, UnitDone
from openblip.capfilt.worker import Worker
from openblip.errors import OpenBlipError, install_extra
from openblip.threads import wait_without_spinning

_MAX_CPUS = 8


class RayWorkers:
    """Actors, as many as are wanted and the cluster has room for; it may grow and shrink.

    One that cannot be placed waits in Ray's queue and starts when a machine joins; one that dies
    is asked for again.
    """

    dies_with_driver = False

    def __init__(self, job: CapFiltJob, cluster: RayCluster, save_seconds: float) -> None:
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
                    f"{self._failed_starts} CapFilt workers in a row could not start on the Ray "
                    f"cluster, the last for: {event.reason}"
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
    """The actor: a `Worker` in a process of Ray's."""

    def __init__(self, job: CapFiltJob, device: str, save_seconds: float, threads: int) -> None:
        self._worker = Worker(job, device, save_seconds=save_seconds, decode_threads=threads)

    def name(self) -> str:
        return worker_name()

    def compute(self, unit: Unit) -> Iterator[int | UnitDone]:
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
