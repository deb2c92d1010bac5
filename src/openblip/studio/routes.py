"""What a room is asked and what it answers; what is the server's own stays in here.

A room gives functions from `Asked` to something that JSON can hold, or to `Content`. Each runs in a
thread, so that it may read, wait and compute. What it raises is told in one line of JSON, and what
it warns of stands beside its answer.
"""

import asyncio
import json
import math
import sys
import threading
import traceback
import warnings
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from openblip.runtime.documents import with_nulls
from openblip.runtime.errors import DataError, OpenBlipError, OpenBlipWarning, one_line
from openblip.sources.images import UndecodedImage, read_header

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["Asked", "Content", "Refused", "Route", "failure", "get", "in_thread", "post"]

Result = TypeVar("Result")

WORKER_NAME = "openblip-studio"
"""Name of each thread that works on a request."""
MAX_UPLOAD_PIXELS = 120_000_000
"""Of an uploaded picture, told from its header before anything is decoded: the largest phones."""
_LONGEST_TEXT, _MOST_TEXTS = 2000, 64
# Thumbnails that are made at once, each of up to 512 MB before it is made smaller.
_decoding = threading.BoundedSemaphore(2)


class Refused(OpenBlipError):  # noqa: N818 - it says what happened to a request
    """A request is not answered; carries the status of HTTP that says why."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Content:
    """An answer that is no JSON."""

    body: bytes
    media_type: str
    tag: str | None
    """Changes with the content; None where a browser must not keep it."""
    is_lasting: bool = False
    """Whether what stands at this address never changes."""
    encoding: str | None = None
    """`gzip`, or None."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A request: values by name, whether they came in the address, as JSON or as a form."""

    values: Mapping[str, Any] = field(default_factory=dict)
    upload: bytes | None = None
    """The uploaded picture, encoded."""
    tag: str = ""
    """Of the content that the browser has already."""
    takes_gzip: bool = False

    def text(self, name: str, default: str | None = None, *, most: int = _LONGEST_TEXT) -> str:
        """A text, without white space around it.

        Raises:
            Refused: it is missing, and there is no default; or it is none, or too long.
        """
        value = self.values.get(name, default)
        if value is None:
            raise Refused(400, f"{name} is missing")
        if not isinstance(value, str):
            raise Refused(400, f"{name} must be a text")
        if len(value) > most:
            raise Refused(413, f"{name} has {len(value):,} letters; give at most {most:,}")
        return value.strip()

    def texts(self, name: str, most: int = _MOST_TEXTS) -> list[str]:
        """A list of texts, empty ones left out; empty where it is missing.

        Raises:
            Refused: it is none, or there are more than `most`.
        """
        values = self.values.get(name) or []
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            raise Refused(400, f"{name} must be a list of texts")
        if len(values) > most or any(len(value) > _LONGEST_TEXT for value in values):
            raise Refused(413, f"{name}: give at most {most} texts of {_LONGEST_TEXT:,} letters")
        return [value.strip() for value in values if value.strip()]

    def number(self, name: str, least: float, most: float, default: float | None = None) -> float:
        """A number within bounds.

        Raises:
            Refused: it is missing, none, or outside.
        """
        value = self.values.get(name, default)
        try:
            found = float(value)
        except (TypeError, ValueError):
            found = math.nan
        if isinstance(value, bool) or not least <= found <= most:
            raise Refused(400, f"{name} must be a number from {least:g} to {most:g}")
        return found

    def whole(self, name: str, least: int, most: int, default: int | None = None) -> int:
        """A whole number within bounds; errors as of `number`."""
        found = self.number(name, least, most, default)
        if found != int(found):
            raise Refused(400, f"{name} must be a whole number from {least} to {most}")
        return int(found)

    def picture(self) -> bytes | None:
        """The uploaded picture as it came, or None; it is decoded where it is used.

        Raises:
            DataError: it is no picture.
            Refused: it has too many pixels: its header says so before anything is decoded.
        """
        if self.upload is None:
            return None
        pixels = read_header(self.upload, "the picture").pixels
        if pixels > MAX_UPLOAD_PIXELS:
            raise Refused(
                413,
                f"the picture has {pixels / 1e6:,.0f} million pixels; give one of at most "
                f"{MAX_UPLOAD_PIXELS / 1e6:,.0f} million",
            )
        return self.upload


