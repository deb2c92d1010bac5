"""Lists of images with their captions, in JSON, whoever wrote them.

BLIP's authors, NoCaps, TextCaps, localized narratives and COCO's results in one array;
`captions.jsonl` and its like with an object a line.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence, Set
from itertools import islice
from pathlib import Path
from typing import Any

from openblip.sources.coco import COCO_ID, image_id
from openblip.sources.image_formats import IMAGE_SUFFIXES, known_by_name
from openblip.sources.json_files import END, json_records, num_records
from openblip.sources.paths import walk
from openblip.sources.records import (
    Gathered,
    GatheredSource,
    ImageFolder,
    coco_names,
    fields_of,
    find_images,
    folder_told,
    merged,
    with_suffixes,
)
from openblip.sources.report import Reason
from openblip.sources.source import (
    IMAGE_FIELDS,
    Cursor,
    DamagedRecord,
    Entry,
    Found,
    Refused,
    SourceOptions,
    UnsafePath,
    first_texts,
    id_text,
    known_id,
    name_below,
    texts_of,
    unfolded,
)
from openblip.sources.splits import known_split, pop_split
from openblip.sources.text_files import plain_name

CAPTION_FIELDS = ("captions", "caption", "text", "reference_strs", "caption_str", "sentences")
"""Fields of a record that hold texts of its image; the first that has any."""
_COCO_ID = re.compile(r"COCO_[a-z]+\d{4}_(\d{12})\.")
# Of TextCaps, whose validation images are training images of Open Images.
_FOLDERS = ("train_images/", "test_images/")


def caption_list_source(
    file: Path, records: Sequence[Any], options: SourceOptions, split: str | None = None
) -> GatheredSource:
    """A list of objects with the path of an image and a text, or several.

    This is the form of `coco_karpathy_train.json`, `flickr30k_train.json` and `vg_caption.json` (a
    record for each caption), of the `val` and `test` files beside them (one for each image), and of
    `nocaps_val.json`, which may lack captions. The id is `img_id`, or COCO's image id in the name
    of the file, or the path. A record without a path, as of TextCaps, localized narratives and
    results for COCO, has an `image_id`, which is then the id.

    Args:
        file: that holds them.
        records: the objects.
        options: may name the folder of images.
        split: of all records, where the file says it.

    Raises:
        DataError: the images are nowhere to be found.
    """
    gathered, own = gathered_with_names(file, records, options, split)
    for number, (record, names) in enumerate(zip(records, own, strict=True)):
        entry, what = fields_of(record), f"record {number}"
        if not names:
            gathered.refuse(what, "needs a path in image, or an image_id")
            continue
        try:
            captions, used = first_texts(entry, CAPTION_FIELDS)
        except ValueError as error:
            gathered.refuse(what, str(error))
            continue
        # An empty list says so outright; records of NoCaps, which alone have an img_id, may have
        # none.
        lacks = not captions and (entry.get("captions") == [] or "img_id" in entry)
        if not captions and not lacks:
            gathered.refuse(what, "needs a caption")
            continue
        key = image_key(entry, gathered.folder, names)
        if known_id(entry.get("img_id")) is not None:
            key = str(known_id(entry["img_id"]))
        image = gathered.image(key, names, pop_split(entry))
        image.may_lack_captions = not (captions or image.captions)
        if used == "reference_strs":
            # All texts of the image stand in each of its records.
            captions = [text for text in captions if text not in image.captions]
        image.captions += captions
        image.meta |= _others(entry, captions)
    return GatheredSource("captions", gathered)


def is_result(fields: Set[str]) -> bool:
    """Whether a record with these fields is one of COCO's results, and nothing more."""
    return {"image_id", "caption"} <= fields <= {"image_id", "caption", COCO_ID, "id"}


def results_source(
    file: Path, records: Sequence[Any], options: SourceOptions
) -> GatheredSource | None:
    """A list of objects with `image_id` and `caption`: COCO's results, of `openblip caption` too.

    The image is the file of that path, or else the one whose name has that number at its end,
    below the folder of the file, or `image_root`. None if no image is there.
    """
    root = options.image_root or file.parent
    gathered = Gathered(file, ImageFolder(root))
    names: dict[int | str, list[str]] = defaultdict(list)
    for seen in walk(root):
        if not seen.problem and seen.path.suffix.lower() in IMAGE_SUFFIXES:
            names[image_id(seen.name)].append(seen.name)
    for number, record in enumerate(records):
        entry = fields_of(record)
        key, caption = known_id(entry.get("image_id")), entry.get("caption")
        if key is None or not isinstance(caption, str):
            gathered.refuse(f"record {number}", "needs an image_id and a caption")
            continue
        found = names[key] if isinstance(key, int) else [name_below(root, key)]
        if len(found) != 1:
            why = "several image files have" if found else "no image file has"
            gathered.refuse(f"record {number}", f"{why} the number {key} in the name, below {root}")
            continue
        image = gathered.image(str(key) if isinstance(key, int) else found[0], (found[0],))
        image.captions.append(caption)
    return GatheredSource("captions", gathered) if names else None


