"""The pre-training step part by part, beside the naive step, in one interleaved run.

    python benchmarks/train_step.py                     # BLIP-base, batch 8, 224 px, float32, CPU
    python benchmarks/train_step.py --preset small --rounds 5 --output results.md

The naive step is what the original does: cross-attention keys and values are computed again for
positives, for negatives and for the decoder, in a pass of its own each; texts are padded to 30
tokens, all of which go through all layers, and next-token logits are computed for padding too; the
teacher computes all patches' states to the end. It is measured twice: on PyTorch's own layers, and
on the same matrix products as ours ("same products"). All compute the same losses from the same
weights (checked). Ours and the naive steps have a process each, which take turns.
"""

import argparse
import multiprocessing
import platform
import re
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from unittest.mock import patch

import torch
import torch.nn.functional as F

from openblip.batches.loader import Batch
from openblip.batches.tokenizer import SpecialTokens
from openblip.model import Med, MedConfig, kernels, text, vision
from openblip.model.flops import flop_counter
from openblip.model.kernels import Linear
from openblip.model.packing import Packing
from openblip.model.vision import ImageModel
from openblip.objectives.itm import itm_loss
from openblip.objectives.lm import lm_loss, next_token_labels
from openblip.objectives.pretrain import PretrainObjectives, PretrainTask
from openblip.objectives.task import StepPosition
from openblip.runtime.memory import keep_freed_memory, return_freed_memory
from openblip.training.optimiser import build_optimiser, trained_parameters
from openblip.training.recipe import OptimiserConfig
from openblip.training.utilisation import product_rates

SPECIAL = SpecialTokens(pad=0, unk=100, cls=101, sep=102, mask=103, dec=30522, enc=30523)
PADDED_TOKENS = 30
PARTS = (
    "image encoder",
    "momentum",
    "ITC",
    "ITM",
    "LM",
    "ITM and LM together",
    "backward",
    "optimiser",
)


class Clock:
    """Adds up seconds, or operations, of named parts; what is nested counts for the inner part."""

    def __init__(self, read: Callable[[], float]) -> None:
        self.read = read
        self.spent: dict[str, float] = defaultdict(float)
        self._stack: list[str] = []
        self._last = 0.0

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        self._charge()
        self._stack.append(name)
        yield
        self._charge()
        self._stack.pop()

    def _charge(self) -> None:
        now = self.read()
        if self._stack:
            self.spent[self._stack[-1]] += now - self._last
        self._last = now


class TimedTask(PretrainTask):
    """The step as it is, with its parts timed."""

    clock: Clock

    def forward(self, batch, position):
        parts = {"encode_images": "image encoder", "memories": "ITM"}
        for method, part in parts.items():
            setattr(self.student, method, self._timed(getattr(self.student, method), part))
        try:
            return super().forward(batch, position)
        finally:
            for method in parts:
                delattr(self.student, method)

    def _timed(self, function, part):
        def timed(*arguments):
            with self.clock.part(part):
                return function(*arguments)

        return timed

    def begin_step(self, position):
        with self.clock.part("momentum"):
            super().begin_step(position)

    def _teacher_features(self, *arguments):
        with self.clock.part("momentum"):
            return super()._teacher_features(*arguments)

    def contrast(self, *arguments):
        with self.clock.part("ITC"):
            return super().contrast(*arguments)

    def _pairs(self, *arguments):
        with self.clock.part("ITM"):
            return super()._pairs(*arguments)

    def _grounded_losses(self, *arguments):
        # What is not one of their own parts, timed below, is their pass through the text stack.
        with self.clock.part("ITM and LM together"):
            return super()._grounded_losses(*arguments)

    def matching_loss(self, *arguments):
        with self.clock.part("ITM"):
            return super().matching_loss(*arguments)

    def _lm_loss(self, *arguments):
        with self.clock.part("LM"):
            return super()._lm_loss(*arguments)


