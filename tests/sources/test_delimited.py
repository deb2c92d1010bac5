"""Rows of CSV, TSV and their relatives: what a quote means, and what is damaged."""

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from openblip.runtime.errors import DataError
from openblip.sources.delimited import (
    Delimited,
    cell_id,
    csv_text,
    delimited_layout,
    delimited_records,
    one_line,
    or_none,
    unescaped,
    unique_names,
)
from openblip.sources.source import DamagedRecord, SourceOptions


def _layout(file: Path, text: str | bytes, **told: Any) -> Delimited:
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return delimited_layout(file, SourceOptions(**told))


def _read(file: Path, text: str | bytes, **told: Any) -> list[Any]:
    """The cells of each row, or what is wrong with it; read on from anywhere, the same rest."""
    layout = _layout(file, text, **told)

    def rows(done: int) -> list[Any]:
        found = delimited_records(file, layout, layout.names[0], told.get("encoding"), done)
        return [list(row.values()) if isinstance(row, Mapping) else str(row) for row in found]

    everything = rows(0)
    for number in range(len(everything)):
        assert rows(number) == everything[number:]
    return everything


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "a.csv"


class TestTheFirstLine:
    @pytest.mark.parametrize("line", ["image,caption", "image;caption", "image|caption"])
    def test_says_what_stands_between_the_fields(self, file: Path, line: str) -> None:
        layout = _layout(file, f"{line}\n")
        assert (layout.names, layout.delimiter) == (("image", "caption"), line[5])

    def test_may_come_after_blank_ones_and_one_for_spreadsheets(self, file: Path) -> None:
        assert _read(file, "\n\r\nsep=;\r\nimage;caption\r\n0.jpg;a, b\r\n") == [["0.jpg", "a, b"]]
        assert _read(file, '"sep=|"\nimage|caption\n0.jpg|a;b\n') == [["0.jpg", "a;b"]]

    def test_is_a_row_where_the_columns_are_named(self, file: Path) -> None:
        rows = [["0.jpg", "a boat"], ["1.jpg", "b"]]
        named = ("image", "caption")
        assert _read(file, "0.jpg,a boat\n1.jpg,b\n", columns=named) == rows
        assert _read(file, "0.jpg\ta boat\n1.jpg\tb\n", columns=named) == rows
        # A header that says the same is one.
        assert _read(file, "Image,Caption\n0.jpg,a boat\n1.jpg,b\n", columns=named) == rows

    def test_must_have_as_many_fields_as_columns_are_named(self, file: Path) -> None:
        with pytest.raises(DataError, match=r"a\.csv: line 2 has 2 fields, and --columns names 3"):
            _layout(file, "\n0.jpg,a boat\n", columns=("image", "caption", "id"))

    def test_of_flickr8k_needs_no_header(self, file: Path) -> None:
        text = '0.jpg#0\tA "big" dog .\n0.jpg#1\tA # sign\n'
        rows = [["0.jpg", 'A "big" dog .'], ["0.jpg", "A # sign"]]
        assert _read(file, text) == rows
        assert _read(file, text, columns=("image", "caption")) == rows

    @pytest.mark.parametrize(
        ("content", "message"),
        [(b"", "is empty"), (b"\n \n", "is empty"), (b"PK\0\0", "is no text")],
    )
    def test_must_be_there(self, file: Path, content: bytes, message: str) -> None:
        with pytest.raises(DataError, match=message):
            _layout(file, content)

    def test_may_name_a_column_twice(self, file: Path) -> None:
        assert unique_names(["a", "b", "a", "a_2", "a"]) == ["a", "b", "a_2", "a_2_2", "a_3"]
        assert _read(file, "image,caption,caption\n0.jpg,a,b\n") == [["0.jpg", "a", "b"]]


