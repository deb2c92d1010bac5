"""Reviews: how often certificates and intervals hold, and how many labels strata save.

    python benchmarks/review.py --table demo/pairs.lance --output benchmarks/results/review.md

Simulated reviews of collections whose truth is known. A perfect reviewer judges the texts in the
order in which they are drawn, looks at the certificate after every verdict, and stops when there is
one (what counts is the largest capital so far, so one look at the end sees all the earlier ones).
TABLE is a scored table of the embedded world, whose captions are known to be true or false; the
other collections are drawn, hard ones among them.

Strata are compared with random samples of equally many labels by the width of the interval of the
precision (that of a random sample is Clopper and Pearson's), and by the certificate: how far the
largest precision that is certified at the threshold lies below the truth, by the same bets. The
bets of a random sample see it in whichever way serves it best: as one stratum, or divided into our
strata after it was drawn. Beside that stands the lower limit of Clopper and Pearson, with 95 %
confidence too, which may be looked at once, at a number of labels and a threshold fixed beforehand.
"""

import argparse
import math
import platform
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from openblip.review.certificate import bet, certify
from openblip.review.intervals import precision_curve, recall_curve
from openblip.review.strata import Design, Kind, Labels, draw, stratify
from openblip.table.scores import TEXT_COLUMNS
from openblip.table.table import PairTable
from openblip.world import is_true_caption, truth_of

THRESHOLD = 0.5
CURVE = np.array([0.2, 0.35, 0.5, 0.65, 0.8])
TARGETS = np.arange(0.02, 0.998, 0.004)


@dataclass(frozen=True, eq=False)
class Collection:
    """Texts whose truth is known, and what is asked of their filter."""

    name: str
    itm: NDArray[np.float64]
    right: NDArray[np.bool_]
    sources: NDArray[np.int8]
    precision: float

    def strata(self) -> tuple[Design, NDArray[np.int64]]:
        every = Kind("", np.ones(len(self.itm), dtype=bool), 1.0)
        bins = (3, 2) if self.sources.max() else (4, 3)
        return stratify(self.itm, self.sources, tuple(TEXT_COLUMNS), THRESHOLD, [every], bins)

    def labels(self, of_text: NDArray[np.int64], order: NDArray[np.int64]) -> Labels:
        return Labels(of_text[order], self.itm[order], self.right[order].astype(float))

    def truth(self, threshold: float) -> float:
        above = self.itm > threshold
        return float(self.right[above].mean()) if above.any() else math.nan


def of_world(uri: str) -> Iterator[Collection]:
    """The world's web texts alone, and with the synthetic ones."""
    columns = ["origin", "meta", *(f"{c}{s}" for c in TEXT_COLUMNS.values() for s in ("", "_itm"))]
    table = PairTable.open(uri)
    found: list[tuple[float, bool, int]] = []
    for row in table.take(range(len(table)), columns).to_pylist():
        truth = truth_of(row["meta"]) if row["origin"] == "web" else None
        if truth is not None:
            web = zip(row["captions"], row["captions_itm"] or [], strict=False)
            found += [(itm, truth.noise == "true", 0) for _, itm in web]
            made = zip(row["synthetic"], row["synthetic_itm"] or [], strict=False)
            found += [(itm, bool(is_true_caption(text, truth.scene)), 1) for text, itm in made]
    itm, right, sources = (np.array(values) for values in zip(*found, strict=True))
    web = sources == 0
    none = np.zeros(int(web.sum()), dtype=np.int8)
    yield Collection("world, web texts", itm[web], right[web], none, 0.8)
    yield Collection("world, web texts, more asked", itm[web], right[web], none, 0.85)
    yield Collection("world, all texts", itm, right, sources.astype(np.int8), 0.55)


def drawn() -> Iterator[Collection]:
    """Collections of other shapes."""

    def made(
        name: str, itm: NDArray[np.float64], right: NDArray[np.bool_], precision: float
    ) -> Collection:
        return Collection(name, itm, right, np.zeros(len(itm), dtype=np.int8), precision)

    dice = np.random.default_rng(0)
    high = dice.random(20000) < 0.4
    itm = np.where(high, dice.beta(6, 1.2, 20000), dice.beta(1, 5, 20000))
    share = np.minimum(1 / (1 + np.exp(-9 * (itm - 0.45))), 0.99)
    yield made("separates well", itm, dice.random(20000) < share, 0.9)
    flat = dice.random(20000)
    yield made("separates gradually", flat, dice.random(20000) < flat**0.6, 0.8)
    yield made("separates nothing, just below", flat, dice.random(20000) < 0.78, 0.8)
    yield made("all scores equal, just below", np.full(5000, 0.7), flat[:5000] < 0.79, 0.8)
    yield made("all right", flat[:5000], np.ones(5000, dtype=bool), 0.9)
    yield made("all wrong", flat[:5000], np.zeros(5000, dtype=bool), 0.5)
    skewed = dice.beta(0.1, 8, 20000)
    yield made("very skewed scores", skewed, dice.random(20000) < 0.3 + skewed, 0.5)
    yield made("60 texts", flat[:60], dice.random(60) < flat[:60] ** 0.6, 0.75)