class NaiveTask(TimedTask):
    """The same losses, pass by pass; every pass projects the image's keys and values."""

    def _grounded_losses(self, batch, captions, host_mask, hidden, contrast, position):
        return {
            "itm": self._naive_matching_loss(batch, captions, hidden, contrast, position),
            "lm": self._naive_lm_loss(captions, hidden),
        }

    def _naive_matching_loss(self, batch, texts, hidden, contrast, position):
        with self.clock.part("ITM"):
            negatives = self.draw_negatives(batch, contrast, position)
            images, negative_texts = negatives.images, texts.select(negatives.texts)
            ids, negative_ids = (t.beginning_with(SPECIAL.enc) for t in (texts, negative_texts))
            remember = self.student.text.remember
            positive = self.student.match(ids, texts.mask, remember(hidden))
            negative = self.student.match(
                torch.cat([ids, negative_ids]),
                torch.cat([texts.mask, negative_texts.mask]),
                remember(torch.cat([hidden[images], hidden])),
            )
            matched = torch.arange(3 * len(ids)) < len(ids)
            return itm_loss(torch.cat([positive, negative]), matched, torch.ones_like(matched))

    def _naive_lm_loss(self, texts, hidden):
        with self.clock.part("LM"):
            ids = texts.beginning_with(SPECIAL.dec)
            memory = self.student.text.remember(hidden, causal=True)
            logits = self.student.decode(ids, texts.mask, memory)
            labels = next_token_labels(ids, texts.mask)
            return lm_loss(logits[labels >= 0], labels)


def plain_mlp(hidden, up, down, norm=None):
    return down(F.gelu(up(hidden if norm is None else norm(hidden))))


@contextmanager
def as_the_original() -> Iterator[None]:
    """The model's parts compute and keep everything that the original's do."""
    with ExitStack() as stack:
        for place, name, plain in (
            (vision, "PATCHES_AT_ONCE", 1 << 30),
            (vision, "mlp", plain_mlp),
            (text, "mlp", plain_mlp),
            (Linear, "of_normed", lambda layer, hidden, norm: layer(norm(hidden))),
            (text, "_reads_first", lambda texts: False),
            (Packing, "without_padding", lambda mask: Packing(*mask.shape)),
            (ImageModel, "encode_class_tokens", ImageModel.encode_images),
        ):
            stack.enter_context(patch.object(place, name, plain))
        yield


@contextmanager
def on_pytorch() -> Iterator[None]:
    """Products are those that PyTorch's own layers take."""
    with patch.object(kernels, "prefers_onednn", lambda *direction: False):
        yield


def make_batch(config: MedConfig, size: int, seed: int) -> Batch:
    """Random images, and texts of 9 to 16 tokens, about what captions of photographs have."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(9, 17, (size,), generator=generator)
    tokens = torch.randint(1000, 30000, (size, 16), generator=generator)
    mask = torch.arange(16) < lengths[:, None]
    tokens[:, 0] = SPECIAL.cls
    tokens[torch.arange(size), lengths - 1] = SPECIAL.sep
    side = config.vision.image_size
    return Batch(
        ids=tuple(str(number) for number in range(size)),
        images=torch.randn(size, 3, side, side, generator=generator),
        tokens=tokens.masked_fill(~mask, SPECIAL.pad),
        mask=mask,
        image_ids=torch.arange(size),
        text_ids=torch.arange(size),
        step=0,
    )


def padded(batch: Batch) -> Batch:
    """The same texts padded to 30 tokens."""
    more = (0, PADDED_TOKENS - batch.tokens.shape[1])
    return replace(
        batch,
        tokens=F.pad(batch.tokens, more, value=SPECIAL.pad),
        mask=F.pad(batch.mask, more, value=False),
    )


def run_step(task: TimedTask, optimiser, batch: Batch, clock: Clock, number: int) -> float:
    """Loss of one whole step, its parts charged to the clock."""
    task.clock = clock
    position = StepPosition(step=number, epoch=3.0)
    optimiser.zero_grad(set_to_none=True)
    task.begin_step(position)
    with clock.part("other"):
        output = task(batch, position)
    with clock.part("backward"):
        output.loss.backward()
    with clock.part("optimiser"):
        optimiser.step()
        task.finish_step(output.update)
    return float(output.loss.detach())


def measured_peak() -> float:
    """FLOP/s of matrix products on this machine now: the best of some sizes and both libraries."""
    rates = [
        product_rates(torch.device("cpu"), torch.float32, size, seconds=0.5)
        for size in (1024, 2048, 3072)
    ]
    return max(rate for by_library in rates for rate in by_library.values())


def prepare(kind: type[TimedTask], config: MedConfig):
    """A task with its optimiser; the same weights for every kind."""
    torch.manual_seed(0)
    task = kind(Med(config), SPECIAL, PretrainObjectives(queue_size=57600), seed=0)
    return task, build_optimiser(trained_parameters(task), OptimiserConfig(lr=1e-5))


def attached_memory() -> dict[str, int]:
    """Bytes of this process in memory now, and at most since `forget_peak_memory` (Linux)."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return {
        name: 1024 * int(number)
        for name, number in re.findall(r"(VmRSS|VmHWM):\s+(\d+) kB", status)
    }


