"""The package keeps its floors, its sizes, and its promise that an import has no effect."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src" / "openblip"
FILES = sorted(SOURCE.rglob("*.py"))

# A room may import from the floors below, from itself, and from its friends of the same floor.
FLOORS = {
    "runtime": 0,
    "model": 0,
    "table": 1,
    "sources": 1,
    "batches": 1,
    "curation": 1,
    "checkpoints": 1,
    "objectives": 2,
    "metrics": 2,
    "training": 3,
    "inference": 3,
    "capfilt": 4,
    "evaluation": 4,
    "recipes": 5,
    "plan": 5,
    "world": 5,
    "comparison": 6,
    "cli": 7,
    "__init__": 8,
    "__main__": 8,
}
# On floor 1 only `checkpoints` knows a model, and `model` draws no progress and no page.
NEVER = {
    *((room, "model") for room in ("table", "sources", "batches", "curation")),
    *(("model", f"runtime.{name}") for name in ("progress", "page")),
}
SAME_FLOOR = {
    ("model", "runtime"),
    ("sources", "table"),
    ("batches", "table"),
    ("batches", "sources"),
    ("curation", "table"),
    ("curation", "sources"),
    ("checkpoints", "batches"),
    ("plan", "recipes"),
    ("world", "recipes"),
}
# Each heavy or optional library is imported by these files alone.
ONE_PLACE = {
    "lance": {"table/versions.py", "table/columns.py"},
    "ray": {"capfilt/pools.py"},
    "tokenizers": {"batches/tokenizer.py", "batches/wordpiece.py"},
    "tensorboardX": {"training/metrics_log.py"},
    "torch.distributed": {
        "training/parallelism.py",
        "training/state_folder.py",
    },
    "rich": {"runtime/progress.py"},
    "huggingface_hub": {"checkpoints/hub.py", "sources/datasets_library.py"},
    "datasets": {"sources/datasets_library.py"},
    "torchao": {"inference/loading.py"},
    "wandb": {"training/trackers.py"},
    "mlflow": {"training/trackers.py"},
    "trackio": {"training/trackers.py"},
    "av": {"batches/video.py"},
    "pillow_heif": {"sources/image_formats.py"},
    "obstore": {"table/storage.py"},
    "botocore": {"table/storage.py"},
    "transformers": {"inference/embedder.py", "model/library_backbones.py"},
    "timm": {"model/library_backbones.py"},
    "open_clip": {"inference/embedder.py"},
    "torchvision": set(),
}


def room_of(file: Path) -> str:
    return file.relative_to(SOURCE).with_suffix("").parts[0]


@cache
def imports_of(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(SOURCE)))
def test_imports_go_downwards_only(file: Path) -> None:
    here = room_of(file)
    for name in imports_of(file):
        parts = name.split(".")
        if parts[0] != "openblip" or len(parts) < 2 or parts[1] not in FLOORS:
            continue
        there = parts[1]
        assert not {(here, there), (here, ".".join(parts[1:3]))} & NEVER, f"{here} imports {name}"
        allowed = here == there or (here, there) in SAME_FLOOR or FLOORS[there] < FLOORS[here]
        assert allowed, f"{here} (floor {FLOORS[here]}) imports {there} (floor {FLOORS[there]})"


def test_every_room_has_a_floor() -> None:
    assert {room_of(file) for file in FILES} <= set(FLOORS)


@pytest.mark.parametrize("library", ONE_PLACE)
def test_a_heavy_library_is_imported_in_one_place(library: str) -> None:
    users = {
        str(file.relative_to(SOURCE))
        for file in FILES
        if any(n == library or n.startswith(f"{library}.") for n in imports_of(file))
    }
    assert users <= ONE_PLACE[library]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(SOURCE)))
def test_files_and_functions_stay_short(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    assert text.count("\n") <= 600
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno < 80, f"{node.name} is too long"


def test_only_a_tokenizer_decides_how_texts_are_cleaned() -> None:
    original = {"openblip.batches.text.clean_caption", "openblip.batches.text.clean_question"}
    assert not [file for file in FILES if original & imports_of(file)]


def test_no_module_is_a_drawer_for_odds_and_ends() -> None:
    assert not {f.stem for f in FILES} & {"utils", "util", "helpers", "misc", "common"}


def test_the_package_and_its_command_start_without_heavy_libraries() -> None:
    code = (
        "import sys, openblip, openblip.cli;"
        "heavy = {'torch', 'lance', 'pyarrow', 'numpy', 'PIL', 'tyro', 'rich', 'tokenizers',"
        "'huggingface_hub'};"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_public_names_exist_and_are_documented() -> None:
    import openblip

    for name in openblip.__all__:
        assert getattr(openblip, name).__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = openblip.nothing


def test_no_merge_was_left_half_done() -> None:
    files = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *FILES]
    marks = tuple(mark * 7 + " " for mark in "<>|")
    assert [
        f"{file.relative_to(ROOT)}: {line}"
        for file in files
        for line in file.read_text(encoding="utf-8").splitlines()
        if line.startswith(marks)
    ] == []
