"""How close a CapFilt job comes to its models alone, what a second worker adds, and its memory.

    python benchmarks/capfilt_throughput.py --output benchmarks/results/capfilt_throughput.md
    python benchmarks/capfilt_throughput.py --memory 1000 10000 100000

Rates are differences of two runs of the same command, over tables of n and 2 n rows, so that
imports and the loading of models count for nothing. The bare rate is that of the same batches, read
and decoded before, through the same two models in one process. One worker has one core, two have
two.
Every figure is taken `--rounds` times in turn; the table gives medians and ranges.
"""

import argparse
import io
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from openblip.batches.tokenizer import TextTokenizer
from openblip.capfilt.computer import CapFiltComputer
from openblip.capfilt.job import CapFiltJob, CapFiltSettings
from openblip.inference.blip import Blip
from openblip.inference.decoding import Decoding
from openblip.model import Med, MedConfig, TextConfig, VisionConfig
from openblip.table.columns import list_fragments
from openblip.table.table import PairRow, PairTable

BATCH = 16
WORDS = ("a", "photo", "of", "the", "red", "small", "dog", "cat", "house", "on", "under", "two")


def photograph(number: int, side: int) -> bytes:
    """A JPEG with structure at every scale, another one for each number."""
    generator = np.random.default_rng(number)
    pixels = np.zeros((side, side, 3), np.float32)
    for cells in (2, 5, 16, 64):
        coarse = generator.uniform(0, 255, (cells, cells, 3)).astype(np.uint8)
        pixels += np.asarray(Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC))
    file = io.BytesIO()
    Image.fromarray((pixels / 4).astype(np.uint8)).save(file, "JPEG", quality=85)
    return file.getvalue()


def rows(count: int, side: int, distinct: int = 256) -> Iterator[PairRow]:
    images = [photograph(number, side) for number in range(min(count, distinct))]
    for number in range(count):
        generator = np.random.default_rng(number)
        words = " ".join(generator.choice(WORDS, 10))
        yield PairRow(f"row-{number}", images[number % len(images)], captions=[words], origin="web")


def save_models(folder: Path, config: MedConfig, image_size: int) -> None:
    """Captioner and filter with fresh weights.

    Their vocabulary is that of `WORDS`: products with one of 30,524 tokens are not in their cost.
    """
    tokenizer = TextTokenizer.train([" ".join(WORDS)] * 4, 200)
    text = TextConfig(**{**vars(config.text), "vocab_size": tokenizer.vocab_size})
    vision = VisionConfig(**{**vars(config.vision), "image_size": image_size})
    torch.manual_seed(0)
    med = Med(MedConfig(vision=vision, text=text, embed_dim=config.embed_dim))
    for name in ("captioner", "filter"):
        Blip(med, tokenizer, "pretrain", image_size, 32).save(folder / name)


def settings(folder: Path) -> CapFiltSettings:
    return CapFiltSettings(
        captioner=str(folder / "captioner"),
        filter=str(folder / "filter"),
        # Fresh weights may end a caption anywhere: all get the same length.
        decoding=Decoding(method="nucleus", top_p=0.9, min_length=20, max_length=20),
        batch_size=BATCH,
    )


