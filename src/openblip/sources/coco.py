"""COCO caption annotations, and the split files of Karpathy and Fei-Fei (2015).

Also the numbers of images in files for COCO's own tools, which want a number for a name.
"""

import json
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from openblip.runtime.documents import unescaped
from openblip.runtime.errors import DataError
from openblip.sources.image_formats import IMAGE_SUFFIXES
from openblip.sources.records import (
    ROOTS,
    Gathered,
    GatheredImage,
    GatheredSource,
    fields_of,
    find_images,
    listed,
)
from openblip.sources.source import SourceOptions, first_texts, known_id, one_name
from openblip.sources.splits import both_splits, pop_split, split_in_name
from openblip.table.table import PairTable
from openblip.table.views import split_rows

_TEXTS = ("caption", "captions", "text")
# What annotations are that have no text; the first of these fields that there is says it.
_OTHER_KINDS = {
    "keypoints": "keypoints",
    "segments_info": "a panoptic segmentation",
    "segmentation": "a segmentation",
    "bbox": "a box",
    "category_id": "a class label",
}


def coco_source(file: Path, document: dict[str, Any], options: SourceOptions) -> GatheredSource:
    """`images` and `annotations` with captions, joined by image id.

    The id is COCO's image id, which is a number, or `openblip_id` where there is one. The split is
    that of `split` or `set_name` in the image, its annotations or `info`, or what the file's name
    says (`captions_val2014.json`, `nocaps_val_4500_captions.json`). An image with its annotations
    is one record; an annotation that belongs to none is another.

    Raises:
        DataError: the lists are missing, no annotation has a text, or the images are nowhere to
            be found.
    """
    images, annotations = (listed(file, document, name) for name in ("images", "annotations"))
    _check_texts(file, annotations)
    part = split_in_name(file.stem)
    roots = (*ROOTS, f"../{part}", part) if part else ROOTS
    names = (fields_of(image).get("file_name") for image in images)
    folder = find_images(file, (n for n in names if isinstance(n, str)), options, roots)
    said = both_splits(pop_split(fields_of(document.get("info"))), pop_split(document))
    gathered = Gathered(file, folder, said)
    found = {}
    for number, record in enumerate(images):
        image = fields_of(record)
        key, name, split = known_id(image.get("id")), image.get("file_name"), pop_split(image)
        if key is None or not isinstance(name, str):
            gathered.refuse(f"image {number}, {name}", "needs a file_name and an id")
            continue
        found[str(key)] = known = gathered.image(str(key), (name,), split)
        # Annotations refer to the number; the row has the id of the table that was exported.
        known.key = unescaped(str(image[COCO_ID])) if image.get(COCO_ID) else str(key)
        known.meta |= {n: v for n, v in image.items() if n not in ("id", COCO_ID)}
    for number, record in enumerate(annotations):
        _annotate(gathered, found, number, fields_of(record))
    return GatheredSource("coco", gathered)


def _annotate(
    gathered: Gathered,
    images: Mapping[str, GatheredImage],
    number: int,
    annotation: dict[str, Any],
) -> None:
    """Adds the texts of an annotation to its image."""
    what = f"annotation {annotation.get('id', number)}"
    image_id = known_id(annotation.get("image_id"))
    image = images.get(str(image_id))
    try:
        # A text is one, also if it looks like a list of texts.
        values = ((name, annotation.get(name)) for name in _TEXTS)
        whole = {name: [text] if isinstance(text, str) else text for name, text in values}
        texts, _ = first_texts(whole, _TEXTS)
    except ValueError as error:
        gathered.refuse(what, str(error))
        return
    if not texts:
        kind = _kind(annotation)
        gathered.refuse(what, f"is {kind}, and no caption" if kind else "has no text")
    elif image is None:
        told = annotation.get("image_id") if image_id is None else image_id
        gathered.refuse(
            what, f"is of the image {json.dumps(told)[:100]}, which the file does not have"
        )
    else:
        image.captions += texts
        image.split = both_splits(image.split, pop_split(annotation))


def _kind(annotation: Mapping[str, Any]) -> str | None:
    return next((kind for name, kind in _OTHER_KINDS.items() if name in annotation), None)


def _check_texts(file: Path, annotations: list[Any]) -> None:
    """Refuses a file of which all annotations are something else than texts."""
    if any(fields_of(record).get(name) is not None for record in annotations for name in _TEXTS):
        return
    kinds = Counter(_kind(fields_of(record)) for record in annotations)
    if annotations and None not in kinds:
        kind = kinds.most_common(1)[0][0]
        raise DataError(
            f"{file} has no captions: each of its {len(annotations):,} annotations is {kind}; "
            "import the file of captions, as captions_val2014.json beside instances_val2014.json"
        )