def reduced(encoded: bytes, name: str, side: int) -> "Image.Image":
    """A picture as RGB, upright, no larger than `side` in either direction.

    Raises:
        DataError: it is no picture, or damaged; names `name`.
    """
    with _decoding:
        source = UndecodedImage(encoded, name)
        longest = max(source.width, source.height)
        # Twice as large as needed, so that what is sharp stays sharp.
        divisor = next((by for by in (8, 4, 2) if longest // by >= 2 * side), 1)
        image = source.decoded(divisor)
        image.thumbnail((side, side))
        return image


Answer = Callable[[Asked], object]


def get(path: str, answer: Answer) -> Route:
    """A route that changes nothing."""
    return Route(path, _endpoint(answer), methods=["GET"])


def post(path: str, answer: Answer) -> Route:
    """A route that computes or changes something: values as JSON, or as the part `json` of a form.

    Beside it a form may have a picture, in the part `image`.
    """
    return Route(path, _endpoint(answer), methods=["POST"])


def _endpoint(answer: Answer) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        told: list[str] = []
        try:
            asked = await _asked(request)
            found = await in_thread(lambda: _with_warnings(answer, asked, told))
        except asyncio.CancelledError:
            return failure(Refused(503, "the studio has ended"))
        except Exception as error:
            return failure(error)
        if isinstance(found, Content):
            return _content(found, asked)
        if told and isinstance(found, dict):
            found = {**found, "warnings": told}
        return JSONResponse(with_nulls(found), headers={"Cache-Control": "no-store"})

    return endpoint


async def _asked(request: Request) -> Asked:
    values: dict[str, Any] = {**request.query_params, **request.path_params}
    upload = None
    if request.method == "POST":
        kind = request.headers.get("content-type", "")
        if kind.startswith("multipart/form-data"):
            sent, upload = await _form(request)
        else:
            sent = _values(await request.body())
        # The address counts before the body.
        values = {**sent, **values}
    return Asked(
        values=values,
        upload=upload,
        tag=request.headers.get("if-none-match", ""),
        takes_gzip="gzip" in request.headers.get("accept-encoding", ""),
    )


async def _form(request: Request) -> tuple[dict[str, Any], bytes | None]:
    try:
        async with request.form(max_files=1, max_fields=1) as form:
            sent, file = form.get("json", "{}"), form.get("image")
            if not isinstance(sent, str) or isinstance(file, str):
                raise Refused(400, "the form must have a part json and a file image")
            return _values(sent), None if file is None else await file.read()
    # Of its parser's own errors some versions of Starlette make this one, and some do not.
    except (MultiPartException, ValueError) as error:
        raise Refused(400, f"the form cannot be read ({error})") from error


def _values(text: str | bytes) -> dict[str, Any]:
    try:
        values = json.loads(text or "{}")
    except (ValueError, RecursionError) as error:
        raise Refused(400, "the body is no JSON") from error
    if not isinstance(values, dict):
        raise Refused(400, "the body must be a JSON object")
    return values


def failure(error: Exception) -> Response:
    """What went wrong, as one line for the page; what nobody foresaw, for the terminal too."""
    status, told = 400, one_line(error)
    if isinstance(error, HTTPException):
        status, told = error.status_code, one_line(error.detail)
    elif isinstance(error, Refused):
        status = error.status
    elif not isinstance(error, OpenBlipError):
        traceback.print_exception(error, file=sys.stderr)
        status = 500
        told = f"unexpected {type(error).__name__}: {told}; the terminal shows where it happened"
    return JSONResponse({"error": told}, status, headers={"Cache-Control": "no-store"})


def _content(found: Content, asked: Asked) -> Response:
    cache = "private, max-age=31536000, immutable" if found.is_lasting else "no-cache"
    headers = {"Cache-Control": cache, "Vary": "Accept-Encoding"}
    if found.tag is None:
        headers["Cache-Control"] = "no-store"
    else:
        headers["ETag"] = found.tag
        if asked.tag == found.tag:
            return Response(status_code=304, headers=headers)
    if found.encoding is not None:
        headers["Content-Encoding"] = found.encoding
    return Response(found.body, headers=headers, media_type=found.media_type)


async def in_thread(work: Callable[[], Result]) -> Result:
    """What `work` gives, from a thread of its own that the end of the process does not wait for.

    The server's own threads would be waited for: a model that computes for a minute would keep
    Ctrl-C from ending it. How many there are is bounded by the requests that are let in.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Result] = loop.create_future()

    def settle(result: Result | None, error: BaseException | None) -> None:
        if not future.done():  # else nobody waits any more
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(result)  # type: ignore[arg-type]

    def run() -> None:
        result, failed = None, None
        try:
            result = work()
        except BaseException as error:
            # An iterator's end cannot be put into a future.
            failed = RuntimeError(repr(error)) if isinstance(error, StopIteration) else error
        try:
            loop.call_soon_threadsafe(settle, result, failed)
        except RuntimeError:  # the server has ended meanwhile
            return

    threading.Thread(target=run, name=WORKER_NAME, daemon=True).start()
    return await future


_listening = threading.local()


def _with_warnings(answer: Answer, asked: Asked, told: list[str]) -> object:
    """An answer; what it warns of, in this thread, is put into `told`."""
    _hear_warnings()
    _listening.told = told
    try:
        return answer(asked)
    finally:
        del _listening.told


def _hear_warnings() -> None:
    """Lead this package's warnings to whoever has asked, however often they come.

    Looked after for each request, since other code of the process may have put its own in place.
    """
    warnings.simplefilter("always", OpenBlipWarning)
    shown = warnings.showwarning
    if getattr(shown, "is_of_studio", False):
        return

    def show(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
        told = getattr(_listening, "told", None)
        if told is None or not issubclass(category, OpenBlipWarning):
            shown(message, category, *place, **more)
        elif (line := one_line(message)) not in told:
            told.append(line)

    show.is_of_studio = True  # type: ignore[attr-defined]
    warnings.showwarning = show


def check_row(row: int, count: int) -> int:
    """The row, if there is one of that number.

    Raises:
        DataError: there is none.
    """
    if not 0 <= row < count:
        raise DataError(f"there is no row {row}; the table has rows 0 to {count - 1}")
    return row
