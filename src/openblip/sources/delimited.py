"""Rows of delimited text: CSV, TSV, and their relatives.

Where a tab or `|` stands between the fields, a quote is an ordinary character. In CSV it encloses
a field, which may then go over several lines; a quote that is opened and never closed would
swallow all the rows after it, so that what comes out of it is looked at before it is believed.
Cells that are written here are harmless to spreadsheets, and read as they were.
"""

import csv
import io
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from openblip.runtime.documents import read_json
from openblip.runtime.errors import DataError
from openblip.sources.image_formats import known_by_name
from openblip.sources.paths import SETTINGS_SUFFIX
from openblip.sources.source import DamagedRecord, SourceOptions
from openblip.sources.text_files import (
    MAX_LINE,
    is_text,
    lines_of,
    no_text,
    open_text,
    or_none,
    plain_name,
    short_lines,
)

# A first line by which spreadsheets say what stands between the fields.
_SEPARATOR_LINE = re.compile(r'"?sep=(.)"?\s*', re.IGNORECASE)
# Flickr8k.token.txt and results_20130124.token: `name.jpg#0`, a tab, a text, and no header.
_TOKEN_LINE = re.compile(r"([^\t]+)#\d+\t")
_TOKEN_COLUMNS = ("image", "caption")
_A_LETTER = re.compile(r"[^\W\d_]")
_SPACE_AFTER_QUOTE = re.compile(r'"[ \t]+(?=[,;]|$)')
_ENCLOSED = re.compile(r'"[^"]*"')
_NUMBER_WITH_POINT = re.compile(r"\d+\.0")
# So far an open quote is followed before it is taken for a mistake.
_MAX_LINES_OF_A_ROW = 1000
# What Python's reader says where a quoted field is still open at the end.
_OPEN = "unexpected end of data"


@dataclass(frozen=True)
class Delimited:
    """How a file of delimited text is read."""

    names: tuple[str, ...]
    """Of the columns."""
    delimiter: str
    num_lines: int
    """Lines before the first row."""
    is_quoted: bool
    """Whether a quote encloses a field; else it is a character as any other."""
    numbers_images: bool = False
    """Whether each image has the number of its text behind it, as `name.jpg#0`."""
    is_written: bool = False
    """Whether `openblip caption` wrote it as text: a name and captions, without a header."""


def delimited_layout(file: Path, options: SourceOptions) -> Delimited:
    """What the first line says, or the user in its place.

    Raises:
        DataError: the file is empty, or no text.
        OSError: it cannot be read.
    """
    with open_text(file, options.encoding) as stream:
        lines = short_lines(stream)
        number, line = _next_line(lines, 0)
        told = _SEPARATOR_LINE.fullmatch(line)
        if told:
            number, line = _next_line(lines, number)
    if not line:
        raise DataError(f"{file} is empty")
    if "\0" in line:
        raise DataError(f"{file} is no text")
    if options.columns is None and is_written_text(file, line):
        num_captions = max(line.count("\t"), 1)
        names = [f"caption_{number}" for number in range(2, num_captions + 1)]
        return Delimited(("image", "caption", *names), "\t", number - 1, False, is_written=True)
    if options.columns is None and _TOKEN_LINE.match(line):
        return Delimited(_TOKEN_COLUMNS, "\t", number - 1, False, True)
    num_columns = len(options.columns) if options.columns else None
    delimiter = told[1] if told else _delimiter(file, line, num_columns)
    # Where everything is quoted, the first line too, quotes are no part of the texts.
    fields = [field.strip() for field in line.split(delimiter)]
    is_quoted = delimiter in ",;" or all(_ENCLOSED.fullmatch(field) for field in fields)
    names = next(csv.reader([line.strip()], delimiter=delimiter)) if is_quoted else fields
    names = [name.strip() for name in names]
    if options.columns is None:
        return Delimited(tuple(names), delimiter, number, is_quoted)
    if len(names) != num_columns and '"' not in line:
        raise DataError(
            f"{file}: line {number} has {len(names)} fields, and --columns names {num_columns}: "
            "give each column a name"
        )
    is_header = [n.lower() for n in names] == [n.lower() for n in options.columns]
    numbers_images = _TOKEN_LINE.match(line) is not None
    before = number if is_header else number - 1
    return Delimited(options.columns, delimiter, before, is_quoted, numbers_images)


