"""The loader alone: images per second and core, part by part, with and without scaled decoding.

    python benchmarks/loader.py --photos FOLDER [--output benchmarks/results/loader.md]

Time is processor time of the loader's threads, so that other work on the machine counts little;
rates of the whole loader are also told by the clock. All settings take turns within a round.
"""

import argparse
import io
import itertools
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image, features

from openblip.batches.augmentation import Augmentation
from openblip.batches.loader import PairLoader
from openblip.batches.mixture import WeightedIndex
from openblip.batches.text import clean_caption
from openblip.batches.tokenizer import TextTokenizer
from openblip.batches.transforms import (
    IMAGE_MEAN,
    IMAGE_STD,
    rand_augment,
    random_crop_box,
    to_tensor,
    train_transform,
)
from openblip.sources.images import UndecodedImage, open_image
from openblip.table.table import PairRow, PairTable
from openblip.table.views import CaptionView

TILE = 224
SHAPES = {"500 px": (500, 375), "1000 px": (1000, 750)}
SIZES = (224, 384)
CAPTION = "a man in a red jacket throws a ball to a brown dog near the water {}"
FULL = Augmentation(min_scale=0.2)
KINDS: dict[str, Augmentation | None] = {
    "resize only": None,
    "crop, flip": Augmentation(min_scale=0.2, randaugment=False),
    "crop, flip, RandAugment": FULL,
}


def tiles(folder: Path | None, count: int) -> list[Image.Image]:
    """Squares of real photographs, or of blurred noise where there are none."""
    if folder is not None:
        paths = sorted(itertools.islice(folder.rglob("*.jpg"), count))
        return [Image.open(path).convert("RGB").resize((TILE, TILE)) for path in paths]
    draws = np.random.default_rng(0)
    noise = [draws.integers(0, 256, (32, 32, 3), dtype=np.uint8) for _ in range(count)]
    return [Image.fromarray(n).resize((TILE, TILE), Image.Resampling.BICUBIC) for n in noise]


