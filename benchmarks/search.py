"""Search: its times, its memory, and how far its first hit and its silence can be trusted.

    python benchmarks/search.py --output benchmarks/results/search.md --world-model demo/filter \\
        --photos-model runs/flickr8k/filter --photos FLICKR8K
    python benchmarks/search.py --only vectors --rows 1000000

Parts: `vectors` (clustered synthetic embeddings: a scan beside the index), `crossover` (the same
for fewer: where a scan is as fast), `files` (a folder that has not changed is reconciled),
`matching` (candidates whose states are kept, or not, and what keys and values alone would take),
`indexing`
(beside the bare encoder), `world` and `photos` (recall of the first hit with and without matching,
and queries for what is not there). FLICKR8K is a folder with images/ and captions.jsonl, by default
`data/flickr8k` in `$OPENBLIP_SHARED`. Parts without a model are left out, and said to be.
"""

import argparse
import hashlib
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from PIL import Image

from openblip.batches.tokenizer import TextTokenizer
from openblip.curation.marks import EMBEDDING_KEY
from openblip.index.embeddings import EmbeddingJob, embed_table, embedding_array
from openblip.index.folder import folder_schema, reconcile
from openblip.index.query import Query
from openblip.index.search import Hit, Rerank, Searcher
from openblip.index.states import StateCache
from openblip.inference.blip import Blip
from openblip.inference.encoding import EncodedImages
from openblip.inference.loading import load
from openblip.jobs.units import Unit, num_batches
from openblip.metrics.bootstrap import bootstrap_interval
from openblip.model import Med, MedConfig
from openblip.runtime.threads import one_thread
from openblip.sources.importing import import_pairs
from openblip.table.columns import list_fragments
from openblip.table.rows import PairRow, row_batches, row_schema
from openblip.table.table import PairTable
from openblip.table.vectors import (
    LEAST_INDEXED_ROWS,
    create_rows_table,
    exchange_rows,
    index_vectors,
    nearest_rows,
)
from openblip.world import create_world, is_true_caption, truth_of
from openblip.world.demo import WORLD

PARTS = ("vectors", "crossover", "files", "matching", "indexing", "world", "photos")
WIDTH, K, QUERIES = 256, 100, 200
# Things that photographs of people and dogs outdoors do not show; those of which a caption of the
# collection has a word are left out.
THINGS = """
submarine microscope spaceship volcano piano cactus penguin walrus refrigerator tractor helicopter
zebra giraffe octopus jellyfish chandelier printer keyboard violin lighthouse pyramid turbine
bathtub toilet passport pizza sushi pineapple teapot typewriter hedgehog flamingo crocodile kangaroo
dinosaur snowplow excavator telescope accordion harp saxophone microwave dishwasher blender
calculator gramophone clarinet stethoscope scalpel syringe thermometer voltmeter hourglass
chessboard scorpion hamster ostrich peacock vulture rhinoceros hippopotamus gorilla chimpanzee
koala iguana tarantula broccoli cucumber croissant lasagna burrito spacesuit satellite locomotive
origami loom anvil stapler
"""
SETTINGS = ("a {}", "a {} in the snow", "a {} at night", "two people beside a {}", "a red {}")


class Drawn:
    """Embeddings in the place of a model's, so that nothing but the search is measured."""

    def embed_images(self, images: object, batch_size: int = 16) -> torch.Tensor:
        count = 1 if isinstance(images, Image.Image) else sum(1 for _ in images)  # type: ignore[attr-defined]
        draws = torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(count))
        return torch.nn.functional.normalize(draws, dim=-1)

    def embed_texts(self, texts: str | Sequence[str], batch_size: int = 256) -> torch.Tensor:
        return torch.nn.functional.normalize(torch.randn(len(texts), WIDTH), dim=-1)


def processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def milliseconds(act: Callable[[], object], times: int = 1) -> list[float]:
    taken = []
    for _ in range(times):
        begun = time.perf_counter()
        act()
        taken.append(1000 * (time.perf_counter() - begun))
    return taken


