"""The package keeps its layers, its sizes, and its promise that an import has no effect."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src" / "openblip"
FILES = sorted(SOURCE.rglob("*.py"))

# A package may import from lower layers, from itself, and from its friends of the same layer.
LAYERS = {
    "errors": 0,
    "atomic": 0,
    "progress": 0,
    "page": 0,
    "references": 0,
    "interruption": 0,
    "locks": 0,
    "threads": 0,
    "documents": 0,
    "model": 0,
    "objectives": 1,
    "data": 1,
    "interop": 1,
    "tasks": 2,
    "training": 3,
    "inference": 3,
    "capfilt": 4,
    "evaluation": 4,
    "metrics": 5,
    "recipes": 5,
    "comparison": 6,
    "cli": 7,
    "__init__": 8,
    "__main__": 8,
}
NEVER = {("objectives", "model"), ("data", "model"), ("model", "progress"), ("model", "page")}
SAME_LAYER = {
    ("model", "errors"),
    ("page", "errors"),
    ("page", "atomic"),
    ("atomic", "errors"),
    ("locks", "errors"),
    ("documents", "errors"),
    ("references", "errors"),
    ("model", "references"),
    ("interop", "data"),
}
# Each heavy or optional library is imported by these files alone.
ONE_PLACE = {
    "lance": {"data/versions.py", "data/fragments.py"},
    "ray": {"capfilt/ray_workers.py"},
    "tokenizers": {"data/tokenizer.py", "data/wordpiece.py"},
    "tensorboardX": {"training/metrics_log.py"},
    "torch.distributed": {
        "training/distributed.py",
        "training/sharding.py",
        "training/state_folder.py",
    },
    "rich": {"progress.py"},
    "huggingface_hub": {"interop/hub.py", "data/importers/datasets_library.py"},
    "datasets": {"data/importers/datasets_library.py"},
    "torchao": {"inference/quantise.py"},
    "wandb": {"training/trackers/wandb.py"},
    "mlflow": {"training/trackers/mlflow.py"},
    "trackio": {"training/trackers/trackio.py"},
    "av": {"data/video.py"},
    "pillow_heif": {"data/image_formats.py"},
    "obstore": {"data/storage.py"},
    "botocore": {"data/storage.py"},
    "transformers": {"inference/transformers_towers.py", "model/library_backbones.py"},
    "timm": {"model/library_backbones.py"},
    "open_clip": {"inference/open_clip_towers.py"},
    "torchvision": set(),
}


def package_of(file: Path) -> str:
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
    here = package_of(file)
    for name in imports_of(file):
        parts = name.split(".")
        if parts[0] != "openblip" or len(parts) < 2 or parts[1] not in LAYERS:
            continue
        there = parts[1]
        assert (here, there) not in NEVER, f"{here} imports {there}"
        allowed = here == there or (here, there) in SAME_LAYER or LAYERS[there] < LAYERS[here]
        assert allowed, f"{here} (layer {LAYERS[here]}) imports {there} (layer {LAYERS[there]})"


def test_every_package_has_a_layer() -> None:
    assert {package_of(file) for file in FILES} <= set(LAYERS)


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
    assert text.count("\n") <= 450
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno < 80, f"{node.name} is too long"


def test_only_a_tokenizer_decides_how_texts_are_cleaned() -> None:
    original = {"openblip.data.text.clean_caption", "openblip.data.text.clean_question"}
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
