"""A store's files appear whole or not at all, and one of several creators wins."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from openblip.jobs.ledger import Store, open_store
from openblip.runtime.errors import StorageError


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "job"))


def test_a_file_is_written_replaced_read_and_removed(store: Store) -> None:
    assert store.read("a/b.json") is None
    store.write("a/b.json", b"one")
    store.write("a/b.json", b"two")
    assert store.read("a/b.json") == b"two"
    store.remove("a/b.json")
    store.remove("a/b.json")
    assert store.read("a/b.json") is None


def test_names_are_sorted_and_those_of_a_prefix(store: Store) -> None:
    assert store.names() == []
    for name in ("pieces/2-b", "pieces/2-a", "pieces/10-a", "job.json"):
        store.write(name, b"")
    assert store.names() == ["job.json", "pieces/10-a", "pieces/2-a", "pieces/2-b"]
    assert store.names("pieces/2-") == ["pieces/2-a", "pieces/2-b"]
    assert store.names("nothing/") == []


def test_a_sub_folder_goes_with_its_last_file(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "job"))
    for name in ("pieces/1/a", "pieces/1/b", "pieces/2/a", "lock"):
        store.write(name, b"")
    for name in ("pieces/1/a", "pieces/1/b", "pieces/2/a", "lock"):
        store.remove(name)
        assert (tmp_path / "job/pieces/1").exists() == (name == "pieces/1/a")
    assert list((tmp_path / "job/pieces").iterdir()) == []
    assert store.names() == []


def test_a_folder_that_cannot_be_listed_is_not_empty(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    store.write("ledger", b"a file where a folder was")
    with pytest.raises(StorageError, match="ledger cannot be listed"):
        store.names("ledger/")


def test_one_of_many_creators_wins_and_its_content_stays(store: Store) -> None:
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda n: store.create("lock", bytes([n])), range(8)))
    assert won.count(True) == 1
    assert store.read("lock") == bytes([won.index(True)])


def test_what_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    store = open_store(str(tmp_path / "file"))
    with pytest.raises(StorageError, match=r"file/name cannot be written"):
        store.write("name", b"")
    with pytest.raises(StorageError, match="ftp://"):
        open_store("ftp://host/folder")