def keyed_captions_source(
    file: Path, document: Mapping[str, Any], options: SourceOptions
) -> GatheredSource:
    """Names of images, each with a text, a list of texts, or an object that has them.

    A name is a path, or lacks its suffix. This is the form of `meta_cap.json` of kohya's scripts,
    of which `caption` counts, and `tags` do not.

    Raises:
        DataError: the images are nowhere to be found.
    """
    return caption_list_source(file, [_keyed(*item) for item in document.items()], options)


def _keyed(name: str, value: Any) -> dict[str, Any]:
    if isinstance(value, dict):
        return {**value, "image_id": name}
    return {"image" if known_by_name(name) else "image_id": name, "caption": value}


def are_keyed_captions(document: Mapping[str, Any]) -> bool:
    """Whether the first values of an object are texts, or hold some, and not names of splits."""
    first = [value for value in islice(document.values(), _NUM_TRIED) if value is not None]
    are_splits = all(isinstance(value, str) and known_split(value) for value in first)
    return bool(first) and not are_splits and all(map(_has_text, first))


def _has_text(value: Any) -> bool:
    if isinstance(value, dict):
        return any(value.get(name) for name in CAPTION_FIELDS)
    try:
        return isinstance(value, str | list) and bool(texts_of(value))
    except ValueError:
        return False


def gathered_with_names(
    file: Path, records: Sequence[Any], options: SourceOptions, split: str | None
) -> tuple[Gathered, list[tuple[str, ...]]]:
    """What gathers the records of a list, and what each says of where its image is.

    Raises:
        DataError: the images are nowhere to be found.
    """
    own = [_image_names(fields_of(record)) for record in records]
    folder = find_images(file, (name for names in own for name in names), options)
    return Gathered(file, folder, split), own


def _image_names(record: Mapping[str, Any]) -> tuple[str, ...]:
    """Where the image of a record may be; empty if it names none."""
    field, image_id = _name_field(record), known_id(record.get("image_id"))
    told = () if field is None else (str(record[field]),)
    # TextCaps and TextVQA come with paths of their own beside the ids that are the names.
    if image_id is None or field not in (None, "image_path"):
        return told
    # Folders that the record does not name come last: the first name tells where it says to look.
    below = (f"{folder}{image_id}.jpg" for folder in _FOLDERS)
    is_number = str(image_id).isascii() and str(image_id).isdecimal()
    coco = coco_names(int(image_id)) if is_number else ()
    return (*told, *with_suffixes(str(image_id)), *coco, *below)


def image_key(record: Mapping[str, Any], folder: ImageFolder, names: Sequence[str]) -> str:
    """The id of a record's image: COCO's in the name of its file, the path, or its `image_id`."""
    if _name_field(record) in (None, "image_path") and "image_id" in record:
        return str(known_id(record["image_id"]))
    coco = _COCO_ID.search(names[0])
    return str(int(coco[1])) if coco else folder.below(names[0])


def _name_field(record: Mapping[str, Any]) -> str | None:
    """The field with the path of a record's image."""
    return next((n for n in IMAGE_FIELDS if isinstance(record.get(n), str) and record[n]), None)


def _others(record: Mapping[str, Any], captions: Sequence[str]) -> dict[str, Any]:
    """What a record says besides its image and captions."""
    used = {_name_field(record), "image_id"}
    used |= {name for name in CAPTION_FIELDS if _is_in(record.get(name), captions)}
    used |= {name for name in IMAGE_FIELDS if not record.get(name)}
    return {name: value for name, value in record.items() if name not in used}


def _is_in(value: Any, captions: Sequence[str]) -> bool:
    """Whether a field says nothing but these captions."""
    texts = value if isinstance(value, list) else [value]
    return all(text in (None, "") or text in captions for text in texts)


_CAPTION_FIELDS = ("captions", "caption", "text")
_IMAGE = f"{', '.join(IMAGE_FIELDS[:-1])} or {IMAGE_FIELDS[-1]}"
_LIST_NAMES = ("captions", "metadata")
# By so many of the first names it is found where the images lie.
_NUM_TRIED = 100


def is_list_name(name: str) -> bool:
    """Whether a file of that name in a folder of images is taken for a list of them.

    It is `captions.jsonl`, `metadata.jsonl`, or has the name of a split.
    """
    stem, _, suffix = plain_name(Path(name)).rpartition(".")
    return suffix == "jsonl" and (stem in _LIST_NAMES or known_split(stem) is not None)


