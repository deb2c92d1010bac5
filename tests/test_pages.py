"""What the pages show works: Python blocks run, commands run or at least their flags are read.

Pages that a reader follows from top to bottom are carried out, on a few small pictures, with small
models under the names of the published ones. Of all other commands the real parsers read the words,
so that a flag that is not there, or a number out of range, fails.
"""

import csv
import importlib
import inspect
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

import openblip
from openblip.batches.tokenizer import TextTokenizer
from openblip.checkpoints.hub import PUBLISHED
from openblip.cli import COMMANDS, main
from openblip.inference.blip import Blip
from openblip.model import Med, MedConfig, TextConfig, VisionConfig
from openblip.table.table import PairTable
from openblip.world import is_true_caption, truth_of

ROOT = Path(__file__).resolve().parent.parent
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "examples").rglob("*.md")),
]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
# Carried out from top to bottom.
FOLLOWED = ["README.md", "docs/start.md", "docs/noisy-pairs.md", "docs/domain.md"]
# Not carried out where a page is followed, and why; their flags are read.
READ_ALONE = {
    "studio": "serves until it is stopped; tests/studio drives it",
    "capfilt review": "serves until it is stopped; tests/studio drives it",
    "capfilt select --precision": "certifies from hundreds of verdicts; tests/cli/test_review.py",
    "compare": "trains several models; tests/comparison",
    "plan": "goes through a step of a large model; tests/cli/test_plan.py",
}
# Words that no parser of ours reads, and why.
OTHERS = {
    "pip": "network",
    "make": "a target each, with its own check",
    "python": "a benchmark, or a script of the reader's",
    "python3": "an environment",
    ".": "an environment",
    "cd": "a folder of the reader's",
    "export": "credentials of the reader's",
    "sh": "a benchmark of hours",
    "tensorboard": "another program",
    "sbatch": "a cluster",
    "uv": "network",
    "docker": "not installed everywhere",
    "hf": "network",
    "npm": "network",
    "npx": "network",
}
# Placeholders that are no words of a command line.
UNREADABLE = {
    "docs/api.md: openblip pretrain my_module:recipe": "a module of the reader's",
}
# Python blocks that are not run here, and why.
NOT_RUN = {
    "docs/api.md": "run as a whole by tests/test_api.py",
    "docs/languages.md": "a world of minutes; tests/world/test_chinese.py",
}
TEXTS = ["a red square", "two dogs on a beach", "a blue ball", "a house", "a tree in the snow"]


class Block(NamedTuple):
    """What stands between two fences."""

    page: str
    line: int
    language: str
    text: str


def blocks_of(page: Path) -> Iterator[Block]:
    text = page.read_text(encoding="utf-8")
    for found in re.finditer(r"^( *)```(\w*)\n(.*?)^\1```$", text, re.M | re.S):
        line = text.count("\n", 0, found.start()) + 1
        yield Block(str(page.relative_to(ROOT)), line, found[2], found[3])


BLOCKS = [block for page in PAGES for block in blocks_of(page)]


def commands_in(block: Block) -> Iterator[list[str]]:
    """The commands of a shell block, or of one whose language is not said, as words."""
    is_shell = block.language in ("sh", "bash", "shell")
    for line in re.sub(r"\\\n\s*", " ", block.text).splitlines():
        shown_with_output = block.language in ("", "console")
        if not is_shell and not (shown_with_output and re.match(r"(\$ )?openblip ", line)):
            continue
        line = line.removeprefix("$ ")
        words = shlex.split(without_comment(line))
        while words:
            end = next((n for n, w in enumerate(words) if w in ("&&", "|", ";")), len(words))
            command = list(words[:end])
            while command and re.fullmatch(r"[A-Z_]+=.*", command[0]):
                command.pop(0)
            if command:
                yield command
            words = words[end + 1 :]


def own_words(command: list[str]) -> list[str] | None:
    """The words behind `openblip`; None of a command of another program."""
    if command[0] == "openblip":
        return command[1:]
    if command[0] == "torchrun" and "openblip" in command:
        return command[command.index("openblip") + 1 :]
    return None


def without_comment(line: str) -> str:
    """A line of a shell without its comment, which only begins where a word could."""
    for found in re.finditer(r"(?:^|(?<=\s))#", line):
        before = line[: found.start()]
        if before.count('"') % 2 == before.count("'") % 2 == 0:
            return before
    return line


def name_of(words: list[str]) -> str | None:
    return next((n for n in (" ".join(words[:2]), words[0]) if n in COMMANDS), None)