def is_token_file(line: str) -> bool:
    """Whether a first line is one of Flickr8k's `name.jpg#0`, tab, text."""
    return _TOKEN_LINE.match(line) is not None


def is_written_text(file: Path, line: str) -> bool:
    """Whether a file is one that `openblip caption` wrote with a name and captions a line.

    Its settings beside it say so, or the name of an image before the first tab.
    """
    name, mark, text = line.partition("\t")
    with suppress(DataError):
        settings = read_json(file.with_name(f"{file.name}{SETTINGS_SUFFIX}"))
        if isinstance(settings, dict) and "format" in settings:
            return bool(mark) and settings["format"] == "txt"
    is_pair = bool(mark) and known_by_name(name) is True and _A_LETTER.search(text) is not None
    return is_pair and plain_name(file).endswith(".txt")


def delimited_records(
    file: Path, layout: Delimited, image: str, encoding: str | None, done: int = 0
) -> Iterator[Mapping[str, Any] | ValueError]:
    """Rows after the first `done`, or what is wrong with one.

    Args:
        file: with the text.
        layout: of it.
        image: the column of images, by which a swallowed row is recognised.
        encoding: of the text; None for UTF-8.
        done: rows to pass over, those that are wrong counted.
    """
    names = unique_names(layout.names)
    with open_text(file, encoding) as stream:
        lines = short_lines(stream)
        for _ in range(layout.num_lines):
            next(lines, "")
        rows = _Rows(lines, layout, names.index(image))
        for number, values in enumerate(rows, 1):
            if number > done:
                if isinstance(values, ValueError) or all(map(is_text, _texts_in(values, layout))):
                    yield _record(names, values, layout, image)
                else:
                    yield DamagedRecord(no_text(encoding), values[names.index(image)].strip())


def _texts_in(values: Sequence[str], layout: Delimited) -> Sequence[str]:
    """The cells that must be text: names in a file that `openblip caption` wrote are bytes."""
    is_ours = layout.is_written or layout.names[: len(CAPTION_COLUMNS)] == CAPTION_COLUMNS
    return values[1:] if is_ours else values


def unique_names(names: Sequence[str]) -> list[str]:
    """The names with a number behind those that were there before: `caption`, `caption_2`."""
    unique: dict[str, None] = {}
    for name in names:
        number, candidate = 1, name
        while candidate in unique:
            number += 1
            candidate = f"{name}_{number}"
        unique[candidate] = None
    return list(unique)


class _Swallowed(ValueError):  # noqa: N818 - says what it is
    """A field that closes as it should, and has lines in it that look like rows."""


