"""The texts and the record beside an image."""

import json
from typing import Any

import pytest

from openblip.sources.beside import first_with_text, others_say, with_record


def _json(**fields: Any) -> bytes:
    return json.dumps(fields).encode()


def test_a_blank_text_falls_through_to_the_next() -> None:
    assert first_with_text({"txt": b" \n", "caption": b"real"}, None) == ("caption", ["real"])
    assert first_with_text({"txt": b"\xef\xbb\xbf\n", "text": b"real"}, None) == ("text", ["real"])
    assert first_with_text({"txt": b"a\n\nb", "text": b"c"}, None) == ("txt", ["a", "b"])
    assert first_with_text({"txt": b"", "text": b""}, None) == ("txt", [])
    assert first_with_text({}, None) == ("", [])


@pytest.mark.parametrize(
    "record",
    [
        {"caption": "real"},
        {"caption": "", "captions": ["real"]},
        {"caption": None, "captions": [], "text": "real"},
        {"captions": ["real", None]},
        {"caption": ["real", None, " "]},
    ],
)
def test_without_lines_the_first_field_with_a_text_counts(record: dict[str, Any]) -> None:
    captions, _, meta = with_record([], _json(**record))
    assert [text for text in captions if text.strip()] == ["real"]
    assert meta == {}


@pytest.mark.parametrize(
    ("lines", "captions"),
    [
        (["line1", "line2"], ["line1\nline2", "x"]),
        (["line1", "line2"], ["line1\r\nline2"]),
        (["a", "b"], ["a", "b"]),
        (["a"], ["a", "b"]),
        (["a"], ["\ufeffa", "b"]),
        (["a", "b"], ["a\n\n b ", "c"]),
    ],
)
def test_a_list_of_captions_that_begins_with_the_lines_is_whole(
    lines: list[str], captions: list[str]
) -> None:
    record = _json(caption=captions[0], captions=captions, split="val", n=1)
    assert with_record(lines, record) == (captions, "val", {"n": 1})


def test_a_record_that_is_no_utf8_is_in_the_encoding_that_is_said() -> None:
    record = '{"caption": "grün"}'
    for named, text in (("cp1252", "cp1252"), ("cp1252", "utf-8"), ("utf-16", "utf-16")):
        assert with_record([], record.encode(text), named)[0] == ["grün"]
    with pytest.raises(ValueError, match="name its encoding with --encoding"):
        with_record([], record.encode("cp1252"))
    with pytest.raises(ValueError, match="no text in ascii"):
        with_record([], record.encode("cp1252"), "ascii")


def test_lines_that_are_in_no_list_count_before_it() -> None:
    told = ["one", "three"]
    assert with_record(["one", "two"], _json(captions=told)) == (
        ["one", "two"],
        None,
        {"captions": told},
    )


def test_texts_that_say_something_else_are_told_and_blank_ones_are_not() -> None:
    texts = {"txt": b"\xef\xbb\xbf ", "caption": b"a\n", "text": b"a", "captions.txt": b"b"}
    said = [("captions.txt", "says something else than .caption, which counts")]
    assert list(others_say(texts, "caption", called=".")) == said
    assert list(others_say({}, "")) == []
