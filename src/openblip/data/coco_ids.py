"""Numbers of images in files for the tools of COCO, which take a text for a list."""

import re
from pathlib import PurePosixPath

from openblip.data.image_formats import IMAGE_SUFFIXES
from openblip.data.table import PairTable
from openblip.data.views import split_rows

COCO_ID = "openblip_id"
"""Field for the id of a row where that is no number."""
_NUMBER = re.compile(r"0|[1-9][0-9]{0,17}")
# Of a COCO file name such as COCO_val2014_000000391895.jpg. More digits are no id but a hash.
_TRAILING_NUMBER = re.compile(r"(?:^|_)(\d{1,18})$")
_ROWS_TOGETHER = 8192


def image_id(name: str) -> int | str:
    """An image's id in COCO files: the number in its name, or else the name.

    A number counts if it is the whole name, or follows a `_` at its end, without the folders and
    the suffix: 391895 for `val2014/COCO_val2014_000000391895.jpg`, and for `391895`.
    """
    path = PurePosixPath(name)
    stem = path.stem if path.suffix.lower() in IMAGE_SUFFIXES else path.name
    found = _TRAILING_NUMBER.search(stem)
    return int(found[1]) if found else name


class CocoIds:
    """The numbers of a split's images: their ids if all are numbers, else their places.

    They depend on nothing but the table, so that results are about the images of an export.
    """

    def __init__(self, table: PairTable, split: str) -> None:
        """Looks at the ids of the split.

        Raises:
            DataError: the split has no row.
        """
        rows = split_rows(table, split)
        parts = (
            rows[start : start + _ROWS_TOGETHER] for start in range(0, len(rows), _ROWS_TOGETHER)
        )
        self.are_own = all(
            _NUMBER.fullmatch(key)
            for some in parts
            for key in table.take(some, ["id"])["id"].to_pylist()
        )
        """Whether the numbers are the ids."""

    def fields(self, row_id: str, row: int, name: str) -> dict[str, int | str]:
        """The number of an image under a name, and the row's id where the number is not that.

        Args:
            row_id: of the image's row.
            row: its number in the table, from 0.
            name: `id` of images, `image_id` of what is about them.
        """
        if self.are_own:
            return {name: int(row_id)}
        return {name: row + 1, COCO_ID: row_id}