class _Rows:
    """The fields of one row after the other, or what is wrong with it."""

    def __init__(self, lines: Iterator[str], layout: Delimited, image_at: int) -> None:
        self._lines, self._layout, self._image_at = lines, layout, image_at
        self._ahead: deque[str] = deque()
        self._number = layout.num_lines
        # By the line in which it closes, the line in which a field opens that swallows rows.
        self._opened: dict[int, int] = {}

    def __iter__(self) -> Iterator[Sequence[str] | ValueError]:
        while (line := self._line(0)) is not None:
            if not line.strip():
                used = 1
            elif (opened := self._opened.pop(self._number + 1, None)) and line.count('"') % 2:
                used = 1
                detail = f"line {self._number + 1}: its quote closes the field of line {opened}"
                yield self._named(ValueError(f"{detail}: which row is it of?"), line)
            elif not self._layout.is_quoted or '"' not in line:
                used = 1
                values = self._checked(line.rstrip("\r\n").split(self._layout.delimiter))
                yield self._named(values, line)
            else:
                values, used = self._quoted_row(line)
                yield self._named(values, line)
            for _ in range(used):
                self._ahead.popleft()
            self._number += used

    def _named(self, values: Sequence[str] | ValueError, line: str) -> Sequence[str] | ValueError:
        """The same; what is wrong with a row has the name of its image, as far as that is clear."""
        if not isinstance(values, ValueError):
            return values
        # The file may be cut off there.
        is_cut = not line.endswith(("\n", "\r"))
        cells = [cell.strip().strip('"') for cell in line.split(self._layout.delimiter)]
        own = cells[self._image_at :][:1]
        image = next(filter(known_by_name, [*own, *cells]), next(iter(own), ""))
        if self._layout.numbers_images:
            image = image.rpartition("#")[0] or image
        return DamagedRecord(values, image, breaks_off=is_cut)

    def _line(self, index: int) -> str | None:
        """A line after the rows that are done; None after the last."""
        while len(self._ahead) <= index:
            line = next(self._lines, None)
            if line is None:
                return None
            self._ahead.append(line)
        return self._ahead[index]

    def _quoted_row(self, line: str) -> tuple[Sequence[str] | ValueError, int]:
        """The row that begins with `line`, and how many lines it has.

        Of a row that cannot be right only the first line is given up: what it swallowed is read
        again, line by line.
        """
        attempts: list[Callable[[], tuple[list[str] | ValueError, int]]] = [self._parsed]
        # Some tools put a backslash before a quote; RFC 4180 doubles it.
        if '\\"' in line:
            attempts.append(lambda: self._parsed(escapechar="\\", doublequote=False))
        first: tuple[list[str] | ValueError, int] | None = None
        for attempt in attempts:
            values, used = attempt()
            if isinstance(values, list) and len(values) == len(self._layout.names):
                return values, used
            first = first or (values, used)
        assert first is not None
        values, used = first
        if isinstance(values, _Swallowed):
            self._opened[self._number + used] = self._number + 1
        if isinstance(values, ValueError) and used == 1:
            return self._as_ordinary(line, values), 1
        return (values if isinstance(values, ValueError) else self._wrong_number(values)), 1

    def _parsed(self, **dialect: Any) -> tuple[list[str] | ValueError, int]:
        """The row by the rules of quoting, and how many lines were looked at."""
        num_read = 0

        def feed() -> Iterator[str]:
            nonlocal num_read
            while num_read < _MAX_LINES_OF_A_ROW and (line := self._line(num_read)) is not None:
                num_read += 1
                yield line

        delimiter = self._layout.delimiter
        # Not strict, `csv` takes a quote in the wrong place for a part of the text, without a word;
        # and a space before a quote would make that one an ordinary character.
        reader = csv.reader(
            feed(), delimiter=delimiter, skipinitialspace=True, strict=True, **dialect
        )
        try:
            values = next(reader)
        except csv.Error as error:
            return self._quote_error(num_read, error), num_read
        if num_read > 1 and self._swallows(values):
            detail = (
                f"line {self._number + 1}: a quote opens a field that swallows the rows up to line "
                f"{self._number + num_read}: double or close it"
            )
            return _Swallowed(detail), num_read
        return values, num_read

    def _quote_error(self, num_read: int, error: csv.Error) -> ValueError:
        first = self._number + 1
        if "larger than field limit" in str(error):
            limit = csv.field_size_limit()
            return ValueError(f"line {first}: a field of more than {limit:,} characters")
        if _OPEN in str(error) and self._line(num_read) is None:
            detail = "is never closed"
        elif _OPEN in str(error) or num_read > 1:
            detail = f"is not closed as it should be before line {self._number + num_read}"
        else:
            return ValueError(f"line {first}: a quote within a quoted field: double it")
        return ValueError(f"line {first}: a quote opens a field and {detail}: double or close it")

    def _swallows(self, values: Sequence[str]) -> bool:
        """Whether a field over several lines holds lines that are rows themselves."""
        if len(values) != len(self._layout.names):
            return True
        at, mark = self._image_at, self._layout.delimiter
        end = at - len(values)
        # What stands before the image may have swallowed rows up to their ends, what follows it
        # rows from their begins. These may have fields of their own too many.
        before = (line for value in values[:at] for line in lines_of(value)[:-1])
        after = (line for value in values[at + 1 :] for line in lines_of(value)[1:])
        cells = [*(_cell(line, mark, end) for line in before)]
        cells += [_cell(line, mark, at) for line in after]
        # The line in which the row has its own image.
        number = sum(len(lines_of(value)) - 1 for value in values[:at])
        own = _cell(self._line(number) or "", mark, end if number else at)
        return own is not None and any(cell and cell.is_like(own) for cell in cells)

    def _as_ordinary(self, line: str, error: ValueError) -> Sequence[str] | ValueError:
        """The fields of one line whose quotes follow no rule, as far as they are clear."""
        delimiter = self._layout.delimiter
        trimmed = _SPACE_AFTER_QUOTE.sub('"', line.strip())
        try:
            reader = csv.reader([trimmed], delimiter=delimiter, skipinitialspace=True, strict=True)
            values = next(reader)
        except csv.Error as again:
            if _OPEN in str(again):
                return error
            try:
                values = [_bare(value.strip()) for value in line.split(delimiter)]
            except ValueError:
                return error
        return values if len(values) == len(self._layout.names) else error

    def _checked(self, values: Sequence[str]) -> Sequence[str] | ValueError:
        if any(len(value) >= MAX_LINE for value in values):
            return ValueError(f"line {self._number + 1} has more than {MAX_LINE} characters")
        return values if len(values) == len(self._layout.names) else self._wrong_number(values)

    def _wrong_number(self, values: Sequence[str]) -> ValueError:
        expected = len(self._layout.names)
        return ValueError(
            f"line {self._number + 1} has {len(values)} fields where {expected} columns are named"
        )


