"""Which of several near images is kept."""

import io
import os
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from openblip.curation.duplicates import Keep, flag_duplicates
from openblip.runtime.errors import RecipeError
from openblip.sources.images import read_header
from openblip.table.table import PairRow, PairTable


def picture(side: int, taken: str | None = None, kind: str = "JPEG") -> bytes:
    """One picture at any size, with the camera's date."""
    spots = np.random.default_rng(0).integers(0, 256, size=(6, 6, 3), dtype=np.uint8)
    image = Image.fromarray(spots).resize((256, 256)).resize((side, side))
    exif = Image.Exif()
    if taken is not None:
        exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.DateTimeOriginal] = taken
        exif[ExifTags.Base.DateTime] = "2030:01:01 00:00:00"
    stream = io.BytesIO()
    image.save(stream, kind, exif=exif)
    return stream.getvalue()


def kept(table: PairTable, keep: Keep) -> str:
    """The id of the one image that no other is kept instead of."""
    report = flag_duplicates(table, keep=keep, show_progress=False)
    assert report.keep == keep
    rows = table.take(range(len(table)), ["id", "duplicate_of"]).to_pylist()
    (stays,) = [row["id"] for row in rows if row["duplicate_of"] is None]
    return str(stays)


def test_the_first_the_largest_or_the_newest_is_kept(tmp_path: Path) -> None:
    rows = [
        PairRow("first", picture(64)),
        PairRow("large", picture(128)),
        PairRow("old", picture(96, "2001:02:03 04:05:06")),
        PairRow("new", picture(80, "2020:02:03 04:05:06")),
    ]
    table = PairTable.create(tmp_path / "t", rows)
    assert kept(table, "first") == "first"
    assert kept(table, "largest") == "large"
    assert kept(table, "newest") == "new"


def test_an_image_of_people_is_kept_before_any_of_the_web(tmp_path: Path) -> None:
    rows = [PairRow("web", picture(128)), PairRow("human", picture(64), origin="human")]
    assert kept(PairTable.create(tmp_path / "t", rows), "largest") == "human"


def test_without_a_date_of_the_camera_the_files_counts_then_the_order(tmp_path: Path) -> None:
    files = []
    for number, day in enumerate((2, 3, 1)):
        file = tmp_path / f"{number}.jpg"
        file.write_bytes(picture(64 + number))
        time = datetime(2020, 1, day, tzinfo=UTC).timestamp()
        os.utime(file, (time, time))
        files.append(file)
    rows = [PairRow(file.name, None, str(file)) for file in files]
    assert kept(PairTable.create(tmp_path / "files", rows), "newest") == "1.jpg"
    stored = [PairRow(file.name, file.read_bytes()) for file in files]
    assert kept(PairTable.create(tmp_path / "stored", stored), "newest") == "2.jpg"


def test_a_header_tells_size_and_date() -> None:
    header = read_header(picture(64, "2001:02:03 04:05:06"))
    assert (header.width, header.height, header.pixels) == (64, 64, 4096)
    assert header.date == datetime(2001, 2, 3, 4, 5, 6, tzinfo=UTC).timestamp()
    assert read_header(picture(64)).date == 0.0
    assert read_header(picture(64, "yesterday")).date == 0.0
    assert read_header(picture(64, "2001:02:03 04:05:06", "PNG")).date == header.date


def test_another_word_is_refused(tmp_path: Path) -> None:
    table = PairTable.create(tmp_path / "t", [PairRow("a", picture(64))])
    with pytest.raises(RecipeError, match="keep must be one of first, largest, newest"):
        flag_duplicates(table, keep="oldest", show_progress=False)  # type: ignore[arg-type]
