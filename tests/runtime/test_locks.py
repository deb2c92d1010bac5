"""One process at a time."""

import os
import subprocess
from pathlib import Path
from threading import Thread

import pytest

from openblip.runtime import locks
from openblip.runtime.errors import OpenBlipError
from openblip.runtime.locks import (
    in_turn,
    is_running,
    is_taken,
    only_here,
    only_one,
    process_start,
)


def test_a_path_that_is_not_there_yet_is_held_by_one(tmp_path: Path) -> None:
    place = tmp_path / "new" / "captions.jsonl"
    with only_one(place, "writing captions into"):
        with (
            pytest.raises(OpenBlipError, match=rf"^{place}: another process is writing captions"),
            only_one(place, "writing captions into"),
        ):
            pass
        with only_one(place.with_name("other.jsonl"), "writing captions into"):
            pass
    with only_one(place, "writing captions into"):
        pass
    # Neither the lock nor a folder that was made for nothing else.
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_something_in_it_stays(tmp_path: Path) -> None:
    place = tmp_path / "new" / "captions.jsonl"
    with only_one(place, "writing captions into"):
        place.touch()
    assert list(place.parent.iterdir()) == [place]


def test_a_folder_that_the_holder_before_took_away_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "new" / "x"
    taken, turns = locks.try_lock, []

    def with_one_that_leaves(number: int) -> bool:
        """The process before gives its lock up, and its empty folder, while this one opens it."""
        turns.append(number)
        if len(turns) == 1:
            (lock,) = path.parent.iterdir()
            lock.unlink()
            path.parent.rmdir()
        return taken(number)

    monkeypatch.setattr(locks, "try_lock", with_one_that_leaves)
    with only_one(path, "testing"):
        assert path.parent.is_dir()
    assert len(turns) == 2


def test_a_lock_is_held_by_way_of_a_link_too(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("folder")
    with (
        only_one(tmp_path / "folder", "writing"),
        pytest.raises(OpenBlipError, match="another process"),
        only_one(tmp_path / "link", "writing"),
    ):
        pass


def test_what_a_killed_process_leaves_is_no_lock(tmp_path: Path) -> None:
    (tmp_path / ".file.lock").touch()
    with only_one(tmp_path / "file", "writing"):
        assert [path.name for path in tmp_path.iterdir()] == [".file.lock"]
    assert not list(tmp_path.iterdir())


def test_a_folder_is_held_by_one(tmp_path: Path) -> None:
    with (
        only_here(tmp_path, "demonstration"),
        pytest.raises(OpenBlipError, match="another process is at work on this demonstration"),
        only_here(tmp_path, "demonstration"),
    ):
        pass


def test_others_wait_for_their_turn(tmp_path: Path) -> None:
    done: list[str] = []

    def second() -> None:
        with in_turn(tmp_path / "lock"):
            done.append("second")

    with in_turn(tmp_path / "lock"):
        thread = Thread(target=second)
        thread.start()
        thread.join(timeout=0.2)
        done.append("first")
    thread.join()
    assert done == ["first", "second"]


def test_it_can_be_asked_whether_a_path_is_held(tmp_path: Path) -> None:
    place = tmp_path / "captions.jsonl"
    assert not is_taken(place)
    with only_one(place, "writing captions into"):
        assert is_taken(place)
    assert not is_taken(place)
    (tmp_path / ".captions.jsonl.lock").touch()
    assert not is_taken(place)


def test_a_process_is_told_from_a_later_one_with_its_number() -> None:
    assert is_running(os.getpid(), process_start(os.getpid()))
    assert not is_running(os.getpid(), "another")
    child = subprocess.Popen(["sleep", "100"])
    start = process_start(child.pid)
    assert is_running(child.pid, start)
    child.kill()
    child.wait()
    assert not is_running(child.pid, start)