def certificates(collection: Collection, reviews: int, count: int) -> list[str]:
    """How often a certificate is given, and how often what was said is true."""
    design, of_text = collection.strata()
    given, false, keeps = 0, 0, []
    for seed in range(reviews):
        labels = collection.labels(of_text, draw(design, of_text, count, seed))
        found = certify(design, labels, THRESHOLD, collection.precision)
        if found.threshold is not None:
            given += 1
            keeps.append(found.keeps)
            false += collection.truth(found.threshold) < collection.precision
    kept = f"{100 * np.mean(keeps):.0f} %" if keeps else "-"
    return [
        collection.name,
        f"{collection.precision:g}",
        f"{collection.truth(THRESHOLD):.3f}",
        f"{100 * given / reviews:.0f} %",
        kept,
        f"{100 * (1 - false / reviews):.1f} %",
    ]


def widths(collection: Collection, reviews: int, count: int) -> list[str]:
    """Intervals of the precision at the current threshold, and how often they hold."""
    design, of_text = collection.strata()
    whole = Design(("all",), np.ones(1), (np.sort(collection.itm),))
    divided = replace(design, shares=design.sizes / design.sizes.sum())
    wanted = np.array([collection.truth(t) for t in CURVE])
    recalls = np.array(
        [(collection.right & (collection.itm > t)).sum() / collection.right.sum() for t in CURVE]
    )
    own, plain, own_bets, once = [], [], [], []
    plain_bets: tuple[list[float], list[float]] = ([], [])
    hits = np.zeros((2, len(CURVE)))
    for seed in range(reviews):
        labels = collection.labels(of_text, draw(design, of_text, count, seed))
        curve = precision_curve(design, labels, CURVE)
        recall = recall_curve(design, labels, CURVE)
        own.append(curve.high[2] - curve.low[2])
        hits[0] += (curve.low <= wanted) & (wanted <= curve.high)
        hits[1] += (recall.low <= recalls) & (recalls <= recall.high)
        order = np.random.default_rng(seed).permutation(len(of_text))[:count]
        kept = order[collection.itm[order] > THRESHOLD]
        rights = int(collection.right[kept].sum())
        low, high = clopper_pearson(rights, len(kept))
        plain.append(high - low)
        once.append(wanted[2] - clopper_pearson(rights, len(kept), 0.05)[0])
        own_bets.append(below(design, labels, collection))
        same = collection.labels(np.zeros_like(of_text), order)
        plain_bets[0].append(below(whole, same, collection))
        plain_bets[1].append(below(divided, collection.labels(of_text, order), collection))
    told = ~np.isnan(wanted)
    hits = 100 * hits[:, told] / reviews
    best = min(plain_bets, key=np.mean)
    ratios = [np.mean(a) / np.mean(b) for a, b in ((own, plain), (own_bets, best))]
    return [
        collection.name,
        f"{100 * (collection.itm > THRESHOLD).mean():.0f} %",
        f"{np.mean(plain):.3f}",
        f"{np.mean(own):.3f}",
        f"{ratios[0]:.2f}",
        f"{np.mean(best):.3f}",
        f"{np.mean(own_bets):.3f}",
        f"**{ratios[1]:.2f}**",
        f"{np.mean(once):.3f}",
        *(f"{each.min():.0f} to {each.max():.0f} %" for each in hits),
    ]


def below(design: Design, labels: Labels, collection: Collection) -> float:
    """How far the largest precision that the bets certify at the threshold is below the truth."""
    thresholds = np.full(len(TARGETS), THRESHOLD)
    highest = bet(design, labels, thresholds, TARGETS).highest
    certified = TARGETS[highest >= -math.log(0.05)]
    return collection.truth(THRESHOLD) - float(certified.max(initial=0.0))


