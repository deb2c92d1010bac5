"""The cases: words of a command line, and the damaged inputs that they name."""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import lance
import pyarrow as pa

from .base import columns, scores
from .damage import (
    ODD_NUMBERS,
    ODD_TEXTS,
    damaged_bytes,
    damaged_column,
    damaged_value,
    dumped,
    odd_value,
    put_odd_file,
)

# BASE stands for the folder of good inputs, OUT for an empty one; the rest is as typed.
_TABLE = {
    "data show": "TABLE",
    "data export": "TABLE OUT/exported --format webdataset",
    "data export ": "TABLE OUT/exported --format parquet --itm 0.5 --sources web synthetic",
    "data export  ": "TABLE OUT/exported --format coco --rejected --split val",
    "data duplicates": "TABLE --threads 1",
    "data leakage": "TABLE TABLE --split test",
    "capfilt select": "TABLE",
    "capfilt report": "TABLE -o OUT/page.html",
    "capfilt scores": "TABLE --filter BASE/model",
    "capfilt fit": "TABLE --images 60",
    "capfilt status": "TABLE",
    "capfilt run": "TABLE --captioner BASE/captioner --filter BASE/model --processes 1",
    "evaluate retrieval": "BASE/model TABLE --k 2",
    "evaluate caption": "BASE/captioner TABLE --num-beams 1",
    "evaluate vqa": "BASE/vqa TABLE --candidates train",
    "evaluate nlvr": "BASE/model TABLE",
    "evaluate classify": "BASE/model TABLE",
    "caption": "TABLE --model BASE/captioner",
    "pretrain": "RECIPE OUT/run",
    "compare": "COMPARE -o OUT/compared --plan",
}
_MODEL = {
    "caption": "BASE/sources/photo.png --model MODEL",
    "match": "BASE/sources/photo.png text --model MODEL",
    "ask": "BASE/sources/photo.png question --model MODEL",
    "explain": "BASE/sources/photo.png text --model MODEL -o OUT/map.png",
    "convert": "MODEL OUT/converted",
    "evaluate retrieval": "MODEL BASE/pairs.lance",
    "finetune": "captioner BASE/pairs.lance OUT/run --init-from MODEL --train.epochs 1",
}
_FILE = {
    "match": "FILE text --model BASE/model",
    "ask": "FILE question --model BASE/vqa --candidates yes no",
    "explain": "FILE text --model BASE/model -o OUT/map.png",
    "caption": "FILE --model BASE/captioner",
    "ask ": "BASE/sources/photo.png question --model BASE/vqa --candidates-file FILE",
    "evaluate vqa": "BASE/vqa BASE/pairs.lance --candidates FILE",
    "evaluate videoqa": "BASE/vqa FILE BASE/sources",
    "evaluate video": "BASE/model FILE BASE/sources",
    "data import": "FILE OUT/t.lance",
    "pretrain": "FILE OUT/run --train.steps 1",
    "compare": "FILE -o OUT/compared --plan",
    "plan": "FILE --gpu a100-40g",
}
_FLAGS = {
    **{name: words.replace("TABLE", "BASE/scored.lance") for name, words in _TABLE.items()},
    **{f"{name} ": words.replace("MODEL", "BASE/captioner") for name, words in _MODEL.items()},
    "plan": "tiny --gpu a100-40g --images 1000",
    "runs": "BASE/runs",
    "data import": "BASE/sources/images OUT/t.lance",
    "data import ": "BASE/sources/pairs.parquet OUT/t.lance",
    "evaluate videoqa": "BASE/vqa BASE/sources/list.json BASE/sources",
    "evaluate video": "BASE/model BASE/sources/list.json BASE/sources",
    "ask": "BASE/sources/photo.png question --model BASE/vqa",
}
# Of any command: flags with numbers, and flags with words.
_NUMBERS = (
    "--rows --limit --threads --shard-size --batch-size --k --seed --num-beams --max-length "
    "--min-length --num-captions --top-p --processes --workers --save-seconds --threshold "
    "--thresholds --itm --radius --colour --cosine --text --jobs --image-size --layer --gpus "
    "--images --utilisation --network --mean-tokens --price-per-hour --num-frames --min-count "
    "--train.steps --train.batch-size --optimiser.lr --train.threads --data.image-size "
    "--data.weight --objectives.queue-size --train.log-every --lora.rank --stability.rewinds"
)
_NAMES = (
    "--split --format --output --model --results --report --page --candidates --method --prompt "
    "--sources --itm-of --without --templates --exclude --label-field --image-root --first-token "
    "--image-column --caption-column --id-column --ids --store --origin --device --dtype --kind "
    "--to --question --answer --json --overwrite --sidecar --wups --plan --ray --gpu "
    "--data.table --data.mix --init-from --train.device --tokenizer"
)
_NUMBER_FLAGS, _WORD_FLAGS = _NUMBERS.split(), _NAMES.split()
ENCODINGS = ("utf-8", "ascii", "cp1252", "latin-1", "utf-16")


