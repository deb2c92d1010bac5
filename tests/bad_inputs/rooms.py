"""More cases: of index, search, review, texts from elsewhere, export and the studio.

They have numbers of their own, so that those of `cases.py` stay what they are. A studio would serve
until somebody ends it: in each of its cases stands, last, an address that no machine has.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random

from .cases import (
    Case,
    damaged_model,
    damaged_table,
    foreign_table,
    shown_somewhere,
    with_odd_words,
    words_of,
)
from .damage import damaged_bytes, damaged_value, dumped, put_odd_file

# TABLE stands for a table to write to, PHOTOS for a folder with an index, NOWHERE for an address of
# which a studio cannot be served; the rest is as in `cases.py`.
_TABLE = {
    "capfilt review": "TABLE --json",
    "capfilt review ": "TABLE --export-sample OUT/sheet.csv --by rejected",
    "capfilt review  ": "TABLE --verdicts BASE/sheet.csv --reviewer ann",
    "capfilt add-texts": "TABLE BASE/texts.jsonl --name other",
    "index build": "TABLE --model BASE/model --processes 1 --device cpu",
    "index update": "TABLE --processes 1 --device cpu",
    "index show": "TABLE",
    "search": "TABLE dog --device cpu --page OUT/page.html",
    "search ": "TABLE --like row00 --device cpu --csv",
    "studio": "TABLE NOWHERE",
}
_PHOTOS = {
    "index build": "PHOTOS --model BASE/model --device cpu",
    "index update": "PHOTOS --device cpu",
    "index show": "PHOTOS",
    "search": "PHOTOS dog --device cpu --model BASE/model",
    "studio": "PHOTOS NOWHERE",
}
_MODEL = {
    "export": "MODEL OUT/exported",
    "export ": "MODEL OUT/exported --int8 --json",
    "index build": "BASE/photos --table OUT/i.lance --model MODEL --device cpu",
    "search": "BASE/indexed.lance dog --model MODEL --device cpu",
}
_FILE = {
    "capfilt review": ("TABLE --verdicts FILE --reviewer ann", "sheet.csv"),
    "capfilt add-texts": ("TABLE FILE --name other", "texts.jsonl"),
    "search": ("BASE/indexed.lance --image FILE --device cpu", "sources/photo.png"),
}
_FLAGS = {
    **_TABLE,
    "export": "BASE/captioner OUT/exported",
    "studio": "BASE/photos --runs BASE/runs",
}
_NUMBERS = (
    "--batch-size --processes --save-seconds --size --threshold --precision --confidence --seed "
    "--port --weights --k --rerank --cache --image-size --where.processes"
)
_NAMES = (
    "--model --table --device --backend --ray --json --csv --page --image --not --like --where "
    "--name --replace --filter --verdicts --export-sample --reviewer --by --score --source --rows "
    "--to --int8 --overwrite --open --host --token --runs --captioner --vqa"
)
# Of the addresses that are kept for documentation.
_NOWHERE = ["--host", "192.0.2.1", "--token", "a" * 16, "--no-open"]


def make_room_case(number: int, seed: int, base: Path, out: Path) -> Case:
    """Case `number` of a seed, whose inputs are written below `out`, an empty folder."""
    random = Random(f"rooms {seed}-{number}")
    make = random.choices(list(_MAKERS), list(_MAKERS.values()))[0]
    return shown_somewhere(random, make(random, base, out))


def _command(name: str, line: str, base: Path, out: Path, **named: Path) -> Case:
    """The case of a line, with a table or a folder of its own where it names none that is there."""
    good = "indexed.lance" if name.split()[0] in ("index", "search", "studio") else "scored.lance"
    for word, source in (("TABLE", good), ("PHOTOS", "photos")):
        if word in line.split() and word not in named:
            named[word] = out / f"own-{source}"
            shutil.copytree(base / source, named[word])
    is_studio = name.strip() == "studio"
    words = words_of(name, line.removesuffix(" NOWHERE"), base, out, **named)
    return Case(words + (_NOWHERE if is_studio else []), must_fail=is_studio)


def _flags(random: Random, base: Path, out: Path) -> Case:
    name, line = random.choice(list(_FLAGS.items()))
    case = _command(name, line, base, out)
    end = _NOWHERE if case.must_fail else []
    words = case.words[: len(case.words) - len(end)]
    words = with_odd_words(random, words, len(name.split()), _NUMBERS.split(), _NAMES.split())
    return Case(words + end, case.must_fail)


def _on_table(random: Random, base: Path, out: Path) -> Case:
    """A table of somebody else, or one of ours of which one file is damaged or gone."""
    name, line = random.choice(list(_TABLE.items()))
    if random.random() < 0.6:
        return _command(name, line, base, out, TABLE=foreign_table(random, out))
    good = "indexed.lance" if random.random() < 0.7 else "scored.lance"
    damaged_table(random, base / good, out / "t.lance")
    return _command(name, line, base, out, TABLE=out / "t.lance")


def _photos(random: Random, base: Path, out: Path) -> Case:
    """A folder with an index, of which a photo, or a file of the index, is damaged or gone."""
    folder = out / "photos"
    shutil.copytree(base / "photos", folder)
    file = random.choice([path for path in folder.rglob("*") if path.is_file()])
    if random.random() < 0.3:
        is_lance = ".openblip" in file.parts and file.suffix != ".manifest"
        put_odd_file(random, file, with_pipes=not is_lance)
    else:
        file.write_bytes(damaged_bytes(random, file.read_bytes()))
    name, line = random.choice(list(_PHOTOS.items()))
    return _command(name, line, base, out, PHOTOS=folder)


def _on_model(random: Random, base: Path, out: Path) -> Case:
    name, line = random.choice(list(_MODEL.items()))
    kind = random.choice(("captioner", "vqa")) if name.strip() == "export" else "model"
    return _command(name, line, base, out, MODEL=damaged_model(random, base / kind, out))


def _file(random: Random, base: Path, out: Path) -> Case:
    name, (line, good) = random.choice(list(_FILE.items()))
    file = out / Path(good).name
    content = (base / good).read_bytes()
    if random.random() < 0.2:
        put_odd_file(random, file)
    elif good == "texts.jsonl" and random.random() < 0.5:
        lines = content.decode().splitlines()
        at = random.randrange(len(lines))
        lines[at] = dumped(damaged_value(random, json.loads(lines[at])))
        file.write_text("\n".join(lines) + "\n")
    else:
        file.write_bytes(damaged_bytes(random, content))
    return _command(name, line, base, out, FILE=file)


_MAKERS: dict[Callable[[Random, Path, Path], Case], int] = {
    _flags: 30,
    _on_table: 30,
    _photos: 12,
    _on_model: 8,
    _file: 20,
}
COMMANDS = {name.strip() for lines in (_TABLE, _PHOTOS, _MODEL, _FILE, _FLAGS) for name in lines}
"""What the cases are of."""
