"""How well changed copies of photographs are found; what search, views and flags cost.

python benchmarks/curation.py TABLE      # of real photographs, as `openblip data import` makes it
python benchmarks/curation.py --growth 100000 1000000     # time and memory by number of rows
"""

import argparse
import hashlib
import io
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import numpy as np
import pyarrow as pa
from PIL import Image, ImageEnhance

from openblip.curation.duplicates import flag_duplicates
from openblip.curation.leakage import flag_leaks
from openblip.curation.marks import MARK_SETTINGS, MARKS_KEY, THUMBNAIL_BYTES, Marks, mark_image
from openblip.curation.near_texts import repeated_texts
from openblip.curation.nearness import Nearness, near_pairs, repeated_images, seen_images
from openblip.sources.row_images import row_image
from openblip.table.table import PairRow, PairTable
from openblip.table.views import SOURCES, WITHOUT, CaptionView

MARK_TYPES = {
    "image_hash": pa.uint64(),
    "image_thumbnail": pa.binary(THUMBNAIL_BYTES),
    "image_digest": pa.uint64(),
    "image_error": pa.string(),
}
Change = Callable[[Image.Image], Image.Image]


def scaled(share: float) -> Change:
    return lambda image: image.resize(
        (round(image.width * share), round(image.height * share)), Image.Resampling.BICUBIC
    )


def compressed(quality: int) -> Change:
    def change(image: Image.Image) -> Image.Image:
        stream = io.BytesIO()
        image.save(stream, "JPEG", quality=quality)
        return Image.open(stream).convert("RGB")

    return change


def cropped(share: float) -> Change:
    def change(image: Image.Image) -> Image.Image:
        x, y = round(image.width * share / 2), round(image.height * share / 2)
        return image.crop((x, y, image.width - x, image.height - y))

    return change


CHANGES: dict[str, Change] = {
    "half the size": scaled(0.5),
    "JPEG at quality 30": compressed(30),
    "half the size, JPEG 50": lambda image: compressed(50)(scaled(0.5)(image)),
    "10 % brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.1),
    "2 % cut off": cropped(0.02),
    "5 % cut off": cropped(0.05),
    "in grey": lambda image: image.convert("L").convert("RGB"),
    "mirrored": lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
}


def marks_of(images: list[Image.Image]) -> Marks:
    found = [mark_image(image, image.tobytes()) for image in images]
    return Marks(
        np.ones(len(found), dtype=bool),
        np.array([mark.hash for mark in found], dtype=np.uint64),
        np.array([list(mark.thumbnail) for mark in found], dtype=np.uint8),
        np.array([mark.digest for mark in found], dtype=np.uint64),
    )


def photographs(table: PairTable, most: int) -> None:
    rows = table.take(range(min(most, len(table))), ["id", "image", "image_uri"]).to_pylist()
    images = [row_image(row) for row in rows]
    marks = marks_of(images)
    changed = {
        name: marks_of([change(image) for image in images]) for name, change in CHANGES.items()
    }
    print(f"{len(images)} photographs of {table.uri}; found again, in percent\n")
    settings = [(radius, colour) for radius in (2, 4, 6, 8, 10, 12) for colour in (24, 255)]
    print("| " + " | ".join(["radius", "colour", *CHANGES, "of different photographs"]) + " |")
    print("| ---: " * (len(CHANGES) + 3) + "|")
    for radius, colour in settings:
        nearness = Nearness(radius=radius, colour=colour)
        cells = [str(radius), str(colour)]
        for others in changed.values():
            seen = seen_images(others, marks, nearness)
            cells.append(f"{100 * sum(k == v for k, v in seen.items()) / len(images):.1f}")
        cells.append(str(len(repeated_images(marks, nearness))))
        print("| " + " | ".join(cells) + " |")


def search(count: int) -> None:
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 1 << 64, size=count, dtype=np.uint64)
    hashes[1000:2000] = hashes[:1000] ^ np.uint64(0b1011)
    print(f"\n{count} random hashes, and 1000 pairs at 3 bits\n")
    for radius in (2, 4, 6, 8):
        began = time.perf_counter()
        pairs = near_pairs(hashes, None, radius)
        print(f"radius {radius}: {len(pairs)} pairs in {time.perf_counter() - began:.1f} s")
    words = [f"w{number}" for number in range(3000)]
    shares = 1 / np.arange(1, 3001)
    chosen = rng.choice(3000, size=(count, 10), p=shares / shares.sum())
    texts = list(dict.fromkeys(" ".join(words[at] for at in row) for row in chosen))
    texts += [f"{text} x" for text in texts[:1000]]
    began = time.perf_counter()
    found = repeated_texts(texts, 0.9)
    print(f"{len(texts)} texts: {len(found)} repeated in {time.perf_counter() - began:.1f} s")


