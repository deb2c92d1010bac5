"""An update of a folder's table embeds what is new, and ends in the same state however it goes."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

import openblip.index.folder as folder_module
from openblip.curation.duplicates import duplicate_pairs, flag_duplicates
from openblip.curation.nearness import Nearness
from openblip.index.build import IndexReport, open_index, outdated_index
from openblip.index.folder import FolderChanges
from openblip.runtime.errors import DataError
from openblip.table.flags import DUPLICATES, LEAKS, remember_check, what_is_unchecked

from .conftest import contents, draw

Build = Callable[..., IndexReport]


def changes(**counts: int) -> FolderChanges:
    return FolderChanges(**counts)


def test_each_kind_of_change_is_told_and_only_new_content_is_embedded(
    indexed: Path, build: Build
) -> None:
    draw(indexed / "new.png", 100)
    draw(indexed / "1.png", 101)  # edited
    (indexed / "2.png").rename(indexed / "trip" / "moved.png")
    shutil.copy(indexed / "3.png", indexed / "copy of 3.png")
    os.utime(indexed / "4.png", (1, 1))
    (indexed / "5.png").unlink()
    report = build(indexed)
    assert report.changes == changes(
        unchanged=8, new=1, edited=1, moved=1, copied=1, touched=1, deleted=1, embedded=2
    )
    assert report.rows == 13
    assert build(indexed).changes == changes(unchanged=13)


def test_a_folder_that_was_changed_has_the_table_of_one_that_was_always_so(
    indexed: Path, build: Build, tmp_path: Path
) -> None:
    edit(indexed)
    build(indexed)
    changed = contents(indexed)
    shutil.rmtree(indexed / ".openblip")
    build(indexed)
    assert contents(indexed) == changed


def test_a_folder_that_has_moved_is_not_embedded_again(
    indexed: Path, build: Build, tmp_path: Path
) -> None:
    indexed.rename(tmp_path / "album")
    report = build(tmp_path / "album")
    assert (report.embedded, report.changes.touched) == (0, 12)
    assert str(tmp_path / "album") in contents(tmp_path / "album")["0.png"][0]


def test_two_files_that_change_places_keep_their_own_embeddings(
    indexed: Path, build: Build
) -> None:
    before = contents(indexed)
    (indexed / "0.png").rename(indexed / "x")
    (indexed / "1.png").rename(indexed / "0.png")
    (indexed / "x").rename(indexed / "1.png")
    assert build(indexed).embedded == 0
    after = contents(indexed)
    assert (after["0.png"][-1], after["1.png"][-1]) == (before["1.png"][-1], before["0.png"][-1])


def test_all_files_may_go_and_come_back(indexed: Path, build: Build) -> None:
    first = contents(indexed)
    kept = indexed.with_name("kept")
    kept.mkdir()
    for name in ("trip", *(f"{n}.png" for n in range(8))):
        (indexed / name).rename(kept / name)
    assert build(indexed).changes == changes(deleted=12)
    for path in kept.iterdir():
        path.rename(indexed / path.name)
    assert build(indexed).embedded == 12
    assert contents(indexed) == first


def test_a_disk_that_is_not_mounted_deletes_nothing(indexed: Path, build: Build) -> None:
    uri = str(indexed.with_name("table.lance"))
    build(indexed, table=uri)
    indexed.rename(indexed.with_name("away"))
    with pytest.raises(DataError, match="does not exist"):
        build(uri)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every folder")
def test_a_folder_that_cannot_be_read_today_keeps_its_rows(indexed: Path, build: Build) -> None:
    (indexed / "trip").chmod(0)
    try:
        assert build(indexed).changes.deleted == 0
    finally:
        (indexed / "trip").chmod(0o755)


def test_a_folder_that_is_closed_keeps_its_rows(
    indexed: Path, build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, _, _ = folder_module._seen(indexed)
    left = {name: file for name, file in seen.items() if not name.startswith("trip/")}
    monkeypatch.setattr(folder_module, "_seen", lambda folder: (left, ["trip"], ""))
    assert build(indexed).changes == changes(unchanged=8)
    assert len(contents(indexed)) == 12


@pytest.mark.parametrize(
    ("closed", "deleted"), [("trip", 1), ("tri", 5), ("trip/8.png", 4), (".", 0)]
)
def test_what_cannot_be_read_keeps_its_own_rows_and_no_others(
    indexed: Path, build: Build, monkeypatch: pytest.MonkeyPatch, closed: str, deleted: int
) -> None:
    seen, _, _ = folder_module._seen(indexed)
    left = {name: file for name, file in seen.items() if name.startswith(tuple("1234567"))}
    monkeypatch.setattr(folder_module, "_seen", lambda folder: (left, [closed], ""))
    assert build(indexed).changes == changes(unchanged=7, deleted=deleted)


def test_checks_of_rows_that_were_exchanged_are_to_be_made_again(
    indexed: Path, build: Build
) -> None:
    """As many rows as before, and one that nothing was compared with."""
    table = open_index(str(indexed))[0]
    flag_duplicates(table, show_progress=False)
    remember_check(table, LEAKS, "other.lance#test", {"table": table.uri})
    remember_check(table, LEAKS, "another.lance#test", {"table": table.uri})
    assert what_is_unchecked(table, DUPLICATES) is None
    (indexed / "0.png").unlink()
    draw(indexed / "new.png", 0)
    draw(indexed / "newer.png", 1)
    (indexed / "2.png").unlink()
    build(indexed)
    table = open_index(str(indexed))[0]
    assert len(table) == 12
    assert "12 rows were not compared" in (what_is_unchecked(table, DUPLICATES) or "")
    flag_duplicates(table, show_progress=False)
    assert what_is_unchecked(table, DUPLICATES) is None
    ((kept, copy),) = [(pair.kept, pair.duplicate) for pair in duplicate_pairs(table, Nearness())]
    assert {kept, copy} == {"1.png", "newer.png"}
    # Each comparison is asked for, also when another one has been made again.
    remember_check(table, LEAKS, "other.lance#test", {"table": table.uri})
    table.add_columns(pa.table({"leak_of": pa.nulls(12, pa.string())}))
    assert "another.lance" in (what_is_unchecked(table, LEAKS) or "")


def test_names_of_all_kinds(photos: Path, build: Build) -> None:
    names = ["it's.png", 'a;b"c%d.png', "neu\nzeile.png", "ünï.png", "'); DROP TABLE.png"]
    for number, name in enumerate(names):
        draw(photos / name, 200 + number)
    raw = os.fsencode(photos) + b"/caf\xe9.png"
    shutil.copy(photos / "0.png", raw)
    assert build(photos).rows == 18
    Path(os.fsdecode(raw)).unlink()
    for name in names:
        (photos / name).unlink()
    assert build(photos).changes.deleted == 6
    assert len(contents(photos)) == 12


def test_a_link_that_leads_nowhere_is_told(photos: Path, build: Build) -> None:
    (photos / "gone.jpg").symlink_to("/nowhere/gone.jpg")
    found = build(photos)
    assert found.rows == 12
    assert "1 cannot be looked into (such as gone.jpg)" in found.changes.left_out


def edit(photos: Path) -> None:
    """Every kind of change."""
    for number in range(20, 32):
        draw(photos / f"{number}.png", number)
    draw(photos / "1.png", 101)
    (photos / "2.png").rename(photos / "trip" / "moved.png")
    shutil.copy(photos / "3.png", photos / "copy.png")
    os.utime(photos / "4.png", (1, 1))
    (photos / "5.png").unlink()


SCRIPT = """
import sys
import openblip.index.folder as folder
folder.reconcile.__kwdefaults__["batch_files"] = 2
from openblip.index.build import build_index
print("begins", flush=True)
build_index(sys.argv[1], sys.argv[2], device="cpu", show_progress=False)
print("ends", flush=True)
"""


def start(photos: Path, model: str) -> subprocess.Popen[str]:
    words = [sys.executable, "-c", SCRIPT, str(photos), model]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "begins\n"
    return process


@pytest.mark.parametrize("kills", [(2,), pytest.param((1, 2, 4), marks=pytest.mark.slow)])
def test_an_update_that_is_killed_ends_in_the_same_state_the_next_time(
    indexed: Path, build: Build, model: str, kills: tuple[int, ...]
) -> None:
    """Each time after so many changes."""
    edit(indexed)
    versions = indexed / ".openblip" / "index.lance" / "_versions"
    dice = random.Random(0)
    for steps in kills:
        before = len(list(versions.iterdir()))
        with start(indexed, model) as process:
            until = time.monotonic() + 60
            while len(list(versions.iterdir())) < before + steps and time.monotonic() < until:
                time.sleep(0.001)
            time.sleep(dice.uniform(0, 0.02))
            process.send_signal(signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL
        open_index(str(indexed))
    build(indexed)
    *killed, vectors = told_and_vectors(indexed)
    shutil.rmtree(indexed / ".openblip")
    build(indexed)
    *undisturbed, others = told_and_vectors(indexed)
    assert killed == undisturbed
    # Which images are encoded in one batch is decided by the kills: on some processors the last
    # bits of a product depend on how many rows it has. Vectors are kept in 16 bits.
    np.testing.assert_allclose(vectors, others, rtol=2e-3, atol=1e-4)


def told_and_vectors(photos: Path) -> tuple[list[str], list[tuple], list[list[float]]]:
    """The ids in an index, and what it says of each image, the vector apart."""
    found = contents(photos)
    vectors = [json.loads(found[row_id][-1]) for row_id in sorted(found)]
    return sorted(found), [found[row_id][:-1] for row_id in sorted(found)], vectors


def test_what_is_outdated_is_told_without_reading(indexed: Path, build: Build, tmp_path) -> None:
    table, _ = open_index(str(indexed))
    assert outdated_index(table, []).count == 0
    draw(indexed / "deep" / "new.png", 40)
    draw(indexed / "0.png", 41)
    (indexed / "1.png").unlink()
    (indexed / "2.png").rename(indexed / "other.png")
    found = outdated_index(table, [])
    assert (found.new, found.changed, found.gone) == (2, 1, 2)
    build(indexed)
    assert outdated_index(open_index(str(indexed))[0], []).count == 0
    # The hidden table moves along; its rows still name the files where they were.
    moved = indexed.rename(tmp_path / "moved")
    assert outdated_index(open_index(str(moved))[0], []).changed == 12
