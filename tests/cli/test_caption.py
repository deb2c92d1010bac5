"""`openblip caption`: what it needs to start, and mistakes that it names before any work."""

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from openblip.cli import main


def test_help_needs_no_heavy_library() -> None:
    code = """
import sys
from openblip.cli import main
try:
    main(["caption", "--help"])
except SystemExit as stop:
    assert stop.code == 0
heavy = {"torch", "lance", "pyarrow", "numpy", "PIL", "tokenizers"} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


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
