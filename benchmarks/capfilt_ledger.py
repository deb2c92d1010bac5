"""Driver and ledger of a CapFilt job at size, without computing: a simulated run.

    python benchmarks/capfilt_ledger.py --fragments 100000 --rows 1000
    python benchmarks/capfilt_ledger.py --resume

The first form makes a table of that many fragments (all of them name one small file, so that it
takes no room) and runs a job on it with workers that answer at once. Planning, dispatch, ledger,
checksums and commit are the real ones. It stops the driver half-way and starts it again.

The second form makes a table of a million rows with small images and tiny models, kills a real job
after it has saved its first pieces, and takes the time from the start of the same command to the
first batch that it finishes.
"""

import argparse
import hashlib
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from openblip.batches.tokenizer import TextTokenizer
from openblip.capfilt.job import (
    CAPFILT,
    NEW_COLUMNS,
    CapFiltJob,
    CapFiltSettings,
    column_schema,
)
from openblip.inference.blip import Blip
from openblip.jobs.columns import TableColumns
from openblip.jobs.ledger import Ledger
from openblip.jobs.pools import Report
from openblip.jobs.run import Run
from openblip.jobs.units import Pieces, Result, Unit, UnitDone
from openblip.model import Med, MedConfig, TextConfig, VisionConfig
from openblip.table.columns import encode_columns
from openblip.table.table import PairTable, lance_library
from openblip.world import WorldConfig, build_world

WORKERS = 64


def make_table(folder: Path, fragments: int, rows: int) -> str:
    """A table whose fragments all name one file of `rows` rows."""
    lance = lance_library()
    world = list(
        build_world(WorldConfig(seed=0, web_rows=64, human_rows=1, val_rows=1, test_rows=1))
    )
    images = [row for row in world if row.origin == "web"]
    table = PairTable.create(
        folder / "pairs.lance",
        (replace(images[n % len(images)], id=str(n)) for n in range(rows)),
    )
    metadata = table.dataset.get_fragments()[0].metadata
    operation = lance.LanceOperation.Append([metadata] * (fragments - 1))
    lance.LanceDataset.commit(table.dataset, operation, read_version=table.version)
    return table.uri


def make_models(folder: Path) -> CapFiltSettings:
    """Two tiny models with random weights."""
    tokenizer = TextTokenizer.train(["a picture of a red square"], 100)
    text = TextConfig(
        vocab_size=tokenizer.vocab_size, width=16, depth=1, heads=2, ffn_width=32, max_positions=48
    )
    vision = VisionConfig(image_size=32, patch_size=16, width=16, depth=1, heads=2)
    torch.manual_seed(0)
    for kind in ("captioner", "filter"):
        med = Med(MedConfig(vision=vision, text=text, embed_dim=8))
        Blip(med, tokenizer, kind, 32, 32).save(folder / kind)
    return CapFiltSettings(captioner=str(folder / "captioner"), filter=str(folder / "filter"))


def simulated_result(table: PairTable, rows: int) -> Result:
    """Of every fragment: one file with nothing in its columns."""
    import pyarrow as pa

    schema = column_schema(NEW_COLUMNS)
    columns = pa.table({f.name: pa.nulls(rows, f.type) for f in schema}, schema=schema)
    content = encode_columns(table, columns)
    Path(table.uri, "data", "simulated.lance").write_bytes(content)
    checksum = hashlib.sha256(content).hexdigest()
    return Result("simulated.lance", len(content), checksum, rows, 0, used_pieces=False)


