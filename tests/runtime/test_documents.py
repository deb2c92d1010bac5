"""Files that people write: what is wrong with one is said in a line that names it."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openblip.runtime.documents import escaped, read_json, read_text, read_yaml, unescaped
from openblip.runtime.errors import DataError, RecipeError

_BOMB = "a0: &a0 [x]\n" + "\n".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 20)
)
_WRONG = {
    "anchors in anchors": (_BOMB, "more than 100,000 values"),
    "itself": ("a: &a [*a]\n", "line 1 holds itself"),
    "a program": ("a: !!python/object/apply:os.system [ls]\n", "cannot be read as YAML"),
    "no date": ("a: 2024-13-45\n", "month must be in"),
    "no number": ("a: !!int x\n", "cannot be read as YAML"),
    "nothing": ("a: !!float\n", "cannot be read as YAML"),
    "twice": ("a: 1\nb: {c: 1, d: 2}\na: 3\n", "a is there twice, in lines 1 and 3"),
    "twice inside": ("b: {c: 1, c: 2}\n", "b.c is there twice, in lines 1 and 1"),
    "deep": ("[" * 3000, "nested too deep"),
    "key": ("? [a]\n: 2\n", "line 1: a key is no text"),
    "two documents": ("--- 1\n--- 2\n", "cannot be read as YAML"),
    "control": ("\x01", "cannot be read as YAML"),
}


@pytest.mark.parametrize("case", _WRONG)
def test_yaml_that_plain_values_are_not_made_of(case: str, tmp_path: Path) -> None:
    text, message = _WRONG[case]
    file = tmp_path / "x.yaml"
    file.write_text(text)
    with pytest.raises(RecipeError) as error:
        read_yaml(file, RecipeError)
    assert str(error.value).startswith(f"{file}: ")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_yaml_with_anchors_keeps_its_values_and_lines(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text("\ufeffa: &a {b: 1}\nc:\n  - {<<: *a, d: 2}\n", encoding="utf-8")
    values, lines = read_yaml(file)
    assert values == {"a": {"b": 1}, "c": [{"b": 1, "d": 2}]}
    assert (lines["a"], lines["c.0"], lines["c.0.d"]) == (1, 3, 3)


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "loop", "gone"])
def test_what_is_no_regular_file_is_not_read(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "x"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    elif kind == "loop":
        path.symlink_to("x")
    with pytest.raises(DataError, match=r"x( is no regular file|: cannot be read)"):
        read_text(path)


def test_a_file_that_is_too_large_or_in_another_encoding_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "x.txt"
    file.write_bytes("na\u00efve".encode("cp1252"))
    with pytest.raises(DataError, match="line 1: byte 0xef is not UTF-8: save the file as UTF-8"):
        read_text(file)
    with pytest.raises(DataError, match="has 5 bytes, more than 4"):
        read_text(file, most_bytes=4)


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "nul"])
def test_what_is_no_json(text: str, tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    file.write_text(text)
    with pytest.raises(DataError, match=r"x\.json: cannot be read as JSON"):
        read_json(file)


@given(st.text(st.sampled_from("\\xu5ce98d\udce9\udc80\ud83d\x1f"), max_size=12))
def test_no_two_texts_have_one_escaped_form(text: str) -> None:
    assert unescaped(escaped(text)) == text
    escaped(text).encode()


@pytest.mark.parametrize(
    ("text", "stored"),
    [
        ("caf\udce9", r"caf\xe9"),
        (r"caf\xe9", r"caf\x5cxe9"),
        (r"caf\x5cxe9", r"caf\x5cx5cxe9"),
        (r"\ud83d", r"\x5cud83d"),
        (r"C:\photos\x\u41.jpg", r"C:\photos\x\u41.jpg"),
    ],
)
def test_a_backslash_is_escaped_only_where_it_looks_like_an_escape(text: str, stored: str) -> None:
    assert escaped(text) == stored
