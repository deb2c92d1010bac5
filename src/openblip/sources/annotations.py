"""Which kind of annotations a JSON file holds, and which files of a folder are annotations.

What a file is shows in the fields of its first objects. Several files are one source, in which each
is opened when it is reached.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from contextlib import suppress
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from openblip.runtime.errors import DataError
from openblip.sources.caption_lists import (
    CAPTION_FIELDS,
    are_keyed_captions,
    caption_list_source,
    is_result,
    keyed_captions_source,
    results_source,
)
from openblip.sources.cards import Card
from openblip.sources.coco import coco_source, karpathy_source
from openblip.sources.folder import FolderSource, has_texts
from openblip.sources.image_formats import known_by_name
from openblip.sources.json_files import first_line, read_document
from openblip.sources.paths import SETTINGS_SUFFIX
from openblip.sources.questions import (
    answers_beside,
    genome_questions_source,
    genome_regions_source,
    keyed_questions_source,
    nlvr_list_source,
    nlvr_source,
    question_list_source,
    shorten_answers,
    vqa_source,
)
from openblip.sources.records import SUFFIXES, GatheredSource, fields_of
from openblip.sources.report import Reason
from openblip.sources.source import (
    IMAGE_FIELDS,
    Cursor,
    Entry,
    Found,
    PairSource,
    Refused,
    SourceOptions,
)
from openblip.sources.splits import (
    META_FIELDS,
    SPLIT_FIELDS,
    both_splits,
    known_split,
    pop_split,
    split_in_name,
)
from openblip.sources.text_files import plain_name

ANNOTATION_FORMATS = ("coco", "karpathy", "captions", "vqa", "questions", "visual_genome", "nlvr")
_KNOWN = (
    "COCO captions (images, annotations), a Karpathy split (images with sentences), a list of "
    "captions, questions of VQA v2, a list of questions, Visual Genome's questions or regions, or "
    "sentences of NLVR2"
)
_REFERRING = "referring expressions (as of RefCOCO), which are about regions and no captions"
# What is known and holds no captions of images, by the fields of its first object.
_REFUSED = (
    ({"conversations"}, "conversations (as of LLaVA): put what is a caption into a captions.jsonl"),
    ({"ref_id"}, _REFERRING),
    ({"refs"}, _REFERRING),
    ({"img_id", "sent", "label"}, "questions in the form of LXMERT: import the official files"),
)
_REFUSED_OBJECTS = (
    ({"classes", "labels"}, "class labels (as of FiftyOne): export captions as COCO annotations"),
    *_REFUSED,
)
_CAPTION = frozenset((*CAPTION_FIELDS, "img_id"))
_IMAGE = frozenset((*IMAGE_FIELDS, "image_id"))
_ADDRESSES = frozenset(("url", "image_url", "image_urls", "img_url"))
# Of how many objects at the beginning one must say what they all are.
_NUM_FIRST = 20

_Opener = Callable[[Path, list[Any], SourceOptions], GatheredSource]


class UnknownAnnotations(DataError):  # noqa: N818 - says what it is
    """A JSON file that holds no known kind of annotations."""


def read_annotations(file: Path, options: SourceOptions) -> PairSource:
    """The source that a JSON file of annotations is; which kind shows in its keys.

    Raises:
        UnknownAnnotations: it is of no known kind.
        DataError: it is no JSON, or known and without captions.
    """
    document = read_document(file, shorten_answers, options.encoding)
    if isinstance(document, dict) and {"sentence", "identifier"} <= document.keys():
        document = [document]
    if isinstance(document, dict):
        return _of_object(file, document, options)
    return _of_list(file, document if isinstance(document, list) else [], options)


def has_annotation_lines(file: Path) -> bool:
    """Whether the lines of a file are annotations of a known form, and not paths with texts."""
    first = fields_of(first_line(file)).keys()
    is_narrative = {"dataset_id", "image_id", "caption"} <= first
    is_question = "question" in first and not _CAPTION & first
    return is_narrative or is_question or {"sentence", "identifier"} <= first


def _of_list(
    file: Path, records: list[Any], options: SourceOptions, split: str | None = None
) -> GatheredSource:
    """Which list it is shows in the fields of one of its first objects."""
    first = [record.keys() for record in records[:_NUM_FIRST] if isinstance(record, dict)]
    for keys in first:
        _refuse_by_name(file, keys, _REFUSED)
        if "question" in keys and not {"sentence", "qas"} & keys:
            return question_list_source(file, records, options, split)
        for fields, opener in _LISTS:
            if fields <= keys:
                return opener(file, records, options).of_split(split)
        if is_result(keys) and (source := results_source(file, records, options)) is not None:
            return source.of_split(split)
        if _IMAGE & keys and _CAPTION & keys:
            return caption_list_source(file, records, options, split)
        _refuse_addresses(file, keys)
    said = f"; its first object has {_short(first[0])}" if first else "; no object is in it"
    raise UnknownAnnotations(f"{file} is none of {_KNOWN}{said}")


_LISTS: tuple[tuple[set[str], _Opener], ...] = (
    ({"qas"}, genome_questions_source),
    ({"regions"}, genome_regions_source),
    ({"sentence", "identifier"}, nlvr_source),
    ({"sentence", "images"}, nlvr_list_source),
)


def _of_object(file: Path, document: dict[str, Any], options: SourceOptions) -> PairSource:
    _refuse_by_name(file, document.keys(), _REFUSED_OBJECTS)
    _refuse_addresses(file, document.keys())
    if "questions" in document:
        return vqa_source(file, document, options).of_split(_split_of(document, "questions"))
    if (keyed := next((n for n in _KEYED if isinstance(document.get(n), dict)), None)) is not None:
        source = _of_names(file, keyed, document[keyed], options)
        return source.of_split(_split_of(document, keyed))
    if "annotations" in document and "images" not in document:
        source = _without_images(file, document["annotations"], options)
        return source.of_split(_split_of(document, "annotations"))
    if "annotations" in document:
        return coco_source(file, document, options)
    images, data = document.get("images"), document.get("data")
    if isinstance(images, list) and any("sentences" in fields_of(i) for i in images[:_NUM_FIRST]):
        return karpathy_source(file, document, options)
    if isinstance(data, list):
        return _of_list(file, data, options, _split_of(document, "data"))
    named = _by_split(file, document, options) or _by_name(file, document, options)
    if named is not None:
        return named
    said = f"; its keys are {_short(document)}" if document else "; it is empty"
    raise UnknownAnnotations(f"{file} is none of {_KNOWN}{said}")


# Fields of a document whose object may have the names of images for its own.
_KEYED = ("annotations", "captions", "data")


def _of_names(
    file: Path, name: str, inner: dict[str, Any], options: SourceOptions
) -> GatheredSource:
    """The captions in a field, by the names of their images.

    Raises:
        UnknownAnnotations: it has something else.
        DataError: the images are nowhere to be found.
    """
    source = _by_split(file, inner, options) or _named_captions(file, inner, options)
    if source is not None:
        return source
    shown = json.dumps(dict(list(inner.items())[:1]), ensure_ascii=False)[:80]
    raise UnknownAnnotations(
        f"{file}: its {name!r} is an object, {shown}, where a list is known, or the name of each "
        "image with a text, a list of texts, or an object that has a caption"
    )


def _named_captions(
    file: Path, document: dict[str, Any], options: SourceOptions
) -> GatheredSource | None:
    """Names of images with their texts; None of an object of another kind."""
    if not are_keyed_captions(document):
        return None
    try:
        return keyed_captions_source(file, document, options)
    except DataError:
        # Names without the suffix of an image may be those of anything.
        if any(map(known_by_name, list(document)[:_NUM_FIRST])):
            raise
        return None


def _without_images(file: Path, annotations: Any, options: SourceOptions) -> GatheredSource:
    records = annotations if isinstance(annotations, list) else []
    first = [fields_of(record).keys() for record in records[:_NUM_FIRST]]
    if any(_CAPTION & keys for keys in first):
        # Captions that name their images themselves.
        return _of_list(file, records, options)
    if any("answers" in keys or "multiple_choice_answer" in keys for keys in first):
        raise DataError(f"{file} has answers without questions: import the file of questions")
    raise DataError(
        f"{file} has annotations without images, of which none has a caption: import the file "
        "that names the images, or that of the questions"
    )


def _by_split(
    file: Path, document: dict[str, Any], options: SourceOptions
) -> GatheredSource | None:
    """Records with texts, or names with theirs, under the words for their splits.

    None of another object. Of records under another word that word is the split: these are refused.
    """
    parts = {word: _records_of(word, value) for word, value in document.items()}
    if not any(parts[word] for word in parts if known_split(word)):
        return None
    records = [_under(word, record) for word, several in parts.items() for record in several]
    return _of_list(file, records, options)


def _records_of(word: str, value: Any) -> list[Any]:
    """What stands under a word, if it is records with texts; nothing of other values."""
    if isinstance(value, list):
        first = [fields_of(record).keys() for record in value[:_NUM_FIRST]]
        have_texts = any(_IMAGE & keys and (_CAPTION | {"question"}) & keys for keys in first)
        return value if have_texts else []
    if not isinstance(value, dict) or _CAPTION & value.keys() or not are_keyed_captions(value):
        return []
    # Texts under any other word may be about the file, as in `info`.
    if not known_split(word) and not any(map(known_by_name, list(value)[:_NUM_FIRST])):
        return []
    return [
        {**fields_of(said), "image_id": name}
        if isinstance(said, dict)
        else {"image" if known_by_name(name) else "image_id": name, "caption": said}
        for name, said in value.items()
    ]


def _under(word: str, record: Any) -> dict[str, Any]:
    """A record with the split that it stands under, besides what it says itself."""
    own = fields_of(record).get("split")
    return {**fields_of(record), "split": [word, *(own if isinstance(own, list) else [own])]}


def _by_name(file: Path, document: dict[str, Any], options: SourceOptions) -> GatheredSource | None:
    """Questions under their ids, or texts under the names of images; None of another object."""
    names, split = _without_split_fields(document)
    values = [value for value in list(names.values())[:_NUM_FIRST] if isinstance(value, dict)]
    if any({"question", "imageId"} <= value.keys() for value in values):
        return keyed_questions_source(file, names, options).of_split(split)
    if any("caption" in value for value in values):
        return keyed_captions_source(file, names, options).of_split(split)
    source = _named_captions(file, names, options)
    return None if source is None else source.of_split(split)


def _without_split_fields(document: dict[str, Any]) -> tuple[dict[str, Any], str | None]:
    """What is left of an object with names of images, and what its other fields say of a split."""
    said = {
        name: value
        for name, value in document.items()
        if (name.lower() in SPLIT_FIELDS and isinstance(value, str) and known_split(value))
        or (name.lower() in _ABOUT and isinstance(value, dict) and not _CAPTION & value.keys())
    }
    names = {name: value for name, value in document.items() if name not in said}
    return names, pop_split(said)


# Fields with an object about the file, and no image of that name.
_ABOUT = ("info", *META_FIELDS)


def _split_of(document: dict[str, Any], records: str) -> str | None:
    """What a document says of the split of all that stands in its field `records`."""
    others = {name: value for name, value in document.items() if name != records}
    # TextCaps and TextVQA say what all are of.
    told = document.get("dataset_type")
    return both_splits(pop_split(others), told if isinstance(told, str) else None)


def _refuse_by_name(file: Path, keys: Set[str], kinds: tuple[tuple[set[str], str], ...]) -> None:
    for fields, what in kinds:
        if fields <= keys:
            raise DataError(f"{file} holds {what}")


def _refuse_addresses(file: Path, keys: Set[str]) -> None:
    if _ADDRESSES & keys and _CAPTION & keys:
        raise DataError(
            f"{file} holds web addresses (as SBU captions do): download the images first with "
            "img2dataset, and import its output"
        )


def _short(names: Iterable[str]) -> str:
    """The first few names, for a message."""
    return ", ".join(name[:40] for name in list(names)[:10])


_SUFFIXES = (".json", ".jsonl")
_REST = "rest"
# Files of such names are annotations even beside other JSON files.
_NAMED = re.compile(
    r"^(dataset_|captions|annotations)|karpathy|questions|question_answers|regions?_desc"
)


class _AnnotationFiles:
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


class _AnnotatedFolder:
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
    if not all(plain_name(path).endswith(_SUFFIXES) for path in paths):
        return None
    return _source(sorted(paths), options)


def _of_folder(folder: Path, options: SourceOptions, card: Card | None) -> PairSource | None:
    paths = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    images = [path for path in paths if path.suffix.lower() in SUFFIXES]
    of_images = {name for path in images for name in (path.name, path.stem)}
    found = [path for path in paths if plain_name(path).endswith(".json") and path.is_file()]
    files = [path for path in found if path.stem not in of_images]
    # Answers are read with their questions, and are no source of their own.
    companions = {beside for file in files if (beside := answers_beside(file)) in files}
    files = [file for file in files if file not in companions]
    names = {path.name for path in paths}
    ours = [file for file in files if f"{file.name}{SETTINGS_SUFFIX}" in names]
    if ours and has_texts(folder):
        # What `openblip caption` has written there takes no place of what people say.
        files = [file for file in files if file not in ours]
    named = [file for file in files if _NAMED.search(file.name) and not _is_settings(file)]
    are_told = any(f"{path.stem}.txt" in names for path in images)
    unnamed = [] if are_told else [file for file in files if not _is_settings(file)]
    chosen = named or unnamed
    if len({_without_split(file) for file in chosen}) > 1:
        if not named:
            return None
        said = ", ".join(file.name for file in named[:5])
        raise DataError(f"{folder} has several files of annotations, {said}: name one of them")
    if chosen == unnamed and any(map(_is_keyed, chosen)) and has_texts(folder):
        # Whatever a name is given there, as a label or a score: people have said what is to be
        # read beside the images.
        return None
    try:
        annotations = _source(chosen, options) if chosen else None
    except UnknownAnnotations:
        return None
    if annotations is None:
        return None
    read = {*chosen, *(beside for file in chosen if (beside := answers_beside(file)))}
    return _AnnotatedFolder(annotations, FolderSource(folder, options, card=card, read=read))


def _source(files: Sequence[Path], options: SourceOptions) -> PairSource:
    several = len(files) > 1
    return _AnnotationFiles(files, options) if several else read_annotations(files[0], options)


def _is_keyed(file: Path) -> bool:
    """Whether it is an object of names with texts."""
    try:
        document = read_document(file, shorten_answers)
    except (DataError, OSError):
        return False
    return isinstance(document, dict) and are_keyed_captions(document)


def _is_settings(file: Path) -> bool:
    """Whether it is what `openblip caption` writes beside a file, on how it was made."""
    return file.name.endswith(SETTINGS_SUFFIX)


def _without_split(file: Path) -> str:
    """A file's name without the word that names a split."""
    word = split_in_name(file.stem)
    return file.stem if word is None else file.stem.replace(word, "", 1)
