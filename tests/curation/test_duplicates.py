"""Duplicates that were planted in an embedded world are found, all of them and no others."""

import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from PIL import Image

from openblip.cli import main
from openblip.curation.duplicates import flag_duplicates
from openblip.curation.marks import mark_images
from openblip.curation.nearness import Nearness
from openblip.runtime.errors import DataError, RecipeError
from openblip.table.columns import work_folder
from openblip.table.flags import DUPLICATES, what_is_unchecked
from openblip.table.table import PairRow, PairTable
from openblip.table.views import CaptionView
from openblip.world import WorldConfig, build_world

WORLD = WorldConfig(seed=5, web_rows=60, human_rows=20, val_rows=10, test_rows=10)
ALL = ("human", "web", "synthetic")


def changed(image: bytes | None) -> bytes:
    """The same picture as another file: larger, and compressed."""
    stream = io.BytesIO()
    opened = Image.open(io.BytesIO(image or b"")).convert("RGB")
    opened.resize((96, 96), Image.Resampling.BICUBIC).save(stream, "JPEG", quality=80)
    return stream.getvalue()


def planted() -> Iterator[PairRow]:
    """A world; its web rows 0 to 4 again as they are, 5 to 9 changed, human row 0 as web."""
    rows = {row.id: row for row in build_world(WORLD)}
    web = [f"web-{number:07d}" for number in range(10)]
    yield replace(rows["human-0000000"], id="before", origin="web", captions=["nothing"])
    yield from rows.values()
    for key in web[:5]:
        yield replace(rows[key], id=f"{key}-again", captions=[f"of {key}"])
    for key in web[5:]:
        yield replace(rows[key], id=f"{key}-changed", image=changed(rows[key].image))
    # The same picture in another split is no duplicate: that would be a leak.
    yield replace(rows[web[9]], id="elsewhere", split="val")
    yield PairRow(id="broken", image=b"no image", captions=["broken"])


EXPECTED = (
    {"before": "human-0000000"}
    | {f"web-{n:07d}-again": f"web-{n:07d}" for n in range(5)}
    | {f"web-{n:07d}-changed": f"web-{n:07d}" for n in range(5, 10)}
)


@pytest.fixture(scope="module")
def world_rows() -> list[PairRow]:
    return list(planted())


@pytest.fixture
def table(world_rows: list[PairRow], tmp_path: Path) -> PairTable:
    return PairTable.create(tmp_path / "world.lance", world_rows)


def column(table: PairTable, name: str) -> dict[str, object]:
    rows = [row for batch in table.scan(["id", name]) for row in batch.to_pylist()]
    return {row["id"]: row[name] for row in rows if row[name] is not None}


def test_planted_duplicates_are_found_and_no_others(table: PairTable) -> None:
    report = flag_duplicates(table, Nearness(text=1.0), show_progress=False)
    assert column(table, "duplicate_of") == EXPECTED
    assert report.duplicates == {"train": 11}
    assert report.num_same_file == 6
    assert report.num_unreadable == 1
    assert set(column(table, "image_error")) == {"broken"}
    assert len(table) == 100 + 13


def test_a_view_leaves_them_out(table: PairTable) -> None:
    flag_duplicates(table, show_progress=False)
    ids = table.take(CaptionView(without=("duplicate_images",)).resolve(table).rows, ["id"])
    kept = set(ids["id"].to_pylist())
    assert not kept & set(EXPECTED)
    assert set(EXPECTED.values()) <= kept
    # Known to be unreadable: no view admits it.
    assert "broken" not in kept
    rejected = CaptionView(without=("duplicate_images",)).resolve(table).num_rejected
    assert rejected["web"] == {"unreadable image": 1, "duplicate image": 11}


def test_rows_added_since_are_an_error_and_are_found_next_time(
    table: PairTable, world_rows: list[PairRow]
) -> None:
    flag_duplicates(table, show_progress=False)
    table.append([replace(world_rows[30], id="late")])
    view = CaptionView(without=("duplicate_images",))
    with pytest.raises(DataError, match="1 rows were not compared"):
        view.resolve(table)
    assert mark_images(table, show_progress=False) == 1
    flag_duplicates(table, show_progress=False)
    assert column(table, "duplicate_of") == EXPECTED | {"late": world_rows[30].id}
    view.resolve(table)