def karpathy_source(file: Path, document: dict[str, Any], options: SourceOptions) -> GatheredSource:
    """`images` with `sentences` and `split`, as in `dataset_coco.json` and `dataset_flickr8k.json`.

    The id is `cocoid`, or the file name where there is none; the split `restval` is training.
    Images lie in their `filepath`, or all in one folder.

    Raises:
        DataError: the list is missing, or the images are nowhere to be found.
    """
    images = listed(file, document, "images")
    numbers = Counter(str(fields_of(image).get("filename")) for image in images)
    names = [_karpathy_names(fields_of(image), numbers) for image in images]
    folder = find_images(file, (name for several in names for name in several), options)
    gathered = Gathered(file, folder, pop_split(document))
    for number, (record, own) in enumerate(zip(images, names, strict=True)):
        image, what = fields_of(record), f"image {number}"
        sentences = image.get("sentences")
        if not own or not isinstance(sentences, list):
            gathered.refuse(what, "needs a filename, and sentences, each with its raw text")
            continue
        texts = [_sentence(sentence) for sentence in sentences]
        known_texts = [text for text in texts if text is not None]
        if texts and not known_texts:
            gathered.refuse(what, "needs sentences, each with its raw text")
            continue
        key = known_id(image.get("cocoid"))
        split = pop_split(image)
        known = gathered.image(folder.below(own[0]) if key is None else str(key), own, split)
        known.key = str(one_name(image["filename"]) if key is None else key)
        known.captions += known_texts
        known.meta |= {k: v for k, v in image.items() if k != "sentences"}
        for place in (place for place, text in enumerate(texts) if text is None):
            gathered.remark(known, f"{what}, sentence {place}", "has no raw text")
    return GatheredSource("karpathy", gathered)


def _sentence(sentence: Any) -> str | None:
    """The text of a sentence, or its words where there is none."""
    said = fields_of(sentence)
    text, words = said.get("raw"), said.get("tokens")
    if isinstance(text, str):
        return text
    is_words = isinstance(words, list) and words and all(isinstance(word, str) for word in words)
    return " ".join(words) if is_words and isinstance(words, list) else None


def _karpathy_names(image: Mapping[str, Any], numbers: Mapping[str, int]) -> tuple[str, ...]:
    name, folder = image.get("filename"), image.get("filepath")
    if not isinstance(name, str):
        return ()
    if not isinstance(folder, str) or not folder:
        return (name,)
    # A name that two folders have says nothing without its folder.
    return (f"{folder}/{name}", name) if numbers[name] == 1 else (f"{folder}/{name}",)


COCO_ID = "openblip_id"
"""Field for the id of a row where that is no number."""
# At most 18 digits, which 64 bits hold; none before it, as the id must come back as it was.
_NUMBER = re.compile(r"0|[1-9][0-9]{0,17}")
# Of a COCO file name such as COCO_val2014_000000391895.jpg. More digits are no id but a hash.
_TRAILING_NUMBER = re.compile(r"(?:^|_)(\d{1,18})$")
_ROWS_TOGETHER = 8192


def image_id(name: str) -> int | str:
    """An image's id in COCO files: the number in its name, or else the name.

    A number counts if it is the whole name, or follows a `_` at its end, without the folders and
    the suffix: 391895 for `val2014/COCO_val2014_000000391895.jpg`, and for `391895`.
    """
    path = PurePosixPath(name)
    stem = path.stem if path.suffix.lower() in IMAGE_SUFFIXES else path.name
    found = _TRAILING_NUMBER.search(stem)
    return int(found[1]) if found else name


class CocoIds:
    """The numbers of a split's images: their ids if all are numbers, else their places.

    They depend on nothing but the table, so that results are about the images of an export.
    """

    def __init__(self, table: PairTable, split: str) -> None:
        """Looks at the ids of the split.

        Raises:
            DataError: the split has no row.
        """
        rows = split_rows(table, split)
        parts = (
            rows[start : start + _ROWS_TOGETHER] for start in range(0, len(rows), _ROWS_TOGETHER)
        )
        self.are_own = all(
            _NUMBER.fullmatch(key)
            for some in parts
            for key in table.take(some, ["id"])["id"].to_pylist()
        )
        """Whether the numbers are the ids."""

    def fields(self, row_id: str, row: int, name: str) -> dict[str, int | str]:
        """The number of an image under a name, and the row's id where the number is not that.

        Args:
            row_id: of the image's row.
            row: its number in the table, from 0.
            name: `id` of images, `image_id` of what is about them.
        """
        if self.are_own:
            return {name: int(row_id)}
        return {name: row + 1, COCO_ID: row_id}
