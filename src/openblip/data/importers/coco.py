"""COCO caption annotations, and the split files of Karpathy and Fei-Fei (2015)."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from openblip.data.coco_ids import COCO_ID
from openblip.data.importers.source import (
    Cursor,
    Entry,
    Found,
    Refused,
    SourceOptions,
    UnsafePath,
    inside,
    is_file,
    plain,
)
from openblip.data.importers.splits import split_in_name
from openblip.data.report import Reason
from openblip.errors import DataError

# Tried below the JSON file's folder for the first image; with COCO's usual layout it is
# annotations/captions_val2014.json beside val2014/.
ROOTS = (".", "images", "..", "../images")


class CocoSource:
    """`images` and `annotations` with captions, joined by image id.

    The id is COCO's image id, which is a number, or `openblip_id` where there is one. The split is
    what the file's name says (`captions_val2014.json`, `nocaps_val_4500_captions.json`).
    The file is held in memory; images are read one by one.
    """

    format = "coco"

    def __init__(self, file: Path, document: Mapping[str, Any], options: SourceOptions) -> None:
        """Joins texts to images.

        Raises:
            DataError: the lists are missing, or the images are nowhere to be found.
        """
        self._file = file
        self._images = objects_of(file, document, "images")
        ids = {str(image.get("id")) for image in self._images}
        self._captions: dict[str, list[str]] = defaultdict(list)
        self._stray: list[Mapping[str, Any]] = []
        for annotation in objects_of(file, document, "annotations"):
            image_id, caption = str(annotation.get("image_id")), annotation.get("caption")
            if image_id in ids and isinstance(caption, str):
                self._captions[image_id].append(caption)
            else:
                self._stray.append(annotation)
        part = split_in_name(file.stem)
        roots = (*ROOTS, f"../{part}", part) if part else ROOTS
        self._root = image_folder(file, [i.get("file_name") for i in self._images], roots, options)

    def total(self) -> int:
        """Number of images, and of annotations that belong to none."""
        return len(self._images) + len(self._stray)

    def entries(self, cursor: Cursor | None) -> Iterator[Entry]:
        """Yields one entry for each image, then one for each stray annotation."""
        done = int(cursor["index"]) if cursor else 0
        for index, image in enumerate(self._images):
            if index >= done:
                yield self._entry(image, {"index": index + 1})
        for index, annotation in enumerate(self._stray, len(self._images)):
            if index >= done:
                where = f"{self._file.name} annotation {annotation.get('id')}"
                detail = "has no text, or is of an image that is not in the file"
                yield Refused(where, {"index": index + 1}, Reason.BAD_RECORD, detail)

    def _entry(self, image: Mapping[str, Any], cursor: Cursor) -> Entry:
        name, key = image.get("file_name"), image.get("id")
        where = f"{self._file.name} image {key}, {name}"
        if not isinstance(name, str) or key is None:
            return Refused(where, cursor, Reason.BAD_RECORD, "needs a file_name and an id")
        try:
            path = inside(self._root, name)
        except UnsafePath as error:
            return Refused(where, cursor, Reason.UNSAFE_PATH, str(error))
        return Found(
            where=where,
            cursor=cursor,
            image=path,
            captions=self._captions.get(str(key), []),
            key=str(image.get(COCO_ID, key)),
            place=self._file,
            image_folder=str(PurePosixPath(name).parent),
            meta={n: plain(v) for n, v in image.items() if n not in ("id", COCO_ID)},
        )


class KarpathySource:
    """`images` with `sentences` and `split`, as in `dataset_coco.json` and `dataset_flickr8k.json`.

    The id is `cocoid`, or the file name where there is none; the split `restval` is training.
    The file is held in memory; images are read one by one.
    """

    format = "karpathy"

    def __init__(self, file: Path, document: Mapping[str, Any], options: SourceOptions) -> None:
        """Looks for the images.

        Raises:
            DataError: the list is missing, or the images are nowhere to be found.
        """
        self._file = file
        self._images = objects_of(file, document, "images")
        self._root = image_folder(file, [_karpathy_name(i) for i in self._images], ROOTS, options)

    def total(self) -> int:
        """Number of images."""
        return len(self._images)

    def entries(self, cursor: Cursor | None) -> Iterator[Entry]:
        """Yields one entry for each image."""
        done = int(cursor["index"]) if cursor else 0
        for index, image in enumerate(self._images[done:], done):
            yield self._entry(image, f"{self._file.name} image {index}", {"index": index + 1})

    def _entry(self, image: Mapping[str, Any], where: str, cursor: Cursor) -> Entry:
        try:
            name = _karpathy_name(image)
            if name is None:
                raise ValueError("needs a filename")
            path = inside(self._root, name)
            captions = [str(sentence["raw"]) for sentence in image["sentences"]]
        except UnsafePath as error:
            return Refused(where, cursor, Reason.UNSAFE_PATH, str(error))
        except (KeyError, TypeError, ValueError) as error:
            detail = f"needs sentences, each with its raw text: {error!r}"
            return Refused(where, cursor, Reason.BAD_RECORD, detail)
        split = image.get("split")
        return Found(
            where=f"{where}, {name}",
            cursor=cursor,
            image=path,
            captions=captions,
            key=str(image.get("cocoid", image["filename"])),
            split=None if split is None else str(split),
            place=self._file,
            image_folder=str(PurePosixPath(name).parent),
            meta={k: plain(v) for k, v in image.items() if k not in ("sentences", "split")},
        )


def objects_of(file: Path, document: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    """The list of objects of that name in a JSON file.

    Raises:
        DataError: it is missing, or no such list.
    """
    values = document.get(name)
    if not isinstance(values, list) or not all(isinstance(value, dict) for value in values):
        raise DataError(f"{file}: {name!r} is not a list of objects")
    return values


def _karpathy_name(image: Mapping[str, Any]) -> str | None:
    name = image.get("filename")
    if not isinstance(name, str):
        return None
    return f"{image['filepath']}/{name}" if image.get("filepath") else name


def image_folder(
    file: Path, names: Sequence[str | None], roots: tuple[str, ...], options: SourceOptions
) -> Path:
    """The folder below which the images lie: as told, or where one of the first is found."""
    if options.image_root is not None:
        return options.image_root
    for root in (file.parent / root for root in roots):
        for name in names[:20]:
            try:
                if isinstance(name, str) and is_file(inside(root, name)):
                    return root
            except UnsafePath:
                continue
    raise DataError(
        f"the images of {file} are in none of {', '.join(str(file.parent / r) for r in roots)}: "
        "name the folder that their paths start from (image_root)"
    )
