"""Members of tar archives, read one after the other."""

import bz2
import gzip
import lzma
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from openblip.data.image_formats import HEAD_BYTES

TAR_SUFFIXES = (
    *(".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz", ".tbz2"),
    *(".tar.xz", ".txz"),
)
"""Names of archives that are read."""
UNREAD_ARCHIVES = (".zip", ".tar.zst", ".tzst", ".tar.lz4", ".tar.br", ".7z", ".rar", ".tar.lzma")
"""Names of archives that are not."""
TAR_DAMAGE = (tarfile.TarError, OSError, EOFError, zlib.error, lzma.LZMAError)
"""What reading a damaged archive raises."""
_OPENERS: dict[bytes, Callable[[Path], object]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ": lzma.open,
}


@dataclass(frozen=True)
class Member:
    """A member of an archive that is not a folder; its content can be read until the next one."""

    name: str
    size: int
    is_file: bool
    """And no link, device or pipe."""
    _tar: tarfile.TarFile
    _info: tarfile.TarInfo

    def read(self) -> bytes:
        """All of it; only of a file."""
        return self._read(-1)

    def head(self) -> bytes:
        """Its first bytes, which tell its format; only of a file."""
        return self._read(HEAD_BYTES)

    def _read(self, size: int) -> bytes:
        stream = self._tar.extractfile(self._info)
        assert stream is not None  # only links and devices have no content
        return stream.read(size)


def tar_members(archive: Path) -> Iterator[Member]:
    """Yields the members of an archive in their order, whatever they are.

    Args:
        archive: a tar, plain or packed by gzip, bzip2 or xz, whatever its name says.

    Raises:
        TAR_DAMAGE: the archive is damaged, or cannot be read.
    """
    with _opened(archive) as stream, tarfile.open(fileobj=stream, mode="r:") as tar:
        while (info := tar.next()) is not None:
            # The list of members would grow with the archive.
            tar.members = []  # type: ignore[attr-defined]  # missing in the stubs
            if not info.isdir():
                yield Member(info.name, info.size, info.isreg(), tar, info)
        # `tarfile` ends as quietly at damage as at the block of zeros that closes an archive.
        stream.seek(tar.offset)
        if stream.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError("no header and no end of the archive where one should be")


def _opened(archive: Path) -> BinaryIO:
    with archive.open("rb") as stream:
        head = stream.read(8)
    opener = next((o for magic, o in _OPENERS.items() if head.startswith(magic)), None)
    return archive.open("rb") if opener is None else cast(BinaryIO, opener(archive))
