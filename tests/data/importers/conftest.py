"""Sources of every layout, written to disk."""

import io
import json
import tarfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest


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
