"""Who is let in: what stands between the network and the rooms.

The studio is for one person on one machine. By default it listens to this machine alone, and to
pages that it has given out itself: any page on the web can send requests to a local address, and
any name can be made to lead there (DNS rebinding).
"""

import asyncio
import hmac
import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qsl, urlencode, urlsplit

from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from openblip.runtime.errors import RecipeError
from openblip.studio.routes import Refused

LEAST_TOKEN = 16
"""Letters of a token: fewer could be guessed."""
_OWN_NAMES = frozenset(("localhost", "127.0.0.1", "::1"))
_CHANGING = "POST"
# Nothing but what the studio itself gives out; no script and no style inside of a page, and in
# Chromium no text that becomes markup.
_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob:",
        "connect-src 'self'",
        "form-action 'none'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
}


@dataclass(frozen=True, kw_only=True)
class Access:
    """From where the studio is reached, and how much it takes at once.

    Raises:
        RecipeError: others could reach it without a token, or the token is short.
    """

    host: str = "127.0.0.1"
    """Address to listen at; any but this machine's own needs a token."""
    token: str | None = None
    """Without it nothing is answered."""
    max_bytes: int = 32 << 20
    """Of a request's body."""
    max_requests: int = 32
    """Answered at once; a browser sends six."""
    body_seconds: float = 30.0
    """A body that does not go on for so long is given up."""

    def __post_init__(self) -> None:
        if not self.is_local and self.token is None:
            raise RecipeError(
                f"--host {self.host} lets others see the pictures: give a --token too, of at least "
                f"{LEAST_TOKEN} letters that nobody guesses"
            )
        if self.token is not None and len(self.token) < LEAST_TOKEN:
            raise RecipeError(
                f"--token has {len(self.token)} letters; give at least {LEAST_TOKEN} that nobody "
                "guesses"
            )
        if self.token is not None and not (self.token.isascii() and self.token.isalnum()):
            raise RecipeError("--token: give letters from a to z and digits alone")

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach it."""
        return self.host in _OWN_NAMES or _is_loopback(self.host)

    def takes_host(self, header: str) -> bool:
        """Whether a page may have called the studio so.

        By any name only where a token is asked for, of which a name that somebody has made lead
        here knows nothing: a browser keeps it for the name under which it was given.
        """
        try:
            name = urlsplit(f"//{header}").hostname or ""
        except ValueError:  # brackets that do not close
            return False
        if name in _OWN_NAMES or _is_loopback(name):
            return True
        return not self.is_local and bool(name)


def _is_loopback(name: str) -> bool:
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


class Guard:
    """An ASGI application in front of another one, which gets only what may come in."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app, self._access = app, access
        self._under_way = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = _headers(scope)

        async def secured(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
                message["headers"] = [*message.get("headers", ()), *own]
            await send(message)

        if self._under_way >= self._access.max_requests:
            busy = _refusal(headers, 503, "the studio is busy: try again in a moment")
            busy.headers["Retry-After"] = "1"
            await busy(scope, receive, secured)
            return
        self._under_way += 1
        try:
            refusal = self._refused(scope, headers)
            if refusal is not None:
                await refusal(scope, receive, secured)
            else:
                await self._app(scope, self._bounded(receive), secured)
        except Refused as error:
            await _refusal(headers, error.status, str(error))(scope, receive, secured)
        finally:
            self._under_way -= 1

    def _refused(self, scope: Scope, headers: Mapping[str, str]) -> Response | None:
        """Why a request is not let in, or None."""
        if not self._access.takes_host(headers.get("host", "")):
            return _refusal(
                headers, 403, "the studio does not go by this name: open it as 127.0.0.1"
            )
        if (response := self._without_token(scope, headers)) is not None:
            return response
        if reason := _why_foreign(scope, headers):
            return _refusal(headers, 403, reason)
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > self._access.max_bytes:
            return _refusal(headers, 413, self._too_large)
        return None

    def _without_token(self, scope: Scope, headers: Mapping[str, str]) -> Response | None:
        """What somebody gets who has no token, or brings it in the address; None for others."""
        token = self._access.token
        if token is None:
            return None
        # Cookies know no ports: two studios on one machine shall not take each other's.
        cookie = f"openblip_{(scope.get('server') or ('', 0))[1]}"
        query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        given = dict(query).get("token")
        if given is not None and scope["method"] == "GET" and _same(given, token):
            rest = urlencode([(name, value) for name, value in query if name != "token"])
            # Never to another machine: of `//name` a browser takes the name for a host.
            path = "/" + scope["path"].lstrip("/")
            response = RedirectResponse(path + (f"?{rest}" if rest else ""), 303)
            # Lax: a link from elsewhere may open the page, and nothing else is sent along with it.
            response.set_cookie(cookie, token, httponly=True, samesite="lax", path="/")
            return response
        known = _cookies(headers).get(cookie) or headers.get("authorization", "")[len("Bearer ") :]
        if _same(known, token):
            return None
        return _refusal(
            headers, 403, "the token is missing: open the address that the command has printed"
        )

    def _bounded(self, receive: Receive) -> Receive:
        """The body, as long as it stays in its bounds."""
        received, is_whole = 0, False

        async def bounded() -> Message:
            nonlocal received, is_whole
            if is_whole:  # what comes now is the end of the connection, whenever that may be
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), self._access.body_seconds)
            except TimeoutError:
                raise Refused(408, "the upload stopped: send it again") from None
            received += len(message.get("body", b""))
            is_whole = not message.get("more_body", False)
            if received > self._access.max_bytes:
                raise Refused(413, self._too_large)
            return message

        return bounded

    @property
    def _too_large(self) -> str:
        return f"more than {self._access.max_bytes >> 20} MB at once: make the picture smaller"


def _why_foreign(scope: Scope, headers: Mapping[str, str]) -> str:
    """Why a request does not come from the studio's own page; empty if it does."""
    is_changing = scope["method"] not in ("GET", "HEAD")
    # Set by the browser itself. Another program on this machine has the same site, not origin.
    site = headers.get("sec-fetch-site", "none")
    is_opened = headers.get("sec-fetch-mode") == "navigate" and scope["path"] == "/"
    if site not in ("same-origin", "none") and (is_changing or not is_opened):
        return "another page asks for this: only the studio's own may"
    origin = headers.get("origin")
    host = headers.get("host", "")
    # Both, since something in front of it may encrypt.
    if origin is not None and origin not in (f"http://{host}", f"https://{host}"):
        return "another page asks for this: only the studio's own may"
    if is_changing and headers.get("x-openblip") != "1":
        return "the header X-Openblip: 1 is missing, which only the studio's own page sends"
    return ""


def _refusal(headers: Mapping[str, str], status: int, message: str) -> Response:
    """For the page as JSON, for a person who has opened an address as a text."""
    fresh = {"Cache-Control": "no-store"}
    if headers.get("sec-fetch-mode") == "navigate":
        return PlainTextResponse(f"openblip studio: {message}\n", status, headers=fresh)
    return JSONResponse({"error": message}, status, headers=fresh)


def _same(given: str, token: str) -> bool:
    """Whether a token is right, told in a time that says nothing about how much of it is."""
    return hmac.compare_digest(given.encode(), token.encode())


def _headers(scope: Scope) -> dict[str, str]:
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}


def _cookies(headers: Mapping[str, str]) -> dict[str, str]:
    try:
        cookies = SimpleCookie(headers.get("cookie", ""))
    except CookieError:
        return {}
    return {name: morsel.value for name, morsel in cookies.items()}
