"""Where the images lie that a file of annotations names."""

import os
import posixpath
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from openblip.runtime.errors import DataError
from openblip.sources.source import (
    SourceOptions,
    UnsafePath,
    inside,
    is_address,
    is_file,
    name_below,
    one_name,
)

# Tried below the file's folder; with COCO's usual layout it is annotations/captions_val2014.json
# beside val2014/, and FiftyOne writes labels.json beside data/.
ROOTS = (".", "images", "data", "..", "../images")
_COCO_PARTS = ("train2014", "val2014", "test2014", "test2015")
_COCO_2017 = ("train2017", "val2017", "test2017")
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")
"""What a name without a suffix may lack."""
_DRIVE = re.compile(r"^[A-Za-z]:[\\/]")
# Folders that names are looked for in, so that odd lists cost no minutes.
_MAX_FOLDERS = 2000


@dataclass(frozen=True)
class ImageFolder:
    """The folder below which the images of a file lie."""

    root: Path
    prefix: str = ""
    """What absolute names begin with in the place of `root`, as on the machine that they come
    from, the last `/` included; empty where there are none."""

    def below(self, name: str) -> str:
        """The one name that a file has below `root`, however it is spelt.

        One that does not lie there stays where it is.
        """
        name = one_name(name)
        if "\\" in name and not is_file(self.root / name):
            name = one_name(_with_slashes(name))
        if self.prefix and name.startswith(self.prefix):
            return name.removeprefix(self.prefix)
        return name_below(self.root, name)

    def path(self, name: str) -> Path:
        """The path of an image.

        Raises:
            UnsafePath: the name points out of `root`.
        """
        return inside(self.root, self.below(name))

    def folder_of(self, name: str) -> str:
        """The folder that a name says, below `root`; empty where it says none."""
        below = self.below(name)
        return "" if below.startswith("/") else posixpath.dirname(below)


def find_images(
    file: Path, names: Iterable[str], options: SourceOptions, roots: Iterable[str] = ROOTS
) -> ImageFolder:
    """The folder below which most of the images are found, or the one that the user names.

    Names that are absolute, as on another machine, lie below it from one place in them on, which
    is the same for all: so no two of them can mean one file.

    Args:
        file: of annotations.
        names: of all images; some may be missing, or in other folders.
        options: may name the folder.
        roots: folders to look in, relative to that of the file.

    Raises:
        DataError: there are images, and none is found.
    """
    groups = _by_folder(names)
    told = options.image_root
    best, most = ImageFolder(told or file.parent), 0
    for root in [told] if told else [file.parent / root for root in roots]:
        number, prefix = _search(root, groups, is_told=told is not None)
        if number > most:
            best, most = ImageFolder(root, prefix), number
    if groups and not (most or told):
        searched = ", ".join(dict.fromkeys(roots))
        raise DataError(
            f"the images of {file} are in none of the folders {searched} beside it: name the "
            "folder that their paths start from (image_root)"
        )
    return best


def folder_told(root: Path, names: Iterable[str]) -> ImageFolder:
    """The folder that the user names for a list, of which `names` are some of the first."""
    return ImageFolder(root, _search(root, _by_folder(names), is_told=True)[1])


def coco_names(image_id: int) -> tuple[str, ...]:
    """Where an image of COCO may be, whose id is the same in all years and parts."""
    name = f"{image_id:012d}.jpg"
    below = (f"{part}/{name}" for part in _COCO_2017)
    older = [f"COCO_{part}_{name}" for part in _COCO_PARTS]
    parts = (f"{part}/{old}" for part, old in zip(_COCO_PARTS, older, strict=True))
    return (name, *below, *parts, *older)


def with_suffixes(name: str) -> tuple[str, ...]:
    """The files that a name without its suffix may mean; the name itself first."""
    return (name, *(f"{name}{suffix}" for suffix in SUFFIXES))


def _by_folder(names: Iterable[str]) -> Mapping[str, set[str]]:
    groups: dict[str, set[str]] = defaultdict(set)
    for name in names:
        if is_address(name):
            continue  # Each is refused for what it is.
        for spelt in {one_name(name), one_name(_with_slashes(name))}:
            folder, base = posixpath.split(spelt)
            if folder in groups or len(groups) < _MAX_FOLDERS:
                groups[folder].add(base)
    return groups


def _with_slashes(name: str) -> str:
    """A path of Windows as others write it."""
    return name if name.startswith("/") else name.replace("\\", "/")


def _search(root: Path, groups: Mapping[str, set[str]], is_told: bool) -> tuple[int, str]:
    """How many names lie below `root`, and the prefix with which most absolute ones do.

    Of absolute names a folder must be left at least, unless the user names `root`: else any
    `1.jpg` would do. Where relative names are found, these say what lies in `root`.
    """
    relative, absolute = 0, Counter[str]()
    own = f"{root.as_posix().rstrip('/')}/"
    for folder, bases in groups.items():
        if not (folder.startswith("/") or _DRIVE.match(f"{folder}/")):
            relative += _number_of(root, folder, bases)
            continue
        parts = folder.split("/")
        # From the longest remainder on, so that among equals most of a name is kept.
        for cut in range(1, len(parts) + 1) if ".." not in parts else ():
            prefix, rest = "/".join(parts[:cut]) + "/", "/".join(parts[cut:])
            if rest or is_told or prefix == own:
                absolute[prefix] += _number_of(root, rest, bases)
    if relative:
        return relative + absolute[own], ""
    prefix, number = absolute.most_common(1)[0] if absolute else ("", 0)
    return number, prefix if number else ""


def _number_of(root: Path, folder: str, bases: set[str]) -> int:
    """How many files of these names are in a folder below `root`."""
    try:
        where = inside(root, f"{folder}/_").parent if folder else root
        with os.scandir(where) as entries:
            return sum(entry.name in bases and entry.is_file() for entry in entries)
    except (OSError, ValueError, UnsafePath):
        return 0