def memory_of_a_step(step: Callable[[], object]) -> tuple[int, int]:
    """Bytes at most in a step: beyond what the process held before it, and of the process."""
    return_freed_memory()
    before = attached_memory()["VmRSS"]
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forgets the peak
    step()
    peak = attached_memory()["VmHWM"]
    return peak - before, peak


def serve(connection: Connection, side: str, options: argparse.Namespace) -> None:
    """A process that makes steps of one side when told to."""
    torch.set_num_threads(options.threads)
    config = MedConfig.preset(options.preset, image_size=options.image_size)
    config = replace(config, text=replace(config.text, dropout=0.0))
    batch = make_batch(config, options.batch_size, seed=1)
    if side == "naive":
        task, optimiser = prepare(NaiveTask, config)
        batch = padded(batch)
    else:
        keep_freed_memory()
        vision = replace(config.vision, checkpoint_layers=options.checkpoint_layers)
        task, optimiser = prepare(TimedTask, replace(config, vision=vision))
    step = partial(run_step, task, optimiser, batch)
    number = 0
    while (asked := connection.recv()) is not None:
        what, side = asked
        with ExitStack() as stack:
            if side != "openblip":
                stack.enter_context(as_the_original())
            if side == "naive":
                stack.enter_context(on_pytorch())
            if what == "flops":
                counter = stack.enter_context(flop_counter())
                clock = Clock(lambda counter=counter: float(counter.get_total_flops()))
                loss = step(clock, number)
                connection.send((loss, dict(clock.spent)))
            elif what == "memory":
                optimiser.zero_grad(set_to_none=True)
                clock = Clock(time.perf_counter)
                connection.send(memory_of_a_step(lambda: step(clock, number)))  # noqa: B023
                if side == "openblip":
                    keep_freed_memory()  # again, as a run does
            else:
                clock = Clock(CLOCKS[options.clock])
                step(clock, number)
                connection.send(dict(clock.spent))
        number += 1


