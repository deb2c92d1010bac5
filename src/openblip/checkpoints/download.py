"""Original checkpoints from web addresses, over https alone: resumable, checked, kept.

Beside a file that is not finished stands which version of the remote file it is a part of: a server
that has another one by now sends that from its start, so that no two are ever spliced.
"""

import errno
import hashlib
import http.client
import json
import os
import re
import shutil
import ssl
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urldefrag, urlsplit

from openblip.runtime.atomic import force_to_disk, replace_file
from openblip.runtime.errors import CheckpointError
from openblip.runtime.locks import in_turn
from openblip.runtime.progress import Progress

_FOLDER_VARIABLE = "OPENBLIP_CACHE"
_DEFAULT_FOLDER = "~/.cache/openblip/checkpoints"
_RETRY_DELAYS_SECONDS = (1.0, 2.0, 4.0, 8.0, 16.0)
_MEGABYTE = 1_000_000
# File systems take names of 255 bytes; hash, ending and `.part.json` come behind.
_LONGEST_STEM = 100
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_CHUNK_BYTES = 1 << 20
# Without a single byte, however long the whole takes.
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


class _TransientError(Exception):
    """A failure that may pass; the message says what it was."""


class _StaleRangeError(_TransientError):
    """The part that was asked for does not fit the file that the server has."""


def is_url(source: str) -> bool:
    """True for an http or https address, whether `fetch_url` takes it or not."""
    return source.lower().startswith(("https://", "http://"))


def fetch_url(
    url: str,
    folder: Path | None = None,
    *,
    retry_delays_seconds: Sequence[float] = _RETRY_DELAYS_SECONDS,
) -> Path:
    """The local file of an address; it is fetched once, and an unfinished one is gone on with.

    Beside the file stands its SHA-256, in the form that `sha256sum -c` reads; it is also reported
    on stderr when the file is complete. A finished file is returned without asking the network.

    Args:
        url: https; plain http for this machine alone. With `#sha256=...` at its end, the file must
            have that checksum.
        folder: where to keep the file; by default `$OPENBLIP_CACHE`, or else
            ~/.cache/openblip/checkpoints.
        retry_delays_seconds: waits before the attempts that follow a failure that may pass; they
            are counted anew whenever bytes came.

    Raises:
        CheckpointError: if the address is refused or answers with an error, the file is not what
            its length or checksum says, or it cannot be written.
    """
    address, fragment = urldefrag(url)
    _check_address(address)
    expected = _expected_checksum(fragment, address)
    folder = folder if folder is not None else _default_folder()
    target = folder / _file_name(address)
    try:
        if not target.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            with in_turn(target.with_name(f"{target.name}.lock")):
                # Another process may have finished it meanwhile.
                if not target.is_file():
                    _download(_Partial(target, address), retry_delays_seconds, expected)
        _check_finished(target, address, expected)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _no_space(folder, str(error)) from error
        raise CheckpointError(
            f"{target}: cannot be read or written ({error}); or set {_FOLDER_VARIABLE} to another "
            "folder"
        ) from error
    return target


@dataclass(frozen=True, kw_only=True)
class _Version:
    """Which version of the remote file an unfinished one is a part of."""

    validator: str | None = None
    """See `_validator_of`; None where the server gave none, so that nothing can be gone on with."""
    length: int | None = None
    """Bytes of the whole file, if the server said so."""


class _Partial:
    """The unfinished file beside the target, and which version of the remote file it is of."""

    def __init__(self, target: Path, address: str) -> None:
        self.target, self.address = target, address
        self.path = target.with_name(f"{target.name}.part")
        self._version_path = target.with_name(f"{target.name}.part.json")

    @property
    def num_bytes(self) -> int:
        return self.path.stat().st_size if self.path.is_file() else 0

    def read_version(self) -> _Version:
        try:
            return _Version(**json.loads(self._version_path.read_text()))
        except (FileNotFoundError, ValueError, TypeError):
            return _Version()

    def restart(self, version: _Version) -> None:
        # Emptied first: a process killed between the two leaves nothing of another version.
        self.path.write_bytes(b"")
        with replace_file(self._version_path) as unfinished:
            unfinished.write_text(json.dumps(asdict(version)))

    def finish(self, checksum: str) -> None:
        force_to_disk(self.path)
        # Beforehand: a file that is there has its checksum beside it.
        _write_checksum(self.target, checksum)
        self.path.replace(self.target)
        force_to_disk(self.target.parent)
        self._version_path.unlink(missing_ok=True)

    def discard(self) -> None:
        self.path.unlink(missing_ok=True)
        self._version_path.unlink(missing_ok=True)


