"""The pages of a small evaluation: self-contained, escaped, with every part."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from openblip.evaluation.captioning import evaluate_caption
from openblip.evaluation.error_report.caption import write_caption_report
from openblip.evaluation.error_report.retrieval import write_retrieval_report
from openblip.evaluation.retrieval import evaluate_retrieval
from openblip.inference.blip import Blip
from openblip.inference.decoding import Decoding
from openblip.table.table import PairRow, PairTable

SHORT = Decoding(method="greedy", max_length=10)
EVIL = "<script>alert(1)</script> dog"


@pytest.fixture
def evil(tmp_path: Path, world: PairTable) -> PairTable:
    """Two images whose captions would run as a script."""
    images = world.take([0, 1], ["image"])["image"].to_pylist()
    rows = [
        PairRow(id=f"<{n}>", image=image, captions=[EVIL, f"a cat {n}"], split="test")
        for n, image in enumerate(images)
    ]
    return PairTable.create(tmp_path / "evil.lance", rows)


def assert_self_contained(html: str) -> None:
    assert "<script" not in html
    assert not re.search(r"https?://", html)
    assert "data:image/" in html


def test_a_retrieval_page_has_every_part(blip: Blip, world: PairTable, tmp_path: Path) -> None:
    result = evaluate_retrieval(blip, world, k=4)

    html = write_retrieval_report(
        result, world, tmp_path / "out" / "page.html", subject="runs/new & more"
    ).read_text(encoding="utf-8")

    assert_self_contained(html)
    for part in (
        "runs/new &amp; more",
        "95 % intervals",
        "ITC against ITM",
        "matching probability",
        "Images that find their texts last",
        "Texts that find their image last",
    ):
        assert part in html
    worst = result.pairs.gallery.captions_of_image
    assert len(worst) == 9
    assert html.count("<b>wrong</b>") >= html.count("<b>right</b>") > 0


def test_a_page_without_matching_shows_contrast_alone(
    blip: Blip, world: PairTable, tmp_path: Path
) -> None:
    result = evaluate_retrieval(blip, world, use_itm=False)
    html = write_retrieval_report(result, world, tmp_path / "p.html", subject="s").read_text()
    assert "ITM" not in html
    assert "Images that find their texts last" in html


def test_probabilities_that_cannot_be_calibrated_are_said_to_be(
    blip: Blip, world: PairTable, tmp_path: Path
) -> None:
    result = evaluate_retrieval(blip, world, k=45)
    of_right = result.pairs.itm * 0.0 + 0.1
    for image, texts in enumerate(result.pairs.gallery.captions_of_image):
        of_right[image, texts] = 0.9
    separated = replace(result, pairs=replace(result.pairs, itm=of_right))
    html = write_retrieval_report(separated, world, tmp_path / "p.html", subject="s").read_text()
    assert "No temperature can be fitted" in html


def test_a_caption_page_has_every_part(blip: Blip, world: PairTable, tmp_path: Path) -> None:
    result = evaluate_caption(blip, world, decoding=SHORT)

    html = write_caption_report(result, world, tmp_path / "page.html", subject="m").read_text()

    assert_self_contained(html)
    for part in (
        "CIDEr of the images",
        "mean CIDEr by",
        "too seldom",
        "Variety",
        "Furthest from the references",
        "Closest to the references",
    ):
        assert part in html
    reference = next(iter(result.references.values()))[0]
    assert reference in html


def test_texts_of_strangers_are_escaped(blip: Blip, evil: PairTable, tmp_path: Path) -> None:
    found = evaluate_retrieval(blip, evil, k=2)
    page = write_retrieval_report(found, evil, tmp_path / "r.html", subject=EVIL)
    assert_self_contained(page.read_text())
    written = evaluate_caption(blip, evil, decoding=SHORT)
    page = write_caption_report(written, evil, tmp_path / "c.html", subject=EVIL)
    assert_self_contained(page.read_text())


def test_the_rows_of_a_caption_are_those_of_its_image(blip: Blip, world: PairTable) -> None:
    result = evaluate_caption(blip, world, decoding=SHORT)
    ids = world.take(result.rows, ["id"])["id"].to_pylist()
    assert ids == list(result.captions) == list(result.confidence) == list(result.references)
    assert all(0.0 <= value <= 1.0 for value in result.confidence.values())
