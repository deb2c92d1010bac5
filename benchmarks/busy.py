"""What other work on the cores costs: three workloads beside 0, 1 and 2 busy loops.

    python benchmarks/busy.py --output benchmarks/results/busy.md

Each figure is that of a process of its own: the demo's training, captions by BLIP-base of one image
and of eight at a time, and a CapFilt worker with the demo's sizes. "Spinning" is OpenMP's default,
which a user gets back by setting it; "briefly" is what the `openblip` command sets for itself, and
"sleeping" what it sets for workers that share a machine. They take turns.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

# Before PyTorch is loaded, as the command does; the parent gives "spinning" by a variable.
from openblip.runtime.threads import spin_briefly

spin_briefly()

WORK = {
    "train": "training the demo's model (pairs/s)",
    "caption": "captions of BLIP-base, 384 px, beam 3, one image at a time (images/s)",
    "captions": "the same, eight at a time (images/s)",
    "capfilt": "CapFilt worker, the demo's sizes (images/s)",
}
WAITING = {
    # The default of GNU's OpenMP, and LLVM's in milliseconds.
    "spinning": {"GOMP_SPINCOUNT": "300000", "KMP_BLOCKTIME": "200"},
    "briefly": {},
    "sleeping": {"GOMP_SPINCOUNT": "0", "KMP_BLOCKTIME": "0"},
}
BUSY = (0, 1, 2)


def train(folder: Path, seconds: float) -> float:
    """Trains until the time is over; the first reports are of a cold start."""
    run_dir = Path(tempfile.mkdtemp(dir=folder))
    threads = os.environ.get("BUSY_THREADS", "None")
    script = (
        "from dataclasses import replace\n"
        "from openblip.world.demo import world_pretrain\n"
        "from openblip.training.run import train\n"
        f"recipe = world_pretrain({str(folder / 'pairs.lance')!r})\n"
        f"loop = replace(recipe.train, steps=100_000, log_every=1, threads={threads})\n"
        f"train(replace(recipe, train=loop), {str(run_dir)!r}, quiet=True)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script])
    metrics = run_dir / "metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and metrics.read_text().count("\n") > 3):
        time.sleep(0.1)
    cold = metrics.read_text().count("\n")
    began = time.perf_counter()
    while process.poll() is None and time.perf_counter() - began < seconds:
        time.sleep(0.1)
    process.kill()
    process.wait()
    lines = [json.loads(line) for line in metrics.read_text().splitlines()[cold - 1 :]]
    rates = [line["pairs_per_second"] for line in lines if line.get("kind") == "train"]
    return statistics.harmonic_mean(rates)


def caption(folder: Path, seconds: float, images: int = 1) -> float:
    """Captions some random images, again and again; of a vocabulary as large as a real one."""
    import torch

    import inference
    from openblip.inference.decoding import Decoding

    torch.set_num_threads(int(os.environ.get("BUSY_THREADS", torch.get_num_threads())))
    med, decoding = inference.make_med("base", 384), Decoding(**inference.BEAM)
    batch = torch.randn(images, 3, 384, 384, generator=torch.Generator().manual_seed(0))
    inference.caption(med, batch, decoding)
    done, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        inference.caption(med, batch, decoding)
        done += images
    return done / (time.perf_counter() - began)


def captions(folder: Path, seconds: float) -> float:
    return caption(folder, seconds, images=8)


def capfilt(folder: Path, seconds: float) -> float:
    """The batches of a CapFilt job, read before."""
    from capfilt_throughput import bare_rate

    return bare_rate(folder, str(folder / "web.lance"), seconds)


def prepare(folder: Path) -> None:
    """Tables and models that the workloads share."""
    from capfilt_throughput import rows, save_models
    from openblip.table.table import PairTable
    from openblip.world import create_world
    from openblip.world.demo import WORLD, world_pretrain

    create_world(folder / "pairs.lance", replace(WORLD, web_rows=600, human_rows=150))
    PairTable.create(folder / "web.lance", rows(256, 64))
    save_models(folder, world_pretrain("").model, 64)


@contextmanager
def busy_loops(number: int) -> Iterator[None]:
    """Programs beside the measured one, each of which would take a core."""
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(number)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def measured(folder: Path, work: str, number: int, waiting: str, seconds: float) -> float:
    """The rate of a workload in a process of its own beside so many busy loops."""
    environment = {**os.environ, **WAITING[waiting]}
    command = [sys.executable, __file__, "--child", work, "--folder", str(folder)]
    with busy_loops(number):
        done = subprocess.run(
            [*command, "--seconds", str(seconds)],
            check=True,
            text=True,
            stdout=subprocess.PIPE,
            env=environment,
        )
    return float(done.stdout.split()[-1])


def table(
    found: dict[tuple[str, int, str], list[float]], beside: Sequence[int] = BUSY
) -> list[str]:
    """Medians, and each beside the idle rate of the same row."""
    lines = ["| work | waiting | " + " | ".join(f"beside {n}" for n in beside) + " |"]
    lines += ["| --- | --- |" + " ---: |" * len(beside)]
    for work, title in WORK.items():
        for waiting in WAITING:
            rates = [found[work, number, waiting] for number in beside]
            if not all(rates):
                continue
            idle = statistics.median(rates[0])
            cells = [
                f"{statistics.median(values):.3g} ({min(values):.3g} to {max(values):.3g}), "
                f"{statistics.median(values) / idle:.0%}"
                for values in rates
            ]
            lines.append(f"| {title} | {waiting} | " + " | ".join(cells) + " |")
        for other in ("spinning", "sleeping"):
            ratios = []
            for number in beside:
                pairs = zip(found[work, number, "briefly"], found[work, number, other], strict=True)
                ratios.append([ours / theirs for ours, theirs in pairs])
            if all(ratios):
                told = " | ".join(f"{statistics.median(each):.3f}" for each in ratios)
                lines.append(f"| | briefly over {other} | {told} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=12.0, help="of each figure")
    parser.add_argument("--only", nargs="+", choices=WORK, default=list(WORK))
    parser.add_argument(
        "--beside", nargs="+", type=int, default=list(BUSY), help="busy loops, none first"
    )
    parser.add_argument("--output", type=Path)
    parser.add_argument("--child", choices=WORK, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(globals()[options.child](options.folder, options.seconds))
        return
    found: dict[tuple[str, int, str], list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as name:
        prepare(Path(name))
        for turn in range(options.rounds):
            for work in options.only:
                for number in options.beside:
                    for waiting in list(WAITING)[:: -1 if turn % 2 else 1]:
                        rate = measured(Path(name), work, number, waiting, options.seconds)
                        found[work, number, waiting].append(rate)
                        print(work, number, waiting, f"{rate:.3g}", file=sys.stderr, flush=True)
    lines = [
        "# Beside other work",
        "",
        f"{platform.machine()}, {os.cpu_count()} cores. Busy loops beside, {options.rounds} rounds "
        f"of {options.seconds:g} s in turn: median (range), share of the same row's idle rate.",
        "",
        f"Command: `python benchmarks/busy.py --rounds {options.rounds} "
        f"--seconds {options.seconds:g} --beside {' '.join(map(str, options.beside))}`",
        "",
        *table(found, options.beside),
    ]
    print("\n".join(lines))
    if options.output:
        options.output.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
