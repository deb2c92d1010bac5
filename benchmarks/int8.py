"""What 8-bit integers cost in quality and save in time, on the CPU.

    python benchmarks/int8.py MODEL TABLE --split test

Prints, for float32 (PyTorch and ONNX Runtime) and for products of 8-bit integers (the backend
`onnx-int8`), CIDEr of beam-3 captions and the recalls of retrieval with re-ranking on a split of a
pair table, what the model has no head for left out; and the time of each for an image, taken in
turn. `benchmarks/anchors.py` compares speeds in the base size.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch

import openblip
from openblip.evaluation.captioning import evaluate_caption
from openblip.evaluation.retrieval import evaluate_retrieval
from openblip.inference.blip import Blip
from openblip.inference.decoding import Decoding

ROUNDS = 5
BACKENDS = {"float32": None, "float32, onnx": "onnx", "int8": "onnx-int8"}


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
        told = []
        for name, values in seconds.items():
            ratios = [a / b for a, b in zip(seconds["float32"][1:], values[1:], strict=True)]
            median = statistics.median(values[1:])
            told.append(f"{name} {median * 1e3:.1f} ms ({statistics.median(ratios):.2f} times)")
        print(f"{task}, per image: {', '.join(told)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="what openblip.load takes")
    parser.add_argument("table", help="a pair table with human captions")
    parser.add_argument("--split", default="test")
    parser.add_argument("--k", type=int, default=128, help="candidates that are re-ranked")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--images", type=int, default=8, help="images at a time, for the times")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    models = {
        name: openblip.load(options.model, "cpu", backend=backend)
        for name, backend in BACKENDS.items()
    }
    print(f"torch {torch.__version__}, {options.threads} threads, {options.images} images")
    print_times(models, options.images)
    table = openblip.PairTable.open(options.table)
    found = {
        name: quality(model, table, options.split, options.batch_size, options.k)
        for name, model in models.items()
    }
    for metric, value in found["float32"].items():
        others = [
            f"{name} {own[metric]:.2f} ({own[metric] - value:+.2f})"
            for name, own in found.items()
            if name != "float32"
        ]
        print(f"{metric}: float32 {value:.2f}, {', '.join(others)}")


if __name__ == "__main__":
    main()