class TestAQuote:
    @pytest.mark.parametrize("mark", ["\t", "|"])
    def test_is_a_character_between_tabs_and_pipes(self, file: Path, mark: str) -> None:
        texts = ['"stop now', 'the "queen', '" big " sign', 'a 5" disk', "it's"]
        lines = [f"image{mark}caption", *(f"0.jpg{mark}{text}" for text in texts)]
        assert [row[1] for row in _read(file, "\n".join(lines))] == texts

    def test_encloses_fields_there_if_it_encloses_the_header(self, file: Path) -> None:
        text = '"image"\t"caption"\n"0.jpg"\t"say ""hi"" to\tyou"\n'
        assert _read(file, text) == [["0.jpg", 'say "hi" to\tyou']]

    def test_encloses_commas_and_lines_in_csv(self, file: Path) -> None:
        text = 'image,caption\n0.jpg,"a, b"\n1.jpg,"two\nlines"\n2.jpg, "after a space" \n'
        assert _read(file, text) == [
            ["0.jpg", "a, b"],
            ["1.jpg", "two\nlines"],
            ["2.jpg", "after a space"],
        ]

    def test_within_a_field_is_a_character(self, file: Path) -> None:
        assert _read(file, 'image,caption\n0.jpg,a 5" disk\n1.jpg,say "a, b"\n') == [
            ["0.jpg", 'a 5" disk'],
            "line 3 has 3 fields where 2 columns are named",
        ]

    def test_may_be_escaped_by_a_backslash(self, file: Path) -> None:
        text = 'image,caption\n0.jpg,"a \\"big\\" dog"\n1.jpg,"a \\", b"\n2.jpg,"a \\"\n'
        assert _read(file, text) == [
            ["0.jpg", 'a "big" dog'],
            ["1.jpg", 'a ", b'],
            ["2.jpg", "a \\"],
        ]

    def test_that_is_never_closed_costs_its_own_row(self, file: Path) -> None:
        assert _read(file, 'image,caption\n0.jpg,"open\n1.jpg,b\n2.jpg,c\n') == [
            "line 2: a quote opens a field and is never closed: double or close it",
            ["1.jpg", "b"],
            ["2.jpg", "c"],
        ]

    def test_that_swallows_rows_costs_its_own_row(self, file: Path) -> None:
        text = 'image,caption\n0.jpg,"open\n1.jpg,b\n2.jpg,c"\n3.jpg,d\n'
        first, *rest = _read(file, text)
        assert first == (
            "line 2: a quote opens a field that swallows the rows up to line 4: double or close it"
        )
        # The last is the end of a text, or a text with a quote too many.
        ends = "line 4: its quote closes the field of line 2: which row is it of?"
        assert rest == [["1.jpg", "b"], ends, ["3.jpg", "d"]]

    def test_that_closes_in_a_line_like_a_row_costs_that_line(self, file: Path) -> None:
        text = 'image,caption\n0.jpg,"two dogs\n1.jpg, on a beach"\n2.jpg,"c"\n'
        layout = _layout(file, text)
        opened, closed, last = delimited_records(file, layout, "image", None)
        assert isinstance(opened, DamagedRecord)
        assert isinstance(closed, DamagedRecord)
        assert (opened.image, closed.image) == ("0.jpg", "1.jpg")
        assert isinstance(last, Mapping)
        assert dict(last) == {"image": "2.jpg", "caption": "c"}

    @pytest.mark.parametrize(
        ("text", "refused", "rest"),
        [
            ('image,caption\na.jpg,"a dog\nb.jpg,a cat, black"\nc.jpg,z\n', 2, ["c.jpg", "z"]),
            (
                'id,image,note\n1,a.jpg,"open\n2,b.jpg,one, two"\n3,c.jpg,z\n',
                2,
                ["3", "c.jpg", "z"],
            ),
            # Cut short, after a sentence, of another suffix, and with a space in the name.
            ('image,x,y\na.jpg,"a\nb.jpg,cut\nc.jpg,1,2",3\nd.jpg,3,4\n', 3, ["d.jpg", "3", "4"]),
            ('image,caption\na.jpg,"A dog, a cat\nb.png,1, 2"\nc.jpg,z\n', 2, ["c.jpg", "z"]),
            ('image,caption\nmy a.jpg,"A\nmy b.jpg,1, 2"\nc.jpg,z\n', 2, ["c.jpg", "z"]),
            ('image;caption\r\na.jpg;"A\r\nb.jpg; 1; 2"\r\nc.jpg;z\r\n', 2, ["c.jpg", "z"]),
            # The image stands behind what swallows.
            ('caption,image\n"one,a.jpg\ntwo, three",b.jpg\nz,c.jpg\n', 2, ["z", "c.jpg"]),
            ('caption,image,n\n"1, 2,a.jpg,0\n3, 4",b.jpg,1\nz,c.jpg,2\n', 2, ["z", "c.jpg", "2"]),
            # Names without a suffix.
            ('image,caption\n123,"a dog\n124,a cat, black"\n125,z\n', 2, ["125", "z"]),
            ('image,caption\nabc,"a dog\nabd,a cat, black"\nabe,z\n', 2, ["abe", "z"]),
        ],
    )
    def test_that_swallows_rows_with_commas_of_their_own_costs_these(
        self, file: Path, text: str, refused: int, rest: list[str]
    ) -> None:
        layout = _layout(file, text)
        found = list(delimited_records(file, layout, "image", None))
        assert "a quote opens a field that swallows the rows up to line" in str(found[0])
        assert all(isinstance(row, ValueError) for row in found[:refused])
        assert [list(row.values()) for row in found[refused:] if isinstance(row, Mapping)] == [rest]

    @pytest.mark.parametrize(
        "text",
        [
            "a dog\nand a cat, black",
            "a dog, a cat\n\na bird, big, and blue",
            "seen in\nb.jpg",
            "compare\nwith b.jpg, c.jpg, d.jpg",
            "in 2009\n2, 3 or 4, dogs",
            "yes\nhello, world\n12, 13, 14",
            "a list:\n- one, two\n- three, four, five",
        ],
    )
    @pytest.mark.parametrize("name", ["a.jpg", "x/a.jpg", "123", "abc", "http://x/y", "my a.jpg"])
    def test_may_enclose_lines_that_are_no_rows(self, file: Path, text: str, name: str) -> None:
        for head, row in [
            ("image,caption", [name, text]),
            ("caption,image", [text, name]),
            ("id,image,caption,note", ["7", name, text, "n"]),
            ("id,caption,image,note", ["7", text, name, "n"]),
        ]:
            if name == "my a.jpg" and "b.jpg," in text:
                continue  # of names with spaces a sentence may look like one
            layout = _layout(file, f"{head}\n{_csv_line(row)}{_csv_line(row)}")
            found = list(delimited_records(file, layout, "image", None))
            assert [list(one.values()) for one in found if isinstance(one, Mapping)] == [row, row]

    def test_that_closes_in_the_next_row_is_named(self, file: Path) -> None:
        text = 'image,caption\n0.jpg,"open\n1.jpg,"b"\n2.jpg,c\n'
        first, *rest = _read(file, text)
        assert first.startswith("line 2: a quote opens a field and is not closed")
        assert rest == [["1.jpg", "b"], ["2.jpg", "c"]]

    def test_opens_no_search_through_the_whole_file(self, file: Path) -> None:
        lines = [f'{number}.jpg,"open {number}' for number in range(3000)]
        rows = _read_once(file, "image,caption\n" + "\n".join(lines))
        assert len(rows) == 3000
        assert all(isinstance(row, str) for row in rows)


