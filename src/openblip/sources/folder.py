"""Folders with whatever is in them: images with texts beside them, lists, tables, archives."""

import json
import os
import re
from collections import deque
from collections.abc import Iterable, Iterator, Set
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path, PurePosixPath

from openblip.runtime.errors import DataError
from openblip.sources.beside import (
    MAX_TEXT_BYTES,
    Images,
    MissingImages,
    first_with_text,
    others_say,
    text_ending,
    with_record,
)
from openblip.sources.caption_lists import JsonlSource, is_list_name
from openblip.sources.cards import CARD_NAME, Card
from openblip.sources.columns import NoColumn
from openblip.sources.image_formats import (
    HEAD_BYTES,
    IMAGE_SUFFIXES,
    known_by_name,
    what_it_is,
)
from openblip.sources.json_files import read_document
from openblip.sources.paths import SETTINGS_SUFFIX, Seen, Span, is_hidden, is_of_output, walk
from openblip.sources.report import Reason
from openblip.sources.source import (
    Cursor,
    Entry,
    Found,
    PairSource,
    Refused,
    Remark,
    Shard,
    SourceOptions,
    is_file,
)
from openblip.sources.split_lists import SplitLists
from openblip.sources.tables import TABLE_SUFFIXES, DownloadLog, TableSource, is_table_file
from openblip.sources.tars import TAR_SUFFIXES, UNREAD_ARCHIVES, TarSource
from openblip.sources.text_files import FILE_DAMAGE, in_one_line, plain_name
from openblip.table.rows import IdSet

KINDS = ("jsonl", "webdataset", "table", "folder")
"""What a folder may hold; the first of them at its top is its format in a report."""
# Stands for the cursor of a list of which nothing is left.
_DONE = ""
# Files of a shard, at the end of a folder or within one.
_MANY_FILES, _MOST_FILES = 8192, 65536
# Texts that are a table: those of Flickr8k and Flickr30k.
_TABLE_TEXT = re.compile(r"captions\.txt|.*\.token(\.txt)?")


