"""The lock of a table: one owner at a time, and a dead one is no obstacle."""

import json
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest

from openblip.jobs.ledger import LocalStore, Store, open_store
from openblip.jobs.lock import JobLock, JobLockedError, Owner, lock_owner
from openblip.jobs.units import Kind
from openblip.runtime.errors import StorageError

KIND = Kind(name="capfilt", title="CapFilt", status="openblip capfilt status")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path))


def owner(**changes: object) -> bytes:
    """The lock of a process on another machine that was heard of just now."""
    now = time.time()
    values = asdict(Owner("elsewhere", 1, "123", since=now - 3600, heartbeat=now))
    return json.dumps({**values, **changes}).encode()


def test_a_lock_is_taken_shown_and_released(store: Store) -> None:
    assert lock_owner(store) is None
    with JobLock(store, KIND) as lock:
        lock.verify()
        found = lock_owner(store)
        assert found is not None
        said = rf"another CapFilt job .* process {found.pid} on {found.host}.*capfilt status"
        with pytest.raises(JobLockedError, match=said):
            JobLock(store, KIND).__enter__()
    assert lock_owner(store) is None
    with JobLock(store, KIND):
        pass


def test_an_owner_on_another_machine_counts_while_it_is_heard_of(store: Store) -> None:
    store.create("lock-00000004", owner())
    with pytest.raises(JobLockedError, match=r"elsewhere.*remove .*lock-00000004"):
        JobLock(store, KIND).__enter__()
    store.write("lock-00000004", owner(heartbeat=time.time() - 61))
    with JobLock(store, KIND):
        assert store.names("lock-") == ["lock-00000005"]


def test_a_dead_process_of_this_machine_is_no_owner(store: Store) -> None:
    code = (
        "import sys, os, signal; from openblip.jobs.lock import JobLock;"
        "from openblip.jobs.ledger import open_store; from openblip.jobs.units import Kind;"
        "JobLock(open_store(sys.argv[1]), Kind(name='k', title='K')).__enter__();"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code, store.uri], check=False)
    assert store.names("lock-") == ["lock-00000001"]
    with JobLock(store, KIND) as lock:
        lock.verify()


class Stuck(LocalStore):
    """A folder whose files cannot be removed."""

    def remove(self, name: str) -> None:
        raise StorageError(f"{name} cannot be removed")


def test_a_lock_is_given_back_also_where_the_last_one_cannot_be_removed(tmp_path: Path) -> None:
    store = Stuck(tmp_path)
    store.create("lock-00000001", owner(released=True))
    with JobLock(store, KIND) as lock:
        lock.verify()
    assert lock_owner(store) is None
    with JobLock(store, KIND):
        assert lock_owner(store) is not None


def test_an_owner_that_was_taken_over_from_finds_out(store: Store) -> None:
    with JobLock(store, KIND) as lock:
        store.create("lock-00000002", owner())
        with pytest.raises(JobLockedError, match="another has taken over"):
            lock.verify()
    # And it does not touch the new owner's lock.
    found = lock_owner(store)
    assert found is not None
    assert found.host == "elsewhere"
