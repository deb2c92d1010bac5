"""The pre-training step part by part, beside the naive step, in one interleaved run.

    python benchmarks/train_step.py                     # BLIP-base, batch 8, 224 px, float32, CPU
    python benchmarks/train_step.py --preset small --rounds 5 --output results.md

The naive step is what the original does: cross-attention keys and values are computed again for
positives, for negatives and for the decoder, in a pass of its own each; texts are padded to 30
tokens, and next-token logits are computed for padding too. Both steps compute the same losses from
the same weights (checked).
"""

import argparse
import platform
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F

from openblip.data.loader import Batch
from openblip.data.tokenizer import SpecialTokens
from openblip.model import Med, MedConfig
from openblip.model.flops import flop_counter
from openblip.objectives.itm import itm_loss
from openblip.objectives.lm import lm_loss, next_token_labels
from openblip.tasks.pool import Texts
from openblip.tasks.pretrain import PretrainObjectives, PretrainTask
from openblip.tasks.protocol import StepPosition
from openblip.training.config import OptimiserConfig
from openblip.training.optimiser import build_optimiser, trained_parameters
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

    def _teacher_features(self, batch):
        with self.clock.part("momentum"):
            return super()._teacher_features(batch)

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

    def _matching_loss(self, *arguments):
        with self.clock.part("ITM"):
            return super()._matching_loss(*arguments)

    def _lm_loss(self, *arguments):
        with self.clock.part("LM"):
            return super()._lm_loss(*arguments)


class NaiveTask(TimedTask):
    """The same losses, pass by pass; every pass projects the image's keys and values."""

    def _grounded_losses(self, batch, hidden, contrast, position):
        texts = Texts(batch.tokens, batch.mask)
        return {
            "itm": self._naive_matching_loss(batch, texts, hidden, contrast, position),
            "lm": self._naive_lm_loss(texts, hidden),
        }

    def _naive_matching_loss(self, batch, texts, hidden, contrast, position):
        with self.clock.part("ITM"):
            for_texts, for_images = self._negative_weights(batch, contrast)
            images = self.negative_sampler(for_texts, position, "image")
            negative_texts = texts.select(self.negative_sampler(for_images, position, "text"))
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="base")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", type=Path, help="write the table there as Markdown")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    config = MedConfig.preset(options.preset, image_size=options.image_size)
    config = replace(config, text=replace(config.text, dropout=0.0))
    batch = make_batch(config, options.batch_size, seed=1)
    sides = {"openblip": (TimedTask, batch), "naive": (NaiveTask, padded(batch))}

    flops: dict[str, dict[str, float]] = {}
    prepared = {}
    losses = {}
    for name, (kind, own_batch) in sides.items():
        prepared[name] = prepare(kind, config)
        counter = flop_counter()
        with counter:
            clock = Clock(lambda counter=counter: float(counter.get_total_flops()))
            losses[name] = run_step(*prepared[name], own_batch, clock, 0)
        flops[name] = clock.spent
    difference = abs(losses["openblip"] - losses["naive"]) / abs(losses["naive"])
    assert difference < 1e-5, f"the two steps differ: {losses}"

    seconds: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    peaks = []
    for number in range(1, options.rounds + 1):
        peaks.append(measured_peak())
        for name, (_, own_batch) in sides.items():
            clock = Clock(time.perf_counter)
            run_step(*prepared[name], own_batch, clock, number)
            seconds[name].append(clock.spent)
    report = describe(options, flops, seconds, statistics.median(peaks), difference)
    print(report)
    if options.output:
        options.output.write_text(report + "\n", encoding="utf-8")


def describe(options, flops, seconds, peak, difference) -> str:
    """The results as Markdown."""
    lines = [
        f"# Training step: BLIP-{options.preset}, batch {options.batch_size}, "
        f"{options.image_size} px, float32, CPU",
        "",
        f"{platform.processor() or platform.machine()}, {options.threads} threads, "
        f"torch {torch.__version__}; {options.rounds} interleaved rounds, medians. "
        f"Matrix-product peak measured in the same run, of MKL or oneDNN, whichever is faster: "
        f"{peak / 1e9:.0f} GFLOP/s. "
        f"Losses of the two steps differ by {difference:.1e} of their value.",
        "",
        f"Command: `python benchmarks/train_step.py --preset {options.preset} --batch-size "
        f"{options.batch_size} --image-size {options.image_size} --rounds {options.rounds}`",
        "",
        "| part | openblip s | GFLOP | of peak | naive s | GFLOP | of peak |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    medians = {
        name: {part: statistics.median(run[part] for run in runs) for part in PARTS}
        for name, runs in seconds.items()
    }
    totals = {
        name: statistics.median(sum(run.values()) for run in runs) for name, runs in seconds.items()
    }
    for part in PARTS:
        cells = [part]
        for name in seconds:
            spent, done = medians[name][part], flops[name][part]
            share = f"{100 * done / spent / peak:.0f} %" if done else "-"
            cells += [f"{spent:.2f}", f"{done / 1e9:.0f}", share]
        lines.append(f"| {' | '.join(cells)} |")
    cells = ["**step**"]
    for name in seconds:
        done = sum(flops[name].values())
        cells += [
            f"{totals[name]:.2f}",
            f"{done / 1e9:.0f}",
            f"{100 * done / totals[name] / peak:.0f} %",
        ]
    lines.append(f"| {' | '.join(cells)} |")
    ratios = [
        sum(naive.values()) / sum(ours.values())
        for ours, naive in zip(seconds["openblip"], seconds["naive"], strict=True)
    ]
    lines += [
        "",
        f"Naive over openblip, pair by pair: {min(ratios):.2f} / {statistics.median(ratios):.2f} / "
        f"{max(ratios):.2f} (minimum, median, maximum; goal 1.4). "
        f"Fraction of peak: {100 * sum(flops['openblip'].values()) / totals['openblip'] / peak:.0f}"
        " % (goal 60 %).",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
