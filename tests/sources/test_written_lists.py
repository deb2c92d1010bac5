"""Lists of texts in one cell."""

import pytest

from openblip.sources.source import texts_of, written_list


@pytest.mark.parametrize(
    ("cell", "texts"),
    [
        ('["a, b", "c \\"d\\" \\u00e9"]', ["a, b", 'c "d" é']),
        ("['a, b', \"it's\", 'c \\'d\\'']", ["a, b", "it's", "c 'd'"]),
        ("['a b'\n 'c d' \"it's\"]", ["a b", "c d", "it's"]),
        ('  ["a", null, "b"] ', ["a", "b"]),
        ("['a', None]", ["a"]),
        ("['a', nan]", ["['a', nan]"]),
        ("[]", []),
        ('[{"raw": "a", "tokens": ["a"]}, {"raw": null}]', ["a"]),
        ("['a \\d']", ["a \\d"]),
        ("('a, b', \"it's\")", ["a, b", "it's"]),
        ("('a',)", ["a"]),
        ("('a', None, 'b',)", ["a", "b"]),
    ],
)
def test_a_list_in_json_python_or_as_numpy_prints_it_is_that_list(
    cell: str, texts: list[str]
) -> None:
    assert texts_of(cell) == texts


@pytest.mark.parametrize(
    "text",
    ["[a dog]", "[", "['a'", "[1] a dog [2]", "a ['b']", "['a' + 'b']", "('a')", "(a dog, 'b')"],
)
def test_a_text_in_brackets_is_a_text(text: str) -> None:
    assert texts_of(text) == [text]


def test_neither_depth_nor_length_can_hurt() -> None:
    deep = "[" * 100_000 + "]" * 100_000
    assert written_list(deep) == deep
    assert written_list("[" + "-" * 100_000 + "1]").startswith("[-")
    with pytest.raises(ValueError, match="a list of texts of more than"):
        written_list(f"['{'x' * (1 << 18)}']")