def test_a_kill_between_flags_and_their_note_leaves_no_note_of_other_thresholds(
    table: PairTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    flag_duplicates(table, show_progress=False)
    with monkeypatch.context() as patch:
        patch.setattr("openblip.table.flags.remember_check", killed)
        with pytest.raises(KeyboardInterrupt):
            flag_duplicates(table, Nearness(radius=0), show_progress=False)
    again = PairTable.open(table.uri)
    assert what_is_unchecked(again, DUPLICATES) == "the table has not been checked"
    flag_duplicates(again, Nearness(radius=0), show_progress=False)
    assert what_is_unchecked(again, DUPLICATES) is None


def test_marking_goes_on_where_it_stopped(
    table: PairTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("openblip.table.columns._PART_ROWS", 16)
    read = table.take
    taken = []

    def take(rows: list[int], columns: list[str]) -> pa.Table:
        taken.append(rows[0])
        if rows[0] >= 64:
            raise KeyboardInterrupt
        return read(rows, columns)

    monkeypatch.setattr(table, "take", take)
    with pytest.raises(KeyboardInterrupt):
        mark_images(table, num_threads=1, show_progress=False)
    assert sorted(taken) == sorted(set(taken))
    assert work_folder(table).is_dir()
    monkeypatch.setattr(table, "take", read)
    assert mark_images(table, num_threads=2, show_progress=False) == len(table) - 64
    assert mark_images(table, show_progress=False) == 0
    assert not work_folder(table).exists()
    flag_duplicates(table, show_progress=False)
    assert column(table, "duplicate_of") == EXPECTED


def test_captions_are_kept_once_within_a_split(tmp_path: Path) -> None:
    texts = {
        "web0": ["Free shipping!", "a dog"],
        "web1": ["free shipping", "a cat", "A cat."],
        "human": ["a dog"],
        "val": ["a dog"],
    }
    rows = [
        PairRow(
            key,
            b"x",
            captions=captions,
            origin="human" if key == "human" else "web",
            split="val" if key == "val" else "train",
        )
        for key, captions in texts.items()
    ]
    table = PairTable.create(tmp_path / "t", rows)
    synthetic = [["a pink bird", "a pink bird"], ["a cat"], None, None]
    table.add_columns(pa.table({"synthetic": pa.array(synthetic, pa.list_(pa.string()))}))
    report = flag_duplicates(table, show_progress=False)
    assert column(table, "captions_duplicate_of") == {
        # Human texts before those of the web.
        "web0": [None, "human"],
        # The row's own id for what the row has said itself.
        "web1": ["web0", None, "web1"],
        "human": [None],
        "val": [None],
    }
    assert column(table, "synthetic_duplicate_of") == {"web0": [None, "web0"], "web1": ["web1"]}
    assert (report.repeated_texts, report.repeated_in_row) == (
        {"captions": 3, "synthetic": 2},
        {"captions": 1, "synthetic": 2},
    )


def test_views_leave_out_repeated_or_duplicate_captions(tmp_path: Path) -> None:
    rows = [
        PairRow("0", b"x", captions=["a dog", "a dog", "a cat"]),
        PairRow("1", b"x", captions=["a cat", "a bird"]),
    ]
    table = PairTable.create(tmp_path / "t", rows)
    flag_duplicates(table, show_progress=False)
    table.drop_columns(["image_error"])

    def texts(*without: str) -> list[list[str]]:
        index = CaptionView(without=without).resolve(table)
        return index.captions_of_rows(index.rows)

    assert texts("repeated_captions") == [["a dog", "a cat"], ["a cat", "a bird"]]
    assert texts("duplicate_captions") == [["a dog", "a cat"], ["a bird"]]
    assert CaptionView(without=("duplicate_captions",)).resolve(table).num_rejected["web"] == {
        "duplicate caption": 2
    }


def test_synthetic_texts_written_since_are_an_error(table: PairTable) -> None:
    flag_duplicates(table, show_progress=False)
    texts = pa.array([["made"]] * len(table), pa.list_(pa.string()))
    table.add_columns(pa.table({"synthetic": texts}))
    table.update_metadata({"capfilt": '{"fingerprint": "abc"}'})
    with pytest.raises(DataError, match="synthetic texts have changed"):
        CaptionView(without=("duplicate_captions",)).resolve(table)


@pytest.mark.parametrize(
    "changes", [{"by": "eye"}, {"radius": 17}, {"colour": -1}, {"cosine": 2.0}, {"text": 0.0}]
)
def test_thresholds_out_of_range_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(RecipeError, match=next(iter(changes))):
        Nearness(**changes)


def test_an_embedding_that_is_not_there_is_named(table: PairTable) -> None:
    with pytest.raises(DataError, match="give --model"):
        flag_duplicates(table, Nearness(by="both"), show_progress=False)


def test_the_command(table: PairTable, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "duplicates", table.uri, "--radius", "4"]) == 0
    output = capsys.readouterr().out
    assert "near-duplicates by hash: train 11 (6 of them the same file)" in output
    assert "web-0000000: again as web-0000000-again" in output


def test_a_table_by_another_address_is_the_same_table(table: PairTable, tmp_path: Path) -> None:
    """What was checked under one name is checked anew under the other, and nothing stays open."""
    (tmp_path / "link.lance").symlink_to(table.uri)
    flag_duplicates(PairTable.open(tmp_path / "link.lance"), show_progress=False)
    PairTable.open(table.uri).append([PairRow(id="late", image=b"no image", captions=["late"])])
    opened = PairTable.open(table.uri)
    assert "1 rows were not compared" in (what_is_unchecked(opened, DUPLICATES) or "")
    flag_duplicates(opened, show_progress=False)
    assert what_is_unchecked(PairTable.open(table.uri), DUPLICATES) is None