class FolderSource:
    """All that is in a folder and below it; each file is used or refused.

    First come the lists and tables, with the images that they name: `captions.jsonl` and the like
    (`openblip.sources.caption_lists.is_list_name`), and tables with a column of images. Then, in
    the order of the paths, the samples of tar shards, and the images that no list has named. The
    texts of such an image lie beside it: a `.txt` or `.caption` of its name, with or without its
    suffix, a text a line; a `.json`, as img2dataset writes it, becomes metadata, but for its split
    and, without a text file, its texts. The id is the path without its suffix; of images that
    differ in nothing else, with it.
    """

    def __init__(
        self,
        folder: Path,
        options: SourceOptions,
        only: str | None = None,
        card: Card | None = None,
        read: Set[Path] = frozenset(),
    ) -> None:
        """Looks only at the names at the top.

        Args:
            folder: any.
            options: for the lists and tables in it.
            only: the one of `KINDS` that is read; None for all.
            card: may say that files are of another configuration, which are left out.
            read: files in it that somebody else reads, who calls `note` with their entries.
        """
        self._folder, self._options, self._only, self._card = folder, options, only, card
        self.format = only or _kind_of_folder(folder)
        self._read, self._listed = read, IdSet()
        # Lists that break off, by the folders in or below which their images are.
        self._broken: dict[str, str] = {}
        self._missing = MissingImages()
        self._images = Images(folder, frozenset())
        self._images_of: Set[str] | None = None
        self._split_lists = SplitLists(folder, options, self._is_other_than_names)

    def total(self) -> int | None:
        """Number of entries of lists, or of samples in shards; None where there is more."""
        if self.format not in ("jsonl", "webdataset"):
            return None
        found = [seen.path for seen in self._files_of(self.format)]
        if self.format == "webdataset":
            return TarSource(found, self._options).total()
        return sum(JsonlSource(file, self._options).total() or 0 for file in found) or None

    def holds(self, kind: str) -> bool:
        """Whether there is anything of that kind in it."""
        return next(self._files_of(kind), None) is not None

    def entries(self, cursor: Cursor | None) -> Iterator[Entry]:
        """Yields those of lists and tables, then one for each image, sample and other file."""
        at = cursor or {}
        # Before the walk, which takes for its own all images that no list has named.
        yield from self._of_lists(at)
        after = _parts(at["path"]) if "path" in at else None
        for seen in walk(self._folder):
            if after is None or seen.parts > after:
                yield from self._of_file(seen, None)
            elif seen.parts == after and "inner" in at:
                yield from self._of_file(seen, json.loads(str(at["inner"])))

    def listed(self) -> Iterator[Entry]:
        """Yields what its lists and tables say, and the names in lists of splits."""
        for seen in self._lists():
            with suppress(DataError, OSError, ValueError):  # said when it is reached
                yield from self._list_source(seen, _kind_of(seen.path)).listed()
        if self._reads("folder"):
            yield from self._split_lists.entries()

    def shards(self) -> list[Shard]:
        """Each list and table, then each archive and runs of the other files.

        Afterwards it is known which images the lists name, and which files name splits.
        """
        shards, _ = [], self._split_lists.lists
        for seen in self._lists():
            self._note_images(seen, _kind_of(seen.path))
            shards.append(Shard.of_file(seen.name, {"list": seen.name}, seen.path))
        return [*shards, *self._spans()]

    def entries_of(self, shard: Shard) -> Iterator[Entry]:
        """Yields those of one; `shards` was called before."""
        at = shard.cursor
        if "list" in at:
            parts = _parts(at["list"])
            path = self._folder.joinpath(*parts)
            yield from self._of_list(Seen(path, parts, frozenset()), _kind_of(path), None)
            return
        after = _parts(at["after"]) if "after" in at else None
        for seen in walk(self._folder, Span(after, _parts(at["until"]), bool(at["prunes"]))):
            yield from self._of_file(seen, None)

    def _spans(self) -> Iterator[Shard]:
        # Where a link to a folder is followed, what is told of others depends on the whole walk.
        prunes, real, spans = True, Path(os.path.realpath(self._folder)), list[_Files]()
        folder: Path | None = None
        for seen in walk(self._folder):
            is_archive = not seen.problem and _kind_of(seen.path) == "webdataset"
            if seen.path.parent != folder and seen.parts:
                folder = seen.path.parent
                prunes &= Path(os.path.realpath(folder)) == real.joinpath(*seen.parts[:-1])
            if not spans or is_archive or spans[-1].ends_before(seen):
                after = spans[-1].last if spans else None
                spans.append(_Files(after, seen, seen, is_archive))
            spans[-1].last = seen
            spans[-1].number += 1
            is_image = seen.path.suffix.lower() in IMAGE_SUFFIXES
            spans[-1].images += is_image and os.path.normpath(seen.path) not in self._listed
        for span in spans:
            yield span.shard(prunes)

    def _lists(self) -> Iterator[Seen]:
        for seen in walk(self._folder):
            if seen.parts and seen.path not in self._read and _is_closed_list(seen):
                self._breaks_off(seen, ())
            is_file = bool(seen.parts) and not seen.problem
            kind = _kind_of(seen.path) if is_file and not self._is_passed_over(seen) else ""
            if kind in ("jsonl", "table") and self._reads(kind) and not self._config_of(seen):
                yield seen

    def _is_passed_over(self, seen: Seen) -> bool:
        """Whether a file is what `openblip caption` has written where people have texts.

        It would take the place of what they say of these images.
        """
        is_ours = is_of_output(seen) and not seen.parts[-1].endswith(SETTINGS_SUFFIX)
        return is_ours and self._has_texts

    @cached_property
    def _has_texts(self) -> bool:
        return has_texts(self._folder)

    def _of_lists(self, at: Cursor) -> Iterator[Entry]:
        """Entries of lists; reads those again that are done, for the names of their images."""
        after = _parts(at.get("list", ""))
        for seen in self._lists():
            kind = _kind_of(seen.path)
            is_done = "path" in at or seen.parts < after
            if is_done or seen.parts == after:
                self._note_images(seen, kind)
            inner = at.get("inner", _DONE) if seen.parts == after else None
            if is_done or inner == _DONE:
                continue
            started = None if inner is None else json.loads(str(inner))
            for entry in self._of_list(seen, kind, started):
                self.note(entry)
                yield entry

    def _of_list(self, seen: Seen, kind: str, inner: Cursor | None) -> Iterator[Entry]:
        try:
            source = self._list_source(seen, kind)
        except (DataError, OSError, ValueError) as error:
            here: Cursor = {"list": seen.name, "inner": _DONE}
            detail = in_one_line(error).removeprefix(str(seen.path)).lstrip(": ")
            told = Reason.BAD_RECORD, detail
            if isinstance(error, NoColumn):
                told = self._split_lists.told(seen) or (Reason.OTHER_FILE, detail)
            self._note_closed(seen, error)
            yield Refused(seen.name, here, *told)
            return
        folders: set[Path] = set()
        for entry in source.entries(inner):
            here = {"list": seen.name, "inner": json.dumps(entry.cursor)}
            if isinstance(entry.image, Path):
                folders.add(entry.image.parent)
            if isinstance(entry, Refused) and entry.breaks_off:
                self._breaks_off(seen, folders)
            yield replace(entry, cursor=here)

    def _note_closed(self, seen: Seen, error: Exception) -> None:
        """Notes a list that cannot be opened, if its name says that it is about the images here."""
        is_list = is_list_name(seen.path.with_suffix(".jsonl").name)
        if is_list and not isinstance(error, NoColumn):
            self._breaks_off(seen, ())

    def _breaks_off(self, seen: Seen, folders: Iterable[Path]) -> None:
        """Notes that nobody knows what a list says of further images, in these folders or below."""
        for folder in (seen.path.parent, *folders):
            self._broken[os.path.normpath(folder)] = seen.name

    def _list_source(self, seen: Seen, kind: str) -> PairSource:
        within = _within(seen)
        if kind == "jsonl":
            return JsonlSource(seen.path, self._options, within)
        try:
            return TableSource([seen.path], self._options, within)
        # What it lacks as a table of pairs is said, as that can be mended.
        except NoColumn:
            try:
                return DownloadLog(seen.path, self._options, within)
            except DataError:
                pass
            raise

    def _note_images(self, seen: Seen, kind: str) -> None:
        """Notes which images a list names that an earlier run has begun."""
        if kind == "jsonl":
            for entry in self._of_list(seen, kind, None):
                self.note(entry)
            return
        try:
            source = self._list_source(seen, kind)
        except DataError as error:
            self._note_closed(seen, error)
            return
        if not isinstance(source, TableSource):
            # Its images lie in its folder; whether it says all their splits shows at its end.
            if isinstance(source, DownloadLog) and source.splits:
                deque(self._of_list(seen, kind, None), maxlen=0)
            return
        folders: set[Path] = set()
        try:
            for path in source.image_paths():
                self._note_image(path)
                folders |= {path.parent} if isinstance(path, Path) else set()
        except (DataError, *FILE_DAMAGE):  # said when it is read
            self._breaks_off(seen, folders)

    def _config_of(self, seen: Seen) -> str | None:
        """The configuration that a file belongs to, if it is not read for that."""
        return self._card.other_config(seen.path) if self._card is not None else None

    def note(self, entry: Entry) -> None:
        """Notes the image of a list's entry, which is then no image of its own."""
        if isinstance(entry.image, Path):
            self._note_image(entry.image)
        elif isinstance(entry, Refused) and entry.image_name:
            self._note_image(entry.image_name)

    def _note_image(self, image: Path | str) -> None:
        """Notes where a list says that an image is, or its name where that leads nowhere."""
        if isinstance(image, str):
            self._missing.add(image)
            return
        self._listed.add(os.path.normpath(image))
        if not is_file(image):
            below = image.is_relative_to(self._folder)
            self._missing.add(str(image.relative_to(self._folder) if below else image))

    def _of_file(self, seen: Seen, inner: Cursor | None) -> Iterator[Entry]:
        here: Cursor = {"path": seen.name}
        if seen.path in self._read:
            return
        if seen.problem:
            told = self._split_lists.told(seen) or (_reason(seen), seen.problem)
            yield Refused(seen.name or str(seen.path), here, *told)
            return
        if self._is_passed_over(seen):
            detail = "what `openblip caption` has written: import it itself to take its texts"
            yield Refused(seen.name, here, Reason.OTHER_FILE, detail)
            return
        kind = _kind_of(seen.path)
        if (config := self._config_of(seen)) is not None:
            detail = f"of the configuration {config!r}, which the card does not make the default"
            yield Refused(seen.name, here, Reason.OTHER_FILE, detail)
        elif not self._reads(kind):
            detail = f"left out by --format {self._only}"
            yield Refused(seen.name, here, Reason.OTHER_FILE, detail)
        elif kind == "webdataset":
            for entry in TarSource([seen.path], self._options, _within(seen)).entries(inner):
                here = {"path": seen.name, "inner": json.dumps(entry.cursor)}
                yield replace(entry, cursor=here)
        elif kind == "folder" and (found := self._of_image_or_other(seen, here)) is not None:
            yield found

    def _of_image_or_other(self, seen: Seen, here: Cursor) -> Entry | None:
        """None for what is part of the entry of an image, or of a list."""
        # `walk` gives one and the same set to all files of a folder: another one is another folder.
        if seen.beside is not self._images_of:
            self._images = Images(seen.path.parent, seen.beside)
            self._images_of = seen.beside
        images, name = self._images, seen.parts[-1]
        if name not in images.names:
            return None if name in images.belonging else self._other(seen, here)
        if os.path.normpath(seen.path) in self._listed:
            return self._beside_listed(seen, here)
        if (clash := images.clashes.get(name)) is not None:
            # The texts count with the first image.
            number = 1 + len(clash.texts) * (name == clash.images[0])
            return Refused(seen.name, here, Reason.CONTRADICTION, str(clash), number)
        if (told := self._why_kept_out(seen)) is not None:
            return Refused(seen.name, here, *told, 1 + len(images.beside.get(name, ())))
        return self._pair(seen, here)

    def _why_kept_out(self, seen: Seen) -> tuple[Reason, str] | None:
        """Why a list may say of an image what nobody has read; None if none can."""
        above = map(os.path.normpath, seen.path.parents if self._broken else ())
        broken = next((self._broken[folder] for folder in above if folder in self._broken), None)
        if broken is not None:
            detail = f"{broken} may say more of it, where it breaks off: mend it, or remove it"
            return Reason.OF_BROKEN_LIST, detail
        if self._missing.has_like(seen.parts):
            detail = "a list names one that is not here, and may mean this one: mend the name there"
            return Reason.LIKE_MISSING, detail
        return None

    def _beside_listed(self, seen: Seen, here: Cursor) -> Entry | None:
        texts = self._images.beside.get(seen.parts[-1], [])
        if not texts:
            return None
        detail = f"beside an image of a list, which counts: {', '.join(texts)}"
        return Refused(seen.name, here, Reason.OTHER_FILE, detail, len(texts))

    def _pair(self, seen: Seen, here: Cursor) -> Entry:
        name, within = seen.parts[-1], _within(seen)
        beside = self._images.beside.get(name, [])
        number = 1 + len(beside)
        try:
            texts = {text: _content(seen.path.parent / text) for text in beside}
            records = {text: texts.pop(text) for text in beside if text_ending(text) == "json"}
            text, lines = first_with_text(texts, self._options.encoding)
            # A blank record must not hide one that says something.
            known = (name for name in records if records[name].strip())
            record = next(known, next(iter(records), ""))
            captions, split, meta = with_record(lines, records.get(record), self._options.encoding)
        except (OSError, ValueError) as error:
            detail = f"the text beside it: {error}"
            return Refused(seen.name, here, Reason.BAD_RECORD, detail, number)
        return Found(
            where=seen.name,
            cursor=here,
            image=seen.path,
            captions=captions,
            key=within + self._images.key(name),
            split=split,
            place=seen.path.parent,
            meta=meta,
            num_records=number,
            remarks=tuple(
                Remark(Reason.OTHER_MEMBER, within + name, detail)
                for name, detail in (*others_say(texts, text), *others_say(records, record))
            ),
        )

    def _other(self, seen: Seen, here: Cursor) -> Entry:
        if (why := self._images.unreadable.get(seen.parts[-1])) is not None:
            return Refused(seen.name, here, Reason.UNREADABLE_FILE, why)
        told = self._split_lists.told(seen)
        return Refused(seen.name, here, *(told or (Reason.OTHER_FILE, _what_it_is(seen.path))))

    def _is_other_than_names(self, seen: Seen) -> bool:
        """Whether a file that is called as a list of names is read as something else."""
        if seen.path in self._read or self._config_of(seen) is not None:
            return True
        if (kind := _kind_of(seen.path)) == "folder":
            return False
        try:
            self._list_source(seen, kind)
        except NoColumn:
            return False
        except (DataError, OSError, ValueError):
            pass
        return True

    def _reads(self, kind: str) -> bool:
        return self._only in (None, kind)

    def _files_of(self, kind: str) -> Iterator[Seen]:
        for seen in walk(self._folder):
            if not seen.problem and _kind_of(seen.path) == kind:
                yield seen


