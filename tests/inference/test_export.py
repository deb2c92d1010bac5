"""Exported graphs give what the model gives, and a folder of them needs nothing else."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from openblip.batches.tokenizer import TextTokenizer
from openblip.batches.transforms import eval_transform
from openblip.cli import main
from openblip.deploy.graphs import memories_of, parts_of
from openblip.deploy.runtimes import WEIGHTS_FILE, open_graph
from openblip.inference.answers import read_questions
from openblip.inference.blip import Blip
from openblip.inference.export import MANIFEST_FILE, TOLERANCE, Exported, export
from openblip.model import Med
from openblip.model.vqa import Nlvr, NlvrConfig, Vqa
from openblip.runtime.errors import CheckpointError, OpenBlipWarning, RecipeError, UnwritableError

from ..deploy.conftest import _shapes_are_not_checked, exported
from ..inference.conftest import make_med, make_relative

__all__ = ["_shapes_are_not_checked", "exported"]

onnx = pytest.importorskip("onnx", reason="the extra `export` is not installed")
pytest.importorskip("onnxscript", reason="the extra `export` is not installed")
pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")

RUNNER = Path(__file__).resolve().parents[2] / "examples" / "onnx_caption.py"
TEXTS = ["a red square", "two green triangles on a white table"]
# Whoever runs the example has no PyTorch.
WITHOUT_TORCH = (
    "import runpy, sys; sys.modules |= {'torch': None, 'openblip': None};"
    "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
)


@pytest.fixture(scope="module")
def photo(pictures: list[Image.Image], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photos") / "photo.png"
    pictures[0].save(path)
    return path


def arrays_of(graph: dict[str, Any], *tensors: Any) -> dict[str, np.ndarray]:
    return {p["name"]: np.asarray(t) for p, t in zip(graph["inputs"], tensors, strict=True)}


def test_every_part_is_there_and_held_to_the_model(exported: Exported) -> None:
    names = ["image_encoder", "image_embedding", "text_encoder"]
    names += ["image_memory", "decoder", "matcher"]
    assert list(exported.differences) == names
    assert all(difference <= TOLERANCE for difference in exported.differences.values())
    assert exported.num_bytes == sum(f.stat().st_size for f in exported.folder.iterdir())


def test_a_weight_that_several_graphs_have_stands_once(exported: Exported, blip: Blip) -> None:
    weights = sum(weight.numel() * 4 for weight in blip.model.parameters())
    # Every tensor begins a page.
    pages = 4096 * sum(1 for _ in blip.model.parameters())
    assert (exported.folder / WEIGHTS_FILE).stat().st_size <= weights + pages


def test_graphs_say_nothing_of_the_machine_that_wrote_them(exported: Exported) -> None:
    for file in exported.folder.glob("*.onnx"):
        content = file.read_bytes()
        assert b"/openblip/" not in content, file.name
        assert b".py" not in content, file.name


def test_axes_have_names(exported: Exported) -> None:
    graph = onnx.load(exported.folder / "decoder.onnx", load_external_data=False).graph
    shapes = {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.output)
    }
    assert shapes["input_ids"] == ["images", "texts", "tokens"]
    assert shapes["past.1.value"][:2] == ["images", "texts"]
    assert shapes["past.1.value"][3] == "past"


def run_example(*words: object) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, str(RUNNER), *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": ""},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_the_runner_is_short() -> None:
    import ast

    code = RUNNER.read_text(encoding="utf-8")
    told = [
        line
        for node in ast.walk(ast.parse(code))
        if isinstance(node, ast.Module | ast.FunctionDef)
        for line in range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1)
        if isinstance(node.body[0], ast.Expr)
    ]
    lines = enumerate(code.splitlines(), 1)
    assert len([line for number, line in lines if line.strip() and number not in told]) <= 60


def test_the_runner_says_what_the_model_says(exported: Exported, blip: Blip, photo: Path) -> None:
    written, match, cosine = run_example(exported.folder, photo, *TEXTS)
    expected = blip.match(str(photo), TEXTS)
    assert written == blip.caption(str(photo))[0][0].text
    found = [float(number) for number in match.removeprefix("match: ").split()]
    assert found == pytest.approx([each.itm for each in expected], abs=2e-4)
    found = [float(number) for number in cosine.removeprefix("cosine: ").split()]
    assert found == pytest.approx([each.itc for each in expected], abs=2e-4)


@pytest.mark.parametrize("kind", ["turned", "transparent"])
def test_the_runner_sees_a_photo_as_the_model_does(
    exported: Exported, blip: Blip, pictures: list[Image.Image], tmp_path: Path, kind: str
) -> None:
    photo = tmp_path / "photo.png"
    if kind == "turned":
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = 6
        pictures[0].convert("RGB").save(photo, exif=exif)
    else:
        seen_through = pictures[0].convert("RGBA")
        seen_through.putalpha(Image.linear_gradient("L").resize(seen_through.size))
        seen_through.save(photo)

    _, match, _ = run_example(exported.folder, photo, *TEXTS)

    found = [float(number) for number in match.removeprefix("match: ").split()]
    expected = [each.itm for each in blip.match(str(photo), TEXTS)]
    assert found == pytest.approx(expected, abs=2e-4)


def test_an_exported_captioner_reads_no_given_text_and_this_is_told_first(
    tokenizer: TextTokenizer, tmp_path: Path
) -> None:
    med = make_med(tokenizer, heads=("lm",)).bfloat16()
    reads = Blip(med, tokenizer, "captioner", 32, 30, given_tokens=8)
    told = pytest.warns(OpenBlipWarning, match="an exported model has no place")
    # Before minutes of work, which in this precision are none.
    with told, pytest.raises(RecipeError, match="float32 on the CPU"):
        export(reads, tmp_path / "model")


@pytest.mark.slow
def test_a_captioner_that_read_given_texts_is_exported(
    tokenizer: TextTokenizer, tmp_path: Path
) -> None:
    med = make_med(tokenizer, heads=("lm",))
    reads = Blip(med, tokenizer, "captioner", 32, 30, given_tokens=8)
    with pytest.warns(OpenBlipWarning, match="an exported model has no place"):
        found = export(reads, tmp_path / "model")
    assert list(found.differences) == ["image_encoder", "image_memory", "decoder"]


def test_the_runners_beams_are_the_models(
    exported: Exported, blip: Blip, pictures: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", [str(RUNNER), str(exported.folder)])
    code: dict[str, Any] = {"__name__": "runner"}
    exec(compile(RUNNER.read_text(encoding="utf-8"), RUNNER, "exec"), code)
    states = open_graph(exported.folder / "image_encoder.onnx")
    size = blip.image_size
    for picture in pictures:
        pixels = eval_transform(picture.convert("RGB"), size)[None].numpy()
        found = code["caption"](states({"pixels": pixels})[0])
        assert found == blip.caption(picture)[0][0].text


@pytest.mark.slow
def test_decoder_and_encoder_that_share_nothing_have_a_memory_each(
    tokenizer: TextTokenizer, tmp_path: Path
) -> None:
    med = make_med(tokenizer, sharing="none", heads=("itm", "lm"))
    assert memories_of(med) == {"decoder": "image_memory", "matcher": "matcher_memory"}
    found = export(Blip(med, tokenizer, "pretrain", 32, 30), tmp_path / "model")
    assert "matcher_memory" in found.differences


@pytest.mark.slow
def test_a_question_is_answered_as_by_the_model(
    vqa: Vqa, tokenizer: TextTokenizer, images: torch.Tensor, tmp_path: Path
) -> None:
    found = export(Blip(vqa, tokenizer, "vqa", 32, 30), tmp_path / "vqa")
    assert "openblip ask photo.jpg" in (found.folder / "README.md").read_text(encoding="utf-8")
    about = json.loads((found.folder / MANIFEST_FILE).read_text(encoding="utf-8"))
    graphs = {
        name: (graph, open_graph(found.folder / graph["file"]))
        for name, graph in about["graphs"].items()
    }

    def run(name: str, *tensors: Any) -> list[np.ndarray]:
        graph, compute = graphs[name]
        return compute(arrays_of(graph, *tensors))

    questions = tokenizer.encode(["a red square", "a dog under a large tree"], 30, first="enc")
    (states,) = run("image_encoder", images[:2])
    ids, mask = (each.reshape(2, 1, -1) for each in (questions.ids, questions.mask))
    memory = run("question_encoder", ids, mask, *run(about["memory"]["question_encoder"], states))
    answers = tokenizer.encode(["a dog", "two cats"], 30, first="dec").ids
    empty = [np.zeros((2, 1, 4, 0, 8), np.float32)] * len(memory)
    logits, *_ = run("decoder", answers[:, None], questions.mask, *memory, *empty)
    with torch.inference_mode():
        read = read_questions(vqa, vqa.encode_images(images[:2]), questions)
        expected = vqa.decode(answers, None, read)
    assert np.abs(logits[:, 0] - expected.numpy()).max() < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["albef", "dual_encoder"])
def test_relatives(kind: str, tokenizer: TextTokenizer, tmp_path: Path) -> None:
    found = export(Blip(make_relative(kind, tokenizer), tokenizer, kind, 32, 30), tmp_path / kind)
    assert {"image_encoder", "text_encoder"} <= set(found.differences)
    assert ("matcher" in found.differences) == (kind == "albef")


@pytest.mark.slow
def test_openvino_gives_the_same(blip: Blip, tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="the extra `openvino` is not installed")
    found = export(blip, tmp_path / "model", "openvino")
    assert all(difference <= TOLERANCE for difference in found.differences.values())
    assert {file.suffix for file in found.folder.iterdir()} == {".xml", ".bin", ".json", ".md"}


def test_the_card_says_what_the_model_is_and_how_it_is_used(exported: Exported) -> None:
    card = (exported.folder / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\nlicense: unknown\nlibrary_name: onnxruntime\n")
    assert "| kind | pretrain |" in card
    assert "onnx_caption.py" in card
    assert "| decoder |" in card


def test_what_cannot_be_exported_says_so(
    tokenizer: TextTokenizer, tmp_path: Path, blip: Blip
) -> None:
    sizes = make_med(tokenizer).config
    nlvr = Nlvr(NlvrConfig(vision=sizes.vision, text=sizes.text, merge_from_layer=1))
    with pytest.raises(RecipeError, match="two-image"):
        export(Blip(nlvr, tokenizer, "nlvr", 32, 30), tmp_path / "nlvr")
    half = Blip(make_med(tokenizer).bfloat16(), tokenizer, "pretrain", 32, 30)
    with pytest.raises(RecipeError, match="float32 on the CPU"):
        export(half, tmp_path / "half")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "holiday.jpg").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"holiday\.jpg"):
        export(blip, tmp_path / "photos")


def test_a_missing_package_names_the_extra(
    blip: Blip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(RecipeError, match=r"openblip\[export\]"):
        export(blip, tmp_path / "model")
    assert not (tmp_path / "model").exists()


@pytest.mark.slow
def test_a_part_that_breaks_off_leaves_nothing(
    tokenizer: TextTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    med = make_med(tokenizer, heads=("itc",))
    monkeypatch.setattr("openblip.inference.export.TOLERANCE", -1.0)
    with pytest.raises(CheckpointError, match="differs from the model"):
        export(Blip(med, tokenizer, "pretrain", 32, 30), tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_parts_of_a_captioner_are_those_that_it_needs(tokenizer: TextTokenizer) -> None:
    names = [part.name for part in parts_of(make_med(tokenizer, heads=("lm",)))]
    assert names == ["image_encoder", "image_memory", "decoder"]
    assert isinstance(make_med(tokenizer), Med)


def test_the_command(
    exported: Exported, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "notes.txt").write_text("mine")
    assert main(["export", str(exported.folder), str(taken)]) == 1
    assert "--overwrite" in capsys.readouterr().err


@pytest.mark.slow
def test_a_disk_without_room_is_told_and_nothing_is_left(blip: Blip, tmp_path: Path) -> None:
    folder = tmp_path / "graphs"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(UnwritableError, match=f"^{folder}: cannot be written") as error:
            export(blip, folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert len(str(error.value).splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
