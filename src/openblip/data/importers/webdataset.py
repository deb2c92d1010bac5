"""Tar shards in the WebDataset layout, as img2dataset writes them."""

import gzip
import json
import tarfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import BinaryIO, cast

from openblip.data.ids import file_key
from openblip.data.importers.source import (
    IMAGE_SUFFIXES,
    Cursor,
    Entry,
    Found,
    Refused,
    UnsafePath,
    inside,
    with_record,
)
from openblip.data.reading import MAX_IMAGE_BYTES
from openblip.data.report import Reason

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")
_TEXT_SUFFIXES = (".txt", ".json")
_MAX_TEXT_BYTES = 4 << 20
TAR_DAMAGE = (tarfile.TarError, OSError, EOFError, zlib.error)
"""What reading a damaged archive raises."""


@dataclass
class _Sample:
    """The members of one key, as far as they have been read."""

    key: str
    files: dict[str, bytes] = field(default_factory=dict)
    refusal: tuple[Reason, str] | None = None

    @property
    def is_pair(self) -> bool:
        """Whether an image and something with a text are there."""
        has_text = not self.files.keys().isdisjoint(_TEXT_SUFFIXES)
        return has_text and not self.files.keys().isdisjoint(IMAGE_SUFFIXES)


class TarSource:
    """Samples of neighbouring members with one key: an image, a `.txt`, a `.json`.

    The key is the name up to the first dot of its last part; the id is the key, or the `id` in the
    JSON that the key is the hash of. Without a `.txt` the `caption` of
    the JSON is taken, and its `split`; everything else in it becomes metadata. Nothing is ever
    written to disk; links and devices are refused, as are names that would leave a folder.
    """

    format = "webdataset"

    def __init__(self, shards: Sequence[Path]) -> None:
        """Reads nothing yet.

        Args:
            shards: `.tar`, `.tar.gz` or `.tgz` files, in the order of reading.
        """
        self._shards = list(shards)

    def total(self) -> int | None:
        """Number of samples where img2dataset's `_stats.json` lies beside every shard."""
        total = 0
        for shard in self._shards:
            try:
                stats = shard.with_name(f"{shard.name.split('.')[0]}_stats.json").read_bytes()
                total += int(json.loads(stats)["successes"])
            except (OSError, ValueError, KeyError, TypeError):
                return None
        return total

    def entries(self, cursor: Cursor | None) -> Iterator[Entry]:
        """Yields one entry for each sample, and one for each thing that was refused."""
        at = cursor or {"shard": "", "entry": 0}
        for shard in self._shards:
            if str(shard) < str(at["shard"]):
                continue
            done = int(at["entry"]) if str(shard) == at["shard"] else 0
            for number, entry in enumerate(self._shard_entries(shard), 1):
                if number > done:
                    yield entry

    def _shard_entries(self, shard: Path) -> Iterator[Entry]:
        number = 0

        def cursor() -> Cursor:
            nonlocal number
            number += 1
            return {"shard": str(shard), "entry": number}

        sample: _Sample | None = None
        try:
            for member, content in tar_members(shard, _is_of_a_sample):
                where = f"{shard.name}: {member.name}"
                if isinstance(content, UnsafePath):
                    yield Refused(where, cursor(), Reason.UNSAFE_PATH, str(content))
                    continue
                key, suffix = _split_name(member.name)
                if sample is not None and (sample.key != key or suffix in sample.files):
                    yield _entry(sample, shard, cursor())
                    sample = None
                sample = sample or _Sample(key)
                if isinstance(content, bytes):
                    sample.files.setdefault(suffix, content)
                elif sample.refusal is None:
                    sample.refusal = content
        except TAR_DAMAGE as error:
            last = f" at {sample.key}" if sample else ""
            detail = f"breaks off or is damaged{last} ({error}): fetch the shard again"
            yield Refused(shard.name, cursor(), Reason.TRUNCATED_ARCHIVE, detail)
            if sample is not None and not sample.is_pair:
                return
        if sample is not None:
            yield _entry(sample, shard, cursor())


