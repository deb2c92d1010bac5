"""What `openblip plan` predicts beside what is measured, in memory and in time, on this CPU.

    python benchmarks/plan_check.py memory --threads 1
    python benchmarks/plan_check.py time --rounds 3
    python benchmarks/plan_check.py paper

Memory: each setting runs its real step in a process of its own. What is measured is the growth of
its resident memory from before the model is built to the highest point within the second step (the
first one makes the optimiser's moments). glibc gives blocks of 64 kB and more back to the system
when they are freed (MALLOC_MMAP_THRESHOLD_), so that its free lists do not count; with its own
defaults a process keeps what it once had, which `--default-malloc` shows.

Time: the utilisation of the first setting of a group, measured beside the machine's peak of matrix
products, predicts the seconds of the group's others from their arithmetic, as a short run's log
does; a further column predicts all from that of base. A group is a preset; tiny has one for each
way to train it, as what is no product counts for more there. On a machine that others use at the
same time, `--clock processor --threads 1` counts the processor's time of one thread instead.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch

from openblip.batches.tokenizer import TextTokenizer
from openblip.model import MedConfig
from openblip.model.flops import image_encoder_flops, lm_head_flops, memory_flops, text_flops
from openblip.objectives.pretrain import PretrainObjectives
from openblip.objectives.settings import CaptionerObjectives
from openblip.objectives.task import StepPosition
from openblip.plan.footprint import TextLengths, example_batch, step_footprint
from openblip.plan.sizing import DEVICES, GPU_UTILISATION, Cluster, Planner, run_cost
from openblip.recipes.baselines import as_albef, as_clip
from openblip.recipes.pretrain import PRETRAIN_RECIPES, base
from openblip.runtime.memory import keep_freed_memory, return_freed_memory
from openblip.training.build import build_model, build_task
from openblip.training.loop import Trainer
from openblip.training.optimiser import build_optimiser, trained_parameters
from openblip.training.parallelism import Processes
from openblip.training.recipe import ModelOverrides, Recipe
from openblip.training.utilisation import product_rates

LENGTHS = TextLengths(longest=32, mean=14)
ALL = ("itc", "itm", "lm")


def settings(preset, pairs, px=224, losses=ALL, vision=0, text=0, accumulate=1, **others):
    """One row of a table, as plain values that a command line can carry."""
    return {
        "preset": preset,
        "pairs": pairs,
        "px": px,
        "losses": list(losses),
        "vision": vision,
        "text": text,
        "accumulate": accumulate,
        **others,
    }


MEMORY_GRID = [
    settings("tiny", 32, 64),
    settings("tiny", 32, 64, task="albef"),
    settings("tiny", 128, 64),
    settings("tiny", 128, 64, vision=4, text=3),
    settings("small", 4),
    settings("small", 16),
    settings("small", 16, vision=12),
    settings("small", 16, vision=12, text=6),
    settings("small", 8, accumulate=2),
    settings("small", 4, 384),
    settings("small", 16, losses=("itc",)),
    settings("small", 16, losses=("itm", "lm")),
    settings("small", 16, task="captioner", losses=("lm",)),
    settings("small", 16, task="albef"),
    settings("small", 16, task="albef", vision=12, text=6),
    settings("small", 16, task="clip"),
    settings("small", 4, precision="bfloat16"),
    settings("base", 2),
    settings("base", 8),
    settings("base", 8, vision=12, text=12),
    settings("base", 8, task="captioner", losses=("lm",), px=384),
]


def recipe_of(row) -> Recipe:
    """The recipe of a row."""
    recipe = base("none")
    model = MedConfig.preset(row["preset"], image_size=row["px"])
    train = replace(
        recipe.train,
        precision=row.get("precision", "float32"),
        accumulate=row["accumulate"],
        batch_size=row["pairs"] * row["accumulate"],
    )
    pretraining = replace(
        recipe,
        model=replace(model, heads=tuple(row["losses"])),
        data=replace(recipe.data, image_size=row["px"]),
        objectives=PretrainObjectives(losses=tuple(row["losses"])),
        overrides=ModelOverrides(
            vision_checkpoint_layers=row["vision"], text_checkpoint_layers=row["text"]
        ),
        train=train,
    )
    match row.get("task"):
        case "captioner":
            return replace(pretraining, task="captioner", objectives=CaptionerObjectives())
        case "albef":
            return as_albef(pretraining)
        case "clip":
            return as_clip(pretraining)
        case _:
            return pretraining


def tokenizer() -> TextTokenizer:
    """Any: only its special tokens count."""
    return TextTokenizer.train(["a b"], 60)


def make_step(row):
    """A function that makes the real step of a row, numbered."""
    recipe = recipe_of(row)
    processes = Processes()
    task = build_task(recipe, build_model(recipe, processes), tokenizer(), processes)
    optimiser = build_optimiser(trained_parameters(task), recipe.optimiser)
    trainer = Trainer(
        task, optimiser, processes, seed=0, precision=recipe.train.precision, clip_norm=None
    )
    parts = [example_batch(row["pairs"], LENGTHS, row["px"]) for _ in range(row["accumulate"])]
    for part in parts:
        part.images.normal_()
        part.tokens.random_(10, 50)
    return lambda number: trainer.step(StepPosition(number, 10.0), parts, 1e-5)


def resident(field: str) -> int:
    """Bytes of a field of this process's status."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise KeyError(field)


