"""Names in web captions of the embedded world: facts that no picture and no human caption shows.

Somebody's name stands behind the noun of a group ("a red circle named Kelmir"), a place's at the
end ("in Dorburg"). There are 256 and 128 of them, of few syllables.
"""

import re

from openblip.world.config import WorldConfig
from openblip.world.scene import KINDS, Dice

_FIRST = (
    *("Bel", "Dor", "Fen", "Gal", "Hal", "Jor", "Kel", "Lun"),
    *("Mar", "Nor", "Pel", "Qui", "Ros", "Sel", "Tor", "Vel"),
)
_LAST = (
    *("ado", "bia", "cor", "dan", "eth", "fin", "gar", "ian"),
    *("lo", "mir", "na", "os", "ra", "ton", "ul", "vek"),
)
_PLACES = ("burg", "land", "port", "stan", "mere", "ville", "wick", "gate")
BEINGS = tuple(first + last for first in _FIRST for last in _LAST)
PLACES = tuple(first + last for first in _FIRST for last in _PLACES)

_NOUN = re.compile(rf"\b(?:{'|'.join((*KINDS, 'disc'))})\b", re.IGNORECASE)
_NAMED, _AT = ("named", "called"), ("in", "at")
_PHRASE = re.compile(
    rf"\s+(?:(?:{'|'.join(_NAMED)})\s+(?:{'|'.join(BEINGS)})"
    rf"|(?:{'|'.join(_AT)})\s+(?:{'|'.join(PLACES)}))\b",
    re.IGNORECASE,
)
_NAME = re.compile(rf"\b(?:{'|'.join((*BEINGS, *PLACES))})\b", re.IGNORECASE)


def name_caption(
    caption: str, kind: str, dice: Dice, config: WorldConfig
) -> tuple[str, tuple[str, ...]]:
    """A web caption with the names that it has, and these; English captions alone have any.

    Args:
        caption: a web caption of any kind.
        kind: its kind; boilerplate names nobody.
        dice: of the row.
        config: says how often.
    """
    if config.language != "en" or kind == "boilerplate" or not dice.chance(config.names):
        return caption, ()
    being, place = dice.choose(BEINGS), dice.choose(PLACES)
    noun = _NOUN.search(caption)
    which = dice.choose(("being", "place", "both")) if noun else "place"
    names = []
    if noun and which != "place":
        end = noun.end()
        caption = f"{caption[:end]} {dice.choose(_NAMED)} {being}{caption[end:]}"
        names.append(being)
    if which != "being":
        caption = f"{caption} {dice.choose(_AT)} {place}"
        names.append(place)
    return caption, tuple(names)


def names_in(text: str) -> set[str]:
    """The names of the world that stand in a text, in lower case."""
    return {name.lower() for name in _NAME.findall(text)}


def without_names(text: str) -> str:
    """A text as the world's grammar reads it: without its names and the words that lead to them."""
    return _PHRASE.sub("", text)