def code_of(words: list[str]) -> int:
    try:
        return main(words)
    except SystemExit as done:
        return int(done.code or 0)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[list[str]], int]:
    """Parses as the command does, and ends where it would begin: the exit code."""
    monkeypatch.chdir(tmp_path)
    for module, function, _ in COMMANDS.values():
        if module not in ("train", "plan"):
            home = importlib.import_module(f"openblip.cli.{module}")
            monkeypatch.setattr(home, function, parsed_alone(getattr(home, function)))
    # These parse in two steps; the last one is where a recipe's fields are read.
    for module in ("train", "plan"):
        home = importlib.import_module(f"openblip.cli.{module}")
        monkeypatch.setattr(home, "changed", ends_after(home.changed))
    # What is imported while they are patched would keep the patches for good.
    for home in ("evaluation.retrieval", "capfilt.run", "studio.app", "training.run"):
        importlib.import_module(f"openblip.{home}")
    # Models and runs of the reader's have the size and the recipe of ours.
    recipe_of = importlib.import_module("openblip.plan.sizing").find_recipe
    monkeypatch.setattr(
        "openblip.plan.sizing.find_recipe",
        lambda name: recipe_of("base" if name.startswith("runs/") else name),
    )
    monkeypatch.setattr("openblip.checkpoints.reading.find_model", Path)
    outline = SimpleNamespace(image_size=224)
    monkeypatch.setattr("openblip.checkpoints.reading.read_outline", lambda path: outline)
    return code_of


def parsed_alone(run: Callable[..., int]) -> Callable[..., int]:
    """A command with the parameters of `run`, which does nothing."""

    def command(*args: object, **settings: object) -> int:
        return 0

    for name in ("__module__", "__name__", "__doc__", "__annotations__"):
        setattr(command, name, getattr(run, name))
    command.__signature__ = inspect.signature(run)  # type: ignore[attr-defined]
    return command


def ends_after(read: Callable[..., object]) -> Callable[..., object]:
    def changed(*args: object) -> object:
        read(*args)
        raise SystemExit(0)

    return changed


