"""Lists of captions that BLIP's authors distribute: COCO and Flickr30k by Karpathy, NoCaps."""

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from openblip.data.coco_ids import COCO_ID, image_id
from openblip.data.image_formats import IMAGE_SUFFIXES
from openblip.data.importers.coco import ROOTS
from openblip.data.importers.gathered import Gathered, GatheredSource
from openblip.data.importers.source import SourceOptions, name_below, texts_of

_COCO_ID = re.compile(r"COCO_[a-z]+\d{4}_(\d{12})\.")
_USED = ("image", "caption", "captions", "image_id")


def caption_list_source(
    file: Path, records: Sequence[Any], options: SourceOptions
) -> GatheredSource:
    """A list of objects with `image` and `caption` (or `captions`): a text, or several.

    This is the form of `coco_karpathy_train.json` and `flickr30k_train.json` (a record for each
    caption), of the `val` and `test` files beside them (one for each image), and of
    `nocaps_val.json`, which may lack captions. The id is `img_id`, or COCO's image id in the name
    of the file, or the path; the split is what the file's name says.
    """
    gathered = Gathered(file)
    for number, record in enumerate(records):
        entry = record if isinstance(record, dict) else {}
        name = entry.get("image")
        if not isinstance(name, str):
            gathered.refuse(f"record {number}", "needs a path in image")
            continue
        try:
            captions = texts_of(entry.get("caption", entry.get("captions")))
        except ValueError as error:
            gathered.refuse(f"record {number}", str(error))
            continue
        if not captions and "img_id" not in entry:
            gathered.refuse(f"record {number}", "needs a caption")
            continue
        image = gathered.image(_key(entry, name), (name,))
        image.captions += captions
        image.meta |= {field: value for field, value in entry.items() if field not in _USED}
    return GatheredSource("captions", gathered, ROOTS, None, options)


def results_source(file: Path, records: Sequence[Any], options: SourceOptions) -> GatheredSource:
    """A list of objects with `image_id` and `caption`: COCO's results, of `openblip caption` too.

    The image is the file of that path, or else the one whose name has that number at its end,
    below the folder of the file, or `image_root`.
    """
    gathered, root = Gathered(file), options.image_root or file.parent
    names: dict[int | str, list[str]] = defaultdict(list)
    for path in sorted(root.rglob("*")):
        if path.suffix.lower() in IMAGE_SUFFIXES:
            name = path.relative_to(root).as_posix()
            names[image_id(name)].append(name)
    for number, record in enumerate(records):
        entry = record if isinstance(record, dict) else {}
        key, caption = entry.get("image_id"), entry.get("caption")
        if not isinstance(key, int | str) or not isinstance(caption, str):
            gathered.refuse(f"record {number}", "needs an image_id and a caption")
            continue
        found = names[key] if isinstance(key, int) else [name_below(root, key)]
        if len(found) != 1:
            why = "several image files have" if found else "no image file has"
            gathered.refuse(f"record {number}", f"{why} the number {key} in the name, below {root}")
            continue
        is_number = isinstance(key, int)
        image = gathered.image(str(key) if is_number else found[0], (found[0],))
        image.captions.append(caption)
        used = (*_USED, COCO_ID)
        image.meta |= {field: value for field, value in entry.items() if field not in used}
    return GatheredSource("captions", gathered, ROOTS, None, options)


def _key(entry: dict[str, Any], name: str) -> str:
    if "img_id" in entry:
        return str(entry["img_id"])
    coco = _COCO_ID.search(name)
    return str(int(coco[1])) if coco else name