def _image_of(layout: Delimited) -> str:
    return "image" if "image" in layout.names else layout.names[0]


def _csv_line(cells: list[str]) -> str:
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerow(cells)
    return stream.getvalue()


def _read_once(file: Path, text: str) -> list[Any]:
    layout = _layout(file, text)
    found = delimited_records(file, layout, "image", None)
    return [str(row) if isinstance(row, ValueError) else row for row in found]


_CELLS = st.text(st.sampled_from("ab,;\t|\"'\\\n\r [é\u2028\x0b"), max_size=12)
_ROWS = st.lists(st.tuples(_CELLS, _CELLS), min_size=1, max_size=5)


@pytest.mark.parametrize(
    ("name", "dialect"),
    [
        ("a.csv", {}),
        ("a.csv", {"delimiter": ";"}),
        ("a.csv", {"quoting": csv.QUOTE_ALL}),
        ("a.csv", {"quoting": csv.QUOTE_NONNUMERIC, "lineterminator": "\n"}),
        ("a.csv", {"quoting": csv.QUOTE_ALL, "lineterminator": "\r"}),
        ("a.tsv", {"delimiter": "\t", "quoting": csv.QUOTE_ALL}),
        ("a.csv", {"delimiter": "|", "quoting": csv.QUOTE_ALL}),
    ],
)
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(rows=_ROWS)
def test_what_is_written_is_read_back(
    tmp_path: Path, name: str, dialect: dict[str, Any], rows: list[tuple[str, str]]
) -> None:
    written = [(f"{number}.jpg", *cells) for number, cells in enumerate(rows)]
    stream = io.StringIO(newline="")
    csv.writer(stream, **dialect).writerows([("image", "caption", "note"), *written])
    found = _read(tmp_path / name, stream.getvalue())
    assert found == [[cell.strip() for cell in row] for row in written]


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    texts=st.lists(
        st.text(st.sampled_from("ab,;|\"'\\ é\u2028\x0b"), min_size=1).filter(str.strip), min_size=1
    )
)
def test_what_is_written_between_tabs_without_quotes_is_read_back(
    tmp_path: Path, texts: list[str]
) -> None:
    lines = ["image\tcaption", *(f"{number}.jpg\t{text}" for number, text in enumerate(texts))]
    found = _read(tmp_path / "a.tsv", "\n".join(lines))
    assert found == [[f"{number}.jpg", text.strip()] for number, text in enumerate(texts)]


