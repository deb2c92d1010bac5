"""What is installed: extras and their remedies, what a help loads, the README of the index."""

import json
import re
import runpy
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, cast

import pytest
import torch

from openblip.runtime.errors import OpenBlipError

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
EXTRAS = PYPROJECT["project"]["optional-dependencies"]


def use_clip() -> object:
    from openblip.inference.embedder import read_clip

    return read_clip(Path("clip"), torch.device("cpu"))


def use_fit() -> object:
    from openblip.capfilt.combination import check_library

    return check_library()


def use_endpoint() -> object:
    from openblip.capfilt.endpoint import Requests, _client

    return _client(Requests(), None)


def use_graphs(to: Literal["onnx", "openvino"]) -> Callable[[], object]:
    def checked() -> object:
        from openblip.deploy.runtimes import check_installed

        return check_installed(to)

    return checked


def use_openclip() -> object:
    from openblip.inference.embedder import read_open_clip

    return read_open_clip("ViT-B-32/laion", torch.device("cpu"))


def use_transformers() -> object:
    from openblip.model.library_backbones import transformers_settings

    return transformers_settings("facebook/dinov2-base")


def use_timm() -> object:
    from openblip.model.library_backbones import TimmBackbone

    return TimmBackbone("vit_tiny_patch16_224")


def use_ray() -> object:
    from openblip.jobs.pools import RayCluster, RayWorkers

    return RayWorkers(cast("Any", None), RayCluster(address="local"), 1.0)


def use_cloud() -> object:
    from openblip.table.table import PairTable

    return PairTable.open("s3://bucket/pairs.lance")


def use_video() -> object:
    from openblip.batches.video import sample_frames

    return sample_frames(Path("clip.mp4"), 4)


def use_heif() -> object:
    from openblip.sources.image_formats import register_heif

    register_heif.cache_clear()
    try:
        return register_heif()
    finally:
        register_heif.cache_clear()


def use_studio() -> object:
    from openblip.cli.studio import check_studio

    return check_studio()


def use_datasets() -> object:
    from openblip.sources.datasets_library import check_installed

    return check_installed("hf:org/name")


def use_tensorboard() -> object:
    from openblip.training.metrics_log import without_tensorboard

    return without_tensorboard()


def use_tracker(name: str) -> Callable[[], object]:
    def opened() -> object:
        from openblip.training.trackers import open_trackers

        with open_trackers([name], Path("run"), {}, print):
            return None

    return opened


# Extra -> what an import of it that fails is like, and a use that needs it.
USES: dict[str, tuple[tuple[str, ...], Callable[[], object]]] = {
    "fit": (("sklearn",), use_fit),
    "export": (("onnxruntime",), use_graphs("onnx")),
    "openvino": (("openvino",), use_graphs("openvino")),
    "clip": (("transformers",), use_clip),
    "endpoint": (("httpx",), use_endpoint),
    "transformers": (("transformers",), use_transformers),
    "timm": (("timm",), use_timm),
    "openclip": (("open_clip",), use_openclip),
    "ray": (("ray",), use_ray),
    "cloud": (("obstore",), use_cloud),
    "video": (("av",), use_video),
    "heif": (("pillow_heif",), use_heif),
    "studio": (("starlette",), use_studio),
    "datasets": (("datasets",), use_datasets),
    "tensorboard": (("tensorboardX",), use_tensorboard),
    "wandb": (("wandb",), use_tracker("wandb")),
    "mlflow": (("mlflow",), use_tracker("mlflow")),
    "trackio": (("trackio",), use_tracker("trackio")),
}


def test_every_extra_is_named_by_a_message() -> None:
    assert set(USES) | {"all"} == set(EXTRAS)


