"""A small WordNet in the files of the real one, and nltk's reader of either."""

import shutil
import warnings
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

LICENCE = "  1 The licence stands here.  \n"


def write_wordnet(
    folder: Path, senses: Sequence[tuple[Sequence[str], Sequence[int]]], irregular: str = ""
) -> list[int]:
    """Write nouns, each with its words and the numbers of what it is a kind of.

    Returns:
        The key of each.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lines = [_line(words, [0] * len(above)) for words, above in senses]
    keys = [len(LICENCE) + sum(map(len, lines[:number])) for number in range(len(lines))]
    of_word: dict[str, list[int]] = defaultdict(list)
    data = LICENCE
    for key, (words, above) in zip(keys, senses, strict=True):
        data += f"{key:08d}" + _line(words, [keys[number] for number in above])[8:]
        for word in words:
            of_word[word].append(key)
    index = LICENCE
    for word, own in sorted(of_word.items()):
        places = " ".join(f"{key:08d}" for key in own)
        index += f"{word} n {len(own)} 1 @ {len(own)} 0 {places}  \n"
    (folder / "data.noun").write_text(data)
    (folder / "index.noun").write_text(index)
    (folder / "noun.exc").write_text(irregular)
    return keys


def _line(words: Sequence[str], above: Sequence[int]) -> str:
    texts = " ".join(f"{word} 0" for word in words)
    # The first kind is written as a class, a second one as what it is an instance of.
    pointers = "".join(
        f" {symbol} {key:08d} n 0000" for symbol, key in zip(("@", "@i"), above, strict=False)
    )
    other = " ~ 00000099 n 0000"
    return f"00000000 03 n {len(words):02x} {texts} {len(above) + 1:03d}{pointers}{other} | g  \n"


def nltk_reader(folder: Path, copy: Path) -> Any:
    """nltk's WordNet on the noun files of a folder; it wants files of the other words too."""
    nltk = pytest.importorskip("nltk")
    # It reads nothing outside of the folders that it is told.
    nltk.data.path.append(str(copy))
    copy.mkdir()
    for kind in ("adj", "adv", "verb", "noun"):
        for name in (f"index.{kind}", f"data.{kind}", f"{kind}.exc"):
            source = folder / name
            if kind == "noun":
                shutil.copy(source, copy / name)
            else:
                (copy / name).touch()
    (copy / "lexnames").write_text("".join(f"{n:02d} file{n} 1\n" for n in range(45)))
    # Without a table that leads from other versions to the one that nltk has downloaded.
    own = type("Reader", (nltk.corpus.reader.WordNetCorpusReader,), {"map_wn": lambda self: None})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return own(str(copy), None)
