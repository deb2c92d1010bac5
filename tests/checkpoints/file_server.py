"""A web server on this machine with one file, which it can serve badly."""

import hashlib
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class FileServer:
    """What is served, how, and what was asked."""

    data: bytes
    """The file, at any path but those below."""
    url: str = ""
    """Where it listens, without a slash at the end."""
    validator: str | None = "ETag"
    """Header that tells the version: ETag, "Last-Modified", "weak" for a weak ETag, or None."""
    has_length: bool = True
    """Whether answers say how long they are; else they come in chunks."""
    says_length: int | None = None
    """A length that is said instead of the true one."""
    takes_ranges: bool = True
    checks_if_range: bool = True
    content_type: str = "application/octet-stream"
    statuses: list[int] = field(default_factory=list)
    """Errors that the coming requests are answered with, in order; 0 answers properly."""
    cut_after: list[int] = field(default_factory=list)
    """Bytes after which the coming answers are cut, in order."""
    pause_after: int | None = None
    """Bytes after which an answer waits for `go_on`."""
    paused: threading.Event = field(default_factory=threading.Event)
    go_on: threading.Event = field(default_factory=threading.Event)
    redirects: dict[str, str] = field(default_factory=dict)
    """Paths that lead elsewhere."""
    ranges: list[str | None] = field(default_factory=list)
    """The Range of every request."""

    def version(self) -> tuple[str, str] | None:
        """The header that tells the version, and its value."""
        digest = hashlib.sha256(self.data).hexdigest()
        if self.validator == "Last-Modified":
            return "Last-Modified", f"Mon, 01 Jan 2024 00:00:{int(digest[:4], 16) % 60:02d} GMT"
        if self.validator is None:
            return None
        return "ETag", f'W/"{digest}"' if self.validator == "weak" else f'"{digest}"'


@contextmanager
def serve_file(data: bytes) -> Iterator[FileServer]:
    """A server in threads of this process, until the block ends."""
    state = FileServer(data)
    handler = type("Handler", (_Handler,), {"state": state})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    state.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield state
    finally:
        state.go_on.set()
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: FileServer

    def log_message(self, *args: object) -> None:
        """Silent."""

    def do_GET(self) -> None:
        state = self.state
        state.ranges.append(self.headers.get("Range"))
        self.close_connection = True
        if self.path in state.redirects:
            return self._head(302, {"Location": state.redirects[self.path], "Content-Length": "0"})
        if state.statuses and (status := state.statuses.pop(0)):
            return self._head(status, {"Content-Length": "0"})
        start = self._start()
        if start and start >= len(state.data):
            return self._head(416, {"Content-Length": "0"})
        headers = {"Content-Type": state.content_type}
        if version := state.version():
            headers[version[0]] = version[1]
        body = state.data[start:]
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(state.data) - 1}/{len(state.data)}"
        if state.has_length:
            headers["Content-Length"] = str(state.says_length or len(body))
        else:
            headers["Transfer-Encoding"] = "chunked"
        self._head(206 if start else 200, headers)
        return self._send(body)

    def _start(self) -> int:
        state = self.state
        span = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        version = state.version()
        is_same = version is not None and self.headers.get("If-Range") == version[1]
        is_taken = state.takes_ranges and (is_same or not state.checks_if_range)
        return int(span[1]) if span and is_taken else 0

    def _send(self, body: bytes) -> None:
        state = self.state
        cut = state.cut_after.pop(0) if state.cut_after else len(body)
        pause = state.pause_after if state.pause_after is not None else cut
        self._write(body[: min(pause, cut)])
        if pause < cut:
            self.wfile.flush()
            state.paused.set()
            state.go_on.wait()
            self._write(body[pause:cut])
        if cut >= len(body) and not state.has_length:
            self.wfile.write(b"0\r\n\r\n")

    def _write(self, data: bytes) -> None:
        if not self.state.has_length and data:
            data = f"{len(data):x}\r\n".encode() + data + b"\r\n"
        try:
            self.wfile.write(data)
        except ConnectionError:
            # The client is gone, as some tests want it.
            return

    def _head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
