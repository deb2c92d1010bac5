"""The page of a CapFilt job."""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pytest

from openblip.capfilt.job import CapFiltSettings
from openblip.capfilt.report import write_report
from openblip.capfilt.run import run_capfilt
from openblip.capfilt.select import rejections
from openblip.cli import main
from openblip.inference.decoding import Decoding
from openblip.review.sampling import ReviewSettings
from openblip.review.session import ReviewSession
from openblip.runtime.errors import DataError, RecipeError
from openblip.table.reviews import ReviewLog, ReviewRecord, Verdict
from openblip.table.table import PairRow, PairTable


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


@pytest.fixture
def scored(tmp_path: Path, jpeg: Callable[..., bytes]) -> Callable[..., PairTable]:
    """Makes a table of web rows with these texts and probabilities, and no synthetic texts."""

    def make(texts: Sequence[str], scores: Sequence[float]) -> PairTable:
        rows = [PairRow(f"r{n}", jpeg(n), captions=[text]) for n, text in enumerate(texts)]
        table = PairTable.create(tmp_path / "scored.lance", rows)
        none: list[list[float]] = [[] for _ in rows]
        columns = {"captions_itm": [[s] for s in scores], "captions_itc": [[s - 1] for s in scores]}
        columns |= {"synthetic_itm": none, "synthetic_itc": none}
        numbers = {name: pa.array(of, pa.list_(pa.float32())) for name, of in columns.items()}
        table.add_columns(pa.table({**numbers, "synthetic": pa.array(none, pa.list_(pa.string()))}))
        return table

    return make


def cards_below(page: Path, title: str) -> list[str]:
    """The words of the cards of a section."""
    section = page.read_text("utf-8").split(f">{title}</h2>")[1].split("<h2")[0]
    return re.findall(r'<span class="words">([^<]*)</span>', section)


def test_the_texts_closest_to_the_threshold_are_shown_on_both_sides(
    scored: Callable[..., PairTable], tmp_path: Path
) -> None:
    scores = [number / 100 for number in range(0, 100, 4)]
    table = scored([f"text of {score:.2f}" for score in scores], scores)
    page = write_report(table, tmp_path / "page.html", threshold=0.5)
    near = [f"text of {score:.2f}" for score in scores if abs(score - 0.5) < 0.25]
    assert cards_below(page, "Around the threshold") == near[::-1]


def test_the_most_confident_texts_are_shown_and_equal_ones_once(
    scored: Callable[..., PairTable], tmp_path: Path
) -> None:
    texts = ["for sale"] * 30 + ["a dog", "a cat", "a bus"]
    scores = [0.001 + number / 100_000 for number in range(30)] + [0.9, 0.95, 0.2]
    page = write_report(scored(texts, scores), tmp_path / "page.html")
    assert cards_below(page, "The 2 most confident acceptances") == ["a cat", "a dog"]
    assert cards_below(page, "The 2 most confident rejections") == ["for sale", "a bus"]
    assert "and of 29 more of the 1,000 furthest" in page.read_text("utf-8")


def test_a_filter_that_separates_nothing_is_told_first(
    scored: Callable[..., PairTable], tmp_path: Path
) -> None:
    texts = [f"text {number}" for number in range(20)]
    page = write_report(scored(texts, [0.45 + n / 1000 for n in range(20)]), tmp_path / "page.html")
    html = page.read_text("utf-8")
    first = html.index("This filter separates nothing among the web texts. ITM of 20 web texts")
    assert first < html.index("How much stays")
    assert "among the synthetic" not in html
    # The axis covers what the scores have, and the threshold lies outside of it.
    assert "the threshold 0.5 is above all of them" in html
    assert ">0.45</text>" in html


def test_what_people_say_stands_beside_the_filters_opinion(
    scored: Callable[..., PairTable], tmp_path: Path
) -> None:
    texts, scores = ["a dog", "a cat", "a bus", "a car", "a boat"], [0.9, 0.8, 0.1, 0.2, 0.7]
    table = scored(texts, scores)
    page = write_report(table, tmp_path / "none.html")
    assert "What people say" not in page.read_text("utf-8")
    judged: list[tuple[int, Verdict]] = [(0, "right"), (1, "wrong"), (2, "right"), (3, "wrong")]
    records = [
        ReviewRecord(
            row=f"r{number}",
            source="web",
            place=0,
            text=texts[number],
            verdict=verdict,
            reviewer="ada",
            table_version=table.version,
        )
        for number, verdict in [*judged, (4, "unsure")]
    ]
    ReviewLog.of(table.uri).append(records)
    html = write_report(table, tmp_path / "page.html").read_text("utf-8")
    part = html.split("What people say</h2>")[1].split("<h2")[0]
    assert re.findall(r"<tr>(.*?)</tr>", part)[1:] == [
        "<td>right</td><td>1</td><td>1</td>",
        "<td>partly</td><td>0</td><td>0</td>",
        "<td>wrong</td><td>1</td><td>1</td>",
    ]
    right, wrong = part.split("<h3>")[1:]
    assert "found these right" in right
    assert re.findall(r'<span class="words">([^<]*)<', right) == ["a bus"]
    assert re.findall(r'<span class="words">([^<]*)<', wrong) == ["a cat"]
    # Verdicts change no score, and no count of what a threshold keeps.
    assert [r.count for r in rejections(table, [0.5]) if r.reason == "below the threshold"] == [2]


