"""Formats of captions of many images: each has one line per image, so that it can be resumed."""

import csv
import io
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import PurePosixPath
from typing import Literal, get_args

from openblip.data.image_formats import IMAGE_SUFFIXES
from openblip.errors import RecipeError
from openblip.inference.captions import Caption

FormatName = Literal["jsonl", "csv", "coco", "txt"]
_OF_SUFFIX: dict[str, FormatName] = {
    ".jsonl": "jsonl",
    ".csv": "csv",
    ".json": "coco",
    ".txt": "txt",
}
# Of a COCO file name such as COCO_val2014_000000391895.jpg. More digits are no id but a hash.
_TRAILING_NUMBER = re.compile(r"(?:^|_)(\d{1,18})$")
_ESCAPES = str.maketrans({"\t": "\\t", "\n": "\\n", "\r": "\\r"})
# What a line says of a log-probability; the digits behind it change with the size of a batch.
_DECIMALS = 4


@dataclass(frozen=True)
class CaptionFormat:
    """How the captions of an image become a line, and how a line tells whose it is."""

    name: FormatName
    line: Callable[[str, Sequence[Caption]], str]
    """The line, without its end, of an image's name and captions."""
    mark: Callable[[str], str]
    """What stands in the line of an image with this name."""
    mark_of: Callable[[str], str]
    """What stands in a line; raises `ValueError`, `KeyError` or `TypeError` if it is none."""
    head: str = ""
    """First line of the file; empty if there is none."""

    @property
    def is_list(self) -> bool:
        """Whether the lines are the elements of one JSON list."""
        return self.name == "coco"


def format_name(suffix: str) -> FormatName:
    """The format of a file with this suffix.

    Raises:
        RecipeError: if no format has it.
    """
    if suffix.lower() not in _OF_SUFFIX:
        raise RecipeError(
            f"-o: no format has the suffix {suffix!r}; end the name in {', '.join(_OF_SUFFIX)}, "
            "or give --format"
        )
    return _OF_SUFFIX[suffix.lower()]


def caption_format(name: FormatName, num_captions: int) -> CaptionFormat:
    """The format of this name for so many captions an image.

    `jsonl` has objects `{"image": name, "captions": [{"text", "logprob"}]}`; `csv` the columns
    image, caption, logprob, and caption_2, logprob_2 and so on; `txt` the name and the captions
    with tabs between them; `coco` the elements of a results file, `{"image_id", "caption"}`.

    Raises:
        RecipeError: if there is no such format, or it has room for one caption only.
    """
    if name not in get_args(FormatName):
        raise RecipeError(f"--format {name!r} is not one of {', '.join(get_args(FormatName))}")
    if name == "jsonl":
        return CaptionFormat(name, _jsonl_line, str, lambda line: str(json.loads(line)["image"]))
    if name == "csv":
        mark_of = partial(_csv_mark, columns=1 + 2 * num_captions)
        return CaptionFormat(name, _csv_line, _one_line, mark_of, _csv_head(num_captions))
    if name == "txt":
        return CaptionFormat(name, _txt_line, _one_line, _txt_mark)
    if num_captions > 1:
        raise RecipeError(
            f"--num-captions {num_captions}: a COCO results file has one caption an image; leave "
            "it out, or give --format jsonl"
        )
    return CaptionFormat(name, _coco_line, lambda image: _json(image_id(image)), _coco_mark)


def image_id(name: str) -> int | str:
    """An image's id in COCO files: the number in its name, or else the name.

    A number counts if it is the whole name, or follows a `_` at its end, without the folders and
    the suffix: 391895 for `val2014/COCO_val2014_000000391895.jpg`, and for `391895`.
    """
    path = PurePosixPath(name)
    stem = path.stem if path.suffix.lower() in IMAGE_SUFFIXES else path.name
    found = _TRAILING_NUMBER.search(stem)
    return int(found[1]) if found else name


def line_bytes(line: str) -> bytes:
    """A line in UTF-8; a file name that is no Unicode keeps its bytes."""
    return line.encode("utf-8", "surrogateescape")


def line_text(data: bytes) -> str:
    """The inverse of `line_bytes`."""
    return data.decode("utf-8", "surrogateescape")


def _json(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:  # a file name that is no Unicode; JSON must be
        return json.dumps(value)
    return text


def _jsonl_line(name: str, captions: Sequence[Caption]) -> str:
    texts = [{"text": c.text, "logprob": round(c.logprob, _DECIMALS)} for c in captions]
    return _json({"image": name, "captions": texts})


def _coco_line(name: str, captions: Sequence[Caption]) -> str:
    return _json({"image_id": image_id(name), "caption": captions[0].text})


def _coco_mark(line: str) -> str:
    return _json(json.loads(line)["image_id"])


def _csv_line(name: str, captions: Sequence[Caption]) -> str:
    cells: list[str] = [_one_line(name)]
    for caption in captions:
        cells += [_one_line(caption.text), f"{caption.logprob:.{_DECIMALS}f}"]
    return _csv(cells)


def _csv_head(num_captions: int) -> str:
    cells = ["image", "caption", "logprob"]
    for number in range(2, num_captions + 1):
        cells += [f"caption_{number}", f"logprob_{number}"]
    return _csv(cells)


def _csv(cells: Sequence[str]) -> str:
    stream = io.StringIO()
    csv.writer(stream, lineterminator="").writerow(cells)
    return stream.getvalue()


def _csv_mark(line: str, columns: int) -> str:
    cells = next(csv.reader([line]))
    if len(cells) != columns:
        raise ValueError(f"{len(cells)} columns where {columns} should be")
    return cells[0]


def _txt_line(name: str, captions: Sequence[Caption]) -> str:
    return "\t".join([_one_line(name), *(_one_line(caption.text) for caption in captions)])


def _txt_mark(line: str) -> str:
    name, _, _ = line.partition("\t")
    return name


def _one_line(text: str) -> str:
    return text.translate(_ESCAPES)
