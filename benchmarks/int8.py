"""What 8-bit linear layers cost in quality and save in time, on the CPU.

    python benchmarks/int8.py MODEL TABLE --split test
    python benchmarks/int8.py --size base --images 8

The first form prints, for float32 and int8, CIDEr of beam-3 captions and the recalls of retrieval
with re-ranking on a split of a pair table, what the model has no head for left out. The second
form needs no model: it times one of a preset's size with random weights. Both take their times in
one run, the two models in turn.
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable

import torch

import openblip
from openblip.batches.tokenizer import TextTokenizer
from openblip.evaluation.captioning import evaluate_caption
from openblip.evaluation.retrieval import evaluate_retrieval
from openblip.inference import Blip, Decoding
from openblip.inference.loading import quantise
from openblip.model import Med, MedConfig

ROUNDS = 5


def quality(
    blip: Blip, table: openblip.PairTable, split: str, batch_size: int, k: int
) -> dict[str, float]:
    """Metrics of what the model can do: per cent, CIDEr times 100."""
    heads, found = blip.med.config.heads, {}
    if "lm" in heads:
        metrics = evaluate_caption(blip, table, split=split, batch_size=batch_size).metrics
        found["CIDEr"] = 100 * metrics["CIDEr"]
    if "itc" in heads:
        result = evaluate_retrieval(
            blip, table, split=split, k=k, batch_size=batch_size, use_itm="itm" in heads
        )
        found |= {f"contrastive {name}": value for name, value in result.contrastive.items()}
        found |= result.metrics if "itm" in heads else {}
    return found


def work(blip: Blip, images: int) -> dict[str, Callable[[], object]]:
    """Things to time, each for `images` images."""
    size = blip.image_size
    pixels = torch.randn(images, 3, size, size, generator=torch.Generator().manual_seed(0))
    encoded = blip.encode(pixels)
    beam = Decoding(num_beams=3, min_length=20, max_length=20)
    tasks: dict[str, Callable[[], object]] = {"encode": lambda: blip.encode(pixels)}
    if "lm" in blip.med.config.heads:
        tasks["caption, beam 3, 20 tokens, after encoding"] = lambda: blip.generate(encoded, beam)
    if "itm" in blip.med.config.heads:
        texts = [[f"a picture of {number} things" for number in range(32)]] * images
        tasks["match 32 texts, after encoding"] = lambda: blip.score(encoded, texts)
    return tasks


def print_times(models: dict[str, Blip], images: int) -> None:
    tasks = {name: work(blip, images) for name, blip in models.items()}
    for task in tasks["float32"]:
        seconds: dict[str, list[float]] = {name: [] for name in models}
        for _ in range(ROUNDS + 1):
            for name in models:
                started = time.perf_counter()
                tasks[name][task]()
                seconds[name].append((time.perf_counter() - started) / images)
        # The first round warms up.
        ratios = [a / b for a, b in zip(seconds["float32"][1:], seconds["int8"][1:], strict=True)]
        medians = {name: statistics.median(values[1:]) for name, values in seconds.items()}
        print(
            f"{task}: float32 {medians['float32'] * 1e3:.1f} ms, int8 {medians['int8'] * 1e3:.1f} "
            f"ms per image; {statistics.median(ratios):.2f} times as fast "
            f"({min(ratios):.2f} to {max(ratios):.2f})",
            flush=True,
        )


def random_model(size: str) -> Blip:
    # Twice, so that whole words become tokens.
    tokenizer = TextTokenizer.train(["a picture of 0 1 2 3 4 5 6 7 8 9 things"] * 2, vocab_size=99)
    config = MedConfig.preset(size, image_size=384)
    return Blip(Med(config), tokenizer, "pretrain", config.vision.image_size, 30)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", help="what openblip.load takes")
    parser.add_argument("table", nargs="?", help="a pair table with human captions")
    parser.add_argument("--split", default="test")
    parser.add_argument("--k", type=int, default=128, help="candidates that are re-ranked")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--size", default="base", help="preset at 384 px, where no model is given")
    parser.add_argument("--images", type=int, default=8, help="images at a time, for the times")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    if options.model and not options.table:
        parser.error("give a table with the model")
    torch.set_num_threads(options.threads)
    blip = openblip.load(options.model, "cpu") if options.model else random_model(options.size)
    small = copy.copy(blip)
    small.model = quantise(copy.deepcopy(blip.med))
    models = {"float32": blip, "int8": small}
    print(f"torch {torch.__version__}, {options.threads} threads, {options.images} images")
    print_times(models, options.images)
    if options.model:
        table = openblip.PairTable.open(options.table)
        found = {
            name: quality(model, table, options.split, options.batch_size, options.k)
            for name, model in models.items()
        }
        for metric, value in found["float32"].items():
            other = found["int8"][metric]
            print(f"{metric}: float32 {value:.2f}, int8 {other:.2f} ({other - value:+.2f})")


if __name__ == "__main__":
    main()
