"""`--backend`: every command of inference has it, and gives with it what it gives without."""

import inspect
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest
from PIL import Image

from openblip.capfilt.job import METADATA_KEY
from openblip.checkpoints.reading import BACKENDS, model_fingerprint
from openblip.cli import main
from openblip.cli.capfilt import run
from openblip.cli.evaluate import caption as evaluate_caption
from openblip.cli.evaluate import classify, nlvr, retrieval, video, videoqa, vqa
from openblip.cli.flags import Backend
from openblip.cli.predict import ask, caption, match
from openblip.cli.search import build
from openblip.cli.studio import studio
from openblip.deploy.models import VERSION
from openblip.inference.blip import Blip
from openblip.inference.export import Exported
from openblip.inference.loading import load
from openblip.table.table import PairTable

from ..capfilt.conftest import table
from ..deploy.conftest import exported
from ..inference.conftest import blip, pictures, tokenizer

__all__ = ["blip", "exported", "pictures", "table", "tokenizer"]

TEXTS = ["a red square", "two green triangles on a white table"]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nothing is kept in the cache of whoever runs the tests."""
    monkeypatch.setenv("OPENBLIP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def model(blip: Blip, exported: Exported, tmp_path: Path, cache: Path) -> str:
    """A model whose graphs are kept already, as after its first use."""
    blip.save(tmp_path / "model")
    source = str(tmp_path / "model")
    place = cache / "graphs" / f"{model_fingerprint(f'onnx:{source}')}-{VERSION}"
    shutil.copytree(exported.folder, place)
    return source


@pytest.fixture
def photos(pictures: list[Image.Image], tmp_path: Path) -> str:
    (tmp_path / "photos").mkdir()
    for number, picture in enumerate(pictures):
        picture.save(tmp_path / "photos" / f"{number}.png")
    return str(tmp_path / "photos")


def said(capsys: pytest.CaptureFixture[str], *words: str) -> list[dict]:
    # The small model leaves some captions empty, of which the exit code 1 tells.
    assert main([*words]) == 0 or words[0] == "caption"
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def texts_of(row: dict) -> tuple[str, list[str]]:
    return row["image"], [caption["text"] for caption in row["captions"]]


COMMANDS = [caption, match, ask, run, build, studio]
COMMANDS += [evaluate_caption, retrieval, vqa, videoqa, nlvr, classify, video]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.__name__)
def test_the_flag_is_there(command: Callable[..., int]) -> None:
    parameter = inspect.signature(command).parameters["backend"]
    assert parameter.default is None
    assert "backend: " in (command.__doc__ or "")


def test_the_flag_names_what_there_is() -> None:
    assert get_args(Backend) == BACKENDS


def test_captions_and_matches_are_the_models(
    model: str, photos: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["caption", photos, "--model", model]
    found, expected = said(capsys, *words, "--backend", "onnx"), said(capsys, *words)
    assert [texts_of(row) for row in found] == [texts_of(row) for row in expected]
    words = ["match", photos, *TEXTS, "--model", model, "--json"]
    found, expected = said(capsys, *words, "--backend", "onnx"), said(capsys, *words)
    for own, other in zip(found, expected, strict=True):
        for name in ("itm", "itc"):
            assert [m[name] for m in own["matches"]] == pytest.approx(
                [m[name] for m in other["matches"]], abs=1e-4
            )


def test_a_file_of_captions_is_not_gone_on_with_by_another_backend(
    model: str, photos: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["caption", photos, "--model", model, "-o", str(tmp_path / "captions.jsonl")]
    main(words)
    before = (tmp_path / "captions.jsonl").read_bytes()
    capsys.readouterr()
    assert main([*words, "--backend", "onnx"]) == 1
    assert "model" in capsys.readouterr().err
    assert (tmp_path / "captions.jsonl").read_bytes() == before


def test_an_exported_folder_needs_no_flag(
    exported: Exported, photos: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found = said(capsys, "caption", photos, "--model", str(exported.folder))
    assert len(found) == 7
    assert main(["match", f"{photos}/0.png", "a dog", "--model", str(exported.folder)]) == 0
    words = ["match", f"{photos}/0.png", "a dog", "--model", str(exported.folder)]
    assert main([*words, "--backend", "openvino"]) == 1
    assert "another runtime" in capsys.readouterr().err
    assert main(["explain", f"{photos}/0.png", "a dog", "--model", str(exported.folder)]) == 1
    assert "load the model itself" in capsys.readouterr().err


def test_an_index_is_built_updated_and_searched_by_one_backend(
    model: str, photos: str, pictures: list[Image.Image], capsys: pytest.CaptureFixture[str]
) -> None:
    (report,) = said(capsys, "index", "build", photos, "--model", model, "--json")
    plain = said(capsys, "search", photos, *TEXTS, "--json")[0]["hits"]
    again = ["index", "build", photos, "--model", model, "--backend", "onnx", "--json"]
    (computed,) = said(capsys, *again)
    assert computed["embedded"] == report["embedded"] == 7, "none of another backend are taken"
    assert computed["model"] == f"onnx:{report['model']}"
    found = said(capsys, "search", photos, *TEXTS, "--json")[0]["hits"]
    assert [hit["id"] for hit in found] == [hit["id"] for hit in plain]
    for name in ("itm", "itc"):
        assert [hit[name] for hit in found] == pytest.approx([h[name] for h in plain], abs=2e-3)
    pictures[0].rotate(90).save(Path(photos) / "new.png")
    (updated,) = said(capsys, "index", "update", photos, "--json")
    assert (updated["embedded"], updated["model"]) == (1, computed["model"])


def test_capfilt_writes_the_same_texts_and_is_another_job(
    model: str, table: PairTable, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(table.uri, tmp_path / "other.lance")
    found = []
    for uri, more in ((table.uri, []), (str(tmp_path / "other.lance"), ["--backend", "onnx"])):
        words = ["capfilt", "run", uri, "--captioner", model, "--filter", model, "--processes", "1"]
        assert main([*words, "--max-length", "12", "--json", *more]) == 0
        opened = PairTable.open(uri)
        rows = opened.take(range(len(opened)), ["synthetic", "synthetic_itm", "captions_itc"])
        found.append((rows.to_pylist(), json.loads(opened.metadata[METADATA_KEY])))
    (plain, own), (computed, other) = found
    assert any(row["synthetic"] for row in plain)
    for row, expected in zip(computed, plain, strict=True):
        assert row["synthetic"] == expected["synthetic"]
        for name in ("synthetic_itm", "captions_itc"):
            assert (row[name] or []) == pytest.approx(expected[name] or [], abs=1e-4)
    for name in ("fingerprint", "captioner_fingerprint", "filter_fingerprint"):
        assert own[name] != other[name]
    assert other["captioner"] == [f"onnx:{model}"]


def test_a_split_is_evaluated_alike(
    model: str, table: PairTable, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["evaluate", "retrieval", model, table.uri, "--split", "test", "--k", "2", "--json"]
    (expected,), (found,) = said(capsys, *words), said(capsys, *words, "--backend", "onnx")
    assert found["metrics"] == expected["metrics"]


def test_graphs_are_made_once(blip: Blip, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("they are there")

    monkeypatch.setattr("openblip.inference.loading.write_graphs", never)
    assert load(model, backend="onnx").model.config == blip.model.config
    with pytest.raises(AssertionError, match="they are there"):
        load(model, backend="onnx", image_size=64)
