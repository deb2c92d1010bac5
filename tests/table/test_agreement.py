"""What reviewers have judged counts as people's texts do, and what they contradict does not."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from openblip.runtime.errors import DataError, OpenBlipWarning, RecipeError
from openblip.table.agreement import AgreedText, AgreedTexts, current_verdicts
from openblip.table.judging import Rejection
from openblip.table.reviews import ReviewLog, ReviewRecord
from openblip.table.table import PairRow, PairTable
from openblip.table.views import CaptionView

ALL = ("human", "web", "synthetic", "reviewed")
TEXTS = {
    "human": {"h": ["h0", "h1"], "hv": ["hv0"]},
    "web": {"w": ["w0", "w1"], "x": ["x0"], "wv": ["wv0"]},
    "synthetic": {"w": ["sw"], "x": ["sx"], "wv": ["swv"]},
}


@pytest.fixture
def table(tmp_path: Path) -> PairTable:
    """Rows h and hv of people, w, x and wv of the web; hv and wv are of the split val."""
    rows = [
        PairRow("h", b"0", captions=["h0", "h1"], origin="human"),
        PairRow("w", b"1", captions=["w0", "w1"]),
        PairRow("x", b"2", captions=["x0"]),
        PairRow("hv", b"3", captions=["hv0"], origin="human", split="val"),
        PairRow("wv", b"4", captions=["wv0"], split="val"),
    ]
    table = PairTable.create(tmp_path / "pairs.lance", rows)
    table.add_columns(
        pa.table(
            {
                "captions_itm": [[0.5, 0.5], [0.9, 0.1], [0.2], [0.5], [0.9]],
                "synthetic": [None, ["sw"], ["sx"], None, ["swv"]],
                "synthetic_itm": [None, [0.8], [0.3], None, [0.9]],
                "synthetic_captioner": [None, ["c"], ["c"], None, ["c"]],
            }
        )
    )
    return table


def judge(
    table: PairTable, row: str, source: str, place: int, verdict: str, **changes: Any
) -> ReviewRecord:
    """Adds a verdict on a text as it stands to the table's log."""
    values: dict[str, Any] = {
        "text": TEXTS[source][row][place],
        "reviewer": "ada",
        "table_version": table.version,
        **changes,
    }
    record = ReviewRecord(row=row, source=source, place=place, verdict=verdict, **values)
    ReviewLog.of(table.uri).append([record])
    return record


def texts(table: PairTable, *sources: str, **changes: Any) -> dict[str, list[str]]:
    """What a view admits, by id."""
    index = CaptionView(sources=sources, **changes).resolve(table)
    ids = table.take(index.rows, ["id"])["id"].to_pylist()
    return dict(zip(ids, index.captions_of_rows(index.rows), strict=True))


def test_texts_that_were_judged_right_count_whatever_source_and_score(table: PairTable) -> None:
    judge(table, "h", "human", 1, "right")
    judge(table, "w", "web", 1, "right")
    judge(table, "x", "synthetic", 0, "right")
    judge(table, "wv", "web", 0, "right")
    expected = {"h": ["h1"], "w": ["w1"], "x": ["sx"]}
    assert texts(table, "reviewed") == texts(table, "reviewed", itm=0.99) == expected
    assert texts(table, "reviewed", split="val") == {"wv": ["wv0"]}


@pytest.mark.parametrize(
    ("verdict", "edited", "counts"),
    [
        ("right", None, "w0"),
        ("right", "w0!", "w0!"),
        ("right", "w0", "w0"),
        ("right", " w0\n", "w0"),
        ("partly", None, None),
        ("partly", "a red w0", "a red w0"),
        ("partly", "w0", None),
        ("wrong", None, None),
        ("wrong", "a cat", "a cat"),
        ("wrong", "half \ud83d", "half ?"),
        ("unsure", None, None),
        ("unsure", "perhaps a cat", None),
    ],
)
def test_a_correction_counts_and_what_is_wrong_does_not(
    table: PairTable, verdict: str, edited: str | None, counts: str | None
) -> None:
    judge(table, "x", "web", 0, "right")
    judge(table, "w", "web", 0, verdict, edited=edited)
    assert texts(table, "reviewed").get("w") == (None if counts is None else [counts])


@pytest.mark.parametrize(
    ("verdicts", "counts"),
    [
        (["right", "wrong"], None),
        (["right", "right", "wrong"], "w0"),
        (["right", "wrong", "wrong"], None),
        (["right", "unsure"], "w0"),
        (["right", "unsure", "unsure"], "w0"),
        (["right", "partly", "right", "wrong"], None),
        ([("partly", "w"), ("wrong", "w"), "right"], "w"),
        ([("partly", "v"), ("partly", "w"), "right"], None),
        ([("right", "w"), "right", "right"], "w0"),
    ],
)
def test_where_reviewers_disagree_most_of_them_decide(
    table: PairTable, verdicts: list[Any], counts: str | None
) -> None:
    judge(table, "x", "web", 0, "right")
    for number, verdict in enumerate(verdicts):
        word, edited = verdict if isinstance(verdict, tuple) else (verdict, None)
        judge(table, "w", "web", 0, word, edited=edited, reviewer=f"r{number}")
    assert texts(table, "reviewed").get("w") == (None if counts is None else [counts])