@pytest.mark.parametrize("extra", USES)
def test_where_an_extra_is_missing_the_message_says_how_to_install_it(
    extra: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    libraries, use = USES[extra]
    for library in libraries:
        monkeypatch.setitem(sys.modules, library, None)
    if extra == "heif":
        from PIL import Image

        monkeypatch.delitem(Image.OPEN, "HEIF", raising=False)
    try:
        told = str(use())
    except OpenBlipError as error:
        told = str(error)
    assert f"pip install 'openblip[{extra}]'" in told


def test_all_is_every_extra_but_those_that_bring_another_torch() -> None:
    (every,) = EXTRAS["all"]
    taken = re.fullmatch(r"openblip\[([\w,]+)\]", every)
    assert taken is not None
    assert set(taken[1].split(",")) == set(EXTRAS) - {"all", "timm", "openclip"}


# Commands whose help is read often, and what it may load: not one library that takes long.
HEAVY = {"torch", "lance", "pyarrow", "PIL", "tokenizers", "huggingface_hub", "rich", "safetensors"}
HELPS = {
    "--help": {"numpy", "tyro"},
    "pretrain --help": {"numpy", "tyro"},
    "finetune --help": {"numpy", "tyro"},
    "caption --help": {"numpy"},
    "search --help": {"numpy"},
    "data import --help": {"numpy"},
    "data export --help": {"numpy"},
    "capfilt run --help": {"numpy"},
    "pretrain tiny pairs.lance runs/x --help": set(),
    "capfilt review --help": set(),
}


def test_a_help_loads_no_library_that_takes_long() -> None:
    code = (
        "import contextlib, io, json, os, sys\n"
        "import openblip.cli\n"
        "for words in json.loads(sys.argv[1]):\n"
        "    child = os.fork()\n"
        "    if child == 0:\n"
        "        with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):\n"
        "            openblip.cli.main(words.split())\n"
        "        loaded = sorted({name.split('.')[0] for name in sys.modules})\n"
        "        print(json.dumps([words, loaded]), flush=True)\n"
        "        os._exit(0)\n"
        "    os.waitpid(child, 0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(list(HELPS))],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    loaded = dict(json.loads(line) for line in done.stdout.splitlines())
    assert set(loaded) == set(HELPS), done.stderr
    too_much = {words: (HEAVY | also) & set(loaded[words]) for words, also in HELPS.items()}
    assert {words: found for words, found in too_much.items() if found} == {}


def test_the_readme_of_the_index_has_whole_addresses_alone() -> None:
    hook = PYPROJECT["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]
    text = "".join((ROOT / part["path"]).read_text("utf-8") for part in hook["fragments"])
    for rule in hook["substitutions"]:
        text = re.sub(rule["pattern"], rule["replacement"], text)
    targets = re.findall(r"\]\(([^)]+)\)", text)
    assert len(targets) > 40
    assert [target for target in targets if not target.startswith(("https://", "#"))] == []
    here = re.findall(
        r"https://(?:raw\.githubusercontent|github)\.com/openblip/openblip/(?:blob/)?main/([^)#]+)",
        text,
    )
    assert [path for path in here if not (ROOT / path).exists()] == []


def test_the_version_stands_in_one_place_and_is_cited() -> None:
    import openblip

    cited = re.search(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text("utf-8"), re.M)
    changes = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.M)
    assert cited is not None
    assert changes is not None
    assert openblip.__version__ == cited[1] == changes[1]
    assert "version" in PYPROJECT["project"]["dynamic"]


def test_the_constraints_name_versions_and_no_place_to_fetch_them_from() -> None:
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    pinned = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert all(re.fullmatch(r"[a-z0-9.-]+", name) for name in pinned)
    assert {"torch", "pytest", "ruff", "mypy", "mkdocs", "build", "twine"} <= set(pinned)


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="no repository: a source archive")
def test_what_a_release_checks_of_the_files_holds_now() -> None:
    checks = runpy.run_path(str(ROOT / "scripts" / "release_check.py"))["CHECKS"]
    now = [title for title in checks if title.startswith(("files", "no unfinished", "links"))]
    assert len(now) == 3
    assert [line for title in now for line in checks[title]()] == []


def test_a_release_check_finds_what_is_planted(tmp_path: Path) -> None:
    """The same script in a repository that has a broken link, a secret and no licence."""
    scripts = tmp_path / "scripts"
    scripts.mkdir()
    (scripts / "release_check.py").write_bytes((ROOT / "scripts/release_check.py").read_bytes())
    (tmp_path / "a.md").write_text("[gone](gone.md), [there](a.md)\nhf_" + "a" * 34 + "\n")
    for words in (["init", "-q"], ["add", "."]):
        subprocess.run(["git", *words], cwd=tmp_path, check=True, capture_output=True)
    checks = runpy.run_path(str(scripts / "release_check.py"))["CHECKS"]
    found = {title: list(run()) for title, run in checks.items() if title[:5] in ("files", "links")}
    found["secrets"] = list(next(run for title, run in checks.items() if "secret" in title)())
    assert "LICENSE is not there" in found["files that people look for"]
    assert found["links between the files of the repository"] == ["a.md: gone.md"]
    assert [line.startswith("a.md:2: hf_") for line in found["secrets"]] == [True]


def test_a_stage_of_the_container_declares_what_it_uses() -> None:
    # Not every builder lets a stage inherit arguments; an empty one would be no extra at all.
    text = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(encoding="utf-8"), flags=re.M)
    before, *stages = re.split(r"^FROM ", text, flags=re.M)
    assert "ARG EXTRAS=" in before
    for stage in stages:
        declared = set(re.findall(r"^ARG (\w+)", stage, re.M))
        used = set(re.findall(r"\$\{?([A-Z_]+)", stage.split("\n", 1)[1]))
        assert used <= declared, stage.split("\n", 1)[0]
