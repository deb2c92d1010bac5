"""Which kind of source a path is."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from openblip.sources.detect import open_source
from openblip.sources.source import SourceOptions

_LIST = json.dumps([{"image": "0.jpg", "caption": "a"}])


@pytest.mark.parametrize(
    ("files", "kind"),
    [
        ({"captions.jsonl": "{}"}, "jsonl"),
        ({"captions.jsonl.gz": "{}"}, "jsonl"),
        ({"a.csv": "image,caption\n0.jpg,a\n"}, "table"),
        ({"a.tsv.xz": ""}, "table"),
        ({"captions.txt": "image,caption\n0.jpg,a\n"}, "table"),
        ({"Flickr8k.token.txt": "0.jpg#0\ta\n"}, "table"),
        ({"captions.txt": "a dog\n"}, "folder"),
        ({"a.tar.bz2": ""}, "webdataset"),
        ({"metadata.json": _LIST}, "captions"),
        ({"0.txt": "a"}, "folder"),
    ],
)
def test_a_folder_is_what_is_in_it(
    tmp_path: Path, jpeg: Callable[..., bytes], files: dict[str, str], kind: str
) -> None:
    (tmp_path / "0.jpg").write_bytes(jpeg(0))
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    assert open_source(str(tmp_path), SourceOptions()).format == kind


@pytest.mark.parametrize(
    ("name", "kind"),
    [("a.jsonl", "jsonl"), ("a.JSONL.bz2", "jsonl"), ("A.CSV", "table"), ("x.tbz2", "webdataset")],
)
def test_a_file_is_what_its_name_says(tmp_path: Path, name: str, kind: str) -> None:
    (tmp_path / name).write_text("image,caption\n0.jpg,a\n")
    if name.lower().endswith("bz2"):
        (tmp_path / name).write_bytes(b"BZh91AY&SY")
    assert open_source(str(tmp_path / name), SourceOptions()).format == kind
