"""Requests to web servers: over https alone, with the failures that may pass told from the rest."""

import http.client
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from openblip.errors import CheckpointError

_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_CHUNK_BYTES = 1 << 20
_TIMEOUT_SECONDS = 30.0
# Request timeout, too early, too many requests.
_TRANSIENT_STATUSES = (408, 425, 429)
_TRANSIENT_CAUSES = (
    TimeoutError,
    ConnectionResetError,
    ConnectionAbortedError,
    BrokenPipeError,
    http.client.BadStatusLine,
    http.client.IncompleteRead,
)
_RANGE_REFUSED = 416
_REMEDIES = {
    401: "it asks for a login; download the file by hand and give its path",
    403: "access is denied; download the file by hand and give its path",
    404: "there is no such file; check the address",
    410: "the file is gone; look for another address",
}


class TransientError(Exception):
    """A failure that may pass; the message says what it was."""


class StaleRangeError(TransientError):
    """The part that was asked for does not fit the file that the server has."""


def check_address(address: str) -> None:
    """Passes https, and plain http to this machine.

    Raises:
        CheckpointError: if the address is another one.
    """
    try:
        parts = urlsplit(address)
        host = parts.hostname
    except ValueError as error:
        raise CheckpointError(f"{address}: no web address ({error})") from error
    is_local = parts.scheme == "http" and host in _LOOPBACK
    if not host or not (parts.scheme == "https" or is_local):
        raise CheckpointError(
            f"{without_query(address)}: refused, because only https keeps a file from being "
            "changed on its way; give an https address"
        )


@contextmanager
def opened(address: str, headers: Mapping[str, str]) -> Iterator[http.client.HTTPResponse]:
    """The answer to a GET, after redirects; its body is not read yet.

    Raises:
        TransientError: if the server or the connection may do better later.
        CheckpointError: if it is of no use to try again.
    """
    request = urllib.request.Request(address, headers=dict(headers))
    opener = urllib.request.build_opener(_CheckedRedirects)
    try:
        response = opener.open(request, timeout=_TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        with error:
            raise _status_error(address, error) from error
    except (OSError, http.client.HTTPException) as error:
        raise _connection_error(address, error) from error
    with response:
        if response.headers.get_content_type() == "text/html":
            raise CheckpointError(
                f"{without_query(address)}: answers with a web page instead of a checkpoint; give "
                "the address of the file itself"
            )
        yield response


def read_chunk(response: http.client.HTTPResponse) -> bytes:
    """The next bytes of a body, as they come; none at its end.

    Raises:
        TransientError: if the connection breaks off.
    """
    try:
        # What has come, rather than a full chunk: a connection that is cut loses nothing.
        return response.read1(_CHUNK_BYTES)
    except (OSError, http.client.HTTPException) as error:
        raise TransientError(f"the connection broke off ({_reason(error)})") from error


def validator_of(response: http.client.HTTPResponse) -> str | None:
    """What tells a file from other versions of it: its strong ETag, or else its time of change."""
    tag: str | None = response.headers.get("ETag")
    return tag if tag and not tag.startswith("W/") else response.headers.get("Last-Modified")


def length_of(response: http.client.HTTPResponse) -> int | None:
    """Bytes of the body, where the server says it."""
    length = response.headers.get("Content-Length", "")
    return int(length) if length.isdecimal() else None


def without_query(address: str) -> str:
    """The address for messages: its query may hold a key."""
    return address.split("?")[0].split("#")[0]


class _CheckedRedirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to addresses that could have been given in the first place."""

    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        try:
            check_address(newurl)
        except CheckpointError as error:
            raise CheckpointError(f"{without_query(req.full_url)}: redirects to {error}") from error
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _status_error(address: str, error: urllib.error.HTTPError) -> Exception:
    status = f"the server answers with status {error.code} ({error.reason})"
    if error.code == _RANGE_REFUSED:
        return StaleRangeError(status)
    if error.code >= 500 or error.code in _TRANSIENT_STATUSES:
        return TransientError(status)
    remedy = _REMEDIES.get(error.code, "check the address")
    return CheckpointError(f"{without_query(address)}: {status}; {remedy}")


def _connection_error(address: str, error: OSError | http.client.HTTPException) -> Exception:
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(cause, _TRANSIENT_CAUSES):
        return TransientError(f"the connection broke off ({_reason(cause)})")
    remedy = "check the address and the network, or download the file by hand and give its path"
    if isinstance(cause, ssl.SSLError):
        remedy = "check the address, and the clock and certificates of this machine"
    return CheckpointError(
        f"{without_query(address)}: cannot be reached ({_reason(cause)}); {remedy}"
    )


def _reason(error: BaseException | str) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