class SimulatedPool:
    """Workers of any job that have a unit's result at once, and are stopped after so many."""

    dies_with_driver = False

    def __init__(self, result_of: Callable[[Unit], Result], stop_after: int | None) -> None:
        self._result_of, self._left = result_of, stop_after
        self._units: dict[str, Unit] = {}

    def size_hint(self) -> int:
        return WORKERS

    def num_working(self) -> int:
        return WORKERS

    def idle(self, num_units: int) -> list[str]:
        return [name for n in range(WORKERS) if (name := f"node:{n}") not in self._units]

    def start(self, worker: str, unit: Unit) -> None:
        self._units[worker] = unit

    def reports(self, seconds: float) -> Iterator[Report]:
        for worker, unit in list(self._units.items()):
            yield Report(worker, unit.num_rows)
            del self._units[worker]
            yield Report(worker, UnitDone(self._result_of(unit)))
            if self._left is not None:
                self._left -= 1
                if self._left <= 0:
                    raise KeyboardInterrupt

    def kill(self, worker: str) -> None: ...

    def close(self) -> None: ...


def megabytes() -> float:
    """Largest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def timed(name: str, function: Any) -> Any:
    """What a function gives; its time on the clock and of a core are printed."""
    start, used = time.perf_counter(), time.process_time()
    value = function()
    seconds, used = time.perf_counter() - start, time.process_time() - used
    print(f"| {name} | {seconds:.1f} | {used:.1f} | {megabytes():.0f} |", flush=True)
    return value


def simulate(folder: Path, fragments: int, rows: int) -> None:
    settings = make_models(folder)
    uri = make_table(folder, fragments, rows)
    print(f"{fragments:,} fragments of {rows:,} rows; memory before: {megabytes():.0f} MB\n")
    print("| step | s | s of a core | peak MB |\n| --- | ---: | ---: | ---: |")
    job = CapFiltJob.prepare(uri, settings)
    table = PairTable.open(uri)
    target = TableColumns(job)
    result = simulated_result(table, rows)

    def pool(stop_after: int | None) -> SimulatedPool:
        return SimulatedPool(lambda unit: result, stop_after)

    run = Run(job, target, lambda: pool(fragments // 2))
    timed("planning: open the table, list its fragments, read the ledger", run.look)

    def stopped() -> None:
        with suppress(KeyboardInterrupt):
            run.complete()

    timed("hand out, take back and record half of the fragments", stopped)
    again = timed(
        "a new driver: plan, with half of the fragments on record",
        lambda: Run(job, target, lambda: pool(None)),
    )
    timed("what is missing", again.look)

    timed("the other half, checksums of all, one commit", again.complete)
    ledger = timed("read the ledger of the finished job", lambda: Ledger(job.folder, CAPFILT.title))
    assert ledger.counts()["done"] == fragments
    files = list(Path(CAPFILT.folder(uri)).rglob("*-*"))
    size = sum(file.stat().st_size for file in files if file.is_file()) / 1e6
    print(f"\nLedger of the finished job: {size:.1f} MB on disk.")


def resume(folder: Path) -> None:
    settings = make_models(folder)
    uri = make_table(folder, 64, 15625)
    job = CapFiltJob.prepare(uri, settings)
    words = [sys.executable, "-m", "openblip", "capfilt", "run", uri, "--processes", "1"]
    words += ["--captioner", settings.captioner, "--filter", settings.filter, "--save-seconds", "0"]
    pieces = Pieces(job.folder)

    def finished() -> int:
        return sum(len(batches) for batches in pieces.all_finished().values())

    def start_until(batches: int) -> float:
        start = time.perf_counter()
        process = subprocess.Popen(words, stderr=subprocess.DEVNULL, env=os.environ)
        while finished() < batches:
            time.sleep(0.02)
        seconds = time.perf_counter() - start
        process.send_signal(signal.SIGKILL)
        process.wait()
        return seconds

    first = start_until(100)
    times = [start_until(finished() + 1) for _ in range(3)]
    print(f"{len(PairTable.open(uri)):,} rows; first 100 batches after {first:.1f} s; killed;")
    print("start to the next finished batch: " + ", ".join(f"{t:.1f} s" for t in times))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--fragments", type=int, default=100_000)
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--resume", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if arguments.resume:
            resume(Path(folder))
        else:
            simulate(Path(folder), arguments.fragments, arguments.rows)


if __name__ == "__main__":
    main()
