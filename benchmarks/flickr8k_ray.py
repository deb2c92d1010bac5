"""A CapFilt job on photographs with Ray workers, one of them killed half-way.

    DATA=FOLDER openblip compare benchmarks/flickr8k.yaml -o flickr8k --seeds 0
    python benchmarks/flickr8k_ray.py flickr8k/stages/capfilt-*/pairs.lance

Takes a copy of a table of that comparison, whose columns one process wrote, back to what it was
before CapFilt; runs the same job on it with Ray workers; kills one of them with SIGKILL when
half of the rows are done; and compares every value of every column.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from openblip.capfilt.job import METADATA_KEY, NEW_COLUMNS
from openblip.table.table import PairTable


def status(table: Path) -> dict[str, object]:
    command = [sys.executable, "-m", "openblip", "capfilt", "status", str(table), "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    return json.loads(done.stdout) if done.returncode == 0 and done.stdout else {}


def ray_workers() -> list[int]:
    """Processes of this machine in which Ray runs a worker of CapFilt."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            words = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if words.startswith(b"ray::") and b"Worker" in words:
            found.append(int(folder.name))
    return found


def run_and_kill(table: Path, settings: dict[str, object], workers: int) -> tuple[int, int, float]:
    """Rows done when a worker was killed, its process, and the seconds of the whole job."""
    captioner = settings["captioners"] if "captioners" in settings else [settings["captioner"]]
    decoding = settings["decoding"]
    command = [
        *(sys.executable, "-m", "openblip", "capfilt", "run", str(table)),
        *("--captioner", *map(str, captioner), "--filter", str(settings["filter"])),
        *("--method", str(decoding["method"]), "--top-p", str(decoding["top_p"])),
        *("--max-length", str(decoding["max_length"]), "--min-length", str(decoding["min_length"])),
        *("--prompt", str(settings["prompt"]), "--batch-size", str(settings["batch_size"])),
        *("--seed", str(settings["seed"]), "--ray", "local", "--workers", str(workers)),
    ]
    started = time.perf_counter()
    job = subprocess.Popen(command)
    half = len(PairTable.open(table)) // 2
    killed, at = 0, 0
    while job.poll() is None and not killed:
        time.sleep(2)
        at = int(status(table).get("rows_done", 0))
        if at >= half and (found := ray_workers()):
            killed = found[0]
            os.kill(killed, signal.SIGKILL)
    if job.wait():
        raise SystemExit(f"the job ended with exit code {job.returncode}")
    return at, killed, time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tables", type=Path, nargs="+", help="the first one is taken")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    single = arguments.tables[0]
    copy = single.with_name("ray.lance")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.rmtree(f"{copy}.capfilt", ignore_errors=True)
    shutil.copytree(single, copy)
    table = PairTable.open(copy)
    settings = json.loads(table.metadata[METADATA_KEY])
    table.drop_columns(list(NEW_COLUMNS))
    table.update_metadata({METADATA_KEY: None})
    at, killed, seconds = run_and_kill(copy, settings, arguments.workers)
    tables = [PairTable.open(uri) for uri in (single, copy)]
    rows = list(range(len(tables[0])))
    first, second = (each.take(rows, ["id", *NEW_COLUMNS]) for each in tables)
    equal = first.equals(second)
    text = (
        f"{len(rows):,} rows, {arguments.workers} Ray workers, one (process {killed}) killed by "
        f"SIGKILL when {at:,} rows were done; {seconds:.0f} s. Every value of the "
        f"{len(NEW_COLUMNS)} columns {'equals' if equal else 'DOES NOT EQUAL'} that of the job "
        "without Ray.\n"
    )
    print(text)
    if arguments.output:
        arguments.output.write_text(text)
    if not (equal and killed):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