def jpeg(squares: list[Image.Image], number: int, width: int, height: int) -> bytes:
    """A JPEG of that size, quality 90, put together from squares."""
    across, down = -(-width // TILE), -(-height // TILE)
    sheet = Image.new("RGB", (across * TILE, down * TILE))
    for place in range(across * down):
        square = squares[(number * 7 + place) % len(squares)]
        sheet.paste(square, (place % across * TILE, place // across * TILE))
    stream = io.BytesIO()
    sheet.crop((0, 0, width, height)).save(stream, "JPEG", quality=90)
    return stream.getvalue()


def milliseconds(function: Callable[[], object], num_images: int) -> float:
    """Processor time of a call in this thread, for each image."""
    start = time.thread_time()
    function()
    return 1000 * (time.thread_time() - start) / num_images


def parts(files: list[bytes], size: int, tokenizer: TextTokenizer) -> dict[str, float]:
    """Milliseconds of each part for each image, once through all files."""
    count, draws = len(files), np.random.default_rng(0)
    decoded = [open_image(file) for file in files]
    boxes = [random_crop_box(image.width, image.height, 0.2, draws) for image in decoded]
    resample = Image.Resampling.BICUBIC
    resized = [
        image.crop(box).resize((size, size), resample)
        for image, box in zip(decoded, boxes, strict=True)
    ]
    plain = Augmentation(min_scale=0.2, flip=False, randaugment=False)
    everything = milliseconds(
        lambda: [train_transform(image, size, plain, draws) for image in decoded], count
    )
    normalise = milliseconds(lambda: [to_tensor(image) for image in resized], count)
    texts = [clean_caption(CAPTION.format(number), 30) for number in range(count)]
    return {
        "decode": milliseconds(lambda: [open_image(file) for file in files], count),
        "crop and resize": everything - normalise,
        "RandAugment": milliseconds(
            lambda: [rand_augment(image, 2, 5, draws) for image in resized], count
        ),
        "normalise": normalise,
        "clean and tokenise": milliseconds(
            lambda: tokenizer.encode([clean_caption(text, 30) for text in texts], 30), count
        ),
    }


class Side:
    """A loader with one setting."""

    def __init__(
        self,
        table: PairTable,
        tokenizer: TextTokenizer,
        size: int,
        augmentation: Augmentation | None,
        num_threads: int,
        scaled: bool = False,
    ) -> None:
        parts = [WeightedIndex(CaptionView().resolve(table))]
        self.loader = PairLoader(
            parts,
            tokenizer,
            batch_size=16,
            image_size=size,
            augmentation=augmentation,
            max_tokens=30,
            seed=0,
            num_threads=num_threads,
            scaled_decoding=scaled,
        )
        self.step = 0

    def rates(self, num_batches: int) -> tuple[float, float]:
        """Images per second of processor time, and by the clock."""
        with self.loader as loader:
            batches = loader.iterate(self.step)
            next(batches)
            wall, cpu = time.perf_counter(), time.process_time()
            images = sum(len(batch.ids) for batch in itertools.islice(batches, num_batches))
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        self.step += num_batches
        # Batches that are under way at either end cancel out, but for their number.
        return images / cpu, images / wall


def pixel_difference(files: list[bytes], size: int) -> tuple[float, float, float]:
    """Mean and largest difference in levels of 255 that scaled decoding makes, and how often."""
    plain = Augmentation(min_scale=0.2, flip=False, randaugment=False)
    deviation = torch.tensor(IMAGE_STD)[:, None, None]
    mean = torch.tensor(IMAGE_MEAN)[:, None, None]
    found = []
    for number, file in enumerate(files):
        whole, scaled = (
            255
            * (
                train_transform(image, size, plain, np.random.default_rng(number)) * deviation
                + mean
            )
            for image in (open_image(file), UndecodedImage(file))
        )
        found.append((whole - scaled).abs())
    changed = [d for d in found if d.max() > 0.5]
    if not changed:
        return 0.0, 0.0, 0.0
    means = [float(d.mean()) for d in changed]
    return (
        statistics.mean(means),
        max(float(d.max()) for d in changed),
        len(changed) / len(found),
    )


def median(values: list[float]) -> float:
    return statistics.median(values)


def rows(options: argparse.Namespace, folder: Path) -> Iterator[str]:
    """The report, line by line."""
    squares = tiles(options.photos, 600)
    files = {
        name: [jpeg(squares, number, *shape) for number in range(options.images)]
        for name, shape in SHAPES.items()
    }
    tables = {
        name: PairTable.create(
            folder / f"{number}.lance",
            (PairRow(str(n), f, captions=[CAPTION.format(n)]) for n, f in enumerate(own)),
        )
        for number, (name, own) in enumerate(files.items())
    }
    tokenizer = TextTokenizer.train([CAPTION.format(n) for n in range(200)], vocab_size=300)
    weight = statistics.mean(len(file) for file in files["500 px"]) / 1000
    what = "mosaics of photographs" if options.photos else "blurred noise"
    yield "# The loader alone"
    yield ""
    yield (
        f"{platform.processor() or platform.machine()}, Pillow {Image.__version__} with "
        f"libjpeg-turbo {features.version('libjpeg_turbo')}; JPEG of quality 90 ({what}; "
        f"500 x 375 px: {weight:.0f} kB), read from a table, batches of 16, crops of 0.2 to 1 of "
        f"the area; {options.rounds} interleaved rounds, medians."
    )
    yield ""
    yield f"Command: `python benchmarks/loader.py{' --photos FOLDER' if options.photos else ''}`"
    yield ""
    yield "## Milliseconds of one core for each image of 500 px"
    yield ""
    own = files["500 px"][:64]
    spent = {size: [parts(own, size, tokenizer) for _ in range(options.rounds)] for size in SIZES}
    yield "| part | " + " | ".join(f"{size} px" for size in SIZES) + " |"
    yield "| --- |" + " ---: |" * len(SIZES)
    for name in spent[SIZES[0]][0]:
        cells = [f"{median([run[name] for run in spent[size]]):.2f}" for size in SIZES]
        yield f"| {name} | {' | '.join(cells)} |"
    yield ""
    yield "## Images of 500 px per second"
    yield ""
    sides = {
        (kind, size, threads): Side(tables["500 px"], tokenizer, size, augmentation, threads)
        for kind, augmentation in KINDS.items()
        for size in SIZES
        for threads in (1, 2)
    }
    found = measured(sides, options)
    yield "| | size | per core | 1 thread, by the clock | 2 threads, by the clock |"
    yield "| --- | ---: | ---: | ---: | ---: |"
    for kind, size in itertools.product(KINDS, SIZES):
        one, two = found[kind, size, 1], found[kind, size, 2]
        yield (
            f"| {kind} | {size} | {median([cpu for cpu, _ in one]):.0f} | "
            f"{median([wall for _, wall in one]):.0f} | {median([wall for _, wall in two]):.0f} |"
        )
    yield ""
    yield "## Scaled decoding (`data.scaled_decoding`), one thread, full augmentation"
    yield ""
    yield (
        "| JPEG | size | images decoded smaller | per core without | with | ratio of pairs | "
        "mean difference | largest |"
    )
    yield "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
    cases = list(itertools.product(SHAPES, (64, *SIZES)))
    pairs = {
        (name, size, scaled): Side(tables[name], tokenizer, size, FULL, 1, scaled)
        for name, size in cases
        for scaled in (False, True)
    }
    found = measured(pairs, options)
    for name, size in cases:
        without, with_ = ([cpu for cpu, _ in found[name, size, s]] for s in (False, True))
        ratio = median([b / a for a, b in zip(without, with_, strict=True)])
        mean, largest, share = pixel_difference(files[name][:100], size)
        yield (
            f"| {name} | {size} | {100 * share:.0f} % | {median(without):.0f} | "
            f"{median(with_):.0f} | {ratio:.2f} | {mean:.1f} of 255 | {largest:.0f} |"
        )


def measured(sides, options):
    """Rates of each side, one for each round."""
    found = {key: [] for key in sides}
    for _ in range(options.rounds):
        for key, side in sides.items():
            found[key].append(side.rates(options.batches))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", type=Path, help="folder with JPEG photographs")
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--batches", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, help="write the tables there as Markdown")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        lines = []
        for line in rows(options, Path(folder)):
            print(line, flush=True)
            lines.append(line)
    if options.output:
        options.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