def bare_rate(folder: Path, table: str, seconds: float) -> float:
    """Images per second of the models alone, one thread, on batches that are in memory."""
    job = CapFiltJob.prepare(table, settings(folder))
    computer = CapFiltComputer(job, "cpu")
    opened = PairTable.open(table)
    fragment = list_fragments(opened, ())[0]
    batches = [
        computer.load(opened, fragment.number, range(start, start + BATCH))
        for start in range(0, min(4 * BATCH, fragment.num_rows), BATCH)
    ]
    torch.set_num_threads(1)
    computer.process(batches[0])
    done, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        done += computer.process(batches[(done // BATCH) % len(batches)]).num_rows
    return done / (time.perf_counter() - started)


def job_seconds(folder: Path, table: str, processes: int, cores: set[int]) -> tuple[float, float]:
    """Wall time of a job over a fresh copy of the table, and peak MB of its driver."""
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        copy = Path(scratch) / "pairs.lance"
        subprocess.run(["cp", "-r", table, str(copy)], check=True)
        script = (
            "import json, os, resource\n"
            "from benchmarks.capfilt_throughput import settings\n"
            "from pathlib import Path\n"
            "from openblip.capfilt.run import run_capfilt\n"
            "if __name__ == '__main__':\n"
            f"    os.sched_setaffinity(0, {cores!r})\n"
            f"    result = run_capfilt({str(copy)!r}, settings(Path({str(folder)!r})), "
            f"processes={processes})\n"
            "    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024\n"
            "    print(json.dumps([result.seconds, peak]))\n"
        )
        (Path(scratch) / "job.py").write_text(script)
        here = Path(__file__).resolve().parent.parent
        environment = {
            **os.environ,
            "PYTHONPATH": f"{here}:{here / 'src'}",
            "OMP_NUM_THREADS": "1",
        }
        out = subprocess.run(
            [sys.executable, str(Path(scratch) / "job.py")],
            check=True,
            stdout=subprocess.PIPE,
            env=environment,
        )
        seconds, peak = json.loads(out.stdout.splitlines()[-1])
        return seconds, peak


def throughput(folder: Path, count: int, rounds: int) -> str:
    save_models(folder, MedConfig.preset("small"), 224)
    tables = [str(folder / f"{n}.lance") for n in (count, 2 * count)]
    for table, n in zip(tables, (count, 2 * count), strict=True):
        PairTable.create(table, rows(n, 500))
    cores = sorted(os.sched_getaffinity(0))
    found: dict[str, list[float]] = {"bare": [], "one": [], "two": []}
    for number in range(rounds):
        os.sched_setaffinity(0, {cores[0]})
        found["bare"].append(bare_rate(folder, tables[0], 20.0))
        os.sched_setaffinity(0, set(cores))
        for name, processes, own in (("one", 1, {cores[0]}), ("two", 2, set(cores[:2]))):
            short, long = (job_seconds(folder, table, processes, own)[0] for table in tables)
            found[name].append(count / (long - short))
        print(
            f"round {number + 1}: { ({k: round(v[-1], 2) for k, v in found.items()}) }", flush=True
        )
    lines = [
        "# CapFilt: throughput of a job",
        "",
        "Captioner and filter of the small preset at 224 px, 500 px JPEG, batches of "
        f"{BATCH}, one thread a worker; {rounds} rounds, medians. "
        "Command: `python benchmarks/capfilt_throughput.py`",
        "",
        "| | images/s | range |",
        "| --- | ---: | ---: |",
        *(
            f"| {label} | {statistics.median(found[name]):.2f} | "
            f"{min(found[name]):.2f} to {max(found[name]):.2f} |"
            for name, label in (
                ("bare", "the two models alone, one core"),
                ("one", "a job with one worker, one core"),
                ("two", "a job with two workers, two cores"),
            )
        ),
    ]
    shares = [one / bare for one, bare in zip(found["one"], found["bare"], strict=True)]
    gains = [two / one for two, one in zip(found["two"], found["one"], strict=True)]
    lines += [
        "",
        f"One worker reaches {statistics.median(shares):.1%} of the models alone "
        f"({min(shares):.1%} to {max(shares):.1%}); two workers on two cores do "
        f"{statistics.median(gains):.2f} times as much as one on one ({min(gains):.2f} to "
        f"{max(gains):.2f}).",
    ]
    return "\n".join(lines)


def memory(folder: Path, counts: list[int]) -> str:
    tiny = MedConfig(
        vision=VisionConfig(image_size=16, patch_size=16, width=16, depth=1, heads=1),
        text=TextConfig(
            vocab_size=200, width=16, depth=1, heads=1, ffn_width=16, max_positions=32, dropout=0.0
        ),
        embed_dim=8,
    )
    save_models(folder, tiny, 16)
    lines = ["| rows | s | peak MB |", "| ---: | ---: | ---: |"]
    for count in counts:
        table = str(folder / f"{count}.lance")
        PairTable.create(table, rows(count, 16))
        seconds, peak = job_seconds(folder, table, 1, os.sched_getaffinity(0))
        lines.append(f"| {count:,} | {seconds:.0f} | {peak:.0f} |")
        print(lines[-1], flush=True)
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=192, help="rows of the shorter table")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", type=int, nargs="*", help="tables of so many rows instead")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        if arguments.memory:
            text = memory(Path(scratch), arguments.memory)
        else:
            text = throughput(Path(scratch), arguments.images, arguments.rounds)
    print(text)
    print(f"peak of this process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024} MB")
    if arguments.output:
        arguments.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
