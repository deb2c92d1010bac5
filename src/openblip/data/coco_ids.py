"""Numbers of images in files for the tools of COCO, which take a text for a list."""

import re

from openblip.data.table import PairTable
from openblip.data.views import split_rows

COCO_ID = "openblip_id"
"""Field for the id of a row where that is no number."""
_NUMBER = re.compile(r"0|[1-9][0-9]{0,17}")
_ROWS_TOGETHER = 8192


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
