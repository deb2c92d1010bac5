"""The room Search: pictures found by texts, by pictures and by conditions."""

import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from openblip.runtime.errors import CheckpointError, DataError
from openblip.studio.place import Place
from openblip.studio.routes import Asked, Refused, Route, get, post

if TYPE_CHECKING:
    from openblip.index.query import Query
    from openblip.index.search import Found, Searcher
    from openblip.inference.embedder import Embedder
    from openblip.studio.app import Studio

_MOST_SHOWN = 500
_MOST_WEIGHT = 10.0


def routes(studio: "Studio") -> list[Route]:
    """`/api/search`, and `/api/sample`: some rows from all over the collection."""
    searching = _Searching(studio)

    def sample(asked: Asked) -> dict[str, Any]:
        place = studio.need_place()
        rows = len(place.table)
        count = min(asked.whole("count", 1, _MOST_SHOWN, 40), rows)
        # Evenly spread: what lies together in a folder often looks alike.
        chosen = [number * rows // count for number in range(count)]
        found = place.table.take(chosen, ["id", "width", "height"]).to_pylist()
        return {"rows": [{"row": row, **own} for row, own in zip(chosen, found, strict=True)]}

    return [get("/api/sample", sample), post("/api/search", searching.search)]


class _Searching:
    """Searches with one searcher, which is kept until the table or its index has changed."""

    def __init__(self, studio: "Studio") -> None:
        self._studio = studio
        self._kept: tuple[str, str, Searcher] | None = None
        """Mark of the table, source of the model, and what searches with both."""

    def search(self, asked: Asked) -> dict[str, Any]:
        """What was found, and how.

        Raises:
            Refused: there is no collection, or it has no index.
            DataError: the query makes no sense, or what is in it cannot be read.
        """
        started = time.monotonic()
        # Rows that came since are searched too; which table its numbers are of, the answer says.
        self._studio.refresh()
        place = self._studio.need_place()
        mark = place.mark
        if place.index is None:
            raise Refused(
                409,
                f"{place.name} has no index yet: make one (`openblip index build {place.name}`)",
            )
        query = _query(asked, place)
        with ExitStack() as stack:
            searcher = self._searcher(place, stack)
            found = searcher.find(
                query,
                asked.whole("k", 1, _MOST_SHOWN, 48),
                where=asked.text("where", "") or None,
                threshold=asked.number("threshold", 0, 1, 0.5),
            )
        told = _told(place, found)
        place.check(mark)
        return {**told, "mark": mark, "seconds": time.monotonic() - started}

    def _searcher(self, place: Place, stack: ExitStack) -> "Searcher":
        """A searcher whose model is this thread's alone until `stack` ends."""
        if self._kept is not None and self._kept[0] == place.mark:
            stack.enter_context(self._studio.models.using_source(self._kept[1]))
            return self._kept[2]
        from openblip.index.search import Searcher

        used = ""

        def load(source: str, device: str | None) -> "Embedder":
            nonlocal used
            used = source
            return stack.enter_context(self._studio.models.using_source(source))

        other = self._studio.models.source_of("filter")
        assert place.index is not None
        try:
            searcher = Searcher.open(place.name, None if place.index.model else other, load=load)
        except CheckpointError:
            # The index's model has moved: the filter may be the same one, at its new place.
            if other is None or other == place.index.model:
                raise
            searcher = Searcher.open(place.name, other, load=load)
        # Not what came since `place` was opened: pictures are shown by the numbers of its rows.
        searcher.table = place.table
        self._kept = place.mark, used, searcher
        return searcher


def _query(asked: Asked, place: Place) -> "Query":
    from openblip.index.query import Query

    texts, weights = asked.texts("texts"), asked.values.get("weights") or []
    if not isinstance(weights, list) or len(weights) not in (0, len(texts)):
        raise Refused(400, "weights must be a list of numbers, one for each text")
    checked = [Asked(values={"weight": each}).number("weight", 0, _MOST_WEIGHT) for each in weights]
    like: tuple[str, ...] = ()
    if asked.values.get("like") is not None:
        row = asked.whole("like", 0, len(place.table) - 1)
        # By its id, which another row's number might be too.
        like = (str(place.table.take([row], ["id"])["id"][0].as_py()),)
    picture = asked.picture()
    if not texts and picture is None and not like:
        raise DataError("nothing to look for: write a text, or give a picture")
    return Query(
        texts=texts,
        images=() if picture is None else (picture,),
        without=asked.texts("without"),
        like=like,
        weights=checked,
    )


def _told(place: Place, found: "Found") -> dict[str, Any]:
    sizes = place.table.take([hit.row for hit in found.hits], ["width", "height"]).to_pylist()
    hits = [
        {
            "row": hit.row,
            "id": hit.id,
            "itc": hit.itc,
            "itm": hit.itm,
            "captions": hit.captions,
            **size,
        }
        for hit, size in zip(found.hits, sizes, strict=True)
    ]
    return {
        "hits": hits,
        "told": str(found),
        "nothing": found.nothing,
        **found.counts(),
    }
