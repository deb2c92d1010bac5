"""`openblip caption`: what it needs to start, and mistakes that it names before any work."""

import inspect
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import openblip
from openblip.cli import capfilt, evaluate, main, predict
from openblip.evaluation.settings import CaptionSettings
from openblip.inference.blip import Blip
from openblip.inference.decoding import Decoding

from ..inference.conftest import make_med


@pytest.mark.parametrize("name", ["caption", "evaluate retrieval"])
def test_help_needs_no_heavy_library(name: str) -> None:
    code = """
import sys
from openblip.cli import main
try:
    main([*sys.argv[1].split(), "--help"])
except SystemExit as stop:
    assert stop.code == 0
heavy = {"torch", "lance", "pyarrow", "numpy", "PIL", "tokenizers"} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code, name], check=True, capture_output=True)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a photo, an empty folder, and a file that is no model's."""
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (8, 8)).save("photo.png")
    Path("nothing").mkdir()
    Path("mine.jsonl").write_text("precious\n")
    return tmp_path


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["missing.jpg"], "missing.jpg: no such file or folder"),
        (["nothing"], "nothing: no image in this folder"),
        (["*.gif"], "*.gif: no such file or folder, nor a pattern"),
        (["photo.png", "-o", "captions.xml"], "no format has the suffix '.xml'"),
        (["photo.png", "-o", "a.csv", "--sidecar"], "--sidecar writes beside each image"),
        (["photo.png", "--overwrite"], "give -o FILE or --sidecar"),
        (["photo.png", "--split", "test"], "--split test"),
        (["photo.png", "--num-captions", "2", "--format", "coco"], "--num-captions 2"),
        (["photo.png"], "nowhere: no such file or folder"),
        (["photo.png", "-o", "a.csv"], "nowhere: no such file or folder"),
        ([], "no image was given"),
    ],
)
def test_mistakes_are_named_in_one_line(
    here: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["caption", *words, "--model", "nowhere"]) == 1
    output = capsys.readouterr()
    assert message in output.err
    assert not output.out
    assert "Traceback" not in output.err
    assert sorted(p.name for p in here.iterdir()) == ["mine.jsonl", "nothing", "photo.png"]


@pytest.mark.parametrize(
    ("command", "changed"),
    [
        (predict.caption, {}),
        (capfilt.run, {"method": "nucleus"}),
        (evaluate.caption, {}),
    ],
)
def test_the_settings_of_decoding_are_flags(
    command: Callable[..., int], changed: dict[str, str]
) -> None:
    flags = inspect.signature(command).parameters
    expected = vars(Decoding()) | changed
    assert {name: flags[name].default for name in expected} == expected


def test_a_card_tells_of_every_rule_that_is_not_the_plain_one() -> None:
    def told(**rules: Any) -> dict[str, Any]:
        return evaluate._told(CaptionSettings(decoding=Decoding(**rules)))

    plain = {"beams": 3, "tokens": "5 to 20", "prompt": "a picture of "}
    assert told() == plain
    changed = {"repetition_penalty": 1.5, "no_repeat_ngram_size": 2, "length_penalty": -1.0}
    assert told(**changed) == plain | changed
    drawn = told(method="nucleus", top_p=0.5, top_k=1)
    assert drawn == {**drawn, "decoding": "nucleus", "top_p": 0.5, "seed": 0, "top_k": 1}


def test_the_evaluation_has_the_settings_of_its_protocol() -> None:
    settings = vars(CaptionSettings())
    del settings["decoding"]
    flags = inspect.signature(evaluate.caption).parameters
    assert {name: flags[name].default for name in settings} == settings


@pytest.mark.parametrize(
    ("words", "told", "code"),
    [
        (["--repetition-penalty", "0"], "--repetition-penalty must be above 0, not 0", 2),
        (["--repetition-penalty", "nan"], "--repetition-penalty must be above 0, not nan", 2),
        (["--length-penalty", "nan"], "--length-penalty must be", 2),
        (["--top-k", "-1"], "--top-k must be at least 0, not -1", 2),
        (["--no-repeat-ngram-size", "-2"], "--no-repeat-ngram-size must be at least 0, not -2", 2),
        (["--min-length", "-1"], "--min-length must be at least 0, not -1", 2),
        (["--max-length", "0"], "--max-length must be at least 1, not 0", 2),
        (["--top-p", "0"], "--top-p must be above 0 and up to 1, not 0", 2),
        (["--top-p", "1.1"], "--top-p must be above 0 and up to 1, not 1.1", 2),
        (["--min-length", "9", "--max-length", "8"], "min_length 9 is above max_length 8", 2),
        (["--image-size", "0"], "--image-size must be at least 1, not 0", 2),
        (["--image-size", "-32"], "--image-size must be at least 1, not -32", 2),
        # Only the model knows that it has patches of 16 pixels.
        (["--image-size", "33"], "33", 1),
    ],
)
def test_settings_out_of_range_are_named(
    photo: str,
    checkpoint,
    words: list[str],
    told: str,
    code: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["caption", photo, "--model", checkpoint("captioner"), *words]) == code
    assert told in capsys.readouterr().err.splitlines()[-1]


