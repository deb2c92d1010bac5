"""Which kind of annotations a JSON file holds, and what is refused by its name."""

import json
import os
from pathlib import Path

import pytest

from openblip.runtime.errors import DataError
from openblip.sources.annotations import UnknownAnnotations, read_annotations
from openblip.sources.source import SourceOptions


def read(file: Path, content: object) -> None:
    file.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    read_annotations(file, SourceOptions())


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ([{"id": "1", "image": "1.jpg", "conversations": []}], "conversations"),
        ([{"ref_id": 1, "sentences": [{"raw": "left"}], "split": "val"}], "referring expressions"),
        ([{"img_id": "1", "sent": "q", "label": {"yes": 1}}], "in the form of LXMERT"),
        ([{"url": "https://a.example/1.jpg", "caption": "a"}], "web addresses"),
        ({"image_urls": ["https://a.example/1.jpg"], "captions": ["a"]}, "web addresses"),
        ({"classes": ["dog"], "labels": {"1": 0}}, "class labels"),
    ],
)
def test_what_is_known_and_holds_no_captions_is_refused_by_name(
    tmp_path: Path, content: object, what: str
) -> None:
    with pytest.raises(DataError, match=rf"a\.json holds .*{what}") as caught:
        read(tmp_path / "a.json", content)
    assert not isinstance(caught.value, UnknownAnnotations)


@pytest.mark.parametrize(
    "content", [5, "text", None, [], {}, [1, 2], {"a": {"b": 1}}, [{"x" * 500: 1}], {"data": []}]
)
def test_another_value_is_of_no_known_kind(tmp_path: Path, content: object) -> None:
    with pytest.raises(UnknownAnnotations, match="is none of") as caught:
        read(tmp_path / "a.json", content)
    assert len(str(caught.value)) < 400 + len(str(tmp_path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it is empty"),
        (b'[{"image": "a.jpg", "caption": "t"}, {"ima', "if it is cut off, copy it again"),
        ("[]".encode("utf-16"), "save it as UTF-8"),
        (b"\xff\xfe\xfd" * 9, "save it as UTF-8"),
        (b"[" * 9000, "nested too deep"),
    ],
)
def test_damage_is_told_in_one_short_line(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "a.json"
    with pytest.raises(DataError, match=r"a\.json cannot be read as JSON") as caught:
        read(file, content)
    assert message in str(caught.value)
    assert len(str(caught.value)) < 250 + len(str(file))


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    (tmp_path / "zero.json").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "pipe.json")
    for name in ("zero.json", "pipe.json", "none.json"):
        with pytest.raises(DataError, match=rf"{name} is no regular file"):
            read_annotations(tmp_path / name, SourceOptions())


def test_what_a_list_is_may_show_after_a_damaged_record(tmp_path: Path) -> None:
    (tmp_path / "1.jpg").touch()
    read(tmp_path / "a.json", [None, {"note": "x"}, {"image": "1.jpg", "caption": "a"}])