def tar_members(
    shard: Path, wanted: Callable[[str], bool]
) -> Iterator[tuple[tarfile.TarInfo, bytes | tuple[Reason, str] | UnsafePath]]:
    """Members of an archive, with their content or why there is none.

    Args:
        shard: a `.tar`, `.tar.gz` or `.tgz` file.
        wanted: is given a member's name; the content of others is not read. Names that would
            leave a folder are yielded unasked, hidden files never.

    Raises:
        TAR_DAMAGE: the archive is damaged, or cannot be read.
    """
    with _opened(shard) as stream, tarfile.open(fileobj=stream, mode="r:") as tar:
        while (member := tar.next()) is not None:
            # The list of members would grow with the shard.
            tar.members = []  # type: ignore[attr-defined]  # missing in the stubs
            if member.isdir():
                continue
            try:
                inside(Path("archive"), member.name)
            except UnsafePath as error:
                yield member, error
                continue
            key, suffix = _split_name(member.name)
            if not member.isreg():
                yield member, (Reason.UNSAFE_MEMBER, f"{member.name} is a link or a device")
            elif key and wanted(member.name):
                yield member, _content(tar, member, suffix)
        # `tarfile` ends as quietly at damage as at the block of zeros that closes an archive.
        stream.seek(tar.offset)
        if stream.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError("no header and no end of the archive where one should be")


def _is_of_a_sample(name: str) -> bool:
    suffix = PurePosixPath(name).suffix.lower()
    return suffix in IMAGE_SUFFIXES or suffix in _TEXT_SUFFIXES


def _content(
    tar: tarfile.TarFile, member: tarfile.TarInfo, suffix: str
) -> bytes | tuple[Reason, str]:
    is_text = suffix in _TEXT_SUFFIXES
    limit = _MAX_TEXT_BYTES if is_text else MAX_IMAGE_BYTES
    if member.size > limit:
        reason = Reason.BAD_RECORD if is_text else Reason.IMAGE_TOO_LARGE
        return reason, f"{member.name} has {member.size} bytes, more than {limit}"
    stream = tar.extractfile(member)
    assert stream is not None  # only links and devices have no content
    return stream.read()


def _entry(sample: _Sample, shard: Path, cursor: Cursor) -> Entry:
    where = f"{shard.name}: {sample.key}"
    image = next((data for suffix, data in sample.files.items() if suffix in IMAGE_SUFFIXES), None)
    if sample.refusal is not None:
        return Refused(where, cursor, *sample.refusal)
    if image is None:
        return Refused(where, cursor, Reason.MISSING_IMAGE, "no image of this key in the archive")
    text = sample.files.get(".txt")
    try:
        texts = None if text is None else [text.decode("utf-8-sig")]
        captions, split, meta = with_record(texts, sample.files.get(".json"))
    except ValueError as error:
        return Refused(where, cursor, Reason.BAD_RECORD, str(error))
    told = meta.get("id")
    key = meta.pop("id") if isinstance(told, str) and file_key(told) == sample.key else sample.key
    return Found(
        where=where,
        cursor=cursor,
        image=image,
        captions=captions,
        key=key,
        split=split,
        place=shard,
        image_folder=str(PurePosixPath(sample.key).parent),
        meta=meta,
    )


def _split_name(name: str) -> tuple[str, str]:
    """Key and suffix of a member: `a/b.c.jpg` gives `a/b` and `.jpg`."""
    path = PurePosixPath(name)
    stem = path.name.partition(".")[0]
    return str(path.with_name(stem)) if stem else "", path.suffix.lower()


def _opened(shard: Path) -> BinaryIO:
    if shard.name.lower().endswith((".gz", ".tgz")):
        return cast(BinaryIO, gzip.open(shard, "rb"))
    return shard.open("rb")
