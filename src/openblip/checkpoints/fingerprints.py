"""Fingerprints of files, and hashes that are remembered so that nothing is hashed twice.

To hash the weights of a base model takes a second, of a large one several: too long before every
search. A remembered hash counts as long as path, size, inode and both times of a file are what they
were: whoever writes to a file, or puts another in its place, changes the time of its last change
(ctime), which no program can set back.
"""

import hashlib
import json
import re
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from openblip.runtime.atomic import cache_folder, replace_file
from openblip.runtime.errors import OpenBlipError

HashFile = Callable[[Path], str]
"""From a file to the hexadecimal SHA-256 of its content."""
_HASH = re.compile("[0-9a-f]{64}")
_MOST = 512
# File systems count time in steps, some of two seconds: a file that is younger may be written to
# once more without a change of its times.
_SETTLED_NANOSECONDS = 3 * 10**9


def default_hashes() -> Path:
    """Where hashes of models' files are remembered."""
    return cache_folder() / "hashes.json"


def sha256_of(file: Path) -> str:
    """The hexadecimal SHA-256 of a file's content."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def digest(words: str, files: Sequence[Path], hash_file: HashFile = sha256_of) -> str:
    """16 hexadecimal digits of the SHA-256 over words, and names and contents of files.

    Args:
        words: any.
        files: that are there.
        hash_file: reads them, or remembers what they are.
    """
    found = hashlib.sha256(words.encode())
    for file in files:
        found.update(file.name.encode())
        found.update(bytes.fromhex(hash_file(file)))
    return found.hexdigest()[:16]


class RememberedHashes:
    """Hashes of files in a file of their own; `hash_file` is what `digest` takes.

    Of several processes that write at once one wins, and the others hash again another time. A
    file that is damaged or cannot be written is as good as none.
    """

    def __init__(self, place: Path) -> None:
        """Reads what is remembered.

        Args:
            place: the file; need not be there.
        """
        self._place = place
        self._hashes: dict[str, list[object]] = {}
        with suppress(OSError, ValueError, RecursionError):
            found = json.loads(place.read_bytes())
            self._hashes = found if isinstance(found, dict) else {}

    def hash_file(self, file: Path) -> str:
        """The hexadecimal SHA-256 of a file's content; read only if the file is not as it was."""
        name = str(file.resolve())
        before = _identity(file)
        match self._hashes.get(name):
            case [known, str(remembered)] if known == before and _HASH.fullmatch(remembered):
                return remembered
        found = sha256_of(file)
        # One that was written to meanwhile, or just before, may be another at the same times.
        if _identity(file) == before and time.time_ns() - max(before[-2:]) > _SETTLED_NANOSECONDS:
            self._remember(name, [before, found])
        return found

    def _remember(self, name: str, entry: list[object]) -> None:
        self._hashes.pop(name, None)
        # The last ones that were hashed stand last.
        self._hashes = dict([*self._hashes.items(), (name, entry)][-_MOST:])
        with suppress(OSError, OpenBlipError), replace_file(self._place, durable=False) as file:
            file.write_text(json.dumps(self._hashes), encoding="ascii")


def _identity(file: Path) -> list[int]:
    status = file.stat()
    times = status.st_mtime_ns, status.st_ctime_ns
    return [status.st_dev, status.st_ino, status.st_size, *times]
