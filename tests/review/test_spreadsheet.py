"""A review by spreadsheet: what is written is read back, and what people break is named."""

import csv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from PIL import Image

from openblip.review.sampling import ReviewSettings
from openblip.review.session import ReviewSession
from openblip.review.spreadsheet import SheetReport, read_sheet, write_sheet
from openblip.runtime.errors import DataError
from openblip.table.reviews import ReviewLog
from openblip.table.table import PairRow, PairTable

from .conftest import fragment


@pytest.fixture
def session(scored: PairTable) -> ReviewSession:
    return ReviewSession.open(scored, ReviewSettings(size=30))


def filled(
    path: Path, change: Callable[[list[dict[str, str]]], object], delimiter: str = ","
) -> Path:
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    change(rows)
    new = path.with_name("filled.csv")
    with new.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0], delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return new


def test_what_people_fill_in_is_recorded_in_the_order_of_the_sample(
    session: ReviewSession, tmp_path: Path
) -> None:
    path = tmp_path / "sample.csv"
    assert write_sheet(session, path, "ann") == 30

    def judge(rows: list[dict[str, str]]) -> None:
        for number, row in enumerate(rows[:20]):
            row["verdict"] = ("right", " WRONG ", "partly", "Unsure")[number % 4]
            row["edited"] = "a better text" if number == 2 else ""
        rows.sort(key=lambda row: row["verdict"])

    new = filled(path, judge, ";")
    assert read_sheet(session, new, "ann") == SheetReport(20, 0, 10)
    assert list(session.standing("ann")) == [item.key for item in session.items[:20]]
    assert session.standing("ann")[session.items[2].key].edited == "a better text"
    # The same again changes nothing; what was judged stands in the next file.
    assert read_sheet(session, new, "ann") == SheetReport(0, 20, 10)
    write_sheet(session, path, "ann")
    assert read_sheet(session, path, "ann") == SheetReport(0, 20, 10)
    assert len(ReviewLog.of(session.table.uri).records()) == 20
    # Of a sample that was drawn larger as many as are asked for.
    assert write_sheet(session, path, "ann", 25) == 25
    assert read_sheet(session, path, "ann") == SheetReport(0, 20, 5)


def test_images_lie_beside_the_file(session: ReviewSession, tmp_path: Path) -> None:
    path = tmp_path / "sample.csv"
    write_sheet(session, path, "ann")
    with path.open(encoding="utf-8-sig", newline="") as file:
        names = [row["image"] for row in csv.DictReader(file)]
    for name in names:
        with Image.open(tmp_path / name) as image:
            assert image.size == (24, 16)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[1].update(verdict="yes"), "line 3: the verdict is 'yes', none of right"),
        (
            lambda rows: rows[1].update(key="r9/web/7"),
            "line 3: 'r9/web/7' is no text of the review",
        ),
        (lambda rows: rows[1].update(text="new"), "line 3: the text was changed"),
        (lambda rows: rows[1].update(edited="new"), "line 3: a correction needs a verdict"),
        (lambda rows: rows[2].update(rows[1]), "line 4: .* is in line 3 too; remove one"),
        (lambda rows: [row.pop("verdict") for row in rows], "first line has no column verdict"),
    ],
)
def test_one_bad_line_and_nothing_is_recorded(
    session: ReviewSession, tmp_path: Path, change: object, message: str
) -> None:
    path = tmp_path / "sample.csv"
    write_sheet(session, path, "ann")

    def judge(rows: list[dict[str, str]]) -> None:
        rows[0]["verdict"] = "right"
        change(rows)  # type: ignore[operator]

    with pytest.raises(DataError, match=message):
        read_sheet(session, filled(path, judge), "ann")
    assert ReviewLog.of(session.table.uri).records() == []


