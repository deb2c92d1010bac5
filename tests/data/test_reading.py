import os
from pathlib import Path

import pytest

from openblip.data.reading import encoded_image, read_image_file
from openblip.errors import DataError


def test_bytes_from_the_table_go_first() -> None:
    assert encoded_image(b"abc", "/does/not/exist") == b"abc"


@pytest.mark.parametrize("prefix", ["", "file://"])
def test_paths_and_file_addresses_are_read(tmp_path: Path, prefix: str) -> None:
    (tmp_path / "a b.jpg").write_bytes(b"abc")
    name = str(tmp_path / "a b.jpg")
    assert encoded_image(None, prefix + (name.replace(" ", "%20") if prefix else name)) == b"abc"


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