def measure_memory(row) -> int:
    """Bytes by which the real step grows this process."""
    torch.set_num_threads(row["threads"])
    make_step({**row, **settings("tiny", 2, 64, losses=row["losses"])})(0)  # loads the libraries
    before = resident("VmRSS")
    step = make_step(row)
    step(0)
    Path("/proc/self/clear_refs").write_text("5")  # forgets the highest point so far
    step(1)
    return resident("VmHWM") - before


def measured_apart(row, default_malloc: bool) -> int:
    environment = dict(os.environ)
    if not default_malloc:
        environment |= {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    command = [sys.executable, __file__, "one", "--row", json.dumps(row)]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr[-2000:]
    return int(found.stdout.split()[-1])


def predict_memory(row) -> int:
    """Bytes that the plan predicts."""
    return step_footprint(recipe_of(row), tokenizer(), LENGTHS, pairs=row["pairs"]).total


def trained(row) -> str:
    """The task of a row, or its losses."""
    return row.get("task", "+".join(row["losses"]))


def describe(row) -> str:
    """A row in words."""
    words = [row["preset"], trained(row)]
    if row["vision"] or row["text"]:
        words.append(f"checkpointed {row['vision']} + {row['text']}")
    if row["accumulate"] > 1:
        words.append(f"{row['accumulate']} parts")
    if "precision" in row:
        words.append(row["precision"])
    return f"| {', '.join(words)} | {row['pairs']} | {row['px']} |"


def check_memory(options) -> str:
    lines = [
        "| setting | pairs | px | predicted MB | measured MB | difference |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in MEMORY_GRID:
        if options.only and options.only not in describe(row):
            continue
        predicted = predict_memory(row)
        measured = measured_apart({**row, "threads": options.threads}, options.default_malloc)
        off = difference(predicted, measured)
        cells = f" {predicted / 1e6:.0f} | {measured / 1e6:.0f} | {off} |"
        lines.append(describe(row) + cells)
        print(lines[-1], flush=True)
    return "\n".join(lines)


# The first setting of a group tells its utilisation.
TIME_GRID = [
    settings("base", 8),
    settings("base", 2),
    settings("base", 4, 384),
    settings("base", 8, vision=12, text=12),
    settings("base", 4, 384, task="captioner", losses=("lm",)),
    settings("small", 16),
    settings("small", 8, 384),
    settings("small", 16, losses=("itc",)),
    settings("small", 16, task="albef"),
    settings("small", 16, task="clip"),
    settings("tiny", 128, 64),
    settings("tiny", 32, 64),
    settings("tiny", 64, 64),
    settings("tiny", 256, 64),
    settings("tiny", 128, 64, losses=("itc",)),
    settings("tiny", 32, 64, losses=("itc",)),
    settings("tiny", 128, 64, task="captioner", losses=("lm",)),
    settings("tiny", 32, 64, task="captioner", losses=("lm",)),
]


CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}


WARMING_UP = 2
"""Steps that are not measured: the second one still finds places for what the first one kept."""


def measure_seconds(row, rounds: int, clock) -> list[float]:
    """Seconds of some steps by a clock, with freed memory kept as in a run."""
    keep_freed_memory()
    step = make_step(row)
    seconds = []
    for number in range(WARMING_UP + rounds):
        began = clock()
        step(number)
        seconds.append(clock() - began)
    return seconds[WARMING_UP:]


def measured_peak() -> float:
    """FLOP/s of matrix products on this machine now: the best of some sizes and both libraries."""
    cpu = torch.device("cpu")
    rates = [product_rates(cpu, torch.float32, size, seconds=0.5) for size in (1024, 2048, 3072)]
    return max(rate for by_library in rates for rate in by_library.values())


def group(row) -> str:
    """What has one utilisation: a preset, or of a model as small as tiny one way to train it."""
    return f"tiny, {trained(row)}" if row["preset"] == "tiny" else row["preset"]


def calibrating(of_group: str):
    """The first setting of a group, whose utilisation is that of the group."""
    return next(row for row in TIME_GRID if group(row) == of_group)


def check_time(options) -> str:
    torch.set_num_threads(options.threads)
    wanted = [row for row in TIME_GRID if not options.only or options.only in describe(row)]
    calibrations = [calibrating(each) for each in {"base", *map(group, wanted)}]
    rows = [row for row in TIME_GRID if row in wanted or row in calibrations]
    peaks = [measured_peak()]
    measured = []
    for row in rows:
        measured.append(measure_seconds(row, options.rounds, CLOCKS[options.clock]))
        return_freed_memory()
        peaks.append(measured_peak())
        print(describe(row), measured[-1], f"{peaks[-1] / 1e9:.0f} GFLOP/s", flush=True)
    peak = statistics.median(peaks)
    medians = [statistics.median(seconds) for seconds in measured]
    at_peak = [seconds_at_peak(row, peak) for row in rows]
    utilisation = {
        group(row): ideal / median
        for row, ideal, median in zip(rows, at_peak, medians, strict=True)
        if row is calibrating(group(row))
    }
    of_groups = "; ".join(f"{name} {value:.3f}" for name, value in utilisation.items())
    lines = [
        f"Matrix-product peak: {peak / 1e9:.0f} GFLOP/s, the median of {len(peaks)} measurements "
        f"between the rows ({min(peaks) / 1e9:.0f} to {max(peaks) / 1e9:.0f}); threads: "
        f"{options.threads}; clock: {options.clock}. Utilisation of the first row of each group: "
        f"{of_groups}.",
        "",
        *time_table(rows, at_peak, measured, utilisation),
    ]
    return "\n".join(lines)


def time_table(rows, at_peak, measured, utilisation) -> list[str]:
    """Predicted beside measured seconds, by the utilisation of each group."""
    lines = [
        "| setting | pairs | px | predicted s | measured s (least to most) | difference "
        "| from base |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row, ideal, seconds in zip(rows, at_peak, measured, strict=True):
        own, median = utilisation[group(row)], statistics.median(seconds)
        calibrates = row is calibrating(group(row))
        off = "calibrates" if calibrates else difference(ideal / own, median)
        from_base = difference(ideal / utilisation["base"], median)
        span = f"{median:.2f} ({min(seconds):.2f} to {max(seconds):.2f})"
        lines.append(f"{describe(row)} {ideal / own:.2f} | {span} | {off} | {from_base} |")
    return lines


def seconds_at_peak(row, peak: float) -> float:
    """Seconds of a row's arithmetic at a peak in FLOP/s."""
    device = replace(DEVICES["l4"], name="cpu", float32=peak, is_accelerator=False)
    planner = Planner(recipe_of(row), Cluster(device=device, utilisation=1.0), LENGTHS.mean)
    return planner.compute_seconds(planner.recipe)


def difference(predicted: float, measured: float) -> str:
    """Of a prediction from a measurement, in words."""
    return f"{100 * (predicted / measured - 1):+.1f} %"


PAPER_GRID = [
    # preset, precision, pairs a step, image size, images, device, devices
    ("base", "float32", 2880, 224, 14_000_000, "a100-40g", 32),
    ("base", "bfloat16", 2880, 224, 14_000_000, "a100-40g", 32),
    ("base", "bfloat16", 2880, 224, 129_000_000, "a100-40g", 32),
    ("base", "bfloat16", 2880, 224, 129_000_000, "a100-40g", 64),
    ("base", "bfloat16", 2880, 224, 129_000_000, "h100-80g", 64),
    ("large", "bfloat16", 2400, 224, 129_000_000, "a100-40g", 32),
    ("large", "bfloat16", 2400, 224, 129_000_000, "h100-80g", 32),
]


def tabulate_paper(options) -> str:
    """The paper's own runs, planned; everything here is modelled, nothing measured."""
    lines = [
        "| model | precision | pairs | images, millions | devices | GB each | s/step | hours | "
        "device-hours | operations |",
        "| --- | --- | ---: | ---: | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for preset, precision, pairs, px, images, device, devices in PAPER_GRID:
        recipe = PRETRAIN_RECIPES[preset]("none")
        train = replace(recipe.train, batch_size=pairs, precision=precision)
        data = replace(recipe.data, image_size=px)
        cluster = Cluster(device=DEVICES[device], devices=devices)
        planner = Planner(replace(recipe, train=train, data=data), cluster)
        given = planner.as_given
        cost = run_cost(planner, given, images)
        fits = "" if given.fits else " (does not fit)"
        lines.append(
            f"| {preset} | {precision} | {pairs} | {images / 1e6:.0f} | {devices} x {device} | "
            f"{given.memory / 1e9:.1f}{fits} | {given.step_seconds:.2f} | {cost.hours:.0f} | "
            f"{cost.device_hours:.0f} | {cost.operations:.1e} |"
        )
        print(lines[-1], flush=True)
    lines += ["", capfilt_operations()]
    return "\n".join(lines)


def capfilt_operations() -> str:
    """What captioning and filtering one image takes: one caption of 20 tokens, two texts scored."""
    config = MedConfig.preset("base", image_size=384)
    patches, tokens = config.vision.num_patches, 20
    encoder = image_encoder_flops(config, 1)
    memory = memory_flops(config, 1)
    decoding = text_flops(config, 1, tokens, patches) + lm_head_flops(config, 1, tokens)
    scoring = text_flops(config, 2, 32, patches)
    total = 2 * (encoder + memory) + decoding + scoring
    giga = [f"{each / 1e9:.0f}" for each in (encoder, memory, decoding, scoring, total)]
    hours = 129e6 * total / (DEVICES["a100-40g"].bfloat16 * GPU_UTILISATION) / 3600
    return (
        f"CapFilt of one image at 384 px, GFLOP: image encoder {giga[0]} and keys and values "
        f"{giga[1]}, each twice; decoding {giga[2]}; scoring {giga[3]}; together {giga[4]}. Of 129 "
        f"million: {129e6 * total:.1e} operations, {hours:.0f} hours of an A100 at "
        f"{GPU_UTILISATION:.0%} of its peak."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("memory", "time", "paper", "one"))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--clock",
        choices=CLOCKS,
        default="wall",
        help="`processor` with one thread, on a machine that others use too",
    )
    parser.add_argument("--only", help="rows whose description contains this")
    parser.add_argument("--default-malloc", action="store_true")
    parser.add_argument("--row", help="of `one`: a setting, as JSON")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    if options.what == "one":
        print(measure_memory(json.loads(options.row)))
        return
    tables = {"memory": check_memory, "time": check_time, "paper": tabulate_paper}
    report = tables[options.what](options)
    if options.what != "memory":  # prints its rows as they are made
        print("\n" + report)
    if options.output:
        options.output.write_text(report + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
