"""The ledger survives its driver, stays small, and has one writer."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from openblip.jobs import ledger as module
from openblip.jobs.ledger import (
    Activity,
    Entry,
    Ledger,
    LedgerTakenError,
    Store,
    leased,
    open_store,
    released,
)
from openblip.runtime.errors import StorageError

DONE = Entry(7, "abcd", 100, state="done", worker="host:1", attempts=2, file="f", checksum="c")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path))


def test_what_is_flushed_is_read_again_and_the_last_word_counts(store: Store) -> None:
    ledger = Ledger(store, "CapFilt")
    ledger.put(leased(Entry(7, "abcd", 100), "host:1", seconds=60))
    ledger.flush()
    ledger.put(DONE)
    ledger.flush()
    ledger.put(replace(DONE, state="failed"))

    assert Ledger(store, "CapFilt").find(7, "abcd") == DONE
    assert Ledger(store, "CapFilt").find(7, "other rows") is None
    assert Ledger(store, "CapFilt").counts() == {"waiting": 0, "leased": 0, "done": 1, "failed": 0}


def test_a_lease_names_its_holder_and_a_lost_one_its_reason() -> None:
    entry = leased(Entry(1, "d", 10), "host:5", seconds=60)
    assert (entry.state, entry.worker, entry.attempts) == ("leased", "host:5", 1)
    lost = released(entry, "SIGKILL")
    assert (lost.state, lost.reason, lost.attempts) == ("waiting", "SIGKILL", 1)


def test_snapshots_take_the_place_of_the_log(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SNAPSHOT_EVERY", 4)
    ledger = Ledger(store, "CapFilt")
    for number in range(11):
        ledger.put(replace(DONE, part=number))
        ledger.flush()

    assert store.names("ledger/") == [
        *(f"ledger/log-{n:012d}" for n in (9, 10, 11)),
        "ledger/snapshot-000000000008",
    ]
    read = Ledger(store, "CapFilt")
    assert read.counts()["done"] == 11
    read.put(replace(DONE, part=11))
    read.flush()
    assert Ledger(store, "CapFilt").counts()["done"] == 12


def test_a_second_writer_is_found_out(store: Store) -> None:
    one, two = Ledger(store, "CapFilt"), Ledger(store, "CapFilt")
    one.put(DONE)
    one.flush()
    two.put(replace(DONE, state="failed"))
    with pytest.raises(LedgerTakenError, match="another CapFilt job"):
        two.flush()
    assert Ledger(store, "CapFilt").find(7, "abcd") == DONE


def interrupted(
    store: Store, monkeypatch: pytest.MonkeyPatch, write: Callable[[str, bytes], object]
) -> Ledger:
    """A ledger whose first write, of a lease, was interrupted when that much was written."""

    def create(name: str, content: bytes) -> bool:
        write(name, content)
        raise KeyboardInterrupt

    ledger = Ledger(store, "CapFilt")
    ledger.put(leased(Entry(7, "abcd", 100), "host:1", seconds=60))
    with monkeypatch.context() as patch:
        patch.setattr(store, "create", create)
        with pytest.raises(KeyboardInterrupt):
            ledger.flush()
    return ledger


@pytest.mark.parametrize("is_written", [True, False])
def test_a_driver_that_is_interrupted_while_it_writes_can_still_close_its_books(
    is_written: bool, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = store.create
    ledger = interrupted(store, monkeypatch, lambda *file: is_written and create(*file))
    ledger.put(released(Entry(7, "abcd", 100), "the job was stopped"))
    ledger.flush()
    ledger.put(DONE)
    ledger.flush()

    assert len(store.names("ledger/")) == (3 if is_written else 2)
    assert Ledger(store, "CapFilt").find(7, "abcd") == DONE


def test_what_another_driver_writes_during_an_interrupted_write_is_not_taken_for_its_own(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = store.create

    def write(name: str, content: bytes) -> None:
        create(name, content.replace(b"host:1", b"host:2"))

    ledger = interrupted(store, monkeypatch, write)
    with pytest.raises(LedgerTakenError):
        ledger.flush()


def test_activity_is_read_as_written(store: Store) -> None:
    activity = Activity(2.0, 1.0, 10, 20, 2, {"tokens_read": 7})
    ledger = Ledger(store, "CapFilt")
    assert ledger.activity() is None
    ledger.flush(activity)
    assert Ledger(store, "CapFilt").activity() == activity
    # As files of earlier versions have it: counts beside the rest.
    assert json.loads(store.read("activity.json") or b"")["tokens_read"] == 7


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("ledger/log-000000000001", b"{}\n"),
        ("ledger/log-000000000001", b"no JSON\n"),
        ("ledger/log-000000000001", b"[1]\n"),
        ("ledger/snapshot-000000000001", b"no gzip"),
    ],
)
def test_a_damaged_file_is_named_with_what_to_do(name: str, content: bytes, store: Store) -> None:
    store.write(name, content)
    with pytest.raises(StorageError, match=rf"{name} is damaged .*: remove it"):
        Ledger(store, "CapFilt")


def test_a_damaged_activity_is_named(store: Store) -> None:
    store.write("activity.json", b"[]")
    with pytest.raises(StorageError, match=r"activity\.json is damaged"):
        Ledger(store, "CapFilt").activity()