def test_every_setting_reaches_the_model(
    photo: str, checkpoint, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    words = ["caption", photo, "--model", checkpoint("captioner"), "--prompt", "a", "-o", "o.jsonl"]
    settings = {
        "repetition_penalty": 1.3,
        "length_penalty": 0.5,
        "scoring": "transformers",
        "no_repeat_ngram_size": 2,
        "max_length": 30,
        "min_length": 20,
    }
    for name, value in settings.items():
        words += [f"--{name.replace('_', '-')}", str(value)]
    assert main([*words, "--image-size", "48"]) == 0
    blip = openblip.load(checkpoint("captioner"), "cpu", image_size=48)
    ((expected,),) = blip.caption(photo, prompt="a", **settings)
    line = json.loads(Path("o.jsonl").read_text())
    assert line["captions"][0]["text"] == expected.text
    stored = json.loads(Path("o.jsonl.settings.json").read_text())
    assert stored["image_size"] == 48
    assert {name: stored[name] for name in settings} == settings
    # Other settings do not go on with this file, in whichever direction.
    assert main(words) == 1
    assert "image_size 48, not None" in capfdbinary.readouterr().err.decode()
    assert main([*words, "--image-size", "48"]) == 0


def test_of_the_likeliest_token_alone_sampling_is_greedy(
    photo: str, checkpoint, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    words = ["caption", photo, "--model", checkpoint("captioner"), "--format", "txt"]
    sampled = ["--method", "nucleus", "--top-p", "1", "--seed", "3"]
    written = []
    for how in (["--method", "greedy"], [*sampled, "--top-k", "1"], sampled):
        assert main([*words, *how]) == 0
        written.append(capfdbinary.readouterr().out)
    greedy, of_one, of_all = written
    assert of_one == greedy != of_all


def test_what_is_off_is_not_stored_so_that_older_files_go_on(photo: str, checkpoint) -> None:
    words = ["caption", photo, "--model", checkpoint("captioner"), "-o", "o.csv"]
    assert main(words) == 0
    stored = json.loads(Path("o.csv.settings.json").read_text())
    assert not {"image_size", "no_repeat_ngram_size"} & set(stored)
    assert main([*words, "--no-repeat-ngram-size", "3"]) == 1


@pytest.mark.parametrize("form", ["jsonl", "csv", "txt", "coco", "sidecar"])
def test_an_empty_caption_is_told(
    photo: str, tokenizer, tmp_path: Path, form: str, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    med = make_med(tokenizer, heads=("lm",))
    with torch.no_grad():
        med.text.lm_head.bias[tokenizer.special.sep] = 99.0
    Blip(med, tokenizer, "captioner", 32, 40).save(tmp_path / "silent")
    words = ["caption", photo, "--model", "silent", "--prompt", "", "--min-length", "0"]
    assert main([*words, *(["--sidecar"] if form == "sidecar" else ["--format", form])]) == 1
    output = capfdbinary.readouterr()
    told = output.err.decode()
    assert "photo.png: the caption is empty: the model ended the caption at once" in told
    assert "1 captioned (1 of them empty)" in told
    assert not Path("photo.txt").exists()
    if form == "jsonl":
        (caption,) = json.loads(output.out)["captions"]
        assert (caption["text"], caption["reason"][:15]) == ("", "the model ended")


def test_every_file_of_a_folder_is_captioned_or_told(
    photo: str, checkpoint, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("a.png", "b.jfif", "c"):
        (folder / name).write_bytes(Path(photo).read_bytes())
    (folder / "notes.docx").write_bytes(b"PK\x03\x04")
    (folder / ".hidden.png").touch()
    (folder / "lost.png").symlink_to("nowhere")
    words = ["caption", "photos", "--model", checkpoint("captioner"), "--format", "txt"]
    assert main(words) == 1
    output = capfdbinary.readouterr()
    told = output.err.decode()
    assert len(output.out.splitlines()) == 3
    assert "photos/lost.png: a link to nothing" in told
    assert "3 captioned" in told
    assert "1 failed" in told
    assert "left out: 1 hidden (such as photos/.hidden.png), 1 not an image" in told


def test_the_report_accounts_for_every_file(
    photo: str, checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(12):
        (folder / f"{number:02d}.png").write_bytes(Path(photo).read_bytes())
    (folder / "broken.jpg").write_bytes(b"no image")
    (folder / "notes.docx").write_bytes(b"PK\x03\x04")
    (folder / "more.docx").write_bytes(b"PK\x03\x04")
    (folder / ".hidden.png").touch()
    words = ["caption", "photos", "--model", checkpoint("captioner"), "-o", "o.jsonl"]
    assert main([*words, "--json"]) == 1
    output = capsys.readouterr()
    found = json.loads(output.out)
    assert found["num_seen"] == 16
    assert (found["num_captioned"], found["num_failed"], found["num_known"]) == (12, 1, 0)
    assert found["skipped"] == {"hidden": 1, "not an image": 2}
    assert found["examples"]["hidden"] == [{"where": "photos/.hidden.png"}]
    (failed,) = found["examples"]["failed"]
    assert failed["where"] == "photos/broken.jpg"
    assert failed["detail"]
    assert "photos/broken.jpg: " in output.err
    assert found["complete"]
    assert found["seconds"] > 0
    # All photos are the same one, and so are their captions.
    line = json.loads(Path("o.jsonl").read_text().splitlines()[0])
    text = line["captions"][0]["text"]
    assert found["dominant"] == {"text": text, "count": 12, "of": 12}

    # The same again finds all but one done.
    assert main([*words, "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["num_seen"], found["num_captioned"], found["num_known"]) == (16, 0, 12)
    assert found["dominant"] is None
    assert main(["caption", "photos", *words[2:4], "--sidecar", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["num_captioned"] == 12


def test_an_image_that_was_exchanged_since_its_caption_is_told(
    photo: str, checkpoint: Callable[[str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    Path("photos").mkdir()
    for name in "ab":
        shutil.copyfile(photo, f"photos/{name}.jpg")
    words = ["caption", "photos", "--model", checkpoint("captioner"), "-o", "o.jsonl"]
    words += ["--min-length", "5", "--max-length", "8"]
    main(words)
    later = Path("o.jsonl").stat().st_mtime + 10
    os.utime("photos/b.jpg", (later, later))
    # However often it is asked: what has passed over it has not captioned it.
    for _ in range(2):
        capsys.readouterr()
        main(words)
        told = capsys.readouterr().err
        assert "1 of the skipped images are newer than the captions that stand (such as" in told
        assert "b.jpg" in told
    main([*words, "--json"])
    assert json.loads(capsys.readouterr().out)["num_changed"] == 1


def test_captions_of_another_folder_in_the_same_file_are_told(
    photo: str, checkpoint: Callable[[str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    for folder, names in (("mine", "abc"), ("yours", "de")):
        Path(folder).mkdir()
        for name in names:
            shutil.copyfile(photo, f"{folder}/{name}.jpg")
    for form in ("jsonl", "csv", "json"):
        words = ["--model", checkpoint("captioner"), "-o", f"o.{form}"]
        words += ["--min-length", "5", "--max-length", "8"]
        line = "captions of other images that stand in the same file"
        assert main(["caption", "mine", *words]) == 0
        assert line not in capsys.readouterr().err
        assert main(["caption", "yours", *words]) == 0
        assert f"{line}: 3" in capsys.readouterr().err
        assert main(["caption", "mine", *words, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["num_others"] == 2


@pytest.mark.parametrize("words", [[], ["-o", "/dev/stdout"], ["--format", "txt"]])
def test_the_report_does_not_mix_with_the_captions(
    photo: str, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["caption", photo, "--model", "nowhere", "--json", *words]) == 2
    assert "give -o FILE or --sidecar with it" in capsys.readouterr().err


def test_one_caption_for_nearly_all_is_told_at_the_end(
    photo: str, checkpoint, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    words = ["caption", "photos", "--model", checkpoint("captioner"), "--format", "txt"]
    for count, is_told in ((9, False), (10, True)):
        for number in range(count):
            (folder / f"{number}.png").write_bytes(Path(photo).read_bytes())
        assert main(words) == 0
        told = capfdbinary.readouterr().err.decode().splitlines()
        assert ("nearly all results are the same: 10 of 10 are" in told[-1]) is is_told
        assert sum("nearly all" in line for line in told) == is_told


def test_an_address_and_standard_input_are_named(
    photo: str, checkpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, why in {"https://x.org/a.jpg": "an address (https)", "-": "standard input"}.items():
        for command in (["caption", name], ["match", name, "a"], ["ask", name, "what?"]):
            head = {"match": "filter", "ask": "vqa"}.get(command[0], "captioner")
            assert main([*command, "--model", checkpoint(head)]) == 1
            assert why in capsys.readouterr().err
