"""Files and folders appear whole or not at all."""

from pathlib import Path

import pytest

from openblip.atomic import replace_file, replace_folder


class InterruptedWriteError(Exception):
    pass


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    with replace_file(path) as unfinished:
        unfinished.write_text("whole")
        assert not path.exists()
    assert path.read_text() == "whole"
    assert names(path.parent) == ["file"]


def test_an_interrupted_file_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def write() -> None:
        with replace_file(path) as unfinished:
            unfinished.write_text("ha")
            raise InterruptedWriteError

    with pytest.raises(InterruptedWriteError):
        write()
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file"]


def test_a_folder_appears_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    with replace_folder(path) as unfinished:
        (unfinished / "a").write_text("whole")
        assert not path.exists()
    assert names(path) == ["a"]
    assert names(tmp_path) == ["folder"]


def test_a_folder_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    for name in ("a", "b"):
        with replace_folder(path) as unfinished:
            (unfinished / name).touch()
    assert names(path) == ["b"]
    assert names(tmp_path) == ["folder"]


def test_an_interrupted_folder_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    path.mkdir()
    (path / "old").touch()

    def write() -> None:
        with replace_folder(path) as unfinished:
            (unfinished / "new").touch()
            raise InterruptedWriteError

    with pytest.raises(InterruptedWriteError):
        write()
    assert names(path) == ["old"]
    assert names(tmp_path) == ["folder"]


def test_the_old_folder_comes_back_if_the_new_one_cannot_take_its_place(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    path.mkdir()
    (path / "old").touch()
    with pytest.raises(FileNotFoundError), replace_folder(path) as unfinished:
        # What the block leaves behind is gone, as if another process had removed it.
        unfinished.rename(tmp_path / "elsewhere")
    assert names(path) == ["old"]
