"""Sentences about two images: NLVR2's own files, and the lists that BLIP's authors distribute."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from openblip.data.importers.gathered import Gathered, GatheredSource, fields_of
from openblip.data.importers.image_folders import find_images
from openblip.data.importers.source import SourceOptions
from openblip.data.importers.splits import both_splits, pop_split

# "split-set_id-pair_id-sentence_id"; images are called after the first three.
_IDENTIFIER = re.compile(r"^(?P<pair>(?P<split>train|dev|test\d?)-\d+-\d+)-\d+$")
_Names = list[tuple[str, ...]]


def nlvr_source(file: Path, records: Sequence[Any], options: SourceOptions) -> GatheredSource:
    """The official `train.json`, `dev.json` and `test1.json`: an example a line.

    The left image of `dev-850-0-0` is `dev-850-0-img0.png`, the right one `dev-850-0-img1.png`, in
    the folder of images or in `dev` below it; those of training in their `directory`. The split
    is that of the identifier.

    Raises:
        DataError: the images are nowhere to be found.
    """
    entries = [fields_of(record) for record in records]
    gathered = _gathered(file, (_official_names(entry) for entry in entries), options)
    for number, entry in enumerate(entries, 1):
        found = _identified(entry)
        if found is None:
            gathered.refuse(f"line {number}", "needs an identifier such as dev-850-0-0")
            continue
        names = _official_names(entry)
        split = both_splits(pop_split(entry), found["split"])
        _add(gathered, f"line {number}", entry, names, split, found[0])
    return GatheredSource("nlvr", gathered)


def nlvr_list_source(file: Path, records: Sequence[Any], options: SourceOptions) -> GatheredSource:
    """A list of objects with `images` (two paths), `sentence` and `label`.

    This is the form of `nlvr_train.json`, `nlvr_dev.json` and `nlvr_test.json` of BLIP. They have
    no identifiers: predictions for the official evaluation need the official files. The split is
    what the record or the file's name says.
    """
    entries = [fields_of(record) for record in records]
    gathered = _gathered(file, (_listed_names(entry) for entry in entries), options)
    for number, entry in enumerate(entries):
        names = _listed_names(entry)
        if not names:
            gathered.refuse(f"record {number}", "needs two paths in images")
            continue
        _add(gathered, f"record {number}", entry, names, pop_split(entry), None)
    return GatheredSource("nlvr", gathered)


def _identified(entry: Mapping[str, Any]) -> re.Match[str] | None:
    return _IDENTIFIER.match(str(entry.get("identifier")))


def _official_names(entry: Mapping[str, Any]) -> _Names:
    """Where the two images may be, the id of each last; none without an identifier."""
    if (found := _identified(entry)) is None:
        return []
    folders = [f"{found['split']}/"]
    if entry.get("directory") is not None:
        own = f"{entry['directory']}/"
        folders = [f"train/{own}", f"images/train/{own}", own]
    names = [f"{found['pair']}-img{side}.png" for side in (0, 1)]
    return [(*(folder + name for folder in folders), name) for name in names]


def _listed_names(entry: Mapping[str, Any]) -> _Names:
    names = entry.get("images")
    is_pair = isinstance(names, list) and len(names) == 2
    is_named = is_pair and all(isinstance(name, str) for name in names or ())
    return [(str(name),) for name in names or ()] if is_named else []


def _gathered(file: Path, pairs: Iterable[_Names], options: SourceOptions) -> Gathered:
    names = (name for pair in pairs for several in pair for name in several)
    return Gathered(file, find_images(file, names, options))


def _add(
    gathered: Gathered,
    what: str,
    entry: Mapping[str, Any],
    names: _Names,
    split: str | None,
    identifier: str | None,
) -> None:
    """Adds a sentence about two images, as `openblip.data.image_pairs` reads it.

    The record is the first image's; one that is never first is none.
    """
    sentence, label = entry.get("sentence"), str(entry.get("label")).lower()
    if not isinstance(sentence, str) or label not in ("true", "false"):
        gathered.refuse(what, "needs a sentence, and a label that is true or false")
        return
    keys = [gathered.folder.below(several[-1]) for several in names]
    for number, key, several in zip((1, 0), keys, names, strict=True):
        image = gathered.image(key, several, split, number)
        image.may_lack_captions = True
    pair = {"second": keys[1], "sentence": sentence, "label": label == "true"}
    if identifier is not None:
        pair["pair_id"] = identifier
    gathered.images[keys[0]].meta.setdefault("pairs", []).append(pair)
