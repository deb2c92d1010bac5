"""Formats of captions of many images: each has one line per image, so that it can be resumed."""

import csv
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

from openblip.data.caption_cells import CAPTION_COLUMNS, guarded, one_line
from openblip.data.coco_ids import image_id
from openblip.data.text import json_text
from openblip.errors import RecipeError
from openblip.inference.captions import Caption

FormatName = Literal["jsonl", "csv", "coco", "txt"]
_OF_SUFFIX: dict[str, FormatName] = {
    ".jsonl": "jsonl",
    ".csv": "csv",
    ".json": "coco",
    ".txt": "txt",
}
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

    `jsonl` has objects `{"image": name, "captions": [{"text", "logprob"}]}`, and of an empty text
    its `reason`; `csv` the columns image, caption, logprob, and caption_2, logprob_2 and so on, a
    quote before what a spreadsheet would run; `txt` the name and the captions
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
        return CaptionFormat(name, _csv_line, _csv_name, mark_of, _csv_head(num_captions))
    if name == "txt":
        return CaptionFormat(name, _txt_line, one_line, _txt_mark)
    if num_captions > 1:
        raise RecipeError(
            f"--num-captions {num_captions}: a COCO results file has one caption an image; leave "
            "it out, or give --format jsonl"
        )
    return CaptionFormat(name, _coco_line, lambda image: json_text(image_id(image)), _coco_mark)


def line_bytes(line: str) -> bytes:
    """A line in UTF-8; a file name that is no Unicode keeps its bytes."""
    return line.encode("utf-8", "surrogateescape")


def line_text(data: bytes) -> str:
    """The inverse of `line_bytes`."""
    return data.decode("utf-8", "surrogateescape")


def _jsonl_line(name: str, captions: Sequence[Caption]) -> str:
    return json_text({"image": name, "captions": [_as_json(caption) for caption in captions]})


def _as_json(caption: Caption) -> dict[str, object]:
    """A text with its log-probability, and where it is empty the reason."""
    values = {"text": caption.text, "logprob": round(caption.logprob, _DECIMALS)}
    return values | ({} if caption.reason is None else {"reason": caption.reason})


def _coco_line(name: str, captions: Sequence[Caption]) -> str:
    return json_text({"image_id": image_id(name), "caption": captions[0].text})


def _coco_mark(line: str) -> str:
    return json_text(json.loads(line)["image_id"])


def _csv_line(name: str, captions: Sequence[Caption]) -> str:
    cells: list[str] = [_csv_name(name)]
    for caption in captions:
        cells += [guarded(one_line(caption.text)), f"{caption.logprob:.{_DECIMALS}f}"]
    return _csv(cells)


def _csv_name(name: str) -> str:
    return guarded(one_line(name))


def _csv_head(num_captions: int) -> str:
    cells = [*CAPTION_COLUMNS]
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
    return "\t".join([one_line(name), *(one_line(caption.text) for caption in captions)])


def _txt_mark(line: str) -> str:
    name, _, _ = line.partition("\t")
    return name
