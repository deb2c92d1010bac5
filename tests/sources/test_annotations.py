"""Which kind of annotations a JSON file holds, and what is refused by its name."""

import gzip
import json
import lzma
import os
from pathlib import Path

import pytest

from openblip.runtime.errors import DataError
from openblip.sources.annotations import (
    UnknownAnnotations,
    annotation_source,
    read_annotations,
)
from openblip.sources.source import Found, SourceOptions


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
    ("content", "what"),
    [
        ({"annotations": {"a.jpg": 1}}, "its 'annotations' is an object, {\"a.jpg\": 1}, where"),
        ({"captions": {"a.jpg": {"label": "x"}}}, "or the name of each image with a text"),
        ({"annotations": [{"answers": ["a"], "image_id": 1}]}, "answers without questions"),
        ({"annotations": [{"bbox": [1, 2], "image_id": 1}]}, "of which none has a caption"),
        ({"annotations": {"x.jpg": "a"}}, "images of .* are in none of the folders"),
        ({"name": "a", "version": "b"}, "its keys are name, version"),
        ({"train": ["a.jpg"], "test": ["b.jpg"]}, "its keys are train, test"),
    ],
)
def test_what_has_no_captions_by_name_is_told_what_it_has(
    tmp_path: Path, content: object, what: str
) -> None:
    with pytest.raises(DataError, match=what):
        read(tmp_path / "a.json", content)


@pytest.mark.parametrize("encoding", ["utf-8", "cp1252", "utf-16"])
@pytest.mark.parametrize("name", ["a.json", "a.json.gz", "a.json.xz"])
def test_a_file_may_be_packed_and_is_in_the_encoding_that_is_said_if_it_is_no_utf8(
    tmp_path: Path, name: str, encoding: str
) -> None:
    (tmp_path / "0.jpg").touch()
    text = json.dumps([{"image": "0.jpg", "caption": "grün"}], ensure_ascii=False)
    pack = {".gz": gzip.compress, ".xz": lzma.compress}.get(Path(name).suffix, bytes)
    (tmp_path / name).write_bytes(pack(text.encode(encoding)))
    named = "cp1252" if encoding == "utf-8" else encoding
    source = annotation_source([tmp_path / name], SourceOptions(encoding=named))
    assert source is not None
    (entry,) = source.entries(None)
    assert isinstance(entry, Found)
    assert list(entry.captions) == ["grün"]
    if encoding != "utf-8":
        with pytest.raises(DataError, match="or name its encoding with --encoding"):
            annotation_source([tmp_path / name], SourceOptions())


def test_a_folder_is_annotated_by_a_packed_file(tmp_path: Path) -> None:
    document = {
        "images": [{"id": 1, "file_name": "0.jpg"}],
        "annotations": [{"id": 1, "image_id": 1, "caption": "a dog"}],
    }
    (tmp_path / "annotations.json.gz").write_bytes(gzip.compress(json.dumps(document).encode()))
    (tmp_path / "0.jpg").write_bytes(b"")
    source = annotation_source([tmp_path], SourceOptions())
    assert source is not None
    assert source.format == "coco"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it is empty"),
        (b'[{"image": "a.jpg", "caption": "t"}, {"ima', "if it is cut off, copy it again"),
        ("[]".encode("utf-16"), "save it as UTF-8"),
        (b"\xff\xfe\xfd" * 9, "save it as UTF-8"),
        (b"[" * 1_000_000, "nested too deep"),
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