def test_a_row_of_another_length_is_refused_with_its_line(file: Path) -> None:
    assert _read(file, "image,caption\n0.jpg,a, b\n\n1.jpg\n2.jpg,c\n") == [
        "line 2 has 3 fields where 2 columns are named",
        "line 4 has 1 fields where 2 columns are named",
        ["2.jpg", "c"],
    ]


def test_a_line_ends_at_cr_lf_or_both_and_nowhere_else(file: Path) -> None:
    text = "image,caption\r0.jpg,a\u2028b\r\n1.jpg,c\x0bd\n2.jpg,e\x85f"
    assert [row[1] for row in _read(file, text)] == ["a\u2028b", "c\x0bd", "e\x85f"]


def test_bytes_that_are_no_text_cost_their_row(file: Path) -> None:
    content = b"image,caption\n0.jpg,gr\xfcn\n1.jpg,b\n"
    refused = "no text in UTF-8: name the encoding that it is in, as --encoding cp1252"
    assert _read(file, content) == [refused, ["1.jpg", "b"]]
    assert _read(file, content, encoding="cp1252") == [["0.jpg", "grün"], ["1.jpg", "b"]]
    # A byte that cp1252 has no character for.
    assert _read(file, b"image,caption\n0.jpg,\x81\n", encoding="cp1252") == [
        "no text in cp1252: name the encoding that it is in, as --encoding cp1252"
    ]


def test_what_openblip_caption_wrote_is_read_as_it_was(file: Path) -> None:
    text = "image,caption,logprob,caption_2,logprob_2\na\\nb.jpg,'=1+1,-0.5,two,-0.7\n"
    assert _read(file, text) == [["a\nb.jpg", "-0.5", "-0.7", ["=1+1", "two"]]]


def test_the_name_of_an_image_that_openblip_caption_wrote_may_be_no_text(file: Path) -> None:
    head = b"image,caption,logprob\n"
    assert _read(file, head + b"caf\xe9.jpg,two,-0.5\n") == [["caf\udce9.jpg", "-0.5", ["two"]]]
    (refused,) = _read(file, head + b"cafe.jpg,tw\xf6,-0.5\n")
    assert "no text in UTF-8" in refused


@pytest.mark.parametrize("word", ["", "nan", "NaN", "NULL", "None", "<NA>", "\\N"])
def test_how_tools_write_that_there_is_nothing(word: str) -> None:
    assert or_none(word) is None
    assert cell_id(word) is None


@pytest.mark.parametrize(
    ("cell", "key"), [("7.0", "7"), ("7", "7"), ("7.5", "7.5"), ("a.0", "a.0")]
)
def test_ids_that_pandas_has_made_floats_are_whole_again(cell: str, key: str) -> None:
    assert cell_id(cell) == key


def test_no_text_that_is_written_runs_in_a_spreadsheet() -> None:
    rows = [["name", "value"], ["=1+1", -1.5], ["-cmd", None], ["-1.5", 'a, "b"']]
    told = 'name,value\n\'=1+1,-1.5\n\'-cmd,\n-1.5,"a, ""b"""\n'
    assert csv_text(rows) == told


@given(st.text(alphabet="ab\\tnr\t\n\r'= "))
def test_what_is_on_one_line_is_what_it_was_before(text: str) -> None:
    line = one_line(text)
    assert not {*line} & {"\t", "\n", "\r"}
    assert unescaped(line) == text


def test_a_path_of_windows_stays_as_it_is() -> None:
    assert one_line("photos\\IMG_1.jpg") == "photos\\IMG_1.jpg"
    assert one_line("photos\\new.jpg") == "photos\\\\new.jpg"
