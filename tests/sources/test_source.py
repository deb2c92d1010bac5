"""The checks that all sources share: paths, JSON, and how deep it may be."""

import json
from pathlib import Path

import pytest

from openblip.sources.source import UnsafePath, first_texts, inside, one_name, parse_json, plain


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root" / "images").mkdir(parents=True)
    (tmp_path / "root" / "images" / "a.jpg").touch()
    (tmp_path / "secret.jpg").touch()
    return tmp_path / "root"


@pytest.mark.parametrize("name", ["images/a.jpg", "./images//a.jpg", "x/../images/a.jpg"])
def test_a_relative_path_lies_below_the_root(root: Path, name: str) -> None:
    assert inside(root, name) == root / "images/a.jpg"


def test_backslashes_are_those_of_windows_unless_a_file_has_them(root: Path) -> None:
    assert inside(root, "images\\a.jpg") == root / "images/a.jpg"
    (root / "images\\a.jpg").touch()
    assert inside(root, "images\\a.jpg") == root / "images\\a.jpg"


def test_an_absolute_path_counts_below_the_root(root: Path) -> None:
    name = str(root / "images" / "a.jpg")
    assert inside(root, name) == Path(name)
    assert inside(root / "images", name) == Path(name)
    # The root may be named by a link, as disks of data often are.
    (root.parent / "link").symlink_to(root)
    assert inside(root.parent / "link", name) == Path(name)


@pytest.mark.parametrize(
    "name",
    [
        "../secret.jpg", "a/../../secret.jpg", "a\\..\\..\\secret.jpg", "/etc/passwd", "", ".",
        "C:\\a.jpg", "s3://lab/a.jpg", "https://a.example/a.jpg", "a\0.jpg", "//host/a.jpg",
    ],
)  # fmt: skip
def test_a_path_out_of_the_root_is_refused(root: Path, name: str) -> None:
    with pytest.raises(UnsafePath):
        inside(root, name)


@pytest.mark.parametrize("name", ["../secret.jpg", "images/../../secret.jpg", "out/secret.jpg", ""])
def test_an_absolute_path_out_of_the_root_is_refused(root: Path, name: str) -> None:
    (root / "out").symlink_to(root.parent)
    with pytest.raises(UnsafePath, match="--image-root"):
        inside(root, f"{root}/{name}")


def test_a_link_to_a_folder_leads_nowhere_but_into_it(root: Path, tmp_path: Path) -> None:
    (tmp_path / "far" / "photos").mkdir(parents=True)
    (root / "link").symlink_to(tmp_path / "far" / "photos")
    assert inside(root, "link/../a.jpg") == root / "a.jpg"


@pytest.mark.parametrize(
    "name",
    ["a/b.jpg", "./a/b.jpg", "a//b.jpg", "a/./b.jpg", "c/../a/b.jpg", "a/b.jpg/", "a/b.jpg/."],
)
def test_a_file_has_one_name(name: str) -> None:
    assert one_name(name) == "a/b.jpg"


@pytest.mark.parametrize(
    "name", ["", "../a.jpg", "/a/b.jpg", "https://x//a.jpg", "a\0/../b", "a..b"]
)
def test_what_is_one_name_or_none_stays(name: str) -> None:
    assert one_name(name) == name


def test_a_known_field_that_says_nothing_is_passed_over() -> None:
    names = ("captions", "caption", "text")
    assert first_texts({"captions": None, "caption": " ", "text": "a"}, names) == (["a"], "text")
    assert first_texts({"captions": []}, names) == ([], None)
    with pytest.raises(ValueError, match="captions must be"):
        first_texts({"captions": 3, "caption": "a"}, names)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": "\u00e9"}'.encode("latin-1"), "no UTF-8 (byte 0xe9 at 7); save it as UTF-8"),
        ('{"a": 1}'.encode("utf-16"), "it is UTF-16, not UTF-8"),
        ('{"a": 1}'.encode("utf-16-le"), "it is UTF-16, not UTF-8"),
        ('{"a": 1}'.encode("utf-32"), "it is UTF-32, not UTF-8"),
        (b"[" * 1_000_000, "nested too deep"),
        (b"1" * 5000, "a number of more than 4,300 digits"),
        (b'[{"a": 1, "b": 2, "a": 3}]', "the key 'a' stands twice in one object"),
    ],
)
def test_what_is_no_usable_json_is_named(text: bytes, message: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the message follows
        parse_json(text)
    assert message in str(caught.value)


def test_json_that_says_one_thing_twice_or_begins_with_a_mark_is_read() -> None:
    assert parse_json(b'\xef\xbb\xbf{"a": 1, "a": 1, "b": NaN}') == {"a": 1, "b": None}


def test_metadata_is_nested_no_deeper_than_programs_read() -> None:
    deep = json.loads("[" * 99 + "]" * 99)
    assert plain(deep) == deep
    with pytest.raises(ValueError, match="nested more than 100 deep"):
        plain([[deep]])
