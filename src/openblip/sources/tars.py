"""Tar archives: members one after the other, and shards in the WebDataset layout."""

import bz2
import gzip
import json
import lzma
import tarfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import BinaryIO, cast

from openblip.sources.beside import (
    MAX_TEXT_BYTES,
    TEXT_ENDINGS,
    first_with_text,
    others_say,
    text_ending,
    with_record,
)
from openblip.sources.image_formats import HEAD_BYTES, format_of, known_by_name, what_it_is
from openblip.sources.images import MAX_IMAGE_BYTES
from openblip.sources.paths import is_hidden
from openblip.sources.report import Reason
from openblip.sources.source import (
    Cursor,
    Entry,
    Found,
    Refused,
    Remark,
    Shard,
    SourceOptions,
    UnsafePath,
    inside,
)
from openblip.table.rows import file_key

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
        # Opened anew for each call, so that `read` has what `head` has read, too.
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
        # By the first bytes: that `.tar` is packed, or `.tar.gz` is not, is common.
        head = stream.read(8)
    opener = next((o for magic, o in _OPENERS.items() if head.startswith(magic)), None)
    return archive.open("rb") if opener is None else cast(BinaryIO, opener(archive))


_RECORD = "json"
# What people call the image of a sample where every member has a name of its own.
_IMAGE_NAMES = ("image", "img")
_ASIDE = (Reason.OTHER_MEMBER, "not the image or the text of the sample")
# So many members have no key in common by purpose.
_MOST_MEMBERS = 1000


@dataclass
class _Sample:
    """The members of one key, as far as they have been read."""

    key: str
    endings: set[str] = field(default_factory=set)
    """What follows the key and a dot, of all members."""
    images: dict[str, bytes] = field(default_factory=dict)
    likely: dict[str, bytes] = field(default_factory=dict)
    """Members that are images by their content, or by another name; for want of a plain one."""
    texts: dict[str, bytes] = field(default_factory=dict)
    others: dict[str, tuple[Reason, str]] = field(default_factory=dict)
    """Members besides, and what they are."""
    refusal: tuple[Reason, str] | None = None

    @property
    def is_pair(self) -> bool:
        """Whether an image and something with a text are there."""
        return bool(self.texts) and bool(self.images or self.likely)

    @property
    def has_parts(self) -> bool:
        """Whether anything is there that makes a sample."""
        return bool(self.texts or self.images or self.likely or self.refusal)

    def add(self, ending: str, member: Member) -> None:
        """Takes a member, of which only what may count is read."""
        self.endings.add(ending)
        parts = self._parts_for(ending, member)
        limit = MAX_TEXT_BYTES if parts is self.texts else MAX_IMAGE_BYTES
        problem = _problem(member, limit, is_text=parts is self.texts)
        if parts is None:
            name = PurePosixPath(member.name).name
            self.others[ending] = problem or (Reason.OTHER_MEMBER, _what_it_is(name, member))
        elif problem is None:
            parts[ending] = member.read()
        elif self.refusal is None:
            self.refusal = problem

    def _parts_for(self, ending: str, member: Member) -> dict[str, bytes] | None:
        lower = ending.lower()
        if _is_of_image(lower):
            return self.texts
        named, _, suffix = lower.rpartition(".")
        known = known_by_name(f"a.{suffix}")
        if known and not named:
            return self.images
        if named:
            return self.likely if known and named in _IMAGE_NAMES else None
        is_image = known is None and member.is_file and format_of(member.head()) is not None
        return self.likely if is_image else None


class TarSource:
    """Samples of neighbouring members with one key: an image, a `.txt`, a `.json`.

    The key is the name up to the first dot of its last part; the id is the key, or the `id` in the
    JSON that the key is the hash of. The `.txt` has a text a line; without it the texts of the JSON
    are taken, and its split; everything else in it becomes metadata. Other members, such as
    `KEY.depth.png`, are remarked and never taken for the image; only where a key has nothing else
    are `KEY.left.jpg` and `KEY.left.txt` a sample of their own. Nothing is ever written to disk;
    links and devices are refused, as are names that would leave a folder.
    """

    format = "webdataset"

    def __init__(self, shards: Sequence[Path], options: SourceOptions, within: str = "") -> None:
        """Reads nothing yet.

        Args:
            shards: archives, in the order of reading.
            options: may name the encoding of texts.
            within: folder of the shards in a source of several, with a slash behind; begins ids.
        """
        self._shards, self._options, self._within = list(shards), options, within

    def total(self) -> int | None:
        """Number of samples where img2dataset's `_stats.json` lies beside every shard."""
        total = 0
        for shard in self._shards:
            try:
                stats = shard.with_name(f"{shard.name.split('.')[0]}_stats.json").read_bytes()
                # The images that were fetched, each of which is a sample.
                total += int(json.loads(stats)["successes"])
            except (OSError, ValueError, KeyError, TypeError):
                return None
        return total

    def listed(self) -> Iterator[Entry]:
        """Nothing."""
        return iter(())

    def entries(self, cursor: Cursor | None) -> Iterator[Entry]:
        """Yields one entry for each sample, and one for each thing that was refused."""
        at = cursor or {"shard": "", "entry": 0}
        for shard in self._shards:
            # Shards are given in the order of their paths, so that what sorts before is done.
            if str(shard) < str(at["shard"]):
                continue
            done = int(at["entry"]) if str(shard) == at["shard"] else 0
            archive = _Shard(shard, self._options, self._within)
            for number, entry in enumerate(archive.entries(), 1):
                # A packed archive cannot be entered in the middle: it is read again, what is done
                # unseen.
                if number > done:
                    yield entry

    def shards(self) -> list[Shard]:
        """The archives."""
        return [
            Shard.of_file(f"{self._within}{shard.name}", {"shard": str(shard)}, shard)
            for shard in self._shards
        ]

    def entries_of(self, shard: Shard) -> Iterator[Entry]:
        """Yields those of one archive."""
        return _Shard(Path(str(shard.cursor["shard"])), self._options, self._within).entries()