def test_the_command_writes_what_the_verdicts_certify(
    scored: Callable[..., PairTable], tmp_path: Path
) -> None:
    count = 60
    table = scored([f"dog {n}" for n in range(count)], [0.02 + n / 64 for n in range(count)])
    page = tmp_path / "page.html"
    assert main(["capfilt", "report", table.uri, "-o", str(page)]) == 0
    assert "Certificate" not in page.read_text("utf-8")
    session = ReviewSession.open(table, ReviewSettings(size=count))
    for item in session.upcoming("ada", count):
        session.record("ada", item.key, "right" if (item.itm or 0) > 0.4 else "wrong")
    said = str(ReviewSession.most_reviewed(table).certify(0.8))
    assert said.startswith("at threshold ")
    words = ["capfilt", "report", table.uri, "-o", str(page), "--precision", "0.8"]
    assert main(words) == 0
    assert f"<h2>Certificate</h2><p>A{said[1:]}.</p>" in page.read_text("utf-8")


def test_a_page_of_another_score_tells_what_it_is_made_of(
    scored: Callable[..., PairTable], tmp_path: Path
) -> None:
    scores = [number / 20 for number in range(20)]
    table = scored([f"text of {score:.2f}" for score in scores], scores)
    kind = pa.list_(pa.float32())
    table.add_columns(
        pa.table(
            {
                "captions_score_right": pa.array([[1 - s] for s in scores], kind),
                "synthetic_score_right": pa.array([[] for _ in scores], kind),
                "captions_score_clip": pa.array([[s - 0.5] for s in scores], kind),
            }
        )
    )
    told = {
        **{"model": "boosted trees", "calibration": "Platt", "texts": 700, "reviewed": 3},
        **{"auc": 0.91, "single": "itm", "single_auc": 0.8, "gain": 0.11, "gain_low": 0.08},
        **{"gain_high": 0.14, "error": 0.02, "recall": 0.8},
        "importance": [["common", 0.2, None], ["itm", 0.1, 1.5]],
        "kinds": [{"kind": "boilerplate", "texts": 100, "combination": 0.97, "single": 0.5}],
        "reliability": [[0.05, 0.06, 300]],
    }
    fit = {"source": "web", "share": 0.52, "share_from": "scores", "told": told}
    left_out = ["agreement: its captioner is not where it was", "clip2: no model gives it"]
    report = {"fits": [fit], "left_out": left_out}
    table.update_metadata({"fit_report": json.dumps(report)})
    opened = PairTable.open(table.uri)

    page = write_report(opened, tmp_path / "page.html", score="right")
    text = page.read_text("utf-8")
    assert "its calibrated probability of being right (score right) is above 0.5" in text
    assert "difference +0.110, 95 % interval +0.080 to +0.140" in text
    assert "boilerplate" in text
    # What it could not use, and what it would weigh.
    rows = re.findall(r"<tr><td>([^<]*)</td><td>([^<]*)</td></tr>", text)
    assert [tuple(line.split(": ", 1)) for line in left_out] == rows[-2:]
    assert "weight in the logistic regression" in text
    assert "by its score &#x27;right&#x27;" in text
    # Of 1, 0.95 and so on to 0.05.
    assert "an epoch shows 10 of 20 images" in text
    # By each score: where the texts lie, and whether it orders them as the one that decides.
    lines = re.findall(r"<tr><td>(ITM|score [^<]*)</td>(.*?)</tr>", text)
    cells = {name: re.findall(r"<td[^>]*>([^<]*)</td>", rest) for name, rest in lines}
    assert cells["ITM"] == ["web", "20", "0.0475", "0.475", "0.902", "-1.00"]
    assert cells["score &#x27;right&#x27;"][-1] == "+1.00"
    assert cells["score &#x27;clip&#x27;"][-3:] == ["-0.025", "0.403", "-1.00"]
    assert cards_below(page, "The 10 most confident acceptances")[0] == "text of 0.00"
    # Of a cosine the middle divides.
    other = write_report(opened, tmp_path / "clip.html", score="clip").read_text("utf-8")
    assert "its score &#x27;clip&#x27; is above -0.025" in other