def _record(
    names: Sequence[str], values: Sequence[str] | ValueError, layout: Delimited, image: str
) -> Mapping[str, Any] | ValueError:
    if isinstance(values, ValueError):
        return values
    record: dict[str, Any] = dict(zip(names, (value.strip() for value in values), strict=True))
    if layout.numbers_images:
        record[image] = record[image].rpartition("#")[0] or record[image]
    return captioned_row(names, record, is_text=layout.is_written)


def cell_id(text: str) -> str | None:
    """The id in a cell: a number that pandas has made a float, `1.0`, is what it was before."""
    found: str | None = or_none(text)
    is_float = found is not None and _NUMBER_WITH_POINT.fullmatch(found)
    return found[:-2] if found and is_float else found


def _bare(value: str) -> str:
    """A field without the quotes around it.

    Raises:
        ValueError: quotes in it leave open which those are.
    """
    if len(value) < 2 or not (value.startswith('"') and value.endswith('"')):
        return value
    inner = value[1:-1]
    if '"' in inner.replace('""', ""):
        raise ValueError("quotes in a quoted field")
    return inner.replace('""', '"')


class _Cell(NamedTuple):
    """What stands in a line where rows have their image."""

    text: str
    spaces: tuple[bool, ...]
    """Whether a space begins it, and the cell behind it, as words after the commas of a text."""

    def is_like(self, image: "_Cell") -> bool:
        """Whether this is an image, as that of a row is."""
        name, own = self.text, image.text
        if not (own and name) or (_has_space(name) and not _has_space(own)):
            return False
        if suffix := PurePosixPath(own).suffix.lower():
            is_alike = PurePosixPath(name).suffix.lower() == suffix
            are_images = bool(known_by_name(own) and known_by_name(name))
            return (is_alike or are_images) and self.spaces[:1] == image.spaces[:1]
        # Words and numbers stand at the begin of sentences, too: "1,234 people", "yes, he does".
        is_number = own.isdigit()
        is_as_long = not is_number or abs(len(name) - len(own)) < 2
        is_word = name.isdigit() == is_number and is_as_long and not PurePosixPath(name).suffix
        return is_word and self.spaces == image.spaces