class _Shard:
    """Groups the members of one archive."""

    def __init__(self, shard: Path, options: SourceOptions, within: str) -> None:
        self._shard, self._within, self._encoding = shard, within, options.encoding
        self._number = 0
        self._sample: _Sample | None = None
        # Of members such as KEY.left.jpg, the last such key.
        self._inner: _Sample | None = None

    def entries(self) -> Iterator[Entry]:
        try:
            for member in tar_members(self._shard):
                if (why := why_refused(member.name)) is not None:
                    yield Refused(self._where(member.name), self._cursor(), *why)
                else:
                    yield from self._add(member)
        except TAR_DAMAGE as error:
            last = f" at {self._sample.key}" if self._sample else ""
            detail = f"breaks off or is damaged{last} ({error}): fetch the shard again"
            sample, inner = self._sample, self._inner
            # Of the sample at the break more may have followed, unless image and text are there.
            is_cut = sample is not None and not (sample.is_pair or (inner and inner.is_pair))
            lost = len(sample.endings) if sample is not None and is_cut else 1
            where = self._within + self._shard.name
            yield Refused(where, self._cursor(), Reason.TRUNCATED_ARCHIVE, detail, lost)
            if is_cut:
                return
        yield from self._finished()

    def _add(self, member: Member) -> Iterator[Entry]:
        key, ending = _split_name(member.name)
        sample = self._sample
        if sample is not None and (
            # An ending for the second time begins another sample, whose key happens to be the same.
            sample.key != key or ending in sample.endings or len(sample.endings) > _MOST_MEMBERS
        ):
            yield from self._finished()
            sample = None
        sample = self._sample = sample or _Sample(key)
        named, last = _last_ending(ending)
        is_part = _is_of_image(last) or known_by_name(f"a.{last}") is True
        if not (named and is_part) or named.lower() in _IMAGE_NAMES:
            sample.add(ending, member)
            return
        if self._inner is None or self._inner.key != f"{key}.{named}":
            yield from self._put_aside(sample)
            self._inner = _Sample(f"{key}.{named}")
        sample.endings.add(ending)
        if sample.has_parts:
            sample.others[ending] = _ASIDE
        else:
            self._inner.add(last, member)

    def _put_aside(self, sample: _Sample) -> Iterator[Entry]:
        """Ends the inner sample: one of its own if the key has nothing else, or other members."""
        inner, self._inner = self._inner, None
        if inner is None:
            return
        named = inner.key.removeprefix(f"{sample.key}.")
        endings = {f"{named}.{ending}" for ending in inner.endings}
        if inner.is_pair and not sample.has_parts:
            sample.endings -= endings
            yield self._entry(inner)
        else:
            sample.others |= dict.fromkeys(sorted(endings), _ASIDE)

    def _finished(self) -> Iterator[Entry]:
        sample = self._sample
        if sample is not None:
            yield from self._put_aside(sample)
            if sample.endings:
                yield self._entry(sample)
        self._sample = None

    def _entry(self, sample: _Sample) -> Entry:
        where, cursor, number = self._where(sample.key), self._cursor(), len(sample.endings)
        images = sample.images or sample.likely
        if sample.refusal is not None:
            return Refused(where, cursor, *sample.refusal, number)
        if not sample.has_parts:
            details = dict.fromkeys(detail for _, detail in sample.others.values())
            reasons = [reason for reason, _ in sample.others.values()]
            reason = Reason.OTHER_FILE if reasons[0] == Reason.OTHER_MEMBER else reasons[0]
            return Refused(where, cursor, reason, "; ".join(details)[:300], number)
        if len(images) != 1:
            reason = Reason.CONTRADICTION if images else Reason.MISSING_IMAGE
            return Refused(where, cursor, reason, _which_image(sample, images), number)
        return self._found(sample, next(iter(images.items())), where, cursor)

    def _found(
        self, sample: _Sample, image: tuple[str, bytes], where: str, cursor: Cursor
    ) -> Entry:
        number = len(sample.endings)
        own = f"{image[0].lower()}."
        told = {ending.lower(): data for ending, data in sample.texts.items()}
        others = dict(sample.others)
        for ending in [e for e in told if text_ending(f".{e}") != e and not e.startswith(own)]:
            others[ending] = (Reason.OTHER_MEMBER, "the text of another image, which is not here")
            del told[ending]
        # As in a folder, what has the image's whole name before its own ending comes first.
        texts = _in_order(told, [f"{own}{ending}" for ending in TEXT_ENDINGS], TEXT_ENDINGS)
        records = _in_order(told, [f"{own}{_RECORD}"], [_RECORD])
        # A blank record must not hide one that says something.
        record = next((name for name in records if records[name].strip()), next(iter(records), ""))
        try:
            text, lines = first_with_text(texts, self._encoding)
            captions, split, meta = with_record(lines, records.get(record), self._encoding)
        except ValueError as error:
            return Refused(where, cursor, Reason.BAD_RECORD, str(error), number)
        said_besides = (
            *others_say(texts, text, called="."),
            *others_say(records, record, called="."),
        )
        others |= {ending: (Reason.OTHER_MEMBER, detail) for ending, detail in said_besides}
        for ending in sample.likely.keys() - {image[0]}:
            others[ending] = (Reason.OTHER_MEMBER, f"an image besides .{image[0]}, which counts")
        said = meta.get("id")
        is_said = isinstance(said, str) and file_key(said) == sample.key
        return Found(
            where=where,
            cursor=cursor,
            image=image[1],
            captions=captions,
            key=str(meta.pop("id")) if is_said else self._within + sample.key,
            split=split,
            place=self._shard,
            image_folder=str(PurePosixPath(sample.key).parent),
            meta=meta,
            num_records=number,
            remarks=tuple(Remark(why[0], f"{where}.{end}", why[1]) for end, why in others.items()),
        )

    def _where(self, name: str) -> str:
        return f"{self._within}{self._shard.name}: {name}"

    def _cursor(self) -> Cursor:
        self._number += 1
        return {"shard": str(self._shard), "entry": self._number}