def test_a_reviewer_has_one_vote_the_last_one_and_may_take_it_back(table: PairTable) -> None:
    judge(table, "x", "web", 0, "right")
    judge(table, "w", "web", 0, "right")
    last = judge(table, "w", "web", 0, "wrong")
    assert "w" not in texts(table, "reviewed")
    ReviewLog.of(table.uri).append(
        [ReviewRecord(**{**vars(last), "key": "back", "verdict": None, "undoes": last.key})]
    )
    assert texts(table, "reviewed")["w"] == ["w0"]


def test_what_was_judged_is_left_to_the_verdict_by_its_own_source(table: PairTable) -> None:
    judge(table, "h", "human", 0, "wrong")
    judge(table, "w", "web", 0, "right", edited="a better w0")
    judge(table, "w", "synthetic", 0, "wrong")
    judge(table, "x", "web", 0, "unsure")
    assert texts(table, *ALL) == {"h": ["h1"], "w": ["w1", "a better w0"], "x": ["x0", "sx"]}
    index = CaptionView(sources=ALL).resolve(table)
    assert index.summary() == (
        "human: 1 of 1 texts, web: 2 of 2 texts, synthetic: 1 of 1 texts, reviewed: 1 of 3 texts"
    )
    assert index.num_rejected["reviewed"] == {"judged wrong": 2}
    # Without `reviewed` nobody asks for verdicts.
    assert texts(table, *ALL[:3])["h"] == ["h0", "h1"]


def test_what_is_not_decided_is_told_where_its_own_source_does_not_count(table: PairTable) -> None:
    judge(table, "h", "human", 0, "right")
    judge(table, "w", "web", 0, "unsure")
    judge(table, "w", "web", 1, "wrong")
    view = CaptionView(sources=("human", "reviewed"))
    assert [(t.text, t.source, t.reason) for t in view.rejected(table)] == [
        ("w0", "reviewed", Rejection.UNDECIDED),
        ("w1", "reviewed", Rejection.JUDGED_WRONG),
    ]
    of_web = CaptionView(sources=("web", "reviewed"), itm=0.5)
    assert [(t.text, t.source) for t in of_web.rejected(table)] == [
        ("w1", "reviewed"),
        ("x0", "web"),
    ]


def test_a_text_is_told_with_what_was_agreed(table: PairTable) -> None:
    judge(table, "w", "synthetic", 0, "right", reviewer="ben")
    judge(table, "x", "web", 0, "partly", edited="a red x0")
    index = CaptionView(sources=("web", "reviewed")).resolve(table)
    columns = [*index.columns, "captions_itm", "synthetic_itm", "synthetic_captioner"]
    w, x = index.admitted(table.take(index.rows, columns))
    assert [(t.text, t.source) for t in w] == [("w0", "web"), ("w1", "web"), ("sw", "reviewed")]
    assert (w[0].agreed, w[2].itm, w[2].captioner) == (None, pytest.approx(0.8), "c")
    agreed = x[0].agreed
    # A score is of the words that the table has.
    assert (x[0].text, x[0].itm) == ("a red x0", None)
    assert isinstance(agreed, AgreedText)
    assert (agreed.text, agreed.verdict, agreed.is_edited) == ("x0", "partly", True)


def test_verdicts_on_texts_that_are_gone_do_not_count_and_are_told(table: PairTable) -> None:
    judge(table, "w", "web", 0, "right")
    gone = [
        judge(table, "w", "synthetic", 0, "right", text="what it said before"),
        ReviewRecord(**{**vars(judge(table, "x", "web", 0, "unsure")), "key": "k", "place": 7}),
        ReviewRecord(**{**vars(judge(table, "x", "web", 0, "unsure")), "key": "l", "row": "none"}),
        ReviewRecord(
            **{**vars(judge(table, "x", "web", 0, "unsure")), "key": "m", "row": "\udc80"}
        ),
        judge(table, "x", "web", 0, "right", text="x", reviewer="ben"),
    ]
    ReviewLog.of(table.uri).append(gone[1:4])
    verdicts = table.verdicts()
    assert len(verdicts) == 7
    left = current_verdicts(table, verdicts)
    assert [(r.row, r.verdict) for r in left] == [("w", "right"), ("x", "unsure")]
    with pytest.warns(OpenBlipWarning, match=r"5 verdicts do not count: .*no longer stand there"):
        assert texts(table, "reviewed") == {"w": ["w0"]}


def test_a_new_capfilt_makes_verdicts_on_its_texts_stale(table: PairTable) -> None:
    judge(table, "w", "synthetic", 0, "right")
    assert texts(table, "reviewed") == {"w": ["sw"]}
    again = pa.table({"synthetic": [None, ["new"], ["sx"], None, ["swv"]]})
    table.add_columns(again, overwrite=True)
    with pytest.raises(DataError, match=r"1 verdicts do not count.*openblip capfilt review"):
        texts(table, "reviewed")


