"""Lists of captions that BLIP's authors distribute: COCO and Flickr30k by Karpathy, NoCaps."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from openblip.data.importers.coco import ROOTS
from openblip.data.importers.gathered import Gathered, GatheredSource
from openblip.data.importers.source import SourceOptions, texts_of

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


def _key(entry: dict[str, Any], name: str) -> str:
    if "img_id" in entry:
        return str(entry["img_id"])
    coco = _COCO_ID.search(name)
    return str(int(coco[1])) if coco else name