@dataclass(frozen=True)
class Case:
    """One command line with its inputs in place."""

    words: list[str]
    must_fail: bool = False
    """Whether an exit code of 0 would be a lie."""
    encoding: str = "utf-8"
    """Of standard output and error."""
    terminal_columns: str = "80"


def make_case(number: int, seed: int, base: Path, out: Path) -> Case:
    """Case `number` of a seed, whose inputs are written below `out`, an empty folder."""
    random = Random(f"{seed}-{number}")
    make = random.choices(list(_MAKERS), list(_MAKERS.values()))[0]
    return shown_somewhere(random, make(random, base, out))


def shown_somewhere(random: Random, case: Case) -> Case:
    """The case on a terminal of some encoding and width."""
    return Case(
        case.words,
        case.must_fail,
        random.choices(ENCODINGS, (12, 2, 2, 1, 1))[0],
        random.choice(("80", "80", "80", "1", "0", "-5", "x", "200")),
    )


def words_of(name: str, words: str, base: Path, out: Path, **named: Path) -> list[str]:
    given = {"BASE": base, "OUT": out, **named}
    made = []
    for word in f"{name} {words}".split():
        head, slash, tail = word.partition("/")
        made.append(f"{given[head]}{slash}{tail}" if head in given else word)
    return made


def _flags(random: Random, base: Path, out: Path) -> Case:
    name, line = random.choice(list(_FLAGS.items()))
    line = line.replace("RECIPE", "BASE/recipe.yaml").replace("COMPARE", "BASE/compare.yaml")
    words = words_of(name, line, base, out)
    return Case(with_odd_words(random, words, len(name.split()), _NUMBER_FLAGS, _WORD_FLAGS))


def with_odd_words(
    random: Random, words: list[str], length: int, numbers: Sequence[str], names: Sequence[str]
) -> list[str]:
    """The words of a command line, of which the first `length` stay, with one wrong or more."""
    how = random.randrange(8)
    if how == 0 and len(words) > length:
        del words[random.randrange(length, len(words))]
    elif how == 1 and len(words) > length:
        words[random.randrange(length, len(words))] = _argument(random)
    elif how == 2:
        words.insert(random.randrange(length, len(words) + 1), _argument(random))
    elif how == 3:
        words += [random.choice(names), _argument(random)]
    elif how == 4:
        words.append(random.choice((*numbers, *names)))
    else:
        flag = random.choice(numbers)
        words += [flag, str(random.choice((*ODD_NUMBERS, "nan", "inf", "1_0", "0x1", "\u0663")))]
    return words


def _argument(random: Random) -> str:
    """What a shell can pass: any text without NUL."""
    text = str(
        random.choice(
            (*ODD_TEXTS, "-", "--", "--x", "@x", ".", "/proc/sys", "/dev/null", "/dev/zero")
        )
    )
    return text.replace("\ud800", "\udcff")


