"""Choices of rows: what is asked of a text is asked of one text; nothing is computed twice."""

from pathlib import Path

import pyarrow as pa
import pytest

from openblip.runtime.errors import DataError, RecipeError
from openblip.studio.arrays import TableArrays
from openblip.studio.selection import Choice, Choices
from openblip.table.reviews import ReviewLog, ReviewRecord
from openblip.table.table import PairRow, PairTable

ROWS = [  # id, width, split, captions with ITM, synthetic text with ITM
    ("d", 100, "train", {"a dog": 0.9, "best price": 0.1}, {"a brown dog": 0.8}),
    ("c", 300, "train", {"a cat": 0.2}, {"a cat": 0.6}),
    ("b", None, "test", {}, {"a bird": 0.4}),
    ("a", 200, "val", {"a dog": 0.3, "dogs": 0.7}, {"two dogs": 0.3}),
]


@pytest.fixture
def table(tmp_path: Path) -> PairTable:
    """Four web rows with scores, and a fifth of people's."""
    rows = [
        PairRow(id=i, image_uri="/x", width=w, height=w, split=s, captions=list(given))
        for i, w, s, given, _ in ROWS
    ]
    human = PairRow(id="e", image_uri="/x", origin="human", captions=["a dog by a person"])
    table = PairTable.create(tmp_path / "t.lance", [*rows, human])
    given = [list(row[3].values()) for row in ROWS]
    written = [row[4] for row in ROWS]
    numbers = pa.list_(pa.float32())
    columns = {
        "captions_itm": pa.array([*given, []], numbers),
        "captions_itc": pa.array([*([x - 0.5 for x in some] for some in given), []], numbers),
        "synthetic": pa.array([*map(list, written), []], pa.list_(pa.string())),
        "synthetic_itm": pa.array([*(list(w.values()) for w in written), []], numbers),
        "synthetic_itc": pa.array([*([x - 0.5 for x in w.values()] for w in written), []], numbers),
    }
    table.add_columns(pa.table(columns))
    return PairTable.open(table.uri)


@pytest.fixture
def choices(table: PairTable) -> Choices:
    return Choices(TableArrays(table))


def ids(choices: Choices, **asked: object) -> str:
    """Letters of the chosen rows, in their order."""
    return "".join("dcbae"[row] for row in choices.rows(Choice(**asked)))


def test_without_a_wish_all_rows_come_and_nothing_is_read(choices: Choices) -> None:
    assert choices.rows(Choice()) == range(5)
    assert choices.rows(Choice(threshold=0.9)) == range(5)


@pytest.mark.parametrize(
    ("sort", "up", "down"),
    [
        ("row", "dcbae", "eabcd"),
        ("id", "abcde", "edcba"),
        # Rows without it come last both ways; of equal ones the first comes first.
        ("size", "dacbe", "cadbe"),
        ("texts", "becda", "dacbe"),
        ("best-given-itm", "cadbe", "dacbe"),
        ("worst-given-itm", "dcabe", "acdbe"),
        ("best-synthetic-itm", "abcde", "dcbae"),
        ("worst-given-itc", "dcabe", "acdbe"),
        ("best-synthetic-itc", "abcde", "dcbae"),
    ],
)
def test_rows_are_sorted_both_ways(choices: Choices, sort: str, up: str, down: str) -> None:
    assert ids(choices, sort=sort) == up
    assert ids(choices, sort=sort, desc=True) == down


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ({"split": "test"}, "b"),
        ({"source": "human"}, "e"),
        ({"source": "web"}, "dca"),
        ({"words": "DOG"}, "dae"),
        ({"words": "dog", "source": "synthetic"}, "da"),
        ({"itm_from": 0.65, "itm_to": 0.75}, "a"),
        ({"itc_from": 0.3}, "d"),
        ({"itm_to": 0.25, "source": "web"}, "dc"),
        # One text must be all of it: the dog of the first row has 0.9, what has 0.1 is no dog.
        ({"words": "dog", "itm_to": 0.5}, "a"),
        ({"fate": "counts"}, "dcae"),
        ({"fate": "counts", "threshold": 0.75}, "de"),
        ({"fate": "below the threshold", "source": "synthetic"}, "ba"),
        ({"fate": "below the threshold", "source": "human"}, ""),
        ({"fate": "empty text"}, ""),
        ({"where": "width > 150"}, "ca"),
        ({"where": "width > 150", "words": "dog"}, "a"),
        ({"flag": "duplicate image"}, ""),
    ],
)
def test_rows_are_chosen(choices: Choices, asked: dict, found: str) -> None:
    assert ids(choices, **asked) == found


def test_people_s_verdicts_choose_too_and_stale_ones_do_not(
    table: PairTable, choices: Choices
) -> None:
    def record(row: str, text: str, verdict: str | None, **more: object) -> ReviewRecord:
        about = {"source": "web", "place": 0, "reviewer": "ann", "table_version": 1}
        return ReviewRecord(**{**about, "row": row, "text": text, "verdict": verdict, **more})

    assert ids(choices, verdict="any") == ""
    log = ReviewLog.of(table.uri)
    wrong = record("a", "a dog", "wrong")
    log.append([record("d", "a dog", "right"), wrong, record("c", "an older text", "wrong")])
    assert ids(choices, verdict="any") == "da"
    assert ids(choices, verdict="wrong") == "a"
    assert ids(choices, verdict="partly") == ""
    assert ids(choices, verdict="none", source="web") == "dca"
    assert choices.judged.latest().num_stale == 1
    log.append([record("a", "a dog", None, undoes=wrong.key)])
    assert ids(choices, verdict="wrong") == ""
    # Of several reviewers each is heard.
    log.append([record("d", "a dog", "unsure", reviewer="bob")])
    assert ids(choices, verdict="unsure") == ids(choices, verdict="right") == "d"


def test_a_choice_that_was_made_is_not_made_again(choices: Choices) -> None:
    wish = Choice(sort="best-given-itm")
    rows = choices.rows(wish)
    assert choices.rows(Choice(sort="best-given-itm", threshold=0.9)) is rows
    for split in ("train", "val", "test"):
        choices.rows(Choice(split=split))
    assert choices.rows(wish) is rows
    for words in ("a", "b", "c", "d"):
        choices.rows(Choice(words=words))
    again = choices.rows(wish)
    assert again is not rows
    assert again.tolist() == rows.tolist()


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"sort": "beauty"}, "sort is 'beauty'; it must be one of row, id,"),
        ({"split": "training"}, "one of train, val, test"),
        ({"source": "captions"}, "one of human, web, synthetic"),
        ({"fate": "gone"}, "one of counts, unreadable image"),
        ({"flag": "x"}, "one of duplicate image"),
        ({"verdict": "good"}, "one of any, none, right"),
        ({"itm_from": float("nan")}, "itm_from must be a number"),
    ],
)
def test_a_choice_that_there_is_not_is_told(asked: dict, told: str) -> None:
    with pytest.raises(RecipeError, match=told):
        Choice(**asked)


@pytest.mark.parametrize("where", ["nonsense", "width >", "'a'", "cast(id as int) > 3"])
def test_a_condition_that_is_none_is_told(choices: Choices, where: str) -> None:
    with pytest.raises(DataError, match=r"cannot be used.*write it as SQL over the columns"):
        choices.rows(Choice(where=where))
