"""Training rows that an evaluation sees again are found, in the same table and in another."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from openblip.cli import main
from openblip.curation.leakage import flag_leaks
from openblip.curation.nearness import Nearness
from openblip.runtime.errors import DataError, OpenBlipWarning
from openblip.table.columns import column_state
from openblip.table.flags import LEAKS
from openblip.table.reviews import ReviewLog, ReviewRecord
from openblip.table.table import PairRow, PairTable
from openblip.table.views import CaptionView
from openblip.world import WorldConfig, build_world

from .test_duplicates import changed, column

WORLD = WorldConfig(seed=6, web_rows=40, human_rows=10, val_rows=10, test_rows=10)


@pytest.fixture
def table(tmp_path: Path) -> PairTable:
    """A world; two test images stand among the training rows, one as another file."""
    rows = {row.id: row for row in build_world(WORLD)}
    test = [rows["test-0000000"], rows["test-0000001"]]
    unique = {"split": "train", "origin": "web"}
    leaks = [
        replace(test[0], id="leak-0", captions=["words of its own"], **unique),
        replace(test[1], id="leak-1", image=changed(test[1].image), captions=["zebra"], **unique),
        PairRow("quote", image=rows["web-0000000"].image, captions=["a", test[0].captions[0]]),
    ]
    return PairTable.create(tmp_path / "pairs.lance", [*rows.values(), *leaks])


def test_planted_leaks_are_found_and_no_other_images(table: PairTable) -> None:
    report = flag_leaks(table, table, show_progress=False)
    name = f"{table.uri}#test"
    assert column(table, "leak_of") == {
        "leak-0": f"{name}:test-0000000",
        "leak-1": f"{name}:test-0000001",
    }
    assert (report.num_leaking_images, report.num_same_file, report.num_leaked_images) == (2, 1, 2)
    assert column(table, "captions_leak_of")["quote"] == [None, f"{name}:test-0000000"]


def test_a_view_leaves_them_out(table: PairTable) -> None:
    flag_leaks(table, table, show_progress=False)
    index = CaptionView(without=("leaks",)).resolve(table)
    texts = dict(
        zip(
            table.take(index.rows, ["id"])["id"].to_pylist(),
            index.captions_of_rows(index.rows),
            strict=True,
        )
    )
    assert not {"leak-0", "leak-1"} & set(texts)
    assert texts["quote"] == ["a"]
    assert index.num_rejected["web"]["leaked image"] == 2
    # The evaluation itself is not touched.
    assert len(CaptionView(split="test", without=("leaks",)).resolve(table)) == 10


def test_words_of_reviewers_are_checked_themselves(table: PairTable, tmp_path: Path) -> None:
    """A correction may take a leak out of a text, or bring one into it."""
    of_test = {row.id: row.captions[0] for row in build_world(WORLD) if row.split == "test"}
    leak_text = of_test["test-0000002"]
    own = {
        row["id"]: row["captions"]
        for row in table.take(range(len(table)), ["id", "captions"]).to_pylist()
    }

    def judge(row: str, place: int, edited: str) -> None:
        given = {"text": own[row][place], "edited": edited, "reviewer": "ada"}
        about = {"row": row, "place": place, "source": "web", "verdict": "right"}
        record = ReviewRecord(**about, **given, table_version=table.version)  # type: ignore[arg-type]
        ReviewLog.of(table.uri).append([record])

    def admitted() -> set[str]:
        view = CaptionView(sources=("reviewed",), without=("leaks",))
        index = view.resolve(PairTable.open(table.uri))
        return {text for texts in index.captions_of_rows(index.rows) for text in texts}

    judge("quote", 1, "a picture of something else")
    judge("quote", 0, f"{leak_text.upper()}!")
    judge("web-0000003", 0, "in other words")
    report = flag_leaks(table, table, show_progress=False)
    assert sorted(filter(None, report.corrected.values())) == ["test-0000002"]
    assert "texts: 1 of 3 as reviewers have corrected them are also there" in report.to_text()
    assert admitted() == {"a picture of something else", "in other words"}
    # What is corrected later has not been looked at, and that is said.
    judge("web-0000004", 0, "of later")
    told = r"1 texts count as reviewers have corrected them.*`openblip data leakage"
    with pytest.warns(OpenBlipWarning, match=told):
        assert "of later" in admitted()
    # One evaluation that has them is enough.
    other = PairTable.create(
        tmp_path / "other.lance", [PairRow("x", None, "x.jpg", captions=["of later"], split="val")]
    )
    flag_leaks(PairTable.open(table.uri), other, "val", show_progress=False)
    assert "of later" not in admitted()


def test_checks_against_several_evaluations_add_up(
    table: PairTable, tmp_path: Path, jpeg: Callable[..., bytes]
) -> None:
    web = table.take([3], ["image"])["image"][0].as_py()
    other = PairTable.create(
        tmp_path / "other.lance",
        [PairRow("x", jpeg(1), captions=["zebra"], split="val"), PairRow("y", web, split="val")],
    )
    flag_leaks(table, table, show_progress=False)
    flag_leaks(table, other, "val", show_progress=False)
    found = column(table, "leak_of")
    assert found.pop("web-0000003") == f"{other.uri}#val:y"
    assert set(found) == {"leak-0", "leak-1"}
    texts = column(table, "captions_leak_of")
    assert texts["leak-1"] == [f"{other.uri}#val:x"]
    assert texts["quote"] == [None, f"{table.uri}#test:test-0000000"]
    # Once more, with another threshold: only the findings of that check change.
    assert main(["data", "leakage", table.uri, other.uri, "--split", "val", "--radius", "0"]) == 0
    assert column(PairTable.open(table.uri), "leak_of") == found | {
        "web-0000003": f"{other.uri}#val:y"
    }


def test_a_kill_takes_only_the_note_of_its_own_check(
    table: PairTable, tmp_path: Path, jpeg: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    rows = [PairRow("x", jpeg(1), captions=["zebra"], split="val")]
    other = PairTable.create(tmp_path / "other.lance", rows)
    flag_leaks(table, table, show_progress=False)
    flag_leaks(table, other, "val", show_progress=False)
    monkeypatch.setattr("openblip.table.flags.remember_check", killed)
    with pytest.raises(KeyboardInterrupt):
        flag_leaks(table, other, "val", Nearness(radius=0), show_progress=False)
    assert set(column_state(PairTable.open(table.uri), LEAKS)) == {f"{table.uri}#test"}


def test_the_exit_code_says_whether_there_are_leaks(
    table: PairTable, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["data", "leakage", table.uri, table.uri, "--check"]
    assert main([*words, "--split", "test"]) == 1
    assert "2 of 53 training images" in capsys.readouterr().out
    assert main([*words, "--split", "val"]) == 0


def test_the_training_split_is_no_evaluation_of_itself(table: PairTable) -> None:
    with pytest.raises(DataError, match="--split test or val"):
        flag_leaks(table, table, "train", show_progress=False)
    with pytest.raises(DataError, match="no row in the split"):
        flag_leaks(table, PairTable.create(f"{table.uri}2"), "test", show_progress=False)
