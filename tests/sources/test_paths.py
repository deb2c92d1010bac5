"""A folder is walked in one order, once, and nothing in it is passed over without a word."""

import os
import sys
from pathlib import Path

import pytest

from openblip.sources.paths import Span, walk


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Files at three depths."""
    for name in ("a", "b/1", "b/2", "b.x", "c/d/e", "f"):
        (tmp_path / "root" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "root" / name).touch()
    return tmp_path / "root"


def names(folder: Path) -> list[str]:
    return [seen.name for seen in walk(folder) if not seen.problem]


def problems(folder: Path) -> dict[str, str]:
    return {seen.name: seen.problem for seen in walk(folder) if seen.problem}


def test_files_come_in_the_order_of_their_parts(folder: Path) -> None:
    assert names(folder) == ["a", "b/1", "b/2", "b.x", "c/d/e", "f"]
    assert [seen.parts for seen in walk(folder)] == sorted(seen.parts for seen in walk(folder))


def test_spans_of_a_walk_are_all_of_it(folder: Path) -> None:
    everything = [seen.parts for seen in walk(folder)]
    for first in range(len(everything)):
        for last in range(first, len(everything)):
            after = everything[first - 1] if first else None
            for prunes in (True, False):
                found = walk(folder, Span(after, everything[last], prunes))
                assert [seen.parts for seen in found] == everything[first : last + 1]


def test_folders_without_a_part_of_a_span_are_not_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, whole = list[str](), os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: (read.append(Path(path).name), whole(path))[1])
    assert [seen.name for seen in walk(folder, Span(("b.x",), ("f",)))] == ["c/d/e", "f"]
    assert read == ["root", "c", "d"]


def test_files_of_a_folder_know_each_other(folder: Path) -> None:
    first, second = (seen for seen in walk(folder) if seen.name.startswith("b/"))
    assert first.beside is second.beside == {"1", "2"}


def test_links_out_are_followed_once_and_circles_end(folder: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside" / "deep"
    outside.mkdir(parents=True)
    (outside / "far").touch()
    (outside / "back").symlink_to(folder)
    (folder / "l1").symlink_to(tmp_path / "outside")
    (folder / "l2").symlink_to(outside)
    (folder / "l3").symlink_to(folder / "b")
    (folder / "l4").symlink_to(folder)
    (folder / "l5").symlink_to("a")
    assert names(folder) == ["a", "b/1", "b/2", "b.x", "c/d/e", "f", "l1/deep/far", "l5"]
    assert problems(folder) == {
        "l1/deep/back": "a link to a folder that it lies in",
        "l2": "a folder that was read by another link",
        "l3": "a link to a folder that is read where it lies",
        "l4": "a link to a folder that it lies in",
    }


def test_a_link_into_what_is_hidden_is_followed(folder: Path) -> None:
    (folder / ".store").mkdir()
    (folder / ".store" / "x").touch()
    (folder / "store").symlink_to(folder / ".store")
    assert "store/x" in names(folder)
    assert problems(folder) == {".store": "hidden"}


def test_what_is_neither_file_nor_folder_has_its_reason(folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    (folder / "lost").symlink_to("nowhere")
    (folder / "itself").symlink_to("itself")
    found = problems(folder)
    assert found["pipe"] == "a pipe, a socket or a device"
    assert found["lost"] == "a link to nothing"
    assert found["itself"].startswith("cannot be read (")
    assert all(seen.is_unreadable for seen in walk(folder) if seen.problem)


def test_a_folder_that_is_gone_has_its_reason(tmp_path: Path) -> None:
    assert list(problems(tmp_path / "gone").values()) == [
        "a folder that cannot be read (No such file or directory)"
    ]


def test_a_table_is_one_thing(folder: Path) -> None:
    (folder / "t.lance" / "_versions").mkdir(parents=True)
    (folder / "t.lance" / "data.bin").touch()
    assert problems(folder) == {"t.lance": "a pair table: name it itself"}


def test_a_folder_deeper_than_python_recurses_is_walked_to_its_end(tmp_path: Path) -> None:
    depth = sys.getrecursionlimit() + 100
    deep = tmp_path
    try:
        for _ in range(depth):
            deep = deep / "d"
            deep.mkdir()
        (deep / "end").touch()
        assert len(names(tmp_path)) == 1
    finally:
        # What empties this folder later recurses.
        (deep / "end").unlink(missing_ok=True)
        while deep != tmp_path:
            deep.rmdir()
            deep = deep.parent
