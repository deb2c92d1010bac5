"""How long a training waits for its data, with one core for it and one for the loader.

    python benchmarks/waiting.py --photos FOLDER --output benchmarks/results/waiting.md

Trains through the ordinary command, with one thread for the model and one for the loader, on a
table of 500 x 375 px JPEG; the share is what the run's own metrics say, of all steps but those of
the first report, in which nothing was read ahead yet.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

from loader import CAPTION, jpeg, tiles
from openblip.table.table import PairRow, PairTable

ROWS = 512
COMMON = (
    "--train.threads 1 --data.num-threads 1 --tokenizer train:300 --train.checkpoint-every 1000"
)
SMALL = (
    "--data.image-size 64 --model.vision.image-size 64 --model.vision.patch-size 16 "
    "--model.vision.width 128 --model.vision.depth 4 --model.vision.heads 4 --model.text.width 128 "
    "--model.text.depth 2 --model.text.heads 4 --model.text.ffn-width 512 "
    "--model.text.max-positions 64 --model.embed-dim 128 --objectives.queue-size 0"
)
RUNS = {
    "BLIP-base, 224 px, 8 pairs a step": (
        "base",
        "--train.batch-size 8 --train.precision float32 --objectives.queue-size 512 "
        "--train.steps 9 --train.log-every 3",
    ),
    "a small model, 64 px, 128 pairs a step": (
        "tiny",
        f"{SMALL} --train.batch-size 128 --train.steps 45 --train.log-every 15",
    ),
    "the same, images decoded at a smaller scale": (
        "tiny",
        f"{SMALL} --train.batch-size 128 --train.steps 45 --train.log-every 15 "
        "--data.scaled-decoding",
    ),
}


def make_table(photos: Path, uri: Path) -> None:
    squares = tiles(photos, 256)
    files = [jpeg(squares, number, 500, 375) for number in range(256)]
    PairTable.create(
        uri,
        (PairRow(str(n), files[n % len(files)], captions=[CAPTION.format(n)]) for n in range(ROWS)),
    )


def train(recipe: str, flags: str, table: Path, run_dir: Path) -> tuple[float, float]:
    """Share of the time that is waiting, and pairs per second."""
    command = [
        *(sys.executable, "-m", "openblip", "pretrain", recipe, str(table), str(run_dir)),
        *shlex.split(f"{COMMON} {flags}"),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)
    lines = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
    reports = [line for line in lines if line["kind"] == "train"][1:]
    count = len(reports)
    return (
        sum(line["loader_share"] for line in reports) / count,
        sum(line["pairs_per_second"] for line in reports) / count,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", type=Path, help="folder of JPEG files to make the images of")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in RUNS}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_table(options.photos, folder / "pairs.lance")
        for number in range(options.rounds):
            for place, (title, (recipe, flags)) in enumerate(RUNS.items()):
                run_dir = folder / f"{number}-{place}"
                found[title].append(train(recipe, flags, folder / "pairs.lance", run_dir))
                share, rate = found[title][-1]
                print(f"{title}: {share:.2%} waiting, {rate:.1f} pairs/s", flush=True)
    lines = [
        "# Waiting for data",
        "",
        f"{os.cpu_count()} cores: one thread trains, one reads JPEG of 500 x 375 px. "
        f"{options.rounds} rounds, each value given.",
        "",
        "Command: `python benchmarks/waiting.py --photos FOLDER`",
        "",
        "| training | waiting | pairs/s |",
        "| --- | ---: | ---: |",
    ]
    for title, values in found.items():
        shares = ", ".join(f"{share:.1%}" for share, _ in values)
        rates = ", ".join(f"{rate:.1f}" for _, rate in values)
        lines.append(f"| {title} | {shares} | {rates} |")
    text = "\n".join(lines) + "\n"
    print(text)
    if options.output:
        options.output.write_text(text)


if __name__ == "__main__":
    main()