class JsonlSource:
    """One JSON object per line, or an array of them, each with a path and texts.

    The image is in the first there is of `openblip.sources.source.IMAGE_FIELDS` (relative
    to the folder of the file, or `image_root`); the texts in the first that has any of `captions`,
    `caption` or `text`; `id`, and `split` or `set_name`, are optional, and everything
    else becomes metadata. The id is the path where there is none. Neighbours of one image (lists
    with a record for each caption) become one row with several captions.
    """

    format = "jsonl"

    def __init__(self, file: Path, options: SourceOptions, within: str = "") -> None:
        """Reads nothing yet.

        Args:
            file: the list.
            options: may name the folder of the images.
            within: folder of the list in a source of several, with a slash behind; begins ids that
                are paths.
        """
        self._file, self._encoding = file, options.encoding
        self._folder = ImageFolder(file.parent)
        # Paths, and ids that are paths, start from the root where the user names one.
        self._within_source, self._within = within, within if not options.image_root else ""
        if options.image_root is not None:
            names = islice(self._names(), _NUM_TRIED)
            self._folder = folder_told(options.image_root, names)

    def total(self) -> int | None:
        """Number of lines; None where counting them means reading everything."""
        return num_records(self._file, self._encoding)

    def entries(self, cursor: Cursor | None) -> Iterator[Entry]:
        """Yields one entry for each image of neighbouring lines, or records of an array."""
        yield from merged(self._records(cursor))

    def listed(self) -> Iterator[Entry]:
        """All entries."""
        return self.entries(None)

    def _records(self, cursor: Cursor | None) -> Iterator[Entry]:
        # From a cursor on nothing may be left, which makes no empty file.
        is_empty = cursor is None
        for where, here, record in json_records(self._file, self._encoding, cursor):
            is_empty = False
            yield self._entry(record, self._within_source + where, here)
        if is_empty:
            where = self._within_source + self._file.name
            yield Refused(where, END, Reason.EMPTY_FILE, "it has no records")

    def _names(self) -> Iterator[str]:
        for _, _, record in json_records(self._file, self._encoding, None):
            name = None if isinstance(record, ValueError) else _pop_image(record)
            if isinstance(name, str):
                yield name

    def _entry(self, record: dict[str, Any] | ValueError, where: str, cursor: Cursor) -> Entry:
        path: Path | None = None
        is_end = cursor == END
        try:
            if isinstance(record, ValueError):
                if isinstance(record, DamagedRecord):
                    is_end |= record.breaks_off
                    if record.image:
                        path = self._folder.path(self._folder.below(record.image))
                raise record
            fields = ", ".join(list(record)[:12])
            name = _pop_image(record)
            if not isinstance(name, str):
                raise ValueError(f"none of its fields ({fields}) is {_IMAGE} with a path")
            name = self._folder.below(name)
            path = self._folder.path(name)
            texts, captions = _pop_texts(record)
            key, split = id_text(record.pop("id", None)), pop_split(record)
            meta = unfolded(record)
        except UnsafePath as error:
            return Refused(where, cursor, Reason.UNSAFE_PATH, str(error), image_name=error.name)
        except ValueError as error:
            detail = str(error)
            return Refused(where, cursor, Reason.BAD_RECORD, detail, image=path, breaks_off=is_end)
        if not texts and (why := _why_empty(captions)):
            return Refused(f"{where}, {name}", cursor, Reason.MISSING_CAPTION, why, image=path)
        return Found(
            where=f"{where}, {name}",
            cursor=cursor,
            image=path,
            captions=texts,
            key=self._within + name if key is None else key,
            split=split,
            place=self._file,
            image_folder=self._folder.folder_of(name),
            meta=meta,
            may_lack_captions=captions == [],
        )


def _pop_image(record: dict[str, Any]) -> Any:
    """Takes out the first field of the image that says anything, and the empty ones before."""
    for name in IMAGE_FIELDS:
        if value := record.pop(name, None):
            return value
    return None


def _pop_texts(record: dict[str, Any]) -> tuple[list[str], Any]:
    """Takes out the texts of the first field that has any; without them, what the fields hold."""
    texts, used = first_texts(record, _CAPTION_FIELDS)
    told = None
    for name in _CAPTION_FIELDS:
        value = record.pop(name, None)
        told = value if told is None else told
        if name == used:
            break
    return texts, told


def _why_empty(captions: Any) -> str | None:
    """The reason that `openblip caption` writes beside an empty text."""
    items = captions if isinstance(captions, list) else []
    reasons = (item.get("reason") for item in items if isinstance(item, dict))
    return next((reason for reason in reasons if isinstance(reason, str)), None)