def views(count: int) -> None:
    """A table of rows without images, scored and checked: resolving views, finding captions."""
    rng = np.random.default_rng(0)
    rows = (
        PairRow(str(n), b"x", captions=[words_of(n)], meta={"source": f"s{n % 3}"})
        for n in range(count)
    )
    with tempfile.TemporaryDirectory() as folder:
        table = PairTable.create(f"{folder}/views.lance", rows)
        scores = pa.array(rng.random((count, 1)).astype(np.float32).tolist())
        texts = pa.array([[words_of(-n)] for n in range(count)])
        columns = {"captions_itm": scores, "synthetic": texts, "synthetic_itm": scores}
        table.add_columns(pa.table(columns))
        marked = {name: pa.nulls(count, kind) for name, kind in MARK_TYPES.items()}
        table.add_columns(pa.table(marked))
        table.update_metadata({MARKS_KEY: json.dumps({"settings": MARK_SETTINGS, "rows": count})})
        began = time.perf_counter()
        flag_duplicates(table, show_progress=False)
        flag_leaks(table, other_split(folder), show_progress=False)
        print(f"\n{count} rows: texts compared in {time.perf_counter() - began:.1f} s")
        table.drop_columns(["image_error"])
        every = {
            "one threshold": CaptionView(sources=SOURCES, itm=0.5),
            "thresholds by source": CaptionView(
                sources=SOURCES, itm_of=("web=0.5", "synthetic=0.3")
            ),
            "thresholds by data set": CaptionView(sources=SOURCES, itm=0.5, itm_of=("s1=0.3",)),
            "without all that is flagged": CaptionView(sources=SOURCES, itm=0.5, without=WITHOUT),
        }
        for name, view in every.items():
            began = time.perf_counter()
            view.resolve(table)
            print(f"view, {name}: {time.perf_counter() - began:.2f} s")


def growth(counts: list[int]) -> None:
    """Duplicates and leaks of tables whose images are marked, each in a process of its own."""
    print("| rows | what | s | s of a core | peak MiB | above the start |")
    print("| ---: | --- | ---: | ---: | ---: | ---: |")
    for count in counts:
        with tempfile.TemporaryDirectory() as folder:
            marked_table(f"{folder}/rows.lance", count, "train")
            marked_table(f"{folder}/other.lance", 5000, "test")
            for what in ("duplicates", "leakage"):
                words = [sys.executable, __file__, folder, "--check", what]
                said = subprocess.run(words, check=True, capture_output=True, text=True).stdout
                print(f"| {count} | {what} | {said.strip()} |", flush=True)


def marked_table(uri: str, count: int, split: str) -> None:
    """Random texts, hashes and thumbnails, of which one in a hundred is a copy of another."""
    rng = np.random.default_rng(len(split))
    of = np.where(rng.random(count) < 0.01, rng.integers(0, count, count), np.arange(count))
    rows = (
        PairRow(str(n), b"x", captions=[words_of(int(of[n]))], split=split) for n in range(count)
    )
    table = PairTable.create(uri, rows)
    hashes = rng.integers(0, 1 << 64, size=count, dtype=np.uint64)[of]
    thumbnails = rng.integers(0, 256, (count, THUMBNAIL_BYTES), dtype=np.uint8)[of]
    marks = {
        "image_hash": pa.array(hashes),
        "image_thumbnail": pa.FixedSizeBinaryArray.from_buffers(
            MARK_TYPES["image_thumbnail"], count, [None, pa.py_buffer(thumbnails.tobytes())]
        ),
        "image_digest": pa.array(hashes),
        "image_error": pa.nulls(count, pa.string()),
    }
    table.add_columns(pa.table(marks))
    table.update_metadata({MARKS_KEY: json.dumps({"settings": MARK_SETTINGS, "rows": count})})


def check(folder: str, what: str) -> None:
    table = PairTable.open(f"{folder}/rows.lance")
    before, began, used = most_memory(), time.perf_counter(), time.process_time()
    if what == "duplicates":
        flag_duplicates(table, show_progress=False)
    else:
        flag_leaks(table, PairTable.open(f"{folder}/other.lance"), show_progress=False)
    seconds, used, peak = time.perf_counter() - began, time.process_time() - used, most_memory()
    print(f"{seconds:.1f} | {used:.1f} | {peak:.0f} | {peak - before:.0f}")


def words_of(number: int) -> str:
    digits = hashlib.sha256(str(number).encode()).hexdigest()
    return " ".join(digits[at : at + 5] for at in range(0, 50, 5))


def other_split(folder: str) -> PairTable:
    rows = (PairRow(str(n), b"x", captions=[f"other {n}"], split="test") for n in range(1000))
    return PairTable.create(f"{folder}/other.lance", rows)


def most_memory() -> float:
    """MiB."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table", nargs="?")
    parser.add_argument("--photographs", type=int, default=2000)
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--growth", type=int, nargs="+")
    parser.add_argument("--check", choices=["duplicates", "leakage"], help="of --growth's tables")
    options = parser.parse_args()
    if options.growth:
        growth(options.growth)
    elif options.check:
        check(options.table, options.check)
    else:
        photographs(PairTable.open(options.table), options.photographs)
        search(options.count)
        views(options.count)
        print(f"most memory: {most_memory():.0f} MiB")