def test_a_table_without_verdicts_says_how_to_get_some(table: PairTable) -> None:
    with pytest.raises(DataError, match=r"reviewed: 0 of 0 texts\): judge texts with .*, or widen"):
        texts(table, "reviewed")
    with pytest.warns(OpenBlipWarning, match="there are no reviewed texts"):
        assert texts(table, "human", "reviewed") == {"h": ["h0", "h1"]}


def test_an_image_that_cannot_be_read_has_no_reviewed_text(table: PairTable) -> None:
    for row in ("h", "w", "x"):
        judge(table, row, "human" if row == "h" else "web", 0, "right")
    errors = {"image_error": ["damaged", None, None, None, None]}
    # Which may be that of a whole batch, and says nothing of an image that somebody saw.
    errors["capfilt_error"] = [None, "workers died", None, None, None]
    table.add_columns(pa.table({k: pa.array(v, pa.string()) for k, v in errors.items()}))
    assert texts(table, "reviewed") == {"w": ["w0"], "x": ["x0"]}
    # The other texts of its row are not let in by it.
    with pytest.warns(OpenBlipWarning, match=r"none of 1 web texts counts \(unreadable image: 1"):
        assert texts(table, "web", "reviewed") == {"w": ["w0"], "x": ["x0"]}


def test_flags_hold_for_reviewed_texts_but_other_words_repeat_nothing(table: PairTable) -> None:
    for place, edited in ((0, None), (1, "in other words")):
        judge(table, "w", "web", place, "right", edited=edited)
    note = '{"x": {"rows": 5, "synthetic": ""}}'

    def flags(check: str, duplicate_of: list[Any]) -> dict[str, Any]:
        none = pa.array([None] * 5, pa.string())
        lists = pa.list_(pa.string())
        return {
            f"{check}_of": none,
            f"captions_{check}_of": pa.array(duplicate_of, lists),
            f"synthetic_{check}_of": pa.array([None, [None], [None], None, [None]], lists),
        }

    of_w = [[None, None], ["h", "h"], [None], [None], [None]]
    table.add_columns(pa.table({**flags("duplicate", of_w), **flags("leak", of_w)}))
    table.update_metadata({"duplicates": note, "leaks": note, "capfilt": '{"fingerprint": ""}'})
    judge(table, "x", "synthetic", 0, "right")
    assert texts(table, "reviewed", without=("duplicate_captions",)) == {
        "w": ["in other words"],
        "x": ["sx"],
    }
    assert texts(table, "reviewed", without=("leaks",)) == {"x": ["sx"]}


def test_the_digest_notices_verdicts(table: PairTable) -> None:
    def digest(*sources: str) -> bytes:
        return CaptionView(sources=sources).resolve(table).text_digest

    judge(table, "w", "web", 0, "right")
    seen = [digest("reviewed")]
    given = digest("human", "web")
    for change in (
        lambda: judge(table, "w", "web", 0, "right", edited="w0, edited"),
        lambda: judge(table, "x", "web", 0, "right"),
        lambda: judge(table, "x", "web", 0, "wrong"),
        lambda: judge(table, "x", "synthetic", 0, "right"),
    ):
        change()
        seen.append(digest("reviewed"))
    # x counted once and was then judged wrong: the third is the first with another text.
    assert len(set(seen)) == 4
    assert seen[1] == seen[3]
    assert digest("human", "web") == given


def test_fixed_verdicts_are_those_that_a_table_sees(table: PairTable) -> None:
    judge(table, "w", "web", 0, "right")
    table.fix_verdicts(table.verdicts())
    judge(table, "x", "web", 0, "right")
    assert texts(table, "reviewed") == {"w": ["w0"]}
    assert texts(PairTable.open(table.uri), "reviewed") == {"w": ["w0"], "x": ["x0"]}


def test_a_threshold_for_reviewed_texts_is_refused() -> None:
    with pytest.raises(RecipeError, match="itm_of"):
        CaptionView(sources=("reviewed",), itm_of=("reviewed=0.5",))


def test_a_long_table_finds_its_few_judged_rows(tmp_path: Path) -> None:
    rows = [PairRow(str(n), b"x", captions=[f"t{n}"]) for n in range(20_000)]
    table = PairTable.create(tmp_path / "t", rows)
    chosen = [7, 8191, 8192, 19_999]
    records = [
        ReviewRecord(
            row=str(n), source="web", place=0, text=f"t{n}", verdict="right", reviewer="a",
            table_version=1,
        )
        for n in chosen
    ]  # fmt: skip
    ReviewLog.of(table.uri).append(records)
    index = CaptionView(sources=("reviewed",)).resolve(table)
    assert index.rows.tolist() == chosen
    assert index.captions_of_rows(index.rows[::-1]) == [[f"t{n}"] for n in chosen[::-1]]
    agreed = AgreedTexts.of(table)
    ids = pa.array([str(n) for n in range(10)])
    assert np.array_equal(agreed.places_in(ids), [7])