_NOTHING = (
    ("data import", "BASE/sources/images OUT/t.lance --limit -3"),
    ("data import", "OUT OUT/t.lance"),
    ("data import", "HEADER OUT/t.lance"),
    ("capfilt select", "BASE/scored.lance --thresholds"),
    ("caption", "OUT --model BASE/captioner"),
    ("caption", "HEADER --model BASE/captioner"),
    ("runs", "OUT"),
    ("data show", "OUT"),
    ("data show", "BASE/pairs.lance --rows -1"),
    ("data export", "BASE/pairs.lance OUT/e --shard-size 0"),
    ("evaluate classify", "BASE/model BASE/pairs.lance --templates"),
    ("pretrain", "BASE/recipe.yaml OUT/run --train.steps 0"),
    ("evaluate retrieval", "BASE/model BASE/pairs.lance --split dev"),
    ("ask", "BASE/sources/photo.png --model BASE/vqa"),
    ("match", "BASE/sources/photo.png --model BASE/model"),
    ("demo", "--seed -1 -o OUT/demo"),
    ("capfilt review", "BASE/scored.lance --verdicts SHEET"),
    ("capfilt review", "BASE/scored.lance --verdicts BLANK"),
    ("capfilt add-texts", "BASE/scored.lance HEADER --name other"),
    ("capfilt add-texts", "BASE/scored.lance NONE --name other"),
    ("index build", "OUT --model BASE/model"),
    ("index update", "BASE/pairs.lance"),
    ("index show", "BASE/sources/images"),
    ("search", "BASE/indexed.lance"),
    ("search", "BASE/pairs.lance dog"),
    ("export", "OUT OUT/exported"),
)


def _nothing(random: Random, base: Path, out: Path) -> Case:
    files = {
        "HEADER": "image,caption\n",
        "SHEET": "key,image,source,text,verdict,edited\n",
        "BLANK": "key,verdict\nrow01/web/0,\n",
        "NONE": "",
    }
    for name, text in files.items():
        (out / name).write_text(text)
    name, line = random.choice(_NOTHING)
    empty = out / "nothing"
    empty.mkdir()
    named = {name: out / name for name in files}
    return Case(words_of(name, line, base, empty, **named), must_fail=True)


def _file(random: Random, base: Path, out: Path) -> Case:
    name, line = random.choice(list(_FILE.items()))
    good = random.choice([p for p in (base / "sources").iterdir() if p.is_file()])
    if name in ("pretrain", "compare", "plan"):
        good = base / ("compare.yaml" if name == "compare" else "recipe.yaml")
    if name in ("match", "explain", "ask", "caption") and random.random() < 0.8:
        good = base / "sources" / "photo.png"
    file = out / good.name
    is_odd = random.random() < 0.25
    if is_odd:
        put_odd_file(random, file)
    else:
        file.write_bytes(damaged_bytes(random, good.read_bytes()))
    return Case(words_of(name, line, base, out, FILE=file))


def _source(random: Random, base: Path, out: Path) -> Case:
    """A folder of sources in which one file is damaged, or JSON with another value."""
    folder = out / "sources"
    shutil.copytree(base / "sources", folder)
    file = random.choice([p for p in folder.rglob("*") if p.is_file()])
    if file.suffix in (".json", ".jsonl"):
        lines = file.read_text().splitlines() if file.suffix == ".jsonl" else [file.read_text()]
        at = random.randrange(len(lines))
        lines[at] = dumped(damaged_value(random, json.loads(lines[at])))
        file.write_text("\n".join(lines) + "\n")
    elif random.random() < 0.3:
        put_odd_file(random, file)
    else:
        file.write_bytes(damaged_bytes(random, file.read_bytes()))
    source = random.choice((folder, file, file, folder / "images"))
    line = random.choice(("SOURCE OUT/t.lance", "SOURCE OUT/t.lance --json --ids sha256"))
    if random.random() < 0.2:
        return Case(
            words_of(
                "caption", "SOURCE --model BASE/captioner -o OUT/c.jsonl", base, out, SOURCE=source
            )
        )
    return Case(words_of("data import", line, base, out, SOURCE=source))


