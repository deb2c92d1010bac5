"""Which files of a folder are annotations, and several of them as one source."""

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path, PurePosixPath

from openblip.data.importers.annotations import UnknownAnnotations, read_annotations
from openblip.data.importers.cards import Card
from openblip.data.importers.folder import FolderSource
from openblip.data.importers.image_folders import SUFFIXES
from openblip.data.importers.questions import answers_beside
from openblip.data.importers.source import Cursor, Entry, Found, PairSource, Refused, SourceOptions
from openblip.data.importers.splits import split_in_name
from openblip.data.report import Reason
from openblip.errors import DataError

_SUFFIXES = (".json", ".jsonl")
_REST = "rest"
# Files of such names are annotations even beside other JSON files.
_NAMED = re.compile(
    r"^(dataset_|captions|annotations|labels)|karpathy|questions|question_answers|regions?_desc"
)


class AnnotationFiles:
    """Files of annotations, one after another; each is opened when it is reached.

    The first is opened at once, so that what it is shows, and its faults are errors. A later one
    that cannot be read is left out.
    """

    def __init__(self, files: Sequence[Path], options: SourceOptions) -> None:
        """Opens the first.

        Raises:
            DataError: it is of no known kind, or no JSON at all.
        """
        self._files, self._options = list(files), options
        self._first: PairSource | None = read_annotations(self._files[0], options)
        self.format = self._first.format

    def total(self) -> None:
        """Unknown before they are read."""

    def entries(self, cursor: Cursor | None) -> Iterator[Entry]:
        """Yields the entries of each file; an id that a file before has for another image is new.

        Files whose ids all begin at 1 are such. The image then goes by its path.
        """
        at = int(cursor.get("file", 0)) if cursor else 0
        ids: dict[str, Path] = {}
        for entry in self._listed(self._files[: at + 1]) if cursor else ():
            _with_own_id(entry, ids)
        for number, file in enumerate(self._files[at:], at):
            inner = cursor if number == at else None
            for entry in self._entries(number, file, inner):
                own = _with_own_id(entry, ids)
                yield replace(own, cursor={**entry.cursor, "file": number})

    def listed(self) -> Iterator[Entry]:
        """Yields the entries of all files, of which those after the first are read for it."""
        return self._listed(self._files)

    def _listed(self, files: Sequence[Path]) -> Iterator[Entry]:
        for number, file in enumerate(files):
            source = self._first if number == 0 else None
            with suppress(DataError):  # said when it is reached
                yield from (source or read_annotations(file, self._options)).listed()

    def _entries(self, number: int, file: Path, cursor: Cursor | None) -> Iterator[Entry]:
        # The first is let go of when it is read, so that one at a time is in memory.
        source, self._first = self._first if number == 0 else None, None
        try:
            source = source or read_annotations(file, self._options)
        except DataError as error:
            if not (cursor and cursor.get("index")):
                yield Refused(file.name, {"index": 1}, Reason.BAD_RECORD, str(error))
            return
        yield from source.entries(cursor)


def _with_own_id(entry: Entry, ids: dict[str, Path]) -> Entry:
    """The entry, under an id that is no other image's of `ids`, to which it is added."""
    if not isinstance(entry, Found) or entry.key is None or not isinstance(entry.image, Path):
        return entry
    if ids.setdefault(entry.key, entry.image) == entry.image:
        return entry
    return replace(entry, key=(PurePosixPath(entry.image_folder) / entry.image.name).as_posix())


class AnnotatedFolder:
    """The annotations in a folder, and then whatever else is in it.

    Images that no annotation names are as in a folder without annotations.
    """

    def __init__(self, annotations: PairSource, rest: FolderSource) -> None:
        """Takes both, which read nothing yet."""
        self._annotations, self._rest = annotations, rest
        self.format = annotations.format

    def total(self) -> None:
        """Unknown before it is walked."""

    def entries(self, cursor: Cursor | None) -> Iterator[Entry]:
        """Yields the entries of the annotations, then those of the other files."""
        at = cursor or {}
        if at:
            # What an earlier run has read.
            for entry in self._annotations.listed():
                self._rest.note(entry)
        if _REST not in at:
            for entry in self._annotations.entries(cursor):
                self._rest.note(entry)
                yield entry
        inner = json.loads(str(at[_REST])) if _REST in at else None
        for entry in self._rest.entries(inner):
            yield replace(entry, cursor={_REST: json.dumps(entry.cursor)})

    def listed(self) -> Iterator[Entry]:
        """Yields the entries of the annotations, and of other lists."""
        yield from self._annotations.listed()
        yield from self._rest.listed()


def annotation_source(
    paths: Sequence[Path], options: SourceOptions, card: Card | None = None
) -> PairSource | None:
    """The source of files of annotations, or of a folder with some; None if there are none.

    Of a folder these are its JSON files that belong to no image, if they differ in the split that
    their names say. Files of usual names come before others, which must not lie beside texts.

    Raises:
        DataError: a folder has several kinds of them, or one cannot be read.
    """
    if len(paths) == 1 and paths[0].is_dir():
        return _of_folder(paths[0], options, card)
    if not all(path.suffix.lower() in _SUFFIXES for path in paths):
        return None
    return _source(sorted(paths), options)


def _of_folder(folder: Path, options: SourceOptions, card: Card | None) -> PairSource | None:
    paths = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    images = [path for path in paths if path.suffix.lower() in SUFFIXES]
    of_images = {name for path in images for name in (path.name, path.stem)}
    found = [path for path in paths if path.suffix.lower() == ".json" and path.is_file()]
    files = [path for path in found if path.stem not in of_images]
    companions = {beside for file in files if (beside := answers_beside(file)) in files}
    files = [file for file in files if file not in companions]
    named = [file for file in files if _NAMED.search(file.name) and not _is_settings(file)]
    names = {path.name for path in paths}
    has_texts = any(f"{path.stem}.txt" in names for path in images)
    unnamed = [] if has_texts else [file for file in files if not _is_settings(file)]
    chosen = named or unnamed
    if len({_without_split(file) for file in chosen}) > 1:
        if not named:
            return None
        said = ", ".join(file.name for file in named[:5])
        raise DataError(f"{folder} has several files of annotations, {said}: name one of them")
    try:
        annotations = _source(chosen, options) if chosen else None
    except UnknownAnnotations:
        return None
    if annotations is None:
        return None
    read = {*chosen, *(beside for file in chosen if (beside := answers_beside(file)))}
    return AnnotatedFolder(annotations, FolderSource(folder, options, card=card, read=read))


def _source(files: Sequence[Path], options: SourceOptions) -> PairSource:
    several = len(files) > 1
    return AnnotationFiles(files, options) if several else read_annotations(files[0], options)


def _is_settings(file: Path) -> bool:
    """Whether it is what `openblip caption` writes beside a file, on how it was made."""
    return file.name.endswith(".settings.json")


def _without_split(file: Path) -> str:
    """A file's name without the word that names a split."""
    word = split_in_name(file.stem)
    return file.stem if word is None else file.stem.replace(word, "", 1)
