"""The index of a folder and of a table: what is embedded, where it is kept, what is refused."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import openblip
from openblip.curation.marks import embedding_model, mark_images
from openblip.index import folder
from openblip.index.build import (
    IndexReport,
    describe_index,
    open_index,
    outdated_index,
    update_index,
)
from openblip.inference.image_sources import ImageSources
from openblip.inference.loading import load
from openblip.runtime.errors import CheckpointError, DataError, OpenBlipError
from openblip.runtime.locks import only_one
from openblip.table.table import PairRow, PairTable
from openblip.table.vectors import nearest_rows, vector_index

from ..s3_server import S3Proxy
from .conftest import contents, draw

Build = Callable[..., IndexReport]


def test_a_folder_gets_a_table_that_refers_to_its_files(
    photos: Path, build: Build, model: str
) -> None:
    report = build(photos)
    assert (report.rows, report.embedded, report.missing, report.vectors) == (12, 12, 0, None)
    table, state = open_index(str(photos))
    assert table.uri == str(photos / ".openblip" / "index.lance")
    assert state.folder == str(photos)
    rows = {row["id"]: row for row in table.take(range(12)).to_pylist()}
    assert set(rows) == {f"{n}.png" for n in range(8)} | {f"trip/{n}.png" for n in range(8, 12)}
    row = rows["trip/9.png"]
    assert (row["image"], row["image_uri"]) == (None, str(photos / "trip" / "9.png"))
    assert (row["width"], row["height"]) == (56, 40)
    expected = load(model, "cpu").embed_images(photos / "trip" / "9.png")[0].numpy()
    assert np.array(row["image_embedding"], np.float32) == pytest.approx(expected, abs=2e-3)
    # Curation takes the embeddings for its own.
    assert embedding_model(table)["model"] == state.fingerprint


def test_the_table_of_a_folder_is_no_part_of_the_collection(indexed: Path) -> None:
    assert len(list(ImageSources([str(indexed)]).images(lambda name, file: True))) == 12


def test_a_damaged_file_has_its_reason_and_is_tried_again(photos: Path, build: Build) -> None:
    (photos / "bad.jpg").write_bytes(b"no image")
    (photos / "it's 100%.jpg").write_bytes(b"")
    report = build(photos)
    assert (report.rows, report.embedded, report.changes.unreadable) == (14, 12, 2)
    assert [reason.split(": ")[0] for reason in report.reasons] == ["bad.jpg", "it's 100%.jpg"]
    assert describe_index(str(photos)).reasons == report.reasons
    assert "bad.jpg" in contents(photos)["bad.jpg"][5]
    assert describe_index(str(photos)).unreadable == 2
    version = open_index(str(photos))[0].version
    again = build(photos)
    assert (again.embedded, again.changes.unreadable, again.changes.unchanged) == (0, 2, 12)
    assert open_index(str(photos))[0].version == version
    draw(photos / "bad.png", 50)
    (photos / "bad.png").rename(photos / "bad.jpg")
    assert build(photos).changes.edited == 1
    assert contents(photos)["bad.jpg"][5] == "None"


def test_another_model_begins_again(photos: Path, build: Build, model: str, other_model) -> None:
    build(photos)
    first = contents(photos)
    assert build(photos, other_model).embedded == 12
    assert contents(photos) != first
    assert build(photos).embedded == 12
    assert contents(photos) == first
    assert build(photos).embedded == 0


def test_a_table_gets_a_column_which_grows_with_it(
    tmp_path: Path, pair_rows: Callable[..., list[PairRow]], build: Build
) -> None:
    rows = [replace(row, id=f"x{n}") for n, row in enumerate(pair_rows(30))]
    table = PairTable.create(tmp_path / "pairs.lance", rows[:20])
    assert build(table.uri).embedded == 20
    PairTable.open(table.uri).append(rows[20:])
    assert describe_index(table.uri).missing == 10
    report = update_index(table.uri, show_progress=False)
    assert (report.embedded, report.rows, report.missing) == (10, 30, 0)
    assert update_index(table.uri, show_progress=False).embedded == 0


def test_images_of_a_table_that_cannot_be_read_are_told_and_not_counted(
    photos: Path, tmp_path: Path, build: Build
) -> None:
    rows = [PairRow(f"x{n}", None, str(photos / f"{n}.png")) for n in range(8)]
    table = PairTable.create(tmp_path / "pairs.lance", rows)
    (photos / "1.png").unlink()
    (photos / "3.png").write_bytes(b"no image")
    report = build(table.uri)
    assert (report.embedded, report.unreadable) == (6, 2)
    first, second = report.reasons
    assert first.startswith("x1: ")
    assert "1.png" in first
    assert second.startswith("x3: ")
    assert "not an image of a known format" in second


@pytest.mark.filterwarnings("ignore::openblip.runtime.errors.UnknownWords")
def test_a_table_in_an_object_store_too(
    s3: S3Proxy, pair_rows: Callable[..., list[PairRow]], build: Build, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    table = PairTable.create(f"{s3.bucket}/pairs.lance", pair_rows(6))
    assert build(table.uri).embedded == 6
    PairTable.open(table.uri).append([replace(pair_rows(1)[0], id="late")])
    assert update_index(table.uri, show_progress=False).embedded == 1
    hits = openblip.search(table.uri, "a red square", k=3, device="cpu", cache_bytes=0)
    assert len(hits) == 3
    assert hits[0].itm is not None


def test_an_index_of_vectors_is_made_above_the_size_and_extended(
    photos: Path, build: Build
) -> None:
    for number in range(12, 300):
        draw(photos / f"{number}.png", number)
    assert build(photos).vectors is None
    report = build(photos, least_rows=256)
    assert (report.vectors.kind, report.vectors.num_rows) == ("IVF_PQ", 300)
    (photos / "100.png").unlink()
    draw(photos / "new.png", 1000)
    assert build(photos, least_rows=256).vectors.num_rows == 300
    table, _ = open_index(str(photos))
    rows = table.take(range(300), ["id", "image_embedding"]).to_pylist()
    place = [row["id"] for row in rows].index("new.png")
    found = nearest_rows(table, "image_embedding", np.array(rows[place]["image_embedding"]), 3)
    assert found[0] == place
    query = np.array(rows[3]["image_embedding"])
    few = nearest_rows(table, "image_embedding", query, 20, "id LIKE 'trip/%'")
    assert {rows[row]["id"] for row in few} == {f"trip/{n}.png" for n in range(8, 12)}
    assert vector_index(table, "image_embedding").num_rows == 300


def test_the_table_may_lie_elsewhere(photos: Path, build: Build, tmp_path: Path) -> None:
    uri = str(tmp_path / "elsewhere.lance")
    build(photos, table=uri)
    assert not (photos / ".openblip").exists()
    draw(photos / "new.png", 99)
    assert update_index(uri, show_progress=False).changes.new == 1
    with pytest.raises(DataError, match="another --table"):
        build(tmp_path, table=uri)
    with pytest.raises(DataError, match="--table is for"):
        build(uri, table=str(tmp_path / "x.lance"))


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_what_others_have_computed_by_row_number_begins_again(
    indexed: Path, build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    table, _ = open_index(str(indexed))
    assert mark_images(table, show_progress=False) == 12
    table.update_metadata({"note": "of another kind"})
    (indexed / "0.png").unlink()
    draw(indexed / "new.png", 77)
    with monkeypatch.context() as patch:
        # Stopped as early as can be: what was forgotten stays so.
        patch.setattr(folder, "exchange_rows", interrupt)
        with pytest.raises(KeyboardInterrupt):
            build(indexed)
    build(indexed)
    table, _ = open_index(str(indexed))
    assert mark_images(table, show_progress=False) == 12
    assert table.count_values("image_hash") == 12


def test_a_folder_without_images_gets_no_index(tmp_path: Path, build: Build) -> None:
    (folder := tmp_path / "texts").mkdir()
    (folder / "a.txt").write_text("no image")
    with pytest.raises(DataError, match=r"no image in this folder; 1 not an image \(such as .*a"):
        build(folder)
    assert [path.name for path in folder.iterdir()] == ["a.txt"]


def test_what_is_no_image_is_counted(photos: Path, build: Build) -> None:
    (photos / "notes.txt").write_text("x")
    (photos / ".hidden.png").write_bytes(b"x")
    report = build(photos)
    assert "1 hidden (such as " in report.left_out
    assert "1 not an image (such as " in report.left_out


def test_a_damaged_index_is_made_again(photos: Path, build: Build) -> None:
    build(photos)
    (place,) = photos.rglob("index.lance")
    for file in (place / "data").iterdir():
        file.write_bytes(b"")
    with pytest.raises(DataError, match=r"index\.lance: .* damaged .*: remove it, and run again"):
        build(photos)
    shutil.rmtree(place)
    assert build(photos).embedded == 12


def test_bad_places_are_refused_in_a_line(tmp_path: Path, photos: Path, build: Build) -> None:
    with pytest.raises(DataError, match="does not exist"):
        build(tmp_path / "nowhere")
    with pytest.raises(DataError, match="is a file"):
        build(photos / "0.png")
    with pytest.raises(DataError, match="has no index"):
        update_index(str(photos))
    with pytest.raises(DataError, match="has no index"):
        describe_index(str(photos))
    with pytest.raises(CheckpointError):
        build(photos, str(tmp_path / "no model"))
    assert not (photos / ".openblip").exists()
    place = photos / ".openblip" / "index.lance"
    said = pytest.raises(OpenBlipError, match="another process is indexing")
    with only_one(place, "indexing"), said:
        build(photos)


def test_rows_without_an_embedding_are_told(
    tmp_path: Path, pair_rows: Callable[..., list[PairRow]], build: Build
) -> None:
    table = PairTable.create(tmp_path / "pairs.lance", pair_rows(6))
    build(table.uri)
    assert outdated_index(open_index(table.uri)[0], []).count == 0
    PairTable.open(table.uri).append([replace(pair_rows(1)[0], id="late")])
    told = str(outdated_index(open_index(table.uri)[0], []))
    assert told == "1 row is new since the index"