@dataclass
class _Files:
    """A run of the files of a folder, or one archive."""

    after: Seen | None
    """The last before it."""
    first: Seen
    last: Seen
    is_archive: bool
    number: int = 0
    images: int = 0
    """Those that no list names, by their suffix."""

    def ends_before(self, seen: Seen) -> bool:
        """Whether a file is not of it, though it follows."""
        # To read a part of a folder all names of it are read, so that such parts are larger.
        is_other = seen.path.parent != self.last.path.parent
        return self.is_archive or self.number >= (_MANY_FILES if is_other else _MOST_FILES)

    def shard(self, prunes: bool) -> Shard:
        """What is told of it."""
        cursor: Cursor = {"until": self.last.name, "prunes": int(prunes)}
        if self.after is not None:
            cursor["after"] = self.after.name
        if self.is_archive:
            return Shard.of_file(self.first.name, cursor, self.first.path)
        name, folder = f"{self.first.name} to {self.last.name}", self.first.path.parent
        return Shard(name, cursor, self.images, str(folder))


def has_texts(folder: Path) -> bool:
    """Whether an image in a folder or below it has a text beside it."""
    return any(
        not seen.problem
        and known_by_name(seen.parts[-1]) is True
        and f"{PurePosixPath(seen.parts[-1]).stem}.txt" in seen.beside
        for seen in walk(folder)
    )