def test_files_that_are_none_are_named(session: ReviewSession, tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    with pytest.raises(DataError, match=r"x\.csv"):
        read_sheet(session, path, "ann")
    path.write_text("key,verdict\nr1/web/0\n")
    with pytest.raises(DataError, match="line 2: 1 cells"):
        read_sheet(session, path, "ann")
    path.write_text('key,verdict\n"r1/web/0,right\n')
    with pytest.raises(DataError, match="is no CSV"):
        read_sheet(session, path, "ann")
    path.write_text("key,verdict\n\n")
    with pytest.raises(DataError, match=r"x\.csv: no text stands below its first line; export"):
        read_sheet(session, path, "ann")
    path.write_bytes(b"key,verdict\n\xff\xfe\n")
    with pytest.raises(DataError, match="not UTF-8"):
        read_sheet(session, path, "ann")


def test_a_hostile_caption_is_no_formula(tmp_path: Path, jpeg: Callable[..., bytes]) -> None:
    texts = [
        *('=HYPERLINK("http://x")', "+1", "two\nlines; and, all", "'quoted"),
        *("'=1+1", "''@home", "'+1", "'", "a\r\nb", "a\rb", "\tindented ", '"', "-1.50"),
    ]
    beginnings = ("=", "'=", "''-")
    rows = [
        PairRow(id=f"{beginnings[n % 3]}{n}", image=jpeg(n), captions=[text])
        for n, text in enumerate(texts)
    ]
    table = PairTable.create(tmp_path / "t.lance", rows)
    fragment(table, [[0.6]] * len(texts), [[]] * len(texts))
    session = ReviewSession.open(PairTable.open(table.uri), ReviewSettings())
    path = tmp_path / "sample.csv"
    write_sheet(session, path, "ann")
    with path.open(encoding="utf-8-sig", newline="") as file:
        cells = [cell for row in csv.reader(file) for cell in row]
    assert not [cell for cell in cells if cell.startswith(("=", "+", "-", "@"))]

    def judge(rows: list[dict[str, str]]) -> None:
        for row in rows:
            row["verdict"] = "right"

    # All lines are those of the review, but nobody has judged.
    with pytest.raises(
        DataError, match=rf"csv: none of its {len(texts)} texts has a verdict; write"
    ):
        read_sheet(session, path, "ann")
    assert read_sheet(session, filled(path, judge), "ann").recorded == len(texts)


def test_a_sheet_of_another_review_is_refused(session: ReviewSession, tmp_path: Path) -> None:
    path = tmp_path / "sample.csv"
    write_sheet(session, path, "ann")

    def judge(rows: list[dict[str, str]]) -> None:
        for row in rows:
            row["verdict"] = "right"

    new = filled(path, judge)
    other = ReviewSession.open(session.table, ReviewSettings(size=30, by="accepted"))
    with pytest.raises(DataError, match=r"it is of the review threshold-.*--export-sample"):
        read_sheet(other, new, "ann")
    assert read_sheet(session, new, "ann").recorded == 30


def test_after_a_fit_a_sheet_of_before_says_by_which_score_it_was_drawn(
    session: ReviewSession, tmp_path: Path
) -> None:
    path = tmp_path / "sample.csv"
    write_sheet(session, path, "ann")
    kind = pa.list_(pa.float32())
    lists = pa.array([[n / 120] for n in range(len(session.table))], kind)
    session.table.add_columns(
        pa.table({f"{texts}_score_right": lists for texts in ("captions", "synthetic")})
    )
    table = PairTable.open(session.table.uri)
    other = ReviewSession.open(table, ReviewSettings(size=30))
    assert other.sample.settings.score == "right"
    judged = filled(path, lambda rows: [row.update(verdict="right") for row in rows])
    with pytest.raises(DataError, match="--export-sample, and --score itm"):
        read_sheet(other, judged, "ann")
    # Whoever asks for a certificate is told of the verdicts that there are.
    assert read_sheet(session, judged, "ann").recorded == 30
    with pytest.raises(DataError, match="30 verdicts are of a review by --score itm"):
        ReviewSession.most_reviewed(table)
    assert ReviewSession.most_reviewed(table, score="itm").sample.name == session.sample.name
    assert " of the score right " in str(replace(other.certify(0.5), threshold=0.5))
    assert session.certify(0.5).score == "itm"
    # Without that column a file may be of either.
    bare = filled(path, lambda rows: [row.pop("review") for row in rows])
    with pytest.raises(DataError, match="it has no column review"):
        read_sheet(session, bare, "ann")


def test_each_review_has_its_own_verdict_on_a_text(session: ReviewSession) -> None:
    other = ReviewSession.open(session.table, ReviewSettings(size=30, by="source"))
    shared = [item.key for item in session.items if item.key in {one.key for one in other.items}]
    assert shared
    session.record("ann", shared[0], "right")
    other.record("ann", shared[0], "wrong")
    assert session.standing("ann")[shared[0]].verdict == "right"
    assert other.standing("ann")[shared[0]].verdict == "wrong"
    # What somebody thinks of a text is what they said last, wherever.
    (record,) = ReviewLog.of(session.table.uri).standing()
    assert record.verdict == "wrong"


def test_a_verdict_whose_cell_was_emptied_stands_and_is_counted(
    session: ReviewSession, tmp_path: Path
) -> None:
    path = tmp_path / "sample.csv"
    for item in session.items[:2]:
        session.record("ann", item.key, "wrong")
    write_sheet(session, path, "ann")

    def clear(rows: list[dict[str, str]]) -> None:
        rows[0]["verdict"] = ""

    report = read_sheet(session, filled(path, clear), "ann")
    assert (report.unchanged, report.cleared) == (1, 1)