def _cell(line: str, mark: str, at: int) -> _Cell | None:
    """The cell of a line, quotes as any character; None of a line that is no row at all."""
    fields = line.rstrip("\r\n").split(mark)
    # A name alone in a line is one that a text tells.
    if len(fields) == 1 or not -len(fields) <= at < len(fields):
        return None
    near = fields[at:][:2]
    return _Cell(near[0].strip().strip('"'), tuple(cell.startswith(" ") for cell in near))


def _has_space(name: str) -> bool:
    return any(mark.isspace() for mark in name)


def _next_line(lines: Iterator[str], number: int) -> tuple[int, str]:
    """The next line that is not blank, and its number; an empty one at the end."""
    for line in lines:
        number += 1
        if line.strip():
            return number, line
    return number, ""


def _delimiter(file: Path, line: str, num_columns: int | None) -> str:
    """What divides a line into so many fields, or else what it has most of."""
    # The likeliest first.
    candidates = "\t,;|" if plain_name(file).endswith(".tsv") else ",\t;|"
    if num_columns is not None:
        for mark in candidates:
            if len(next(csv.reader([line], delimiter=mark))) == num_columns:
                return mark
    return max(candidates, key=line.count)


CAPTION_COLUMNS = ("image", "caption", "logprob")
"""The first columns of what `openblip caption` writes; `caption_2`, `logprob_2`, ... follow."""
# What a spreadsheet takes for a formula; the quotes are those of `guarded` itself.
_FORMULA = re.compile(r"'*[=+\-@\t\r]")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_ESCAPES = {"\t": "\\t", "\n": "\\n", "\r": "\\r", "\\": "\\\\"}
_MEANINGS = {escape: character for character, escape in _ESCAPES.items()}
_ESCAPED = re.compile(r"\\[tnr\\]")


def guarded(text: str, *, numbers: bool = False) -> str:
    """A cell that a spreadsheet shows and does not run: a quote stands before a formula.

    Args:
        text: any.
        numbers: whether one stands before +1 and -1.50 too, of which a spreadsheet would write
            1 and -1.5 back.
    """
    is_risky = _FORMULA.match(text) and (numbers or not _NUMBER.fullmatch(text))
    return f"'{text}" if is_risky else text


def unguarded(cell: str) -> str:
    """The text of which `guarded` made a cell."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell


def csv_text(rows: Iterable[Iterable[object]]) -> str:
    """Rows as CSV, with all their texts `guarded`; lines end with LF on every machine."""
    stream = io.StringIO()
    cells = ([guarded(v) if isinstance(v, str) else v for v in row] for row in rows)
    csv.writer(stream, lineterminator="\n").writerows(cells)
    return stream.getvalue()


def one_line(text: str) -> str:
    """A text without tabs and line breaks, which become escapes; `unescaped` gives it back.

    A text without any, and with nothing that looks like an escape, stays as it is: a path of
    Windows is no escape.
    """
    is_plain = not _ESCAPED.search(text) and not any(mark in text for mark in "\t\n\r")
    return text if is_plain else "".join(_ESCAPES.get(mark, mark) for mark in text)


def unescaped(text: str) -> str:
    """The text that `one_line` was given."""
    return _ESCAPED.sub(lambda found: _MEANINGS[found[0]], text)


def captioned_row(
    names: Sequence[str], row: Mapping[str, str], *, is_text: bool = False
) -> Mapping[str, Any]:
    """A row of a file that `openblip caption` wrote, all its captions in one list.

    Args:
        names: the columns of the file; a row of any other file stays as it is.
        row: its cells by column.
        is_text: it wrote the file as text, in which nothing is `guarded`.
    """
    if not is_text and tuple(names[:3]) != CAPTION_COLUMNS:
        return row
    captions = [name for name in names if name == "caption" or name.startswith("caption_")]
    others = {name: cell for name, cell in row.items() if name not in captions}
    told = row if is_text else {name: unguarded(cell) for name, cell in row.items()}
    texts = [unescaped(told[name]) for name in captions]
    return {**others, "image": unescaped(told["image"]), "caption": texts}