def why_refused(name: str) -> tuple[Reason, str] | None:
    """Why a member of that name is not looked at; None if it is."""
    try:
        inside(Path("archive"), name)
    except UnsafePath as error:
        return Reason.UNSAFE_PATH, str(error)
    parts = PurePosixPath(name).parts
    if is_hidden(parts[-1]) or "__MACOSX" in parts:
        return Reason.HIDDEN_FILE, "hidden"
    return None


def _problem(member: Member, limit: int, *, is_text: bool) -> tuple[Reason, str] | None:
    if not member.is_file:
        return Reason.UNSAFE_MEMBER, f"{member.name} is a link or a device"
    if member.size <= limit:
        return None
    reason = Reason.BAD_RECORD if is_text else Reason.IMAGE_TOO_LARGE
    return reason, f"{member.name} has {member.size} bytes, more than {limit}"


def _which_image(sample: _Sample, images: dict[str, bytes]) -> str:
    if images:
        names = " and ".join(f".{ending}" for ending in sorted(images))
        return f"{names} are images of this key: which of them the text is of cannot be told"
    there = ", ".join(f".{ending}" for ending in sorted(sample.endings)[:10])
    return f"no image of this key in the archive, whose name has no other dot; there is {there}"


def _what_it_is(name: str, member: Member) -> str:
    if name.lower().endswith((*TAR_SUFFIXES, *UNREAD_ARCHIVES)):
        return f"{name} is an archive in the archive: unpack it"
    found = what_it_is(member.head(), name) if member.is_file else None
    return f"{name} is {found or 'neither the image nor the text of a sample'}"


def _split_name(name: str) -> tuple[str, str]:
    """Key and what follows it: `a/b.c.jpg` gives `a/b` and `c.jpg`."""
    path = PurePosixPath(name)
    stem, _, ending = path.name.partition(".")
    return str(path.with_name(stem)), ending


def _last_ending(ending: str) -> tuple[str, str]:
    """What names a part of a sample, and the rest in lower case.

    The rest begins with the suffix of an image where that stands before the ending of a text:
    `left.jpg.txt` gives `left` and `jpg.txt`.
    """
    text = text_ending(f".{ending}")
    last = text or ending.rpartition(".")[2].lower()
    named = ending[: -len(last) - 1]
    if text and known_by_name(f"a.{named}"):
        named, _, suffix = named.rpartition(".")
        last = f"{suffix.lower()}.{last}"
    return named, last


def _is_of_image(ending: str) -> bool:
    """Whether a member is a text or a record, of the key or of the image with that suffix."""
    text = text_ending(f".{ending}")
    return text is not None and (ending == text or _names_image(ending[: -len(text) - 1]))


def _names_image(ending: str) -> bool:
    """Whether the image of a key may have that ending: a suffix, maybe with `image` before it."""
    named, _, suffix = ending.rpartition(".")
    return known_by_name(f"a.{suffix}") is True and named in ("", *_IMAGE_NAMES)


def _in_order(told: Mapping[str, bytes], *endings: Sequence[str]) -> dict[str, bytes]:
    return {ending: told[ending] for some in endings for ending in some if ending in told}