def drawn_vectors(count: int, seed: int, width: int = WIDTH) -> np.ndarray:
    """Unit vectors around centres, as embeddings of photographs lie."""
    dice = np.random.default_rng(seed)
    centres = np.random.default_rng(0).standard_normal((1000, width), np.float32)
    values = centres[dice.integers(0, len(centres), count)]
    values = values + 0.7 * dice.standard_normal((count, width), np.float32)
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float16)


def vector_table(uri: str, count: int) -> PairTable:
    schema = pa.schema([*row_schema(), (EMBEDDING_KEY, pa.list_(pa.float16(), WIDTH))])
    table = create_rows_table(uri, schema)
    for start in range(0, count, 100_000):
        size = min(100_000, count - start)
        pairs = (PairRow(f"r{start + n}", None, f"/nowhere/{start + n}.jpg") for n in range(size))
        rows = pa.Table.from_batches(row_batches(pairs, lambda row_id: True, None))
        column = embedding_array(drawn_vectors(size, 1 + start))
        table = exchange_rows(
            table, [], rows.append_column(EMBEDDING_KEY, column).combine_chunks().to_batches()
        )
    return table


def exact(count: int, queries: np.ndarray) -> list[set[int]]:
    """The K nearest of each query, by products with all vectors, block by block."""
    scores = np.full((len(queries), K), -2.0, np.float32)
    rows = np.zeros((len(queries), K), np.int64)
    for start in range(0, count, 100_000):
        size = min(100_000, count - start)
        block = queries @ drawn_vectors(size, 1 + start).astype(np.float32).T
        numbers = np.broadcast_to(np.arange(start, start + size), block.shape)
        scores, rows = np.concatenate([scores, block], 1), np.concatenate([rows, numbers], 1)
        best = np.argpartition(-scores, K - 1, axis=1)[:, :K]
        scores, rows = np.take_along_axis(scores, best, 1), np.take_along_axis(rows, best, 1)
    return [set(row.tolist()) for row in rows]


def vectors(options: argparse.Namespace, folder: Path) -> list[str]:
    count = options.rows
    uri = str(folder / "vectors.lance")
    table = vector_table(uri, count)
    queries = drawn_vectors(options.queries, 10**6).astype(np.float32)
    expected = exact(count, queries)

    def ask(query: np.ndarray) -> np.ndarray:
        return nearest_rows(table, EMBEDDING_KEY, query, K)

    def measured(name: str) -> str:
        ask(queries[0])
        taken, recalls = [], []
        for query, wanted in zip(queries, expected, strict=True):
            begun = time.perf_counter()
            found = ask(query)
            taken.append(1000 * (time.perf_counter() - begun))
            recalls.append(len(wanted & set(found.tolist())) / len(wanted))
        beyond = memory_of_queries(uri)
        return (
            f"| {name} | {statistics.median(taken):.1f} | {max(taken):.1f} | "
            f"{np.mean(recalls):.4f} | {beyond:.2f} |"
        )

    lines = [
        f"## {count:,} vectors of {WIDTH} numbers\n",
        f"Clustered, {len(queries)} queries, the first {K} of each.\n",
        f"| | median ms | longest ms | recall at {K} | GB beyond an open table |",
        "| --- | ---: | ---: | ---: | ---: |",
        measured("scan"),
    ]
    begun = time.perf_counter()
    index = index_vectors(table, EMBEDDING_KEY, least_rows=0)
    built = time.perf_counter() - begun
    assert index is not None
    table = PairTable.open(uri)
    return [*lines, measured(index.kind), f"\nThe index was built in {built:.0f} s.\n"]


