"""What the studio looks at, and that it looks again."""

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
from PIL import Image

from openblip.index.build import build_index, update_index
from openblip.runtime.errors import DataError
from openblip.studio.app import Studio
from openblip.studio.place import Place
from openblip.table.table import PairRow, PairTable

from .conftest import serving


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three photos, one in a folder of its own, and a text."""
    for number, place in enumerate(("", "trip", "")):
        path = tmp_path / "photos" / place / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30), (80 * number, 0, 0)).save(path)
    (tmp_path / "photos" / "notes.txt").write_text("not a photo")
    return tmp_path / "photos"


def ids(place: Place) -> list[str]:
    return place.table.take(range(len(place.table)), ["id"])["id"].to_pylist()


def test_a_folder_needs_no_index_and_gets_nothing_written_into_it(photos: Path) -> None:
    before = sorted(photos.rglob("*"))
    with ExitStack() as resources:
        place = Place(str(photos), resources)
        assert ids(place) == ["0.png", "2.png", "trip/1.png"]
        assert place.index is None
        assert place.encoded(0) == (photos / "0.png").read_bytes()
        scratch = Path(place.table.uri)
        assert scratch.exists()
    assert sorted(photos.rglob("*")) == before
    assert not scratch.exists()


def test_rows_are_those_of_the_index_as_soon_as_there_is_one(
    photos: Path, checkpoints: dict[str, str], make_studio: Callable[..., Studio]
) -> None:
    with serving(make_studio(photos, models={})) as running:
        first = running.ask("/api/about").json()
        assert not first["table"]["indexed"]
        answer = running.ask("/api/search", {"texts": ["a red circle"]})
        assert answer.status == 409
        assert f"openblip index build {photos}" in answer.error
        build_index(str(photos), checkpoints["filter"], device="cpu", show_progress=False)
        then = running.ask("/api/about").json()
        assert then["table"]["indexed"]
        assert then["table"]["mark"] != first["table"]["mark"]
        # The model of the index matches, where no other was given.
        assert [model["roles"] for model in then["models"]] == [["filter"]]
        assert len(running.ask("/api/search", {"texts": ["a red circle"]}).json()["hits"]) == 3
        Image.new("RGB", (40, 30), "blue").save(photos / "3.png")
        update_index(str(photos), device="cpu", show_progress=False)
        found = running.ask("/api/search", {"texts": ["a red circle"]}).json()
        assert "3.png" in [hit["id"] for hit in found["hits"]]
        # The numbers are those of the table that the answer names.
        for hit in found["hits"]:
            path = f"/image/{hit['row']}?v={found['mark']}"
            assert running.ask(path).body == (photos / hit["id"]).read_bytes()


def test_a_table_that_grows_is_seen(tmp_path: Path) -> None:
    table = PairTable.create(tmp_path / "t.lance", [PairRow("a", b"x")])
    place = Place(table.uri, ExitStack())
    mark = place.mark
    place.refresh()
    assert place.mark == mark
    table.append([PairRow("b", b"y")])
    place.refresh()
    assert place.mark != mark
    assert ids(place) == ["a", "b"]


@pytest.mark.parametrize(
    ("name", "told"), [("nothing", "does not exist"), ("empty", "no image"), ("file", "a file")]
)
def test_what_cannot_be_opened_is_said_at_once(tmp_path: Path, name: str, told: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    with ExitStack() as resources, pytest.raises(DataError, match=told):
        Place(str(tmp_path / name), resources)


def test_a_file_that_is_gone_is_said_with_its_row(photos: Path) -> None:
    with ExitStack() as resources:
        place = Place(str(photos), resources)
        (photos / "trip" / "1.png").unlink()
        with pytest.raises(DataError.__base__, match=r"trip/1\.png"):  # type: ignore[arg-type]
            place.encoded(2)