def _download(partial: _Partial, delays: Sequence[float], expected: str | None) -> None:
    _attempt_often(partial, delays)
    checksum = _checksum_of(partial.path)
    if expected is not None and checksum != expected:
        partial.discard()
        raise CheckpointError(
            f"{_without_query(partial.address)}: its SHA-256 is {checksum}, expected {expected}; "
            "the file is discarded. Fetch it again, or correct the checksum"
        )
    partial.finish(checksum)
    sys.stderr.write(f"{partial.target}: SHA-256 {checksum}\n")


def _attempt_often(partial: _Partial, delays: Sequence[float]) -> None:
    num_failures = 0
    while True:
        before = partial.num_bytes
        try:
            return _attempt(partial)
        except _TransientError as error:
            if isinstance(error, _StaleRangeError):
                partial.discard()
            if partial.num_bytes > before:
                num_failures = 0
            name = _without_query(partial.address)
            if num_failures == len(delays):
                raise CheckpointError(
                    f"{name}: {error}; {partial.num_bytes:,} bytes are kept, run the same again "
                    "later to go on"
                ) from error
            delay = delays[num_failures]
            sys.stderr.write(f"{name}: {error}; trying again in {delay:g} s\n")
            time.sleep(delay)
            num_failures += 1


def _attempt(partial: _Partial) -> None:
    version, offset = partial.read_version(), partial.num_bytes
    # A process was stopped between the last byte and the renaming.
    if offset and offset == version.length:
        return
    headers = {}
    if offset and version.validator is not None:
        # A server with another version answers with all of that (RFC 9110, section 13.1.5).
        headers = {"Range": f"bytes={offset}-", "If-Range": version.validator}
    with _opened(partial.address, headers) as response:
        if response.status == http.client.PARTIAL_CONTENT:
            version = _continued(response, version, offset)
        else:
            version = _Version(validator=_validator_of(response), length=_length_of(response))
            offset = 0
            partial.restart(version)
        _check_space(partial.target.parent, version.length, offset)
        _receive(response, partial, version.length, offset)
    if version.length is not None and partial.num_bytes != version.length:
        raise _TransientError(
            f"the connection ended after {partial.num_bytes:,} of {version.length:,} bytes"
        )


def _receive(
    response: http.client.HTTPResponse, partial: _Partial, length: int | None, offset: int
) -> None:
    total = None if length is None else -(-length // _MEGABYTE)
    num_bytes = offset
    with (
        Progress(
            f"downloading {partial.target.name}", total, "MB", start=offset // _MEGABYTE
        ) as progress,
        partial.path.open("ab") as file,
    ):
        while chunk := _read_chunk(response):
            file.write(chunk)
            num_bytes += len(chunk)
            # The total is rounded up, so that the last, broken megabyte counts when it is there.
            num_megabytes = total if num_bytes == length else num_bytes // _MEGABYTE
            progress.update((num_megabytes or 0) - progress.num_done)


def _continued(response: http.client.HTTPResponse, version: _Version, offset: int) -> _Version:
    """The version, with the length that an answer to a Range may be the first to tell.

    Raises:
        _StaleRangeError: if the answer is not the rest of that version.
    """
    span = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
    # Some servers and caches do not look at If-Range.
    is_same = _validator_of(response) in (None, version.validator)
    if span is None or int(span[1]) != offset or not is_same:
        raise _StaleRangeError("the server has another version of the file")
    length = version.length if span[2] == "*" else int(span[2])
    if version.length not in (None, length):
        raise _StaleRangeError("the server has a file of another length")
    return _Version(validator=version.validator, length=length)


def _check_space(folder: Path, length: int | None, offset: int) -> None:
    free = shutil.disk_usage(folder).free
    # Told before the first byte rather than after hours, when the disk is full for others too.
    if length is not None and length - offset > free:
        raise _no_space(folder, f"{length - offset:,} bytes to come, {free:,} free")


def _no_space(folder: Path, reason: str) -> CheckpointError:
    return CheckpointError(
        f"{folder}: no space for the download ({reason}); make room, or set {_FOLDER_VARIABLE} to "
        "a folder on another disk"
    )


def _expected_checksum(fragment: str, address: str) -> str | None:
    name, _, value = fragment.partition("=")
    if name != "sha256":
        return None
    if not re.fullmatch(r"[0-9a-fA-F]{64}", value):
        raise CheckpointError(
            f"{_without_query(address)}: sha256={value} is no SHA-256; give its 64 hexadecimal "
            "digits"
        )
    return value.lower()


def _check_finished(target: Path, address: str, expected: str | None) -> None:
    try:
        checksum = _checksum_path(target).read_text().split()[0]
    except (FileNotFoundError, IndexError):
        # Somebody removed or emptied it; the file itself was whole when it got its name.
        checksum = _checksum_of(target)
        _write_checksum(target, checksum)
    if expected is not None and checksum != expected:
        raise CheckpointError(
            f"{target}: the SHA-256 of this file from {_without_query(address)} is {checksum}, "
            f"expected {expected}; delete it to fetch it again, or correct the checksum"
        )


def _checksum_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_checksum(target: Path, checksum: str) -> None:
    with replace_file(_checksum_path(target)) as unfinished:
        unfinished.write_text(f"{checksum}  {target.name}\n")


def _checksum_path(target: Path) -> Path:
    return target.with_name(f"{target.name}.sha256")


def _default_folder() -> Path:
    return Path(os.environ.get(_FOLDER_VARIABLE) or _DEFAULT_FOLDER).expanduser()


def _file_name(address: str) -> str:
    """The address's own name and ending, told apart from the same name elsewhere."""
    own = Path(re.sub(r"[^\w.-]", "_", Path(unquote(urlsplit(address).path)).name, flags=re.ASCII))
    # Of the query too: many sites tell files apart by it alone.
    short_hash = hashlib.sha256(address.encode()).hexdigest()[:8]
    return f"{own.stem[:_LONGEST_STEM] or 'checkpoint'}-{short_hash}{own.suffix}"


def _check_address(address: str) -> None:
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
            f"{_without_query(address)}: refused, because only https keeps a file from being "
            "changed on its way; give an https address"
        )