def crossover(options: argparse.Namespace, folder: Path) -> list[str]:
    """Queries in turn by a scan and by the index, at several sizes."""
    lines = [
        "## Where a scan is as fast\n",
        f"Median ms of a query, {options.queries} in turn; an index is made from "
        f"{LEAST_INDEXED_ROWS:,} rows on.\n",
        "| rows | scan | index | recall of the index |",
        "| ---: | ---: | ---: | ---: |",
    ]
    for count in options.crossover:
        queries = drawn_vectors(options.queries, 10**6).astype(np.float32)
        expected = exact(count, queries)
        plain = vector_table(str(folder / f"plain-{count}.lance"), count)
        uri = str(folder / f"indexed-{count}.lance")
        index_vectors(vector_table(uri, count), EMBEDDING_KEY, least_rows=0)
        indexed = PairTable.open(uri)
        taken: dict[str, list[float]] = {"scan": [], "index": []}
        recalls = []
        for query, wanted in zip(queries, expected, strict=True):
            for name, table in (("scan", plain), ("index", indexed)):
                begun = time.perf_counter()
                found = nearest_rows(table, EMBEDDING_KEY, query, K)
                taken[name].append(1000 * (time.perf_counter() - begun))
            recalls.append(len(wanted & set(found.tolist())) / len(wanted))
        scan, index = (statistics.median(each) for each in taken.values())
        lines.append(f"| {count:,} | {scan:.1f} | {index:.1f} | {np.mean(recalls):.4f} |")
    return [*lines, ""]


def memory_of_queries(uri: str) -> float:
    """GB by which a process grows that asks ten queries."""
    done = subprocess.run(
        [sys.executable, __file__, "--ask", uri], text=True, capture_output=True, check=True
    )
    return float(done.stdout)


def ask_ten(uri: str) -> None:
    unit = 1 if sys.platform == "darwin" else 1024
    table = PairTable.open(uri)
    list(table.scan(["id"], batch_size=1, start=len(table) - 1))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for query in drawn_vectors(10, 10**6):
        nearest_rows(table, EMBEDDING_KEY, query, K)
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * unit / 1e9)


def files(options: argparse.Namespace, folder: Path) -> list[str]:
    photos = folder / "photos"
    Image.new("RGB", (16, 16), "red").save(folder / "one.png")
    content = (folder / "one.png").read_bytes()
    for number in range(options.files):
        path = photos / f"{number // 1000:03d}" / f"{number:06d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content + number.to_bytes(4, "big"))
    model = Drawn()
    table = create_rows_table(str(folder / "files.lance"), folder_schema(model))
    table, _ = reconcile(table, photos, model, show_progress=False)
    begun, busy = time.perf_counter(), time.process_time()
    _, changes = reconcile(PairTable.open(table.uri), photos, model, show_progress=False)
    taken, busy = time.perf_counter() - begun, time.process_time() - busy
    assert changes.unchanged == options.files
    return [
        f"## {options.files:,} files that have not changed\n",
        f"Reconciled in {taken:.1f} s, {busy:.1f} s of the processor.\n",
    ]


def random_model(options: argparse.Namespace) -> Blip:
    words = TextTokenizer.train([f"two dogs run along a beach {n}" for n in range(50)], 200)
    torch.manual_seed(0)
    size = MedConfig.preset(options.preset, vocab_size=words.vocab_size)
    size = replace(size, vision=replace(size.vision, image_size=options.image_size))
    med = Med(size)
    return Blip(med, words, "pretrain", size.vision.image_size, 35)


def photo_table(uri: str, count: int) -> PairTable:
    dice = np.random.default_rng(0)

    def rows():  # type: ignore[no-untyped-def]
        for number in range(count):
            pixels = dice.integers(0, 256, (24, 32, 3), dtype=np.uint8)
            path = Path(uri).with_name(f"{number}.jpg")
            Image.fromarray(pixels).resize((500, 375), Image.Resampling.BICUBIC).save(path)
            yield PairRow(f"p{number}", path.read_bytes())

    return PairTable.create(uri, rows())