def _on_table(random: Random, base: Path, out: Path, table: Path) -> Case:
    name, line = random.choice(list(_TABLE.items()))
    recipe, comparison = out / "recipe.yaml", out / "compare.yaml"
    for made, good in ((recipe, "recipe.yaml"), (comparison, "compare.yaml")):
        text = (base / good).read_text().replace(str(base / "pairs.lance"), str(table))
        made.write_text(text.replace(str(base / "recipe.yaml"), str(recipe)))
    words = words_of(name, line, base, out, TABLE=table, RECIPE=recipe, COMPARE=comparison)
    if random.random() < 0.3 and name.split()[0] in ("data", "evaluate"):
        words.append("--json")
    return Case(words)


def _foreign_table(random: Random, base: Path, out: Path) -> Case:
    return _on_table(random, base, out, foreign_table(random, out))


def _damaged_table(random: Random, base: Path, out: Path) -> Case:
    damaged_table(random, base / "scored.lance", out / "t.lance")
    return _on_table(random, base, out, out / "t.lance")


def foreign_table(random: Random, out: Path) -> Path:
    """A Lance table of somebody else: one or two columns are missing, odd, or of another type."""
    values = {**columns(), **(scores() if random.random() < 0.7 else {})}
    for name in random.sample(sorted(values), random.choice((1, 1, 2))):
        if random.random() < 0.2:
            del values[name]
        else:
            values[name] = damaged_column(random, name, values[name])
    if random.random() < 0.05:
        values = {name: column.slice(0, 0) for name, column in values.items()}
    lance.write_dataset(pa.table(values), str(out / "t.lance"))
    return out / "t.lance"


def damaged_table(random: Random, good: Path, table: Path) -> None:
    """A table of ours of which one file is damaged or gone."""
    shutil.copytree(good, table)
    for _ in range(random.choice((1, 1, 3))):
        file = random.choice([p for p in table.rglob("*") if p.is_file() and not p.is_symlink()])
        if random.random() < 0.3:
            # Lance itself waits for the other end of a pipe that stands for a data file.
            put_odd_file(random, file, with_pipes=file.suffix == ".manifest")
        else:
            file.write_bytes(damaged_bytes(random, file.read_bytes()))


_BOMB = "\n".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 30))
_YAML = (
    f"a0: &a0 [x]\n{_BOMB}\n",
    "a: &a [*a]\n",
    "&a {task: *a}\n",
    "task: !!python/object/apply:os.system [ls]\n",
    "task: 2024-13-45\n",
    "task: !!timestamp x\n",
    "task: !!int x\n",
    "task: !!float\n",
    "? {a: 1}\n: 2\n",
    "? [a]\n: 2\n",
    "[" * 3000,
    "a: " + "[" * 500 + "]" * 500,
    "\t- a",
    "=: 1\n",
    "<<: 3\n",
    "%YAML 9.9\n---\na: 1\n",
    "--- 1\n--- 2\n",
    "\0",
    "null\n",
    "task: [pretrain]\n",
    "task: {a: b}\n",
)