@contextmanager
def _opened(address: str, headers: Mapping[str, str]) -> Iterator[http.client.HTTPResponse]:
    """The answer to a GET, after redirects; its body is not read yet.

    Raises:
        _TransientError: if the server or the connection may do better later.
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
                f"{_without_query(address)}: answers with a web page instead of a checkpoint; give "
                "the address of the file itself"
            )
        yield response


def _read_chunk(response: http.client.HTTPResponse) -> bytes:
    """The next bytes of a body, as they come; none at its end.

    Raises:
        _TransientError: if the connection breaks off.
    """
    try:
        # What has come, rather than a full chunk: a connection that is cut loses nothing.
        return response.read1(_CHUNK_BYTES)
    except (OSError, http.client.HTTPException) as error:
        raise _TransientError(f"the connection broke off ({_reason(error)})") from error


def _validator_of(response: http.client.HTTPResponse) -> str | None:
    """What tells a file from other versions of it: its strong ETag, or else its time of change."""
    tag: str | None = response.headers.get("ETag")
    return tag if tag and not tag.startswith("W/") else response.headers.get("Last-Modified")


def _length_of(response: http.client.HTTPResponse) -> int | None:
    """Bytes of the body, where the server says it."""
    length = response.headers.get("Content-Length", "")
    return int(length) if length.isdecimal() else None


def _without_query(address: str) -> str:
    """The address for messages: its query may hold a key."""
    return address.split("?")[0].split("#")[0]


class _CheckedRedirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to addresses that could have been given in the first place."""

    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        try:
            _check_address(newurl)
        except CheckpointError as error:
            raise CheckpointError(
                f"{_without_query(req.full_url)}: redirects to {error}"
            ) from error
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _status_error(address: str, error: urllib.error.HTTPError) -> Exception:
    status = f"the server answers with status {error.code} ({error.reason})"
    if error.code == _RANGE_REFUSED:
        return _StaleRangeError(status)
    if error.code >= 500 or error.code in _TRANSIENT_STATUSES:
        return _TransientError(status)
    remedy = _REMEDIES.get(error.code, "check the address")
    return CheckpointError(f"{_without_query(address)}: {status}; {remedy}")


def _connection_error(address: str, error: OSError | http.client.HTTPException) -> Exception:
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(cause, _TRANSIENT_CAUSES):
        return _TransientError(f"the connection broke off ({_reason(cause)})")
    remedy = "check the address and the network, or download the file by hand and give its path"
    if isinstance(cause, ssl.SSLError):
        remedy = "check the address, and the clock and certificates of this machine"
    return CheckpointError(
        f"{_without_query(address)}: cannot be reached ({_reason(cause)}); {remedy}"
    )


def _reason(error: BaseException | str) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
