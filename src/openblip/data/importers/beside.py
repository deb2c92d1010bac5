"""Which texts lie beside which images of a folder."""

import os
from collections import defaultdict
from collections.abc import Set
from dataclasses import dataclass, field
from pathlib import Path

from openblip.data.image_formats import IMAGE_SUFFIXES, is_image_file
from openblip.data.importers.side_texts import TEXT_ENDINGS

_BESIDE = (*TEXT_ENDINGS, "json")
# The longest first: of `a.caption.txt` more belongs to the ending than `.txt`.
_BY_LENGTH = sorted(_BESIDE, key=len, reverse=True)


def text_ending(name: str) -> str | None:
    """Which of the endings of texts and records a name has, the longest; None if it has none."""
    lower = name.lower()
    return next((ending for ending in _BY_LENGTH if lower.endswith(f".{ending}")), None)


@dataclass(frozen=True)
class Clash:
    """Images with texts between them that have to be of one of them."""

    images: list[str]
    texts: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        texts, images = " and ".join(self.texts), " and ".join(self.images)
        return f"{images} have {texts} between them: give each image a text of its own"


class Images:
    """The images among the files of one folder, each with what lies beside it.

    Attributes:
        names: of the images.
        beside: for each the names of its texts and records, those that count first.
        clashes: for images whose texts may be those of another one: with which.
        belonging: all names of texts and records that stand in one of these.
        unreadable: files into which one cannot look, and why.
    """

    def __init__(self, folder: Path, files: Set[str]) -> None:
        """Looks into the files whose suffixes say nothing.

        Args:
            folder: the folder.
            files: names in it.
        """
        self.unreadable: dict[str, str] = {}
        self.names = {name for name in files if self._is_image(folder, name)}
        self.beside: dict[str, list[str]] = defaultdict(list)
        self.clashes: dict[str, Clash] = {}
        self._of_stem = _by_stem(self.names)
        texts = sorted((name for name in files if text_ending(name)), key=_preference)
        self._attach([text for text in texts if text not in self.names])
        self.belonging = {text for own in self.beside.values() for text in own}
        self.belonging |= {text for clash in self.clashes.values() for text in clash.texts}

    def key(self, name: str) -> str:
        """The name without its suffix, if no other image has the same."""
        stem = os.path.splitext(name)[0]  # noqa: PTH122 - a name
        return stem if len(self._of_stem[stem]) == 1 else name

    def _is_image(self, folder: Path, name: str) -> bool:
        try:
            return text_ending(name) is None and is_image_file(folder / name)
        except OSError as error:
            self.unreadable[name] = f"cannot be read ({error.strerror})"
            return False

    def _attach(self, texts: list[str]) -> None:
        shared = []
        for text in texts:
            if (named := next((b for b in bases_of(text) if b in self.names), None)) is not None:
                self.beside[named].append(text)
            elif owners := next((o for b in bases_of(text) if (o := self._likely(b))), None):
                shared.append((text, owners))
        for text, owners in shared:
            # A text of its full name is an image's own, so that this one is of the others.
            without = [name for name in owners if not self.beside.get(name)]
            if len(owners) == 1:
                self.beside[owners[0]].append(text)
            elif without:
                clash = self.clashes.setdefault(without[0], Clash(without))
                clash.texts.append(text)
                self.clashes |= dict.fromkeys(without, clash)

    def _likely(self, stem: str) -> list[str]:
        """The images of that name but for the suffix; known suffixes count before others."""
        images = self._of_stem.get(stem, [])
        known = [name for name in images if Path(name).suffix.lower() in IMAGE_SUFFIXES]
        return sorted(known or images)


def _by_stem(names: Set[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    for name in names:
        found[os.path.splitext(name)[0]].append(name)  # noqa: PTH122 - a name
    return found


def bases_of(text: str) -> list[str]:
    """What an image may be called that has this text, the shortest first."""
    lower = text.lower()
    return [text[: -len(e) - 1] for e in _BY_LENGTH if lower.endswith(f".{e}")]


def _preference(text: str) -> tuple[int, str]:
    ending = text_ending(text)
    return (_BESIDE.index(ending) if ending else len(_BESIDE), text)