def _yaml(random: Random, base: Path, out: Path) -> Case:
    """A recipe or a comparison with other values, or with what only YAML can do."""
    import yaml

    name, line = random.choice(
        (
            ("pretrain", "FILE OUT/run --train.steps 1"),
            ("plan", "FILE --gpu l4"),
            ("compare", "FILE -o OUT/c --plan"),
            ("compare", "FILE -o OUT/c --plan"),
        )
    )
    text = (base / ("compare.yaml" if name == "compare" else "recipe.yaml")).read_text()
    how = random.randrange(4)
    if how == 0:
        text = random.choice(_YAML) + (text if random.random() < 0.3 else "")
    elif how == 1:
        text = damaged_bytes(random, text.encode()).decode("latin-1")
    else:
        values = yaml.safe_load(text)
        # What `pretrain` gets is trained: with half of its fields gone a model is one of full size.
        model = values.pop("model") if name == "pretrain" else None
        damaged = damaged_value(random, values)
        text = dumped({"model": model, **damaged} if model else damaged)
    (out / "x.yaml").write_text(text, encoding="utf-8", errors="surrogatepass")
    return Case(words_of(name, line, base, out, FILE=out / "x.yaml"))


def _model(random: Random, base: Path, out: Path) -> Case:
    name, line = random.choice(list(_MODEL.items()))
    kind = {"caption": "captioner", "ask": "vqa"}.get(name, "model")
    return Case(words_of(name, line, base, out, MODEL=damaged_model(random, base / kind, out)))


def damaged_model(random: Random, good: Path, out: Path) -> Path:
    """A model folder of which one file is damaged, or a file that is no model."""
    model = out / "m"
    shutil.copytree(good, model)
    file = random.choice([p for p in model.rglob("*") if p.is_file()])
    if file.suffix == ".json" and random.random() < 0.8:
        file.write_text(dumped(damaged_value(random, json.loads(file.read_text()))))
    elif random.random() < 0.2:
        put_odd_file(random, file)
    else:
        file.write_bytes(damaged_bytes(random, file.read_bytes()))
    if random.random() < 0.2:
        model = out / random.choice(("x.pth", "x.safetensors", "x.bin", "x"))
        model.write_bytes(damaged_bytes(random, (good / "model.safetensors").read_bytes()))
    return model


def _runs(random: Random, base: Path, out: Path) -> Case:
    """A run of which one file is damaged, alone or beside a good one."""
    folder = out / "runs"
    shutil.copytree(base / "runs", folder, symlinks=True)
    if random.random() < 0.5:
        shutil.copytree(base / "runs" / "a", folder / "b", symlinks=True)
    run = folder / "a"
    names = ("metrics.jsonl", "recipe.yaml", "logs/rank-0.json", "logs/rank-0.log")
    file = run / random.choice((*names, *names, "checkpoints/last/model.safetensors", "tokenizer"))
    if file.is_dir() or random.random() < 0.2:
        if file.is_dir():
            shutil.rmtree(file)
        put_odd_file(random, file)
    elif file.suffix == ".jsonl" and random.random() < 0.7:
        line = damaged_value(random, json.loads(file.read_text().splitlines()[0]))
        file.write_text(dumped(line if random.random() < 0.7 else odd_value(random)) + "\n{}\n")
    elif file.suffix == ".json" and random.random() < 0.7:
        file.write_text(dumped(damaged_value(random, json.loads(file.read_text()))))
    else:
        file.write_bytes(damaged_bytes(random, file.read_bytes()))
    commands = (
        ("runs", "RUNS"),
        ("runs", "RUNS --json"),
        ("runs", "RUNS --page OUT/page.html"),
        ("pretrain", "BASE/recipe.yaml RUNS/a --train.steps 1"),
        ("plan", "RUNS/a --gpu l4"),
    )
    return Case(words_of(*random.choice(commands), base, out, RUNS=folder))


_MAKERS: dict[Callable[[Random, Path, Path], Case], int] = {
    _flags: 24,
    _nothing: 5,
    _file: 16,
    _source: 10,
    _foreign_table: 15,
    _damaged_table: 8,
    _yaml: 12,
    _model: 6,
    _runs: 4,
}

COMMANDS = {
    *(name.strip() for lines in (_TABLE, _MODEL, _FILE, _FLAGS) for name in lines),
    *(name for name, _ in _NOTHING),
}
"""What the cases are of."""
