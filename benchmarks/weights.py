"""Which pairs an epoch shows by views that cut and views that weigh, in a world of known truth.

    python benchmarks/weights.py TABLE

TABLE is an embedded world with a CapFilt job, such as DEMO/pairs.lance of `openblip demo`. A text
is right if the world's grammar can read it and all that it claims is true. Nothing is trained or
drawn: what is told are the expected values of an epoch. What models make of the views:
`openblip compare benchmarks/weights.yaml -o weights`.
"""

import argparse
from dataclasses import replace

import numpy as np

from openblip.table.scores import RIGHT, score_column
from openblip.table.table import PairTable
from openblip.table.views import CaptionView
from openblip.world import is_true_caption, truth_of

BOOTSTRAPPED = CaptionView(sources=("human", "web", "synthetic"))
WEIGHED = replace(BOOTSTRAPPED, weights="calibrated", score="itm", itm=0.0)
HEADER = (
    "| view | web images reached | pairs in an epoch | right, of all pairs "
    "| right, of the web images' | given texts among these |"
)


def views(table: PairTable, temperature: float) -> dict[str, CaptionView]:
    """The arms by name; those of the calibrated score where the table has it."""
    arms = {"noise": CaptionView()}
    arms |= {f"cut at {cut}": replace(BOOTSTRAPPED, itm=cut) for cut in (0.1, 0.5, 0.8)}
    arms |= {
        "weights": WEIGHED,
        f"weights, temperature {temperature:g}": replace(WEIGHED, weight_temperature=temperature),
        "weights above 0.1": replace(WEIGHED, itm=0.1),
    }
    if score_column("synthetic", RIGHT) in table.columns:
        arms |= {
            f"{RIGHT}, cut at {cut}": replace(BOOTSTRAPPED, itm=cut, score=RIGHT)
            for cut in (0.1, 0.5, 0.8)
        }
        arms[f"{RIGHT}, weights"] = replace(WEIGHED, score=RIGHT)
    return arms


class Epoch:
    """What an epoch of a view shows, in expectation."""

    def __init__(self, table: PairTable) -> None:
        self.table = table
        self.known: dict[tuple[int, str], bool] = {}
        columns = table.take(np.arange(len(table)), ["meta", "origin"])
        self.metas, self.origins = (columns[name].to_pylist() for name in ("meta", "origin"))

    def is_right(self, row: int, text: str) -> bool:
        """Whether all that a text claims of its image is true; asked once for each."""
        key = row, text
        if key not in self.known:
            scene = truth_of(self.metas[row]).scene
            self.known[key] = is_true_caption(text, scene) is True
        return self.known[key]

    def line(self, name: str, view: CaptionView) -> str:
        """A row of the table."""
        index = view.resolve(self.table)
        texts = index.admitted(self.table.take(index.rows, index.columns))
        rates = np.ones(len(index)) if index.weights is None else index.weights
        web = right = given = 0.0
        reached = 0
        for row, own, rate in zip(index.rows.tolist(), texts, rates.tolist(), strict=True):
            if self.origins[row] == "human":
                continue
            total = sum(text.weight for text in own)
            shares = [rate * text.weight / total for text in own]
            reached += 1
            web += rate
            right += sum(s for s, t in zip(shares, own, strict=True) if self.is_right(row, t.text))
            given += sum(s for s, t in zip(shares, own, strict=True) if t.source == "web")
        pairs = float(rates.sum())
        cells = [name, f"{reached:,}", f"{pairs:,.0f}"]
        parts = ((pairs - web + right) / pairs, right / web, given / web)
        cells += [f"{100 * part:.1f} %" for part in parts]
        return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("table")
    parser.add_argument("--temperature", type=float, default=1.56, help="of one arm of ITM")
    given = parser.parse_args()
    table = PairTable.open(given.table)
    print(HEADER)
    print("| --- " * HEADER.count(" | ") + "| --- |")
    epoch = Epoch(table)
    for name, view in views(table, given.temperature).items():
        print(epoch.line(name, view), flush=True)


if __name__ == "__main__":
    main()