def _kind_of_folder(folder: Path) -> str:
    try:
        files = [path for path in folder.iterdir() if path.is_file()]
    except OSError:
        return "folder"
    kinds = {_kind_of(file) for file in files if not is_hidden(file.name)}
    return next((kind for kind in KINDS if kind in kinds), "folder")


def _kind_of(file: Path) -> str:
    if is_list_name(file.name):
        return "jsonl"
    name = plain_name(file)
    if file.name.lower().endswith(TAR_SUFFIXES):
        return "webdataset"
    # By its name before its content: nearly every text here is that of an image.
    may_be_table = name.endswith(TABLE_SUFFIXES) or _TABLE_TEXT.fullmatch(name)
    return "table" if may_be_table and is_table_file(file, SourceOptions()) else "folder"


def _is_closed_list(seen: Seen) -> bool:
    """Whether a file is, by its name, a list of the images around it, and cannot be read."""
    name = seen.parts[-1]
    packed = name.removesuffix(".zst")
    stem, _, suffix = packed.lower().rpartition(".")
    if suffix not in ("json", "jsonl", "csv", "tsv") or not is_list_name(f"{stem}.jsonl"):
        return False
    if seen.problem or packed != name:
        return not seen.is_hidden
    if suffix != "json":
        return False  # found out when it is read
    try:
        read_document(seen.path, lambda record: record)
    except DataError:
        return True
    return False


