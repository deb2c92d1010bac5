"""Sources of every layout, written to disk."""

import io
import json
import pickle
import tarfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from openblip.sources.detect import open_source
from openblip.sources.source import DividedSource, Entry, Found, SourceOptions
from openblip.sources.splits import FileSplits, row_split, source_root


@pytest.fixture
def write_jsonl(tmp_path: Path, jpeg: Callable[..., bytes]) -> Callable[..., Path]:
    """Writes a folder with captions.jsonl; the images `images/<n>.jpg` it names come into being."""

    def write(records: Sequence[Mapping[str, Any] | str], num_images: int = 10) -> Path:
        folder = tmp_path / "jsonl"
        (folder / "images").mkdir(parents=True)
        lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
        for number in range(num_images):
            if any(f"images/{number}.jpg" in line for line in lines):
                (folder / "images" / f"{number}.jpg").write_bytes(jpeg(number))
        (folder / "captions.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        return folder

    return write


@pytest.fixture
def write_tar(tmp_path: Path) -> Callable[..., Path]:
    """Writes a tar of (name, content) members; a `TarInfo` stands for itself."""

    def write(name: str, members: Sequence[tuple[str, bytes] | tarfile.TarInfo]) -> Path:
        folder = tmp_path / "shards"
        folder.mkdir(exist_ok=True)
        mode = "w:gz" if name.endswith("gz") else "w"
        with tarfile.open(folder / name, mode) as tar:
            for member in members:
                if isinstance(member, tarfile.TarInfo):
                    tar.addfile(member)
                    continue
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                tar.addfile(info, io.BytesIO(member[1]))
        return folder / name

    return write


@pytest.fixture
def samples(jpeg: Callable[..., bytes]) -> Callable[..., list[tuple[str, bytes]]]:
    """Members as img2dataset writes them: .jpg, .txt and .json of keys from `first` on."""

    def make(first: int, count: int) -> list[tuple[str, bytes]]:
        members = []
        for number in range(first, first + count):
            record = {"caption": f"text {number}", "url": f"http://x/{number}", "sha256": "0f"}
            members += [
                (f"{number:05d}.jpg", jpeg(number)),
                (f"{number:05d}.txt", f"text {number}".encode()),
                (f"{number:05d}.json", json.dumps(record).encode()),
            ]
        return members

    return make


@pytest.fixture
def entries() -> Callable[..., list[Entry]]:
    """What a source yields.

    Read on from each of its entries, it yields the same rest; and what its shards yield, in another
    process, are the same entries.
    """

    def read(source: Path | str, **options: Any) -> list[Entry]:
        def rest(cursor: Mapping[str, Any] | None) -> list[Entry]:
            opened = open_source(str(source), SourceOptions(**options))
            return list(opened.entries(None if cursor is None else json.loads(json.dumps(cursor))))

        everything = rest(None)
        _check_shards(str(source), SourceOptions(**options), everything)
        for number, entry in enumerate(everything, 1):
            assert rest(entry.cursor) == everything[number:]
        return everything

    return read


@pytest.fixture
def texts(entries: Callable[..., list[Entry]]) -> Callable[..., dict[str, list[str]]]:
    """The captions that a source yields by the names of their images; bytes have their length."""

    def read(source: Path | str, **options: Any) -> dict[str, list[str]]:
        return {
            entry.image.name if isinstance(entry.image, Path) else str(len(entry.image)): [
                *entry.captions
            ]
            for entry in entries(source, **options)
            if isinstance(entry, Found)
        }

    return read


@pytest.fixture
def left_out(entries: Callable[..., list[Entry]]) -> Callable[..., list[tuple[str, str, str]]]:
    """Where, why and in which words a source leaves something out."""

    def read(source: Path | str, **options: Any) -> list[tuple[str, str, str]]:
        return [
            (entry.where, entry.reason, entry.detail)
            for entry in entries(source, **options)
            if not isinstance(entry, Found)
        ]

    return read


@pytest.fixture
def splits(entries: Callable[..., list[Entry]]) -> Callable[..., dict[str, str]]:
    """The split of each first caption that a source yields."""

    def read(source: Path | str, **options: Any) -> dict[str, str]:
        root = source_root(str(source))
        found = [entry for entry in entries(source, **options) if isinstance(entry, Found)]
        files = FileSplits(open_source(str(source), SourceOptions(**options)).listed(), root)
        return {
            entry.captions[0]: files.agreed(entry, *row_split(entry, root))[0]
            for entry in found
            if entry.captions
        }

    return read


def _check_shards(source: str, options: SourceOptions, everything: list[Entry]) -> None:
    opened = open_source(source, options)
    if isinstance(opened, DividedSource) and (shards := opened.shards()):
        sent = pickle.loads(pickle.dumps(opened))
        # In any order: nobody knows who is first.
        read = {shard.digest: list(sent.entries_of(shard)) for shard in reversed(shards)}
        assert [entry for shard in shards for entry in read[shard.digest]] == everything
