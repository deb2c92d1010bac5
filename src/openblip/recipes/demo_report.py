"""The page on which the demonstration shows what it measured."""

from pathlib import Path

import numpy as np
from PIL import Image

from openblip.data.reading import row_image
from openblip.data.table import PairTable
from openblip.data.views import split_rows
from openblip.page import CardText, Page, bars
from openblip.recipes.demo import DemoResult

_EXAMPLES = 12
_WEB_EXAMPLES = 8


def write_demo_report(result: DemoResult) -> Path:
    """The demonstration's report as one self-contained HTML file in its folder."""
    total = sum(result.seconds.values())
    page = Page(
        "OpenBLIP: the whole loop on an embedded world",
        "A model pre-trained on noisy captions becomes a captioner and a filter; they clean the "
        "captions; a new model learns from the result. Everything here was measured in this run "
        f"({total / 60:.1f} minutes).",
    )
    _comparison(page, result)
    _filter(page, result)
    table = PairTable.open(result.folder / "pairs.lance")
    _web_examples(page, table, result.config.threshold)
    _captions(page, table, result)
    _stages(page, result)
    return page.save(result.folder / "report.html")


def _comparison(page: Page, result: DemoResult) -> None:
    page.section(
        "Trained on the noise, and on the bootstrapped table",
        f"The same model, the same number of steps ({result.config.pretrain_steps}), no "
        f"fine-tuning; {result.noisy.retrieval.num_images} test images with "
        f"{result.noisy.retrieval.num_texts} captions. TR: text of an image; IR: image of a text.",
    )
    models = {"the noise": result.noisy, "the bootstrapped table": result.bootstrapped}
    columns = ["TR@1", "TR@5", "IR@1", "IR@5"]
    page.table(
        ["trained on", *columns, "CIDEr", "BLEU-4"],
        [
            [
                name,
                *(f"{scores.retrieval.metrics[column]:.1f}" for column in columns),
                f"{100 * scores.caption.metrics['CIDEr']:.1f}",
                f"{100 * scores.caption.metrics['BLEU-4']:.1f}",
            ]
            for name, scores in models.items()
        ],
        strong=[1],
    )
    page.charts(
        bars(figure, {name: scores.headline[figure] for name, scores in models.items()})
        for figure in result.noisy.headline
    )


def _filter(page: Page, result: DemoResult) -> None:
    truth = result.synthetic_truth
    page.section(
        "What CapFilt did",
        f"Synthetic captions that are true of their image: {100 * truth['all']:.1f} % of all, "
        f"{100 * truth['kept']:.1f} % of those that the filter kept, "
        f"{100 * truth['rejected']:.1f} % of those that it rejected.",
    )
    page.table(
        ["source", "kept", "of", "rate"],
        [[r.source, str(r.kept), str(r.total), f"{100 * r.rate:.1f} %"] for r in result.kept],
    )
    page.table(
        ["kind of noise", "texts", "precision", "recall"],
        [[q.kind, str(q.total), f"{q.precision:.3f}", f"{q.recall:.3f}"] for q in result.quality],
        strong=[len(result.quality) - 1],
    )
    page.note(
        f"At the threshold {result.other_image_threshold:.3f} the filter rejects captions of "
        f"another image with a precision of {result.other_image_precision:.3f} at a recall of 0.8 "
        "or more, the best there is at that recall."
    )


def _web_examples(page: Page, table: PairTable, threshold: float) -> None:
    page.section("Web and synthetic captions", "All scores are in capfilt.html, beside this page.")
    columns = ["id", "image", "image_uri", "captions", "captions_itm", "synthetic", "synthetic_itm"]
    rows = table.take(np.arange(_WEB_EXAMPLES), columns).to_pylist()
    cards = []
    for row in rows:
        texts = [
            CardText(text, f"{source} · ITM {itm:.3f}", "kept" if itm > threshold else "rejected")
            for source, names in (
                ("web", ("captions", "captions_itm")),
                ("synthetic", ("synthetic", "synthetic_itm")),
            )
            for text, itm in zip(row[names[0]] or [], row[names[1]] or [], strict=True)
        ]
        cards.append((row_image(row), texts))
    page.cards(cards)


def _captions(page: Page, table: PairTable, result: DemoResult) -> None:
    page.section("Captions of test images by both models")
    rows = split_rows(table, "test")[:_EXAMPLES]
    cards: list[tuple[Image.Image, list[CardText]]] = []
    for row in table.take(rows, ["id", "image", "image_uri", "captions"]).to_pylist():
        texts = [
            CardText(row["captions"][0], "human"),
            CardText(result.noisy.caption.captions[row["id"]], "trained on the noise"),
            CardText(
                result.bootstrapped.caption.captions[row["id"]], "trained on the bootstrapped table"
            ),
        ]
        cards.append((row_image(row), texts))
    page.cards(cards)


def _stages(page: Page, result: DemoResult) -> None:
    page.section("Time")
    page.table(
        ["stage", "seconds"], [[name, f"{spent:.1f}"] for name, spent in result.seconds.items()]
    )
