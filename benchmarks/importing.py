"""What an import by several workers gives, and what its driver needs at size.

    python benchmarks/importing.py tars --workers 1 2     # 500-px JPEG, images/s
    python benchmarks/importing.py driver                 # 10,000 shards, 100 million rows

The first form makes tars of images in the layout of WebDataset and imports them by each number of
workers in turn, several times; it prints the median. The times are those of whole imports, with
the start of the processes.

The second form writes the results that workers would have left for that many shards, and lets the
real driver hand out, record, merge and commit them. It stops half-way and starts again. The images
are not there: nothing is read from the table but its ids.
"""

import argparse
import hashlib
import io
import json
import os
import platform
import resource
import statistics
import tarfile
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from openblip.jobs.run import Run
from openblip.jobs.units import Result
from openblip.sources.checking import ImportSettings, Outcome
from openblip.sources.importing import checks_of, import_pairs
from openblip.sources.sharded import ImportJob, ImportTarget, Merged, ShardResult, _Counts
from openblip.sources.source import Shard, SourceOptions
from openblip.sources.tars import TarSource
from openblip.table.table import PairTable

_SIZE, _QUALITY = (500, 375), 90
# Fragments of 128 MB in a shard of 10,000 images of 50 kB.
_FRAGMENTS = 4


def photograph(rng: np.random.Generator) -> bytes:
    """A JPEG of about 50 kB, as one of a photograph: large shapes, and some grain."""
    shapes = Image.fromarray(rng.integers(0, 256, size=(12, 16, 3), dtype=np.uint8))
    pixels = np.asarray(shapes.resize(_SIZE, Image.Resampling.BICUBIC), dtype=np.float32)
    grain = rng.normal(0, 6, size=pixels.shape)
    stream = io.BytesIO()
    image = Image.fromarray(np.clip(pixels + grain, 0, 255).astype(np.uint8))
    image.save(stream, "JPEG", quality=_QUALITY)
    return stream.getvalue()


def make_tars(folder: Path, num_tars: int, num_images: int) -> int:
    """Tars with an image, a text and a record for each key; their bytes."""
    rng = np.random.default_rng(0)
    pictures = [photograph(rng) for _ in range(64)]
    folder.mkdir()
    for tar in range(num_tars):
        with tarfile.open(folder / f"{tar:05d}.tar", "w") as file:
            for number in range(num_images):
                key, text = f"{tar:05d}{number:05d}", f"a text of image {number}"
                record = json.dumps({"url": f"https://example.org/{key}.jpg", "caption": text})
                for ending, content in (
                    ("jpg", pictures[number % len(pictures)]),
                    ("txt", text.encode()),
                    ("json", record.encode()),
                ):
                    info = tarfile.TarInfo(f"{key}.{ending}")
                    info.size = len(content)
                    file.addfile(info, io.BytesIO(content))
    return sum(path.stat().st_size for path in folder.iterdir())


def tars(folder: Path, num_tars: int, num_images: int, workers: list[int], repeats: int) -> None:
    size, total = make_tars(folder / "tars", num_tars, num_images), num_tars * num_images
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, load "
        f"{os.getloadavg()[0]:.1f} before; {num_tars} tars of {num_images} images of 500 x 375, "
        f"{size / total / 1e3:.0f} kB each, median of {repeats}\n"
    )
    print("| workers | s | images/s | images/s of a worker | over one | ms of a core, an image |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: |")
    times: dict[int | None, list[float]] = {n: [] for n in (None, *workers)}
    used: dict[int | None, list[float]] = {n: [] for n in (None, *workers)}
    # In turn, so that what else the machine does meets all of them.
    for turn in range(repeats):
        for number in times:
            began, cores = time.perf_counter(), core_seconds()
            uri = folder / f"{number}-{turn}.lance"
            report = import_pairs(folder / "tars", uri, processes=number, show_progress=False)
            times[number].append(time.perf_counter() - began)
            used[number].append(core_seconds() - cores)
            assert report.num_rows == total
    one = statistics.median(times[workers[0]])
    for number, several in times.items():
        seconds = statistics.median(several)
        name = "without --processes" if number is None else str(number)
        rate = total / seconds
        each = "" if number is None else f"{rate / number:.0f}"
        cost = 1000 * statistics.median(used[number]) / total
        print(
            f"| {name} | {seconds:.1f} | {rate:.0f} | {each} | {one / seconds:.2f} | {cost:.2f} |"
        )


def core_seconds() -> float:
    """Time of a core that this process and those that it has started and ended have taken."""
    both = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return sum(usage.ru_utime + usage.ru_stime for usage in both)


