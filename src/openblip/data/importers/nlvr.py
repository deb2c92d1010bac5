"""Sentences about two images: NLVR2's own files, and the lists that BLIP's authors distribute."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from openblip.data.importers.coco import ROOTS
from openblip.data.importers.gathered import Gathered, GatheredSource
from openblip.data.importers.source import SourceOptions
from openblip.errors import DataError

# "split-set_id-pair_id-sentence_id"; images are called after the first three.
_IDENTIFIER = re.compile(r"^(?P<pair>(?P<split>train|dev|test\d?)-\d+-\d+)-\d+$")


def nlvr_source(file: Path, records: Sequence[Any], options: SourceOptions) -> GatheredSource:
    """The official `train.json`, `dev.json` and `test1.json`: an example a line.

    The left image of `dev-850-0-0` is `dev-850-0-img0.png`, the right one `dev-850-0-img1.png`, in
    the folder of images or in `dev` below it; those of training in their `directory`.

    Raises:
        DataError: the images are nowhere to be found, or splits are mixed.
    """
    gathered = Gathered(file)
    splits: set[str] = set()
    for number, record in enumerate(records, 1):
        entry = record if isinstance(record, dict) else {}
        found = _IDENTIFIER.match(str(entry.get("identifier")))
        if found is None:
            gathered.refuse(f"line {number}", "needs an identifier such as dev-850-0-0")
            continue
        splits.add(found["split"])
        names = [f"{found['pair']}-img{side}.png" for side in (0, 1)]
        folders = [f"{found['split']}/"]
        if "directory" in entry:
            own = f"{entry['directory']}/"
            folders = [f"train/{own}", f"images/train/{own}", own]
        paths = [(*(folder + name for folder in folders), name) for name in names]
        _add(gathered, f"line {number}", entry, names, paths, found[0])
    if len(splits) > 1:
        raise DataError(f"{file} mixes the splits {', '.join(sorted(splits))}: import them apart")
    split = splits.pop() if splits else None
    return GatheredSource("nlvr", gathered, ROOTS, split, options)


def nlvr_list_source(file: Path, records: Sequence[Any], options: SourceOptions) -> GatheredSource:
    """A list of objects with `images` (two paths), `sentence` and `label`.

    This is the form of `nlvr_train.json`, `nlvr_dev.json` and `nlvr_test.json` of BLIP. They have
    no identifiers: predictions for the official evaluation need the official files. The split is
    what the file's name says.
    """
    gathered = Gathered(file)
    for number, record in enumerate(records):
        entry = record if isinstance(record, dict) else {}
        images = entry.get("images")
        is_pair = isinstance(images, list) and len(images) == 2
        if not is_pair or not all(isinstance(name, str) for name in images or ()):
            gathered.refuse(f"record {number}", "needs two paths in images")
            continue
        assert isinstance(images, list)
        _add(gathered, f"record {number}", entry, images, [(name,) for name in images], None)
    return GatheredSource("nlvr", gathered, ROOTS, None, options)


def _add(
    gathered: Gathered,
    where: str,
    entry: dict[str, Any],
    keys: list[str],
    paths: list[tuple[str, ...]],
    identifier: str | None,
) -> None:
    """Adds a sentence about two images, as `openblip.data.image_pairs` reads it."""
    sentence, label = entry.get("sentence"), str(entry.get("label")).lower()
    if not isinstance(sentence, str) or label not in ("true", "false"):
        gathered.refuse(where, "needs a sentence, and a label that is true or false")
        return
    first, _ = (gathered.image(key, names) for key, names in zip(keys, paths, strict=True))
    pair = {"second": keys[1], "sentence": sentence, "label": label == "true"}
    if identifier is not None:
        pair["pair_id"] = identifier
    first.meta.setdefault("pairs", []).append(pair)
