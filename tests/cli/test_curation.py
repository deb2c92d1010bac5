"""Near-duplicates of photos, wherever they lie."""

import csv
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from openblip.cli import main
from openblip.table.table import PairTable


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`photos/`: a picture, twice in another size, and another picture."""
    monkeypatch.chdir(tmp_path)
    folder = Path("photos")
    (folder / "more").mkdir(parents=True)
    draws = np.random.default_rng(0)
    picture, other = (
        Image.fromarray(draws.integers(0, 256, size=(6, 6, 3), dtype=np.uint8)).resize((256, 256))
        for _ in range(2)
    )
    picture.resize((64, 64)).save(folder / "a.png")
    picture.resize((128, 96)).save(folder / "more" / "b.jpg", quality=95)
    picture.resize((90, 90)).save(folder / "more" / "c.png")
    other.resize((80, 80)).save(folder / "other.png")
    return folder


def pairs(*words: str) -> dict[str, Mapping[str, object]]:
    """The records of a run, by the name of the duplicate."""
    assert main(["data", "duplicates", *words, "-o", "pairs.json"]) == 0
    return {record["duplicate"]: record for record in json.loads(Path("pairs.json").read_text())}


def test_photos_in_a_folder_are_compared_and_every_pair_is_written(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = pairs("photos/", "--keep", "largest")
    assert {name: record["kept"] for name, record in found.items()} == {
        "photos/a.png": "photos/more/b.jpg",
        "photos/more/c.png": "photos/more/b.jpg",
    }
    record = found["photos/a.png"]
    assert [record[name] for name in ("width", "height", "kept_width", "kept_height")] == [
        64,
        64,
        128,
        96,
    ]
    assert 0 <= int(str(record["bits"])) <= 6
    assert record["same_file"] is False
    assert capsys.readouterr().out.startswith("photos/: 4 images, near-duplicates by hash: train 2")
    # Photos have no texts to speak of, and nothing is written beside them.
    assert "texts repeat" not in capsys.readouterr().out
    assert sorted(path.name for path in Path().iterdir()) == ["pairs.json", "photos"]
    assert set(pairs("photos/")) == {"photos/more/b.jpg", "photos/more/c.png"}

    assert main(["data", "duplicates", "photos", "-o", "pairs.csv"]) == 0
    with Path("pairs.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["duplicate"] for row in rows] == ["photos/more/b.jpg", "photos/more/c.png"]


def test_patterns_archives_and_tables_give_the_same(photos: Path) -> None:
    with tarfile.open("photos.tar", "w") as tar:
        tar.add(photos, "photos")
    assert main(["data", "import", "photos", "photos.lance", "--without-captions"]) == 0
    assert set(pairs("photos/more/*")) == {"photos/more/c.png"}
    assert set(pairs("photos.tar")) == {
        "photos.tar/photos/more/b.jpg",
        "photos.tar/photos/more/c.png",
    }
    assert set(pairs("photos.lance", "--keep", "largest")) == {"a", "more/c"}
    assert "duplicate_of" in PairTable.open("photos.lance").columns


def test_a_page_shows_kept_images_beside_their_copies(photos: Path) -> None:
    words = ["photos", "--keep", "largest", "--page", "page.html"]
    assert main(["data", "duplicates", *words]) == 0
    html = Path("page.html").read_text(encoding="utf-8")
    assert html.count("data:image/") == 3
    for told in ("photos/more/b.jpg: 2 copies", "128 x 96", "64 x 64", "90 x 90", "kept"):
        assert told in html
    assert "other.png" not in html


def test_what_cannot_be_read_is_named_and_the_exit_code_says_so(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "broken.png").write_bytes(b"no image")
    assert main(["data", "duplicates", "photos"]) == 1
    told = capsys.readouterr()
    assert "openblip data duplicates: photos/broken.png: " in told.err
    assert "near-duplicates by hash: train 2" in told.out
    assert main(["data", "duplicates", "nothing/"]) == 1
    assert "no pair table at nothing" in capsys.readouterr().err
    Path("empty").mkdir()
    assert main(["data", "duplicates", "empty"]) == 1
    assert "no image in this folder" in capsys.readouterr().err
    assert main(["data", "duplicates", "photos", "-o", "pairs.txt"]) == 1
    assert "ends in .csv or .json" in capsys.readouterr().err