def simulated_results(job: ImportJob, rows: int) -> dict[int, Result]:
    """Files as workers write them; ids are random."""
    rng = np.random.default_rng(0)
    counts = _Counts()
    for n in range(rows):
        where = f"00000.tar: {n:09d}"
        counts.add(Outcome(where, 3, row_id=f"{n:09d}", split="train", num_captions=1))
    outcomes = counts.outcomes()
    found = {}
    for number in range(len(job.shards)):
        fragments = [
            {
                "id": 0,
                "files": [_file(job.table_uri, f"{number:08d}-{place}")],
                "physical_rows": rows // _FRAGMENTS,
                "deletion_file": None,
                "row_id_meta": None,
            }
            for place in range(_FRAGMENTS)
        ]
        ids = rng.integers(0, 1 << 64, size=rows, dtype=np.uint64)
        result = ShardResult(json.dumps(fragments), counts.report, None, ids, ids, outcomes)
        name, data = f"simulated-{number:08d}.zip", result.to_bytes()
        Path(job.results.uri).mkdir(parents=True, exist_ok=True)
        # Not forced to the disk, which is no part of what is measured.
        Path(job.results.uri, name).write_bytes(data)
        checksum = hashlib.sha256(data).hexdigest()
        found[number] = Result(name, len(data), checksum, rows, 0, False)
    return found


def _file(uri: str, name: str) -> dict[str, Any]:
    Path(uri, "data").mkdir(exist_ok=True)
    Path(uri, "data", f"simulated-{name}.lance").touch()
    # A column of texts has a field for its items.
    columns = list(range(9))
    return {
        "fields": [0, 1, 2, 3, 4, 6, 7, 8, 9],
        "column_indices": columns,
        "file_major_version": 2,
        "file_minor_version": 2,
        "file_size_bytes": 128 << 20,
        "base_id": None,
        "path": f"simulated-{name}.lance",
    }


def driver(folder: Path, num_shards: int, rows: int) -> None:
    options, uri = SourceOptions(), str(folder / "pairs.lance")
    shards = tuple(
        Shard(f"{n:05d}.tar", {"shard": f"/crawl/{n:05d}.tar"}, rows * 50_000, "")
        for n in range(num_shards)
    )
    settings = ImportSettings(
        source="/crawl",
        format=None,
        origin=None,
        split=None,
        store="bytes",
        ids="key",
        options=options,
    )
    source = TarSource([], options)
    job = ImportJob(uri, source, shards, checks_of(settings, source), again=False)
    PairTable.open_or_create(uri)
    results = simulated_results(job, rows)
    # Only here: workers of the other form, which begin by loading this file, need no PyTorch.
    from capfilt_ledger import SimulatedPool, megabytes, timed

    print(f"{num_shards:,} shards of {rows:,} rows; memory before: {megabytes():.0f} MB\n")
    print("| step | s | s of a core | peak MB |\n| --- | ---: | ---: | ---: |")

    def publish(merged: Merged) -> None:
        assert merged.table is not None
        commit = merged.table.append_written
        timed(
            f"one commit of {len(merged.fragments):,} fragments",
            lambda: commit(merged.fragments, merged.ids, {"report": merged.report.to_json()}),
        )

    def run(stop_after: int | None) -> Run:
        pool = SimulatedPool(lambda unit: results[unit.part], stop_after)
        return Run(job, ImportTarget(job, publish), lambda: pool)

    def stopped() -> None:
        with suppress(KeyboardInterrupt):
            run(num_shards // 2).complete()

    timed("hand out, take back and record half of the shards", stopped)
    again = timed("a new driver, with half of the shards on record", lambda: run(None))
    timed("the rest: the other half, ids of all, checksums, commit", again.complete)
    table = timed("open the table", lambda: PairTable.open(uri))
    assert len(table) == num_shards * (rows // _FRAGMENTS) * _FRAGMENTS
    size = sum(path.stat().st_size for path in Path(f"{uri}.import").rglob("*") if path.is_file())
    print(f"\nResults and ledger, until the commit: {size / 1e6:.0f} MB on disk.")


def main() -> None:
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(dest="command", required=True)
    of_tars = commands.add_parser("tars")
    of_tars.add_argument("--tars", type=int, default=8)
    of_tars.add_argument("--images", type=int, default=1000)
    of_tars.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    of_tars.add_argument("--repeats", type=int, default=3)
    of_driver = commands.add_parser("driver")
    of_driver.add_argument("--shards", type=int, default=10_000)
    of_driver.add_argument("--rows", type=int, default=10_000)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if asked.command == "tars":
            tars(Path(folder), asked.tars, asked.images, asked.workers, asked.repeats)
        else:
            driver(Path(folder), asked.shards, asked.rows)


if __name__ == "__main__":
    main()
