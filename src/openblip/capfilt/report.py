"""The page that shows what CapFilt kept and what it rejected."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from openblip.capfilt.job import METADATA_KEY
from openblip.capfilt.select import (
    DEFAULT_THRESHOLDS,
    TextScores,
    empty_sources,
    keep_rates,
    noise_quality,
    read_scores,
    rejections,
    spreads,
    texts_of,
)
from openblip.runtime.errors import DataError, RecipeError
from openblip.runtime.page import CardText, Page, histogram
from openblip.sources.row_images import stream_images
from openblip.table.columns import column_state
from openblip.table.table import PairTable

_PAIR_CARDS = 24
_REJECTIONS = 50


def write_report(
    table: PairTable,
    path: Path,
    *,
    threshold: float = 0.5,
    seed: int = 0,
    warn: Callable[[str], None] = lambda line: None,
) -> Path:
    """The report of a scored table as one self-contained HTML file.

    Args:
        table: scored by `run_capfilt`.
        path: where the page goes; whole or not at all.
        threshold: a text is kept when its ITM probability is above it.
        seed: which rows are shown as examples.
        warn: is told of each source of whose texts the threshold keeps none.

    Raises:
        DataError: if the table is not scored, or has no web row.
        RecipeError: if the threshold is not in [0, 1].
    """
    if not 0.0 <= threshold <= 1.0:
        raise RecipeError(f"threshold {threshold}: a probability between 0 and 1 is needed")
    scores = read_scores(table)
    if not len(scores["web"]) and not len(scores["synthetic"]):
        raise DataError(f"{table.uri} has no scored text from the web; nothing to report")
    page = Page(
        "CapFilt report",
        f"{table.uri}: {len(table)} images. A text is kept when the filter gives it a probability "
        f"above {threshold:g} of matching its image; human captions always stay.",
    )
    for line in _rates(page, scores, threshold):
        warn(line)
    _reasons(page, table, threshold)
    _noise(page, scores["web"], threshold)
    _histograms(page, scores, threshold)
    _examples(page, table, scores, threshold, seed)
    _rejections(page, table, scores["web"], threshold)
    _settings(page, table)
    return page.save(path)


def _rates(page: Page, scores: dict[str, TextScores], threshold: float) -> list[str]:
    """Lines about sources of which nothing stays."""
    thresholds = sorted({*DEFAULT_THRESHOLDS, threshold})
    rates = keep_rates(scores, thresholds)
    empty = empty_sources([rate for rate in rates if rate.threshold == threshold])
    about = ["At other thresholds too; a threshold is a view, not a run", *empty]
    page.section("How much stays", "; ".join(about) + ".")
    rows = []
    for value in thresholds:
        cells = [f"{value:g}"]
        for rate in (r for r in rates if r.threshold == value):
            cells += [str(rate.kept), f"{100 * rate.rate:.1f} %"]
        rows.append(cells)
    page.table(
        ["threshold", "web kept", "of web", "synthetic kept", "of synthetic"],
        rows,
        strong=[thresholds.index(threshold)],
    )
    return empty


def _reasons(page: Page, table: PairTable, threshold: float) -> None:
    found = rejections(table, [threshold])
    if found:
        page.section("Why texts do not count", f"Training texts at the threshold {threshold:g}.")
        rows = [[r.source, r.reason, str(r.count)] for r in found]
        page.table(["source", "reason", "texts"], rows)


def _noise(page: Page, web: TextScores, threshold: float) -> None:
    quality = noise_quality(web, threshold)
    if not quality:
        return
    page.section(
        "The filter against the known noise",
        "Here the kind of each web text is known. Precision: of the rejected texts of this kind "
        "and the rejected true ones, how many were noise. Recall: how much of this kind was "
        "rejected.",
    )
    page.table(
        ["kind of noise", "texts", "precision", "recall"],
        [[q.kind, str(q.total), f"{q.precision:.3f}", f"{q.recall:.3f}"] for q in quality],
        strong=[len(quality) - 1],
    )


def _histograms(page: Page, scores: dict[str, TextScores], threshold: float) -> None:
    about = "ITM: probability of a match. ITC: cosine, shown from 0 to 1"
    page.section("Scores", ". ".join([about, *map(str, spreads(scores))]) + ".")
    page.charts(
        [
            histogram("ITM", {n: s.itm.tolist() for n, s in scores.items()}, threshold),
            histogram("ITC", {n: s.itc.tolist() for n, s in scores.items()}),
        ]
    )


def _examples(
    page: Page, table: PairTable, scores: dict[str, TextScores], threshold: float, seed: int
) -> None:
    rows = np.unique(np.concatenate([s.rows for s in scores.values()]))
    chosen = np.sort(
        np.random.default_rng(seed).choice(rows, min(_PAIR_CARDS, len(rows)), replace=False)
    )
    page.section(
        "Web and synthetic texts side by side",
        f"{len(chosen)} images drawn at random: what the web said, and what the captioner wrote.",
    )
    texts: dict[int, list[CardText]] = {int(row): [] for row in chosen}
    for source, values in scores.items():
        picked = np.flatnonzero(np.isin(values.rows, chosen))
        for place, words in zip(picked, texts_of(table, values, picked), strict=True):
            texts[int(values.rows[place])].append(
                _card_text(source, values, place, words, threshold)
            )
    page.cards(_with_images(table, list(texts.items())))


def _rejections(page: Page, table: PairTable, web: TextScores, threshold: float) -> None:
    rejected = np.flatnonzero(web.itm <= threshold)
    worst = rejected[np.argsort(web.itm[rejected], kind="stable")][:_REJECTIONS]
    page.section(
        f"The {len(worst)} most confident rejections",
        "Web texts with the lowest probability of matching. True texts among them would be the "
        "filter's worst mistakes.",
    )
    words = texts_of(table, web, worst)
    cards = [
        (int(web.rows[place]), [_card_text("web", web, place, text, threshold)])
        for place, text in zip(worst, words, strict=True)
    ]
    page.cards(_with_images(table, cards))


def _card_text(
    source: str, scores: TextScores, place: np.int64, words: str, threshold: float
) -> CardText:
    itm, itc = float(scores.itm[place]), float(scores.itc[place])
    kind = f" · really: {scores.kinds[place]}" if scores.kinds[place] else ""
    tag = f"{source} · ITM {itm:.3f} · ITC {itc:.2f}{kind}"
    return CardText(words, tag, "kept" if itm > threshold else "rejected")


def _with_images(
    table: PairTable, cards: Sequence[tuple[int, list[CardText]]]
) -> list[tuple[Image.Image, list[CardText]]]:
    images = stream_images(table, [row for row, _ in cards])
    return list(zip(images, (texts for _, texts in cards), strict=True))


def _settings(page: Page, table: PairTable) -> None:
    page.section("Settings and fingerprints")
    stored = column_state(table, METADATA_KEY)
    decoding = stored.pop("decoding", {})
    page.facts({**stored, **{f"decoding.{name}": value for name, value in decoding.items()}})
