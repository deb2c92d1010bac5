"""The studio put together: what it looks at, its rooms, and the page itself."""

import gzip
import hashlib
import json
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response

from openblip.runtime.documents import with_nulls
from openblip.runtime.errors import OpenBlipError
from openblip.studio import (
    capfilt,
    collection,
    jobs,
    place,
    review,
    runs,
    search,
    trying,
)
from openblip.studio.guard import Access, Guard
from openblip.studio.models import Models
from openblip.studio.place import Place
from openblip.studio.routes import Asked, Content, Refused, Route, failure, get

_STATIC = Path(__file__).parent / "static"
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}
# Of gzip; the usual one between size and time.
_LEVEL = 6
# Where the page itself says what there is, so that its first room need not ask.
_TOLD = b">null</script>"


@dataclass(frozen=True)
class Room:
    """A part of the page: its routes are a Python file, its looks `static/NAME.js`."""

    name: str
    """In addresses: `#name`."""
    title: str
    routes: Callable[["Studio"], list[Route]]


ROOMS: tuple[Room, ...] = (
    Room("search", "Search", search.routes),
    Room("try", "Try", trying.routes),
    Room("collection", "Collection", collection.routes),
    Room("capfilt", "CapFilt", capfilt.routes),
    Room("review", "Review", review.routes),
    Room("runs", "Runs", runs.routes),
    Room("jobs", "Jobs", jobs.routes),
)
"""In the order of the page; the first is shown first."""


class Studio:
    """What all rooms share.

    Attributes:
        place: the collection; None where none was named.
        models: by what they are for.
        runs: folder of training runs; None where none was named.
        resources: what must be given back at the end: a room enters there what it opens.
    """

    def __init__(
        self,
        place: str | None = None,
        *,
        models: Models | None = None,
        runs: Path | None = None,
    ) -> None:
        """Opens the collection, and loads no model.

        Raises:
            DataError: there is no such table or folder of images, or no folder of runs.
        """
        self.resources = ExitStack()
        self.models = models or Models({})
        self.runs = runs
        self.place = None if place is None else Place(place, self.resources)
        self._suggest_models()

    def need_place(self) -> Place:
        """The collection.

        Raises:
            Refused: none was named.
        """
        if self.place is None:
            raise Refused(
                409, "no collection is open: start the studio with one (`openblip studio photos/`)"
            )
        return self.place

    def refresh(self) -> None:
        """Look at the collection again; see `Place.refresh`."""
        if self.place is not None:
            self.place.refresh()
            self._suggest_models()

    def _suggest_models(self) -> None:
        """The model of the index matches too, where it has the head for it."""
        if self.place is not None and self.place.index is not None and self.place.index.model:
            self.models.suggest("filter", self.place.index.model)

    def about(self, max_bytes: int) -> dict[str, Any]:
        """What the page has to know before it shows a room."""
        from openblip import __version__

        self.refresh()
        return {
            "version": __version__,
            "rooms": [{"name": room.name, "title": room.title} for room in ROOMS],
            "table": None if self.place is None else self.place.about(),
            "matches_with": self.models.chosen_for("filter"),
            "models": self.models.states(),
            "runs": None if self.runs is None else str(self.runs),
            # That of `openblip search`, whose module would load PyTorch.
            "threshold": 0.5,
            "max_upload": max_bytes,
        }


def create_app(studio: Studio, access: Access) -> Starlette:
    """The application; gives back what `studio` holds when it ends."""
    routes = [
        *_static_routes(lambda: _told_at_first(studio, access)),
        get("/api/about", lambda asked: studio.about(access.max_bytes)),
        get("/api/models", lambda asked: {"models": studio.models.states()}),
        *place.routes(studio),
        *(route for room in ROOMS for route in room.routes(studio)),
    ]

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        with studio.resources:
            yield

    async def failed(request: Request, error: Exception) -> Response:
        return failure(error)

    return Starlette(
        routes=routes,
        middleware=[Middleware(Guard, access=access)],
        # What Starlette refuses itself, such as an unknown address, comes as JSON too.
        exception_handlers={HTTPException: failed},
        lifespan=lifespan,
    )


def _told_at_first(studio: Studio, access: Access) -> dict[str, Any]:
    told = studio.about(access.max_bytes)
    # Where the collection cannot be read its room asks, and shows why.
    with suppress(OpenBlipError, OSError):
        told["answers"] = collection.first_answers(studio)
    return told


def _static_routes(about: Callable[[], dict[str, Any]]) -> list[Route]:
    """The page's own files, read once: what is asked for is a name of them, never a path."""
    files = {
        file.name: file
        for file in sorted(_STATIC.iterdir())
        if file.suffix in _TYPES and not file.name.startswith(".")
    }
    plain = {name: file.read_bytes() for name, file in files.items()}
    # Without a time in it: after a restart the browser's copies have the same tags.
    packed = {name: gzip.compress(body, _LEVEL, mtime=0) for name, body in plain.items()}

    def static(asked: Asked) -> Content:
        name = asked.text("name")
        if name not in plain:
            raise Refused(404, f"the page has no file {name!r}")
        body, encoding = (packed[name], "gzip") if asked.takes_gzip else (plain[name], None)
        tag = f'"{hashlib.blake2b(body, digest_size=12).hexdigest()}"'
        return Content(body, _TYPES[files[name].suffix], tag, encoding=encoding)

    def page(asked: Asked) -> Content:
        body = plain["index.html"]
        # Where this fails the page asks for it, and shows why.
        with suppress(OpenBlipError, OSError):
            # No text of a collection can end the element that it stands in.
            told = json.dumps(with_nulls(about())).replace("<", r"\u003c").encode()
            body = body.replace(_TOLD, b">" + told + b"</script>")
        if asked.takes_gzip:
            return Content(gzip.compress(body, _LEVEL), _TYPES[".html"], None, encoding="gzip")
        return Content(body, _TYPES[".html"], None)

    return [get("/", page), get("/static/{name}", static)]
