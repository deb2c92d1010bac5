"""The page of a CapFilt job."""

from pathlib import Path

import pytest

from openblip.capfilt.job import CapFiltSettings
from openblip.capfilt.report import write_report
from openblip.capfilt.run import run_capfilt
from openblip.inference import Decoding
from openblip.runtime.errors import DataError, RecipeError
from openblip.table.table import PairTable


def test_the_page_is_self_contained_and_shows_every_part(
    table: PairTable, models: dict[str, str], tmp_path: Path
) -> None:
    settings = CapFiltSettings(
        captioner=models["captioner"],
        filter=models["filter"],
        decoding=Decoding(method="nucleus", max_length=12),
    )
    run_capfilt(table.uri, settings, processes=1)

    path = write_report(PairTable.open(table.uri), tmp_path / "out" / "page.html", threshold=0.5)

    html = path.read_text(encoding="utf-8")
    for part in (
        "How much stays",
        "Why texts do not count",
        "known noise",
        "side by side",
        "confident rejections",
    ):
        assert part in html
    assert "data:image/" in html
    assert "http://" not in html
    assert "https://" not in html
    assert "<script" not in html
    assert settings.captioner in html
    assert "standard deviation" in html
    told: list[str] = []
    scored = PairTable.open(table.uri)
    page = write_report(scored, tmp_path / "none.html", threshold=1.0, warn=told.append)
    assert told
    assert all(line.startswith("at the threshold 1 none of ") for line in told)
    assert all(line in page.read_text(encoding="utf-8") for line in told)


def test_texts_of_strangers_are_escaped(
    table: PairTable, models: dict[str, str], tmp_path: Path
) -> None:
    from openblip.table.table import PairRow

    image = table.take([0], ["image"])["image"][0].as_py()
    evil = PairTable.create(
        tmp_path / "evil.lance",
        [PairRow(id="e", image=image, captions=["<script>alert(1)</script>"])],
    )
    run_capfilt(
        evil.uri,
        CapFiltSettings(captioner=models["captioner"], filter=models["filter"]),
        processes=1,
    )

    html = write_report(PairTable.open(evil.uri), tmp_path / "evil.html").read_text()
    assert "<script" not in html
    assert "&lt;script&gt;" in html


def test_an_unscored_table_and_a_wrong_threshold_are_refused(
    table: PairTable, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="capfilt run"):
        write_report(table, tmp_path / "page.html")
    with pytest.raises(RecipeError, match="threshold"):
        write_report(table, tmp_path / "page.html", threshold=2.0)