CLOCKS = {"wall": time.perf_counter, "process": time.process_time}
SIDES = {"openblip": "openblip", "naive": "naive", "naive, same products": "naive"}
"""What is measured, and in which process."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="base")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--checkpoint-layers",
        type=int,
        default=0,
        help="last blocks of our image encoder that are computed again in the backward pass",
    )
    parser.add_argument(
        "--clock",
        choices=list(CLOCKS),
        default="wall",
        help="process: processor time, for one thread on a machine that others use too",
    )
    parser.add_argument("--output", type=Path, help="write the table there as Markdown")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    context = multiprocessing.get_context("spawn")
    servers: dict[str, Connection] = {}
    for process in set(SIDES.values()):
        servers[process], theirs = context.Pipe()
        context.Process(target=serve, args=(theirs, process, options), daemon=True).start()

    def ask(what, side):
        servers[SIDES[side]].send((what, side))
        return servers[SIDES[side]].recv()

    counted = {side: ask("flops", side) for side in SIDES}
    memory = {side: ask("memory", side) for side in ("openblip", "naive")}
    for side in 2 * list(SIDES):
        ask("time", side)  # the pages that were given back come back
    seconds: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    peaks = []
    for _ in range(options.rounds):
        peaks.append(measured_peak())
        for side, runs in seconds.items():
            runs.append(ask("time", side))
    for connection in servers.values():
        connection.send(None)
    losses = {side: loss for side, (loss, _) in counted.items()}
    difference = abs(losses["openblip"] / losses["naive"] - 1)
    assert difference < 1e-5, f"the steps differ: {losses}"
    flops = {side: spent for side, (_, spent) in counted.items()}
    report = describe(options, flops, seconds, statistics.median(peaks), difference, memory)
    print(report)
    if options.output:
        options.output.write_text(report + "\n", encoding="utf-8")


def describe(options, flops, seconds, peak, difference, memory) -> str:
    """The results as Markdown."""
    medians = {
        side: {part: statistics.median(run.get(part, 0.0) for run in runs) for part in PARTS}
        for side, runs in seconds.items()
    }
    totals = {
        side: statistics.median(sum(run.values()) for run in runs) for side, runs in seconds.items()
    }
    head = " | ".join(f"{side} s | GFLOP | of peak" for side in SIDES)
    lines = [
        f"# Training step: BLIP-{options.preset}, batch {options.batch_size}, "
        f"{options.image_size} px, float32, CPU",
        "",
        f"{torch.cpu.get_capabilities().get('cpu_name', platform.machine())}, "
        f"{options.threads} threads, "
        f"torch {torch.__version__}; {options.rounds} interleaved rounds, medians of "
        f"{'wall time' if options.clock == 'wall' else 'processor time'}. "
        f"Matrix-product peak measured in the same run, of MKL or oneDNN, whichever is faster: "
        f"{peak / 1e9:.0f} GFLOP/s. "
        f"Losses of the steps differ by {difference:.1e} of their value.",
        "",
        "The naive step recomputes cross-attention keys and values for every pass, makes every "
        "pass alone, and pads texts to 30 tokens. It runs on PyTorch's own layers, and a second "
        'time on the matrix products that ours runs on ("same products").',
        "",
        f"Command: `python benchmarks/train_step.py --preset {options.preset} --batch-size "
        f"{options.batch_size} --image-size {options.image_size} --rounds {options.rounds} "
        f"--threads {options.threads} --clock {options.clock} "
        f"--checkpoint-layers {options.checkpoint_layers}`",
        "",
        f"| part | {head} |",
        "| --- |" + " ---: |" * 3 * len(SIDES),
    ]
    for part in PARTS:
        cells = [part]
        for side in SIDES:
            cells += _cells(medians[side][part], flops[side].get(part, 0.0), peak)
        lines.append(f"| {' | '.join(cells)} |")
    cells = ["**step**"]
    for side in SIDES:
        cells += _cells(totals[side], sum(flops[side].values()), peak)
    lines += [f"| {' | '.join(cells)} |", ""]
    for side in ("naive", "naive, same products"):
        ratios = [
            sum(other.values()) / sum(ours.values())
            for ours, other in zip(seconds["openblip"], seconds[side], strict=True)
        ]
        lines.append(
            f"- {side} over openblip, pair by pair: {min(ratios):.2f} / "
            f"{statistics.median(ratios):.2f} / {max(ratios):.2f} (minimum, median, maximum; "
            "goal 2)"
        )
    of_peak = sum(flops["openblip"].values()) / totals["openblip"] / peak
    (own, whole), (naive_own, naive_whole) = memory["openblip"], memory["naive"]
    lines += [
        f"- fraction of peak: {100 * of_peak:.0f} % (goal 70 %)",
        f"- memory of a step at most, activations and gradients, beyond weights, teacher, queue "
        f"and optimiser state: {own / 1e9:.2f} GB, {100 * own / naive_own:.0f} % of the naive "
        f"step's {naive_own / 1e9:.2f} GB (goal 60 %); of the whole process {whole / 1e9:.2f} GB, "
        f"{100 * whole / naive_whole:.0f} % of {naive_whole / 1e9:.2f} GB",
    ]
    return "\n".join(lines)


def _cells(spent: float, done: float, peak: float) -> list[str]:
    share = f"{100 * done / spent / peak:.0f} %" if done and spent else "-"
    return [f"{spent:.2f}", f"{done / 1e9:.0f}", share]


if __name__ == "__main__":
    main()
