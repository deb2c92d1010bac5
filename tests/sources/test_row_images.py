import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from openblip.runtime.errors import DataError, MissingExtra
from openblip.sources.images import open_image
from openblip.sources.row_images import (
    check_reachable,
    encoded_image,
    read_image_file,
    row_image,
    stream_images,
)
from openblip.table.table import PairRow, PairTable


def test_bytes_from_the_table_go_first() -> None:
    assert encoded_image(b"abc", "/does/not/exist") == b"abc"


@pytest.mark.parametrize("prefix", ["", "file://"])
def test_paths_and_file_addresses_are_read(tmp_path: Path, prefix: str) -> None:
    (tmp_path / "a b.jpg").write_bytes(b"abc")
    name = str(tmp_path / "a b.jpg")
    assert encoded_image(None, prefix + (name.replace(" ", "%20") if prefix else name)) == b"abc"


@pytest.mark.parametrize("name", ["caf\udce9.jpg", "50%\udce9 #1?.jpg"])
def test_a_file_whose_name_is_no_unicode_is_found_by_its_row(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"abc")
    row = PairRow("a", image_uri=str(tmp_path / name))
    stored = PairTable.create(tmp_path / "t", [row]).take([0], ["image", "image_uri"]).to_pylist()
    assert encoded_image(**stored[0]) == b"abc"


def test_web_addresses_are_refused_with_a_remedy() -> None:
    with pytest.raises(DataError, match="img2dataset"):
        encoded_image(None, "https://example.com/a.jpg")


def test_a_row_without_an_image_is_an_error() -> None:
    with pytest.raises(DataError, match="neither"):
        encoded_image(None, None)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.jpg: No such file"):
        read_image_file(tmp_path / "none.jpg")


def test_a_pipe_is_refused_instead_of_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(DataError, match="no regular file"):
        read_image_file(tmp_path / "pipe.jpg")


def test_an_enormous_file_is_refused_unread(tmp_path: Path) -> None:
    with (tmp_path / "big.jpg").open("wb") as stream:
        stream.truncate(1 << 40)  # sparse: takes no space
    with pytest.raises(DataError, match="bytes, more than"):
        read_image_file(tmp_path / "big.jpg")


def test_images_of_a_table_come_in_the_order_that_was_asked_for(table: PairTable) -> None:
    rows = np.array([5, 0, 19, 5] * 20)
    encoded = table.take(rows, ["image"])["image"].to_pylist()
    expected = [open_image(image).tobytes() for image in encoded]
    assert [image.tobytes() for image in stream_images(table, rows)] == expected


def test_an_image_of_a_table_that_cannot_be_read_is_named(
    tmp_path: Path, pair_rows: Callable[..., list[PairRow]]
) -> None:
    rows = [*pair_rows(2), PairRow(id="broken", image=b"none", captions=["a"])]
    table = PairTable.create(tmp_path / "broken.lance", rows)
    streamed = stream_images(table, np.arange(3))
    assert next(streamed).size == next(streamed).size
    with pytest.raises(DataError, match="row 'broken'"):
        next(streamed)


@pytest.mark.usefixtures("without_cloud")
def test_without_the_extra_an_address_costs_its_row_alone() -> None:
    with pytest.raises(DataError, match=r"s3://b/x\.jpg: .*pip install 'openblip\[cloud\]'"):
        row_image({"id": "a", "image": None, "image_uri": "s3://b/x.jpg"})


@pytest.mark.usefixtures("without_cloud")
def test_work_that_can_leave_no_row_out_asks_for_the_extra_before_it_begins(tmp_path: Path) -> None:
    rows = [PairRow(id="a", image=b"x"), PairRow(id="b", image_uri="s3://b/x.jpg")]
    table = PairTable.create(tmp_path / "t.lance", rows)
    with pytest.raises(MissingExtra, match=r"row 1 of .*, s3://b/x\.jpg: .*'openblip\[cloud\]'"):
        check_reachable(table)
    check_reachable(table, [0])
    with pytest.raises(MissingExtra, match="row 1 of"):
        check_reachable(table, np.array([1]))
    check_reachable(PairTable.create(tmp_path / "u.lance", rows[:1]))


def test_with_the_extra_nothing_is_scanned(tmp_path: Path) -> None:
    row = PairRow(id="b", image_uri="s3://b/x.jpg")
    check_reachable(PairTable.create(tmp_path / "t.lance", [row]))