def matching(options: argparse.Namespace, folder: Path) -> list[str]:
    """Searches whose candidates are all in the cache; what the states are changes no time."""
    blip, count = random_model(options), options.candidates
    table = photo_table(str(folder / "photos.lance"), count)
    drawn = drawn_vectors(count, 1, blip.embed_texts("a beach").shape[1])
    table.add_columns(pa.table({EMBEDDING_KEY: embedding_array(drawn)}))
    table = PairTable.open(table.uri)
    contents = table.take(range(count), ["image"])["image"].to_pylist()
    digests = [hashlib.blake2b(content, digest_size=16).hexdigest() for content in contents]
    vision = blip.model.config.vision
    hidden = torch.randn(count, 1 + (vision.image_size // vision.patch_size) ** 2, vision.width)
    lines = [
        f"## Matching {count} cached candidates, {options.preset} at {blip.image_size} px\n",
        "| states | search s | of the processor s | kB an image |",
        "| --- | ---: | ---: | ---: |",
    ]
    for precision in ("float16", "int8"):
        cache = StateCache(folder / precision, 10**10, "m", precision)
        assert cache.store(dict(zip(digests, hidden, strict=True))) == count
        searcher = Searcher(table, blip, cache)

        def ask(searcher: Searcher = searcher) -> None:
            query = Query(["two dogs run along a beach"])
            assert searcher.find(query, rerank=count).cached == count

        ask()
        begun = time.process_time()
        taken = milliseconds(ask, options.rounds)
        busy = (time.process_time() - begun) / options.rounds
        sizes = [path.stat().st_size for path in (folder / precision).rglob("*.states")]
        lines.append(
            f"| {precision} | {statistics.median(taken) / 1000:.2f} | {busy:.2f} | "
            f"{np.mean(sizes) / 1000:.0f} |"
        )
        if precision == "float16":
            compared = beside_keys_and_values(blip, hidden, ask, options.rounds)
    return [*lines, "", compared, ""]


def beside_keys_and_values(
    blip: Blip, hidden: torch.Tensor, ask: Callable[[], object], rounds: int
) -> str:
    """A whole search with states, in turn with the keys and values that it does without."""

    def project() -> None:
        for start in range(0, len(hidden), 8):
            assert EncodedImages(blip.matcher, hidden[start : start + 8]).encoder_memory

    pairs = [(milliseconds(ask)[0], milliseconds(project)[0]) for _ in range(rounds)]
    search, keys = (statistics.median(each) / 1000 for each in zip(*pairs, strict=True))
    ratio = statistics.median(keys / search for search, keys in pairs)
    return (
        f"Keys and values of these images alone, which the query's few tokens do without, take "
        f"{keys:.2f} s; the whole search beside them {search:.2f} s, {ratio:.1f} times less "
        f"(medians of {rounds} pairs).\n"
    )


def indexing(options: argparse.Namespace, folder: Path) -> list[str]:
    blip, count = random_model(options), options.images
    table = photo_table(str(folder / "images.lance"), count)
    blip.save(folder / "encoder")
    worker = EmbeddingJob.prepare(table.uri, str(folder / "encoder"), 8).open_worker("cpu", 60.0, 1)
    # All batches of the one fragment, as a worker is given them; they are saved at the end.
    (part,) = list_fragments(table, ())
    unit = Unit(
        part=part.number,
        digest=part.digest,
        num_rows=count,
        version=table.version,
        batches=tuple(range(num_batches(count, 8))),
        seals=False,
        blamed={},
    )
    batch = torch.randn(8, 3, blip.image_size, blip.image_size)
    bare, whole = [], []
    for _ in range(options.rounds):
        with one_thread():  # as a worker on a processor
            taken = sum(milliseconds(lambda: blip.encode(batch).embed, max(count // 8, 1)))
        bare.append(1000 * 8 * max(count // 8, 1) / taken)
        taken = milliseconds(lambda: deque(worker.compute(unit), maxlen=0))[0]
        whole.append(1000 * count / taken)
    shares = [w / b for w, b in zip(whole, bare, strict=True)]
    return [
        f"## Indexing images, {options.preset} at {blip.image_size} px, one worker\n",
        f"{statistics.median(whole):.2f} images/s, the bare encoder {statistics.median(bare):.2f}: "
        f"{100 * statistics.median(shares):.0f} % (median of {options.rounds} pairs).\n",
    ]


def gallery(table: PairTable, split: str) -> tuple[list[int], list[list[str]]]:
    rows = table.take(range(len(table)), ["split", "captions"]).to_pylist()
    chosen = [number for number, row in enumerate(rows) if row["split"] == split]
    return chosen, [rows[number]["captions"] for number in chosen]


def quality(
    name: str,
    table: PairTable,
    model: str,
    absent: Sequence[str],
    options: argparse.Namespace,
    fits: Callable[[str, Hit], bool] | None = None,
) -> list[str]:
    """IR@1 with and without matching, and what is said of things that are not there.

    `fits` says whether a text is true of a hit; None: its own image alone is right.
    """
    embed_table(table, model, show_progress=False)
    table = PairTable.open(table.uri)
    blip = load(model)
    rows, captions = gallery(table, "test")
    rows = rows[: options.gallery]
    captions = [own[: options.texts] for own in captions[: options.gallery]]
    ids = table.take(rows, ["id"])["id"].to_pylist()
    where = "split = 'test'"
    folder = Path(table.uri).parent
    searchers = {
        precision: Searcher(table, blip, StateCache(folder / precision, 10**11, name, precision))
        for precision in ("float16", "int8")
    }

    def first_hits(
        rerank: Rerank, precision: str = "float16"
    ) -> tuple[list[list[bool]], list[int]]:
        hits, firsts = [], []
        for row_id, own in zip(ids, captions, strict=True):
            found = [
                searchers[precision].find(Query([text]), 10, where=where, rerank=rerank).hits
                for text in own
            ]
            hits.append(
                [
                    first.id == row_id if fits is None else fits(text, first)
                    for text, (first, *_) in zip(own, found, strict=True)
                ]
            )
            firsts += [first.row for first, *_ in found]
        return hits, firsts

    lines = [
        f"## {name}: {len(rows)} images, {sum(map(len, captions))} texts\n",
        "| matched | IR@1 % | 95 % interval |",
        "| --- | ---: | ---: |",
    ]
    firsts: dict[object, list[int]] = {}
    choices: tuple[Rerank, ...] = (0, "auto", 32, 128)
    for rerank in choices:
        hits, firsts[rerank] = first_hits(rerank)
        share = bootstrap_interval([100 * np.mean(own) for own in hits])
        lines.append(f"| {rerank} | {share[0]:.1f} | {share[1]:.1f} to {share[2]:.1f} |")
    _, int8 = first_hits(32, "int8")
    same = np.mean(np.array(int8) == np.array(firsts[32]))
    lines.append(f"\nWith states in int8 the first hit is the same for {100 * same:.1f} %.\n")
    present = [own[0] for own in captions][: len(absent)]
    return [*lines, *silence(searchers["float16"], present, absent, where)]


def silence(
    searcher: Searcher, present: Sequence[str], absent: Sequence[str], where: str
) -> list[str]:
    """What is shown of things that are not there, by a threshold found on other queries."""
    best = {
        kind: np.array(
            [searcher.find(Query([t]), 1, where=where, rerank=32).best or 0.0 for t in texts]
        )
        for kind, texts in (("present", present), ("absent", absent))
    }
    # The even ones find the threshold, the odd ones judge it.
    tuned = float(np.quantile(best["absent"][::2], 0.95))
    lines = [
        f"{len(present)} texts of the images, {len(absent)} of things that are not there.\n",
        "| threshold | shown, of what is there % | shown, of what is not % |",
        "| --- | ---: | ---: |",
    ]
    for threshold, what in ((0.5, "0.5"), (tuned, f"{tuned:.4f}, found on the others")):
        shares = [100 * np.mean(best[kind][1::2] > threshold) for kind in ("present", "absent")]
        lines.append(f"| {what} | {shares[0]:.1f} | {shares[1]:.1f} |")
    return [*lines, ""]


def world(options: argparse.Namespace, folder: Path) -> list[str]:
    if options.world_model is None:
        return ["## World\n", "Left out: no --world-model.\n"]
    rows = {"web_rows": 0, "human_rows": 0, "val_rows": 0, "test_rows": options.gallery}
    config = replace(WORLD, seed=11, **rows)
    table = create_world(folder / "world.lance", config)
    metas = table.take(range(len(table)), ["meta"])["meta"].to_pylist()
    scenes = [truth_of(meta).scene for meta in metas]
    other = replace(config, seed=12, human_rows=4 * QUERIES, test_rows=0)
    others = create_world(folder / "others.lance", other)
    texts = [
        t for own in others.take(range(len(others)), ["captions"])["captions"] for t in own.as_py()
    ]
    absent = [text for text in texts if not any(is_true_caption(text, scene) for scene in scenes)]
    # Of two images that show the same, either is right.
    return quality(
        "World",
        table,
        options.world_model,
        absent[: options.queries],
        options,
        lambda text, hit: is_true_caption(text, scenes[hit.row]),
    )


def photos(options: argparse.Namespace, folder: Path) -> list[str]:
    if options.photos_model is None or options.photos is None:
        return ["## Photographs\n", "Left out: no --photos-model, or no photographs.\n"]
    import_pairs(str(options.photos), folder / "flickr.lance", show_progress=False)
    table = PairTable.open(folder / "flickr.lance")
    words = {
        word
        for own in table.take(range(len(table)), ["captions"])["captions"].to_pylist()
        for text in own
        for word in text.lower().split()
    }
    unseen = [thing for thing in THINGS.split() if thing not in words]
    absent = [setting.format(thing) for setting in SETTINGS for thing in unseen]
    return quality("Flickr8k", table, options.photos_model, absent[: options.queries], options)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    shared = os.environ.get("OPENBLIP_SHARED")
    flickr = Path(shared, "data", "flickr8k") if shared else None
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--rows", type=int, default=1_000_000, help="vectors")
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=QUERIES)
    parser.add_argument("--candidates", type=int, default=32, help="that are matched")
    parser.add_argument("--images", type=int, default=64, help="that are indexed")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--preset", default="base")
    parser.add_argument("--image-size", type=int, default=384)
    parser.add_argument("--crossover", type=int, nargs="+", default=(16_384, 65_536, 131_072))
    parser.add_argument("--gallery", type=int, default=1000, help="images of world or photographs")
    parser.add_argument("--texts", type=int, default=5, help="of each image")
    parser.add_argument("--world-model")
    parser.add_argument("--photos-model")
    parser.add_argument("--photos", type=Path, default=flickr)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--ask", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.ask:
        ask_ten(options.ask)
        return
    parts = {
        "vectors": vectors,
        "crossover": crossover,
        "files": files,
        "matching": matching,
        "indexing": indexing,
        "world": world,
        "photos": photos,
    }
    lines = ["# Search\n", f"{processor()}, {os.cpu_count()} cores, torch {torch.__version__}.\n"]
    # What else runs changes times, not ratios of pairs.
    lines.append(f"Load of the machine when it began: {os.getloadavg()[0]:.1f}.\n")
    lines.append(f"Command: `python benchmarks/search.py {' '.join(sys.argv[1:])}`\n")
    for name in options.only:
        folder = Path(tempfile.mkdtemp(prefix="openblip-search-"))
        try:
            lines += parts[name](options, folder)
        finally:
            shutil.rmtree(folder)
        print("\n".join(lines[-6:]), file=sys.stderr, flush=True)
    text = "\n".join(lines)
    print(text)
    if options.output is not None:
        options.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
