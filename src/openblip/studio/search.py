"""The room Search: pictures found by texts, by pictures and by conditions."""

from typing import TYPE_CHECKING, Any

from openblip.studio.routes import Asked, Route, get

if TYPE_CHECKING:
    from openblip.studio.app import Studio

_MOST_SHOWN = 500


def routes(studio: "Studio") -> list[Route]:
    """`/api/sample`: some rows from all over the collection."""

    def sample(asked: Asked) -> dict[str, Any]:
        place = studio.need_place()
        rows = len(place.table)
        count = min(asked.whole("count", 1, _MOST_SHOWN, 40), rows)
        chosen = [number * rows // count for number in range(count)]
        found = place.table.take(chosen, ["id", "width", "height"]).to_pylist()
        return {"rows": [{"row": row, **own} for row, own in zip(chosen, found, strict=True)]}

    return [get("/api/sample", sample)]
