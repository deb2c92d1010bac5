"""Cells that a spreadsheet does not run, and that are read back as they were."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openblip.sources.delimited import captioned_row, guarded, unguarded

RISKY = "=+-@\t\r"


@given(st.text() | st.text("'=+-@\t\r1a"))
def test_a_text_is_read_back_and_no_cell_begins_as_a_formula(text: str) -> None:
    cell = guarded(text)
    assert unguarded(cell) == text
    assert cell[:1] not in [*RISKY] or cell.strip("+-").replace(".", "").replace("e", "")


@pytest.mark.parametrize(
    ("text", "cell"),
    [
        ('=HYPERLINK("http://x")', '\'=HYPERLINK("http://x")'),
        ("-1+cmd|' /C calc'!A0", "'-1+cmd|' /C calc'!A0"),
        ("@SUM(1)", "'@SUM(1)"),
        ("'=1+1", "''=1+1"),
        ("'tis a dog", "'tis a dog"),
        ("a = b", "a = b"),
        ("-3.5", "-3.5"),
        ("+1e-5", "+1e-5"),
        ("", ""),
    ],
)
def test_a_quote_stands_before_a_formula_alone(text: str, cell: str) -> None:
    assert guarded(text) == cell
    assert unguarded(cell) == text


def test_a_table_of_somebody_else_keeps_its_quotes_and_columns() -> None:
    row = {"image": "'=a.jpg", "caption": "'@home' says a sign", "caption_2": "b"}
    assert captioned_row(list(row), row) == row


def test_all_captions_of_a_row_are_read() -> None:
    row = {
        "image": "new\\nline.jpg",
        "caption": "'=a",
        "logprob": "-1.5",
        "caption_2": "b",
        "logprob_2": "-2.5",
    }
    assert captioned_row(list(row), row) == {
        "image": "new\nline.jpg",
        "caption": ["=a", "b"],
        "logprob": "-1.5",
        "logprob_2": "-2.5",
    }
