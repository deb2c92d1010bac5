"""Collections whose truth is known: as arrays, and as small tables with scores."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from openblip.review.strata import Design, Kind, Labels, draw, stratify
from openblip.table.table import PairRow, PairTable


@dataclass(frozen=True, eq=False)
class Population:
    """Scores, and which texts are right."""

    itm: NDArray[np.float64]
    right: NDArray[np.bool_]

    def design(self, threshold: float = 0.5) -> tuple[Design, NDArray[np.int64]]:
        every = Kind("", np.ones(len(self.itm), dtype=bool), 1.0)
        sources = np.zeros(len(self.itm), dtype=np.int8)
        return stratify(self.itm, sources, ("web",), threshold, [every], (4, 3))

    def review(self, count: int, seed: int, threshold: float = 0.5) -> tuple[Design, Labels]:
        """So many texts as they are drawn, judged without error."""
        design, of_text = self.design(threshold)
        order = draw(design, of_text, count, seed)
        return design, Labels(of_text[order], self.itm[order], self.right[order].astype(float))

    def precision(self, threshold: float) -> float:
        return float(self.right[self.itm > threshold].mean())

    def recall(self, threshold: float) -> float:
        return float(self.right[self.itm > threshold].sum() / self.right.sum())


def separating(size: int = 4000, seed: int = 0) -> Population:
    """Half of the texts score high, and most of these are right; precision at 0.5 is 0.94."""
    dice = np.random.default_rng(seed)
    high = dice.random(size) < 0.5
    itm = np.where(high, dice.beta(6, 1.2, size), dice.beta(1, 5, size))
    share = np.minimum(1 / (1 + np.exp(-9 * (itm - 0.45))), 0.99)
    return Population(itm, dice.random(size) < share)


def useless(size: int = 4000, seed: int = 0) -> Population:
    """Scores that say nothing; 85 % are right at any threshold."""
    dice = np.random.default_rng(seed)
    return Population(dice.random(size), dice.random(size) < 0.85)


@pytest.fixture
def populations() -> dict[str, Population]:
    dice = np.random.default_rng(7)
    plain = dice.random(500)
    return {
        "separating": separating(),
        "useless": useless(),
        "all scores equal": Population(np.full(500, 0.7), plain < 0.8),
        "all right": Population(plain, np.ones(500, dtype=bool)),
        "all wrong": Population(plain, np.zeros(500, dtype=bool)),
        "nothing kept": Population(plain / 3, plain < 0.5),
        "all kept": Population(0.6 + plain / 3, plain > 0.2),
        "skewed": Population(dice.beta(0.1, 8, 4000), dice.random(4000) < 0.1),
        "seven texts": Population(np.linspace(0.1, 0.9, 7), np.arange(7) > 2),
        "one text": Population(np.array([0.7]), np.array([True])),
    }


def fragment(table: PairTable, itm: list[list[float]], made: list[list[float]]) -> None:
    """Adds CapFilt's columns to a table: its scores, and a synthetic text for each row."""
    scores = pa.list_(pa.float32())
    texts = [[f"made {n} of {len(own)}" for n in range(len(own))] for own in made]
    table.add_columns(
        pa.table(
            {
                "synthetic": pa.array(texts, pa.list_(pa.string())),
                "captions_itm": pa.array(itm, scores),
                "captions_itc": pa.array([[1 - s for s in own] for own in itm], scores),
                "synthetic_itm": pa.array(made, scores),
                "synthetic_itc": pa.array(made, scores),
            }
        )
    )


@pytest.fixture
def scored(tmp_path: Path, jpeg: Callable[..., bytes]) -> PairTable:
    """Rows r0 to r119 of two data sets, with a web and a synthetic text; row r7 is a person's.

    A text is right if its caption says so: above a score of 0.4 nine in ten do, below none.
    """
    dice = np.random.default_rng(3)
    rows, web, made = [], [], []
    for number in range(120):
        score = float(dice.random())
        is_right = score > 0.4 and number % 10 != 0
        is_human = number == 7
        rows.append(
            PairRow(
                id=f"r{number}",
                image=jpeg(number),
                captions=[f"{'right' if is_right else 'wrong'} {number}"],
                origin="human" if is_human else "web",
                meta={"source": "ab"[number % 2]},
            )
        )
        web.append([] if is_human else [score])
        made.append([] if is_human else [float(dice.random())])
    table = PairTable.create(tmp_path / "pairs.lance", rows)
    fragment(table, web, made)
    return table