def foretold(collection: Collection, reviews: int, after: int, most: int) -> list[str]:
    """The number of further labels that is told, beside the one that it took."""
    design, of_text = collection.strata()
    ratios = []
    for seed in range(reviews):
        labels = collection.labels(of_text, draw(design, of_text, most, seed))
        told = certify(design, labels.first(after), THRESHOLD, collection.precision).needed
        low, high = after, most
        if told is None or certify(design, labels, THRESHOLD, collection.precision).needed:
            continue
        while high - low > 10:
            middle = (low + high) // 2
            found = certify(design, labels.first(middle), THRESHOLD, collection.precision)
            low, high = (low, middle) if found.threshold is not None else (middle, high)
        ratios.append((high - after) / told)
    quartiles = np.quantile(ratios, [0.25, 0.5, 0.75]) if ratios else [math.nan] * 3
    return [collection.name, f"{len(ratios)} of {reviews}", *(f"{q:.2f}" for q in quartiles)]


@cache
def clopper_pearson(right: int, count: int, error: float = 0.025) -> tuple[float, float]:
    """The limits of Clopper and Pearson, each with this error, by halving."""
    if not count:
        return 0.0, 1.0
    chances = [
        math.lgamma(count + 1) - math.lgamma(k + 1) - math.lgamma(count - k + 1)
        for k in range(count + 1)
    ]

    def tail(share: float, first: int, last: int) -> float:
        logs = (math.log(share), math.log1p(-share))
        return sum(
            math.exp(chances[k] + k * logs[0] + (count - k) * logs[1])
            for k in range(first, last + 1)
        )

    def edge(is_above: Callable[[float], bool]) -> float:
        low, high = 0.0, 1.0
        for _ in range(30):
            middle = (low + high) / 2
            low, high = (low, middle) if is_above(middle) else (middle, high)
        return (low + high) / 2

    return (
        edge(lambda share: tail(share, right, count) > error) if right else 0.0,
        edge(lambda share: tail(share, 0, right) < error) if right < count else 1.0,
    )


def table_of(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--table", help="a scored table of the embedded world")
    parser.add_argument("--reviews", type=int, default=200)
    parser.add_argument("--labels", type=int, default=240)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    began = time.monotonic()
    collections = [*(of_world(options.table) if options.table else ()), *drawn()]
    reviews, count = options.reviews, options.labels

    def each(make: Callable[[Collection], list[str]], some: list[Collection]) -> list[list[str]]:
        rows = []
        for collection in some:
            rows.append(make(collection))
            print(" | ".join(rows[-1]), file=sys.stderr, flush=True)
        return rows

    text = (
        f"# Reviews that certify a threshold\n\n{reviews} simulated reviews a line, on "
        f"{processor()}.\n\n## Certificates\n\nOf {count} labels, threshold {THRESHOLD:g}, "
        "confidence 95 %, watched after each.\n\n"
    )
    text += table_of(
        ["collection", "asked", "true at 0.5", "certified", "keeps", "**what was said is true**"],
        each(lambda c: certificates(c, reviews, count), collections),
    )
    # Where a certificate is likely to be false if there is one, 200 say little about one in twenty.
    hard = [c for c in collections if c.truth(THRESHOLD) < c.precision and c.right.any()]
    text += f"\n{5 * reviews} reviews of those of which less is right than asked:\n\n"
    text += table_of(
        ["collection", "asked", "true at 0.5", "certified", "keeps", "**what was said is true**"],
        each(lambda c: certificates(c, 5 * reviews, count), hard),
    )
    some = [c for c in collections if 0.05 < c.right.mean() < 0.95 and len(c.itm) > 1000]
    some = [c for c in some if "more asked" not in c.name and c.name != "very skewed scores"]
    for number in (count // 2, count):
        text += f"\n## Intervals of the precision at {THRESHOLD:g}, {number} labels\n\n"
        text += table_of(
            [
                "collection",
                "kept",
                "random",
                "strata",
                "ratio",
                "certificate, random",
                "certificate, strata",
                "**ratio**",
                "random, one look",
                "precision holds",
                "recall holds",
            ],
            each(lambda c, n=number: widths(c, reviews, n), some),  # type: ignore[misc]
        )
    text += (
        "\n## How many more labels are needed\n\nThe number that it took over the one that was "
        "told after 100 labels.\n\n"
    )
    text += table_of(
        ["collection", "certified later", "quarter", "half", "three quarters"],
        each(
            lambda c: foretold(c, max(reviews // 5, 1), 100, 1000),
            [c for c in some if c.name.startswith("separates") and "nothing" not in c.name],
        ),
    )
    text += f"\n{time.monotonic() - began:.0f} s in all.\n"
    print(text)
    if options.output:
        options.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
