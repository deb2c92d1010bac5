"""A training step, captions and matches of two checkouts in turn: what a change costs in time.

    git worktree add ../before COMMIT
    python benchmarks/two_trees.py ../before .
    python benchmarks/two_trees.py ../before . --preset tiny --image-size 64 --batch-size 32

Each checkout has a process with its own package and its own `benchmarks`, which take turns in one
run, the first one alternating. Told are the medians, the median of the paired ratios with their
quartiles, and whether both computed the same.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

STEP = """
import train_step
from openblip.model import MedConfig
config = MedConfig.preset(preset, image_size=image_size)
config = replace(config, text=replace(config.text, dropout=0.0))
batch = train_step.make_batch(config, batch_size, seed=1)
train_step.keep_freed_memory()
task, optimiser = train_step.prepare(train_step.TimedTask, config)
clock = train_step.Clock(time.perf_counter)
numbers = count()

def work():
    return train_step.run_step(task, optimiser, batch, clock, next(numbers))
"""
CAPTION = """
import inference
from openblip.inference.decoding import Decoding
med = inference.make_med(preset, image_size)
generator = torch.Generator().manual_seed(0)
images = torch.randn(batch_size, 3, image_size, image_size, generator=generator)

def work():
    with torch.inference_mode():
        return int(inference.caption(med, images, Decoding()).sum())
"""
MATCH = """
import inference
med = inference.make_med(preset, image_size)
inputs = inference.make_inputs(batch_size, 8 * batch_size, med.config, next(med.parameters()))

def work():
    with torch.inference_mode():
        return float(inference.match(med, inputs, 8).double().sum())
"""
WORK = {"step": STEP, "caption": CAPTION, "match": MATCH}
SERVE = """
import json, sys, time
from dataclasses import replace
from itertools import count
import torch
sys.path.insert(0, "benchmarks")
preset, image_size, batch_size, threads = sys.argv[1], *map(int, sys.argv[2:])
torch.set_num_threads(threads)
{work}
for _ in sys.stdin:
    started = time.perf_counter()
    found = work()
    print(json.dumps([time.perf_counter() - started, found]), flush=True)
"""


class Tree:
    """A checkout's process, which does the work once at each request."""

    def __init__(self, place: Path, work: str, options: argparse.Namespace) -> None:
        code = SERVE.format(work=WORK[work])
        sizes = [options.image_size, options.batch_size, options.threads]
        self._process = subprocess.Popen(
            [sys.executable, "-c", code, options.preset, *map(str, sizes)],
            cwd=place,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(place / "src"), str(place)])},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def once(self) -> tuple[float, float]:
        """Seconds, and a number that two checkouts which compute the same have in common."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        seconds, found = json.loads(self._process.stdout.readline())
        return seconds, found

    def close(self) -> None:
        self._process.communicate()


def compared(work: str, options: argparse.Namespace) -> str:
    """A line of the table."""
    trees = [Tree(place.resolve(), work, options) for place in (options.before, options.after)]
    for _ in range(2):  # what is made at first use is no part of it
        for tree in trees:
            tree.once()
    rounds = []
    for number in range(options.rounds):
        order = trees if number % 2 == 0 else trees[::-1]
        found = {tree: tree.once() for tree in order}
        rounds.append([found[tree] for tree in trees])
    for tree in trees:
        tree.close()
    before, after = (statistics.median(each[side][0] for each in rounds) for side in (0, 1))
    ratios = [new[0] / old[0] for old, new in rounds]
    low, middle, high = statistics.quantiles(ratios, n=4)
    same = "equal" if all(old[1] == new[1] for old, new in rounds) else "DIFFERENT"
    return (
        f"| {work}, {options.preset}, {options.image_size} px, {options.batch_size} images | "
        f"{before:.3f} | {after:.3f} | {middle:.3f} | {low:.3f} to {high:.3f} | {same} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--only", choices=WORK, nargs="+", default=list(WORK))
    parser.add_argument("--preset", default="base")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    print("| work | before, s | after, s | ratio | quartiles | results |")
    print("| --- | ---: | ---: | ---: | --- | --- |")
    for work in options.only:
        print(compared(work, options), flush=True)


if __name__ == "__main__":
    main()