@pytest.mark.parametrize("page", NAMES)
def test_the_words_of_every_command_are_read(
    page: str, reads: Callable[[list[str]], int], capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = []
    for block in (block for block in BLOCKS if block.page == page):
        for command in commands_in(block):
            shown = f"{page}: {' '.join(command)}"
            words = own_words(command)
            if words is None:
                if command[0] not in OTHERS and not shown.endswith("/bin/activate"):
                    wrong.append(f"{shown}: of which program?")
            elif not any(shown.startswith(known) for known in UNREADABLE) and reads(words):
                wrong.append(f"line {block.line}, {shown}\n{capsys.readouterr().err}")
    assert wrong == []


# ------------------------------------------------------------------------- followed pages


def picture(path: Path, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((128, 96)).save(path)


def pairs(folder: Path, first: int, count: int) -> None:
    for number in range(first, first + count):
        picture(folder / f"{number}.jpg", number)
        (folder / f"{number}.txt").write_text(f"{TEXTS[number % 5]} number {number}\n")


def published(folder: Path) -> None:
    """Small models where the names of the published ones lead, if such a folder is there."""
    # Weights by chance may write empty captions, of which the command says so with its exit code.
    torch.manual_seed(0)
    tokenizer = TextTokenizer.train([*TEXTS, "a picture of number"], 120)
    vision = VisionConfig(image_size=32, patch_size=16, width=16, depth=1, heads=2)
    sizes = {"width": 16, "depth": 1, "heads": 2, "ffn_width": 32, "max_positions": 64}
    text = TextConfig(vocab_size=tokenizer.vocab_size, **sizes)
    for use, kind, heads in (
        ("caption", "captioner", ("lm",)),
        ("match", "filter", ("itc", "itm")),
        ("ask", "vqa", ()),
    ):
        if kind == "vqa":
            from openblip.model.vqa import Vqa, VqaConfig

            model: object = Vqa(VqaConfig(vision=vision, text=text))
        else:
            model = Med(MedConfig(vision=vision, text=text, embed_dim=8, heads=heads))
        Blip(model, tokenizer, kind, 32, 35).save(folder / PUBLISHED[use])


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the followed pages take for given."""
    folder = tmp_path_factory.mktemp("desk")
    published(folder)
    for number in range(3):
        picture(folder / "photos" / f"{number}.jpg", number)
    for name in ("photo.jpg", "like.jpg", "a.jpg", "b.jpg", "photos/a.jpg"):
        picture(folder / name, len(name))
    pairs(folder / "crawl", 0, 6)
    for first, split, count in ((10, "train", 8), (30, "val", 2), (40, "test", 4)):
        pairs(folder / "annotated" / split, first, count)
    assert (
        in_folder(folder, ["data", "import", "annotated", "coco.lance", "--origin", "human"]) == 0
    )
    for name, kind in (("captioner", "caption"), ("filter", "match")):
        (folder / "demo").mkdir(exist_ok=True)
        (folder / "demo" / name).symlink_to(folder / PUBLISHED[kind])
    return folder


def in_folder(folder: Path, words: list[str]) -> int:
    here = Path.cwd()
    os.chdir(folder)
    try:
        return code_of(words)
    finally:
        os.chdir(here)


def shortened(words: list[str]) -> list[str]:
    """A training run of two small steps on this processor, in place of thousands of large ones.

    A job computes in this process, which has loaded what it needs.
    """
    if words[:2] == ["capfilt", "run"]:
        return [*words, "--processes", "1"]
    if words[0] not in ("pretrain", "finetune") or "--help" in words:
        return words
    text = re.sub(r" --train\.(steps|epochs) \S+", "", " ".join(words))
    small = " --train.steps 2 --train.batch-size 2 --train.threads 1 --train.device cpu"
    return shlex.split(text + small)


@pytest.mark.parametrize("page", FOLLOWED)
@pytest.mark.filterwarnings("ignore")
def test_a_page_is_followed_from_top_to_bottom(
    page: str, desk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "desk"
    shutil.copytree(desk, folder, symlinks=True)
    done = 0
    for block in (block for block in BLOCKS if block.page == page):
        for command in commands_in(block):
            words = own_words(command)
            shown = " ".join(command)
            if words is None or any(set(known.split()) <= set(words) for known in READ_ALONE):
                continue
            assert in_folder(folder, shortened(words)) == 0, f"{shown}\n{capsys.readouterr().err}"
            done += 1
    assert done >= 4, "this page shows nothing to follow"


def judge_by_the_truth(sheet: Path, table: Path) -> None:
    """Fills in the verdicts that somebody would give who knows the drawn scenes."""
    pairs = PairTable.open(table)
    rows = pairs.take(np.arange(len(pairs)), ["id", "meta"]).to_pylist()
    truths = {row["id"]: truth_of(row["meta"]) for row in rows}
    with sheet.open(encoding="utf-8-sig", newline="") as file:
        texts = list(csv.DictReader(file))
    for text in texts:
        scene = truths[text["key"].rsplit("/", 2)[0]].scene
        text["verdict"] = "right" if is_true_caption(text["text"], scene) else "wrong"
    with sheet.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, texts[0])
        writer.writeheader()
        writer.writerows(texts)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_the_walk_leads_from_a_noisy_folder_to_a_better_model(tmp_path: Path) -> None:
    def openblip(*words: str) -> str:
        command = [sys.executable, "-m", "openblip", *words]
        done = subprocess.run(command, cwd=tmp_path, text=True, capture_output=True)
        assert done.returncode == 0, f"{' '.join(words)}\n{done.stderr}"
        return done.stdout

    told: dict[str, str] = {}
    for block in (block for block in BLOCKS if block.page == "docs/walk.md"):
        for _, *words in commands_in(block):
            if words[:2] == ["capfilt", "review"]:
                # A person's part, as the page says: in a spreadsheet.
                openblip(*words, "--export-sample", "sample.csv")
                judge_by_the_truth(tmp_path / "sample.csv", tmp_path / "pairs.lance")
                told["review"] = openblip(*words, "--verdicts", "sample.csv")
            else:
                told[" ".join(words)] = openblip(*words)
    # Whether a threshold can be certified is up to models that train otherwise on each machine.
    assert "precision (95 %)" in told["review"]
    assert "all noise" in told["capfilt fit pairs.lance --images 400"]
    noise, better = (
        float(re.search(r"^ITC .* (\S+)$", told[f"evaluate retrieval {name} pairs.lance"], re.M)[1])  # type: ignore[index]
        for name in ("noise", "better")
    )
    assert better > noise + 5
    assert (tmp_path / "clean").is_dir()


PYTHON = [block for block in BLOCKS if block.language == "python" and block.page not in NOT_RUN]


@pytest.mark.parametrize("block", PYTHON, ids=lambda block: f"{block.page}:{block.line}")
@pytest.mark.filterwarnings("ignore")
def test_a_python_block_runs(
    block: Block, desk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "desk"
    shutil.copytree(desk, folder, symlinks=True)
    if "openblip.search" in block.text:
        assert in_folder(folder, ["index", "build", "photos"]) == 0
    if "pairs.lance" in block.text:
        scored = [
            "capfilt", "run", "pairs.lance", "--processes", "1",
            "--captioner", PUBLISHED["caption"], "--filter", PUBLISHED["match"],
        ]  # fmt: skip
        for words in (["data", "import", "crawl", "pairs.lance", "--origin", "web"], scored):
            assert in_folder(folder, words) == 0
    monkeypatch.chdir(folder)
    given: dict[str, object] = {"openblip": openblip, "__name__": "__page__"}
    given |= {"Med": Med, "MedConfig": MedConfig, "VisionConfig": VisionConfig}
    if "my_encoders" in block.text:
        # A module of the reader's, which a model then names.
        ours = (ROOT / "tests" / "foreign_encoders.py").read_text(encoding="utf-8")
        (folder / "my_encoders.py").write_text(
            ours + "\n\nclass Encoder(Convolutions):\n    pass\n"
        )
        monkeypatch.syspath_prepend(folder)
        given["Encoder"] = importlib.import_module("my_encoders").Encoder
    exec(compile(block.text, f"{block.page}:{block.line}", "exec"), given)


def test_every_exception_has_its_place() -> None:
    shown = {block.page for block in BLOCKS}
    assert set(NOT_RUN) | set(FOLLOWED) <= shown
    followed = [set(c) for b in BLOCKS if b.page in FOLLOWED for c in commands_in(b)]
    unused = [name for name in READ_ALONE if not any(set(name.split()) <= c for c in followed)]
    assert unused == []
