"""Hashes of files are remembered, and a file that has changed is noticed."""

import os
import shutil
import time
from pathlib import Path

import pytest

from openblip.checkpoints import fingerprints
from openblip.checkpoints.fingerprints import RememberedHashes, digest, sha256_of


@pytest.fixture
def file(tmp_path: Path, settle) -> Path:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"weights")
    settle()
    return path


@pytest.fixture
def settle(monkeypatch: pytest.MonkeyPatch):
    """Lets files that were just written count as old."""
    now = time.time_ns

    def act() -> None:
        monkeypatch.setattr(fingerprints.time, "time_ns", lambda: now() + 10**10)

    return act


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that were read to be hashed."""
    seen: list[Path] = []

    def watched(path: Path) -> str:
        seen.append(path)
        return sha256_of(path)

    monkeypatch.setattr(fingerprints, "sha256_of", watched)
    return seen


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "hashes.json"


def test_a_file_is_read_once(file: Path, place: Path, reads: list[Path]) -> None:
    found = [RememberedHashes(place).hash_file(file) for _ in range(3)]
    assert found == [sha256_of(file)] * 3
    assert reads == [file]
    assert digest("", [file], RememberedHashes(place).hash_file) == digest("", [file])
    assert reads == [file]


def test_other_content_is_noticed_even_with_the_old_size_and_time(file: Path, place: Path) -> None:
    before = file.stat()
    first = RememberedHashes(place).hash_file(file)
    file.write_bytes(b"WEIGHTS")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert RememberedHashes(place).hash_file(file) == sha256_of(file) != first
    # Another file in its place, which was written before.
    other = file.with_name("other")
    other.write_bytes(b"weighty")
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(file)
    assert RememberedHashes(place).hash_file(file) == sha256_of(file)


def test_a_link_that_leads_elsewhere_is_noticed(file: Path, place: Path, tmp_path: Path) -> None:
    link, other = tmp_path / "link", tmp_path / "other"
    other.write_bytes(b"others!")
    link.symlink_to(file)
    first = RememberedHashes(place).hash_file(link)
    link.unlink()
    link.symlink_to(other)
    assert RememberedHashes(place).hash_file(link) == sha256_of(other) != first


def test_what_was_just_written_is_not_remembered(tmp_path: Path, place: Path) -> None:
    file = tmp_path / "new"
    file.write_bytes(b"1")
    RememberedHashes(place).hash_file(file)
    assert not place.exists()


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b'{"a": 1}', b"\xff"])
def test_a_damaged_memory_is_as_good_as_none(file: Path, place: Path, content: bytes) -> None:
    place.parent.mkdir()
    place.write_bytes(content)
    assert RememberedHashes(place).hash_file(file) == sha256_of(file)


def test_an_entry_of_another_kind_is_not_believed(
    file: Path, place: Path, reads: list[Path]
) -> None:
    RememberedHashes(place).hash_file(file)
    place.write_text(place.read_text().replace(sha256_of(file), "short"))
    assert RememberedHashes(place).hash_file(file) == sha256_of(file)
    assert len(reads) == 2


def test_a_cache_that_cannot_be_written_stops_nothing(file: Path, tmp_path: Path) -> None:
    shutil.copy(file, tmp_path / "taken")
    hashes = RememberedHashes(tmp_path / "taken" / "hashes.json")
    assert hashes.hash_file(file) == sha256_of(file)


def test_the_memory_is_bounded(
    tmp_path: Path, place: Path, settle, monkeypatch: pytest.MonkeyPatch, reads: list[Path]
) -> None:
    monkeypatch.setattr(fingerprints, "_MOST", 2)
    files = [tmp_path / name for name in "abc"]
    for file in files:
        file.write_bytes(file.name.encode())
    settle()
    for file in files:
        RememberedHashes(place).hash_file(file)
    reads.clear()
    for file in (files[2], files[1], files[0]):
        RememberedHashes(place).hash_file(file)
    assert reads == [files[0]]