def _reason(seen: Seen) -> Reason:
    if seen.is_hidden:
        return Reason.HIDDEN_FILE
    return Reason.UNREADABLE_FILE if seen.is_unreadable else Reason.OTHER_FILE


def _content(path: Path) -> bytes:
    if path.stat().st_size > MAX_TEXT_BYTES:
        raise ValueError(f"{path.name} has more than {MAX_TEXT_BYTES} bytes")
    return path.read_bytes()


def _what_it_is(path: Path) -> str:
    name = path.name.lower()
    if name.endswith(UNREAD_ARCHIVES):
        return "an archive of a kind that is not read: unpack it, or pack it as .tar"
    if name == CARD_NAME.lower():
        return "the card of the folder: what it says of splits counts"
    if plain_name(path).endswith(".jsonl"):
        return "a list whose name is not captions.jsonl: import it itself, if it is one of images"
    if name == "export.json":
        return "what `openblip data export` says of the files beside it"
    if name.endswith(SETTINGS_SUFFIX):
        return "the settings by which `openblip caption` goes on with the file beside it"
    if name.endswith(".json"):
        return "a JSON file of no image here: import it itself, if it has annotations"
    if text_ending(name):
        return "a text of no image here"
    try:
        with path.open("rb") as stream:
            found = what_it_is(stream.read(HEAD_BYTES), name)
    except OSError as error:
        found = f"cannot be read ({error.strerror})"
    return found or "neither an image nor the text of one"


def _within(seen: Seen) -> str:
    return "".join(f"{part}/" for part in seen.parts[:-1])


def _parts(name: int | str) -> tuple[str, ...]:
    return tuple(str(name).split("/")) if name else ()
