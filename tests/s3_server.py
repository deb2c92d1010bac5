"""An S3 server on this machine (moto's), behind a proxy that can let it fail as S3 does."""

import http.client
import logging
import os
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from random import Random

_ACCESS_KEY = "key-of-the-tests"
_SLOW_DOWN = (
    b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
)
_HOP_BY_HOP = {"connection", "transfer-encoding", "content-length", "date", "server"}


@dataclass
class S3Proxy:
    """Where clients find the server, how it fails, and what was asked of it."""

    backend: tuple[str, int]
    """Host and port of the server that works."""
    url: str = ""
    """Where the proxy listens, without a slash at the end."""
    bucket: str = ""
    """Address of an empty bucket."""
    share: float = 0.0
    """Of requests that fail, by chance; how, is drawn from `faults`."""
    faults: tuple[str, ...] = ("slow down", "drop")
    """`slow down`: 503 instead of an answer. `drop`: the connection ends without one. `cut`: it
    ends within the body. `lose answer`, `deny answer`: the server does what was asked, but the
    client gets no answer, or 503."""
    failing: int = 0
    """So many of the coming requests fail, whatever the share."""
    healthy: int | None = None
    """So many of the coming requests are answered, and then all fail; None for no end."""
    only: str = ""
    """Requests whose method and path do not contain this do not fail."""
    dice: Random = field(default_factory=lambda: Random(0))
    requests: Counter[str] = field(default_factory=Counter)
    """What was asked, by method."""
    failed: Counter[str] = field(default_factory=Counter)
    """Requests that failed, by fault."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def environment(self) -> dict[str, str]:
        """The variables with which a client finds the proxy; there are no other credentials."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": _ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        }

    def ask_backend(self, method: str, path: str, body: bytes = b"") -> bytes:
        """Ask the server itself, without credentials and past all faults."""
        connection = http.client.HTTPConnection(*self.backend)
        try:
            connection.request(method, path, body)
            answer = connection.getresponse()
            assert answer.status < 300, answer.read()
            return answer.read()
        finally:
            connection.close()

    @contextmanager
    def checking_credentials(self) -> Iterator[None]:
        """Until the block ends, the server refuses all keys: it knows no user."""
        self.ask_backend("POST", "/moto-api/reset-auth", b"0")
        try:
            yield
        finally:
            self.ask_backend("POST", "/moto-api/reset-auth", b"inf")

    def fault(self, method: str, path: str) -> str | None:
        """What happens to a request; None if it is answered."""
        with self.lock:
            self.requests[method] += 1
            if self.only not in f"{method} {path}":
                return None
            fails = self.dice.random() < self.share
            if self.failing:
                self.failing, fails = self.failing - 1, True
            if self.healthy is not None:
                self.healthy, fails = max(self.healthy - 1, 0), fails or not self.healthy
            if not fails:
                return None
            fault = self.dice.choice(self.faults)
            self.failed[fault] += 1
            return fault


@contextmanager
def serve_s3() -> Iterator[tuple[str, int]]:
    """Host and port of moto's server, in a thread of this process until the block ends."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        yield server.get_host_and_port()
    finally:
        server.stop()


@contextmanager
def serve_proxy(backend: tuple[str, int], bucket: str) -> Iterator[S3Proxy]:
    """A proxy in threads of this process, until the block ends.

    Args:
        backend: host and port of an S3 server.
        bucket: is made there.
    """
    state = S3Proxy(backend, bucket=f"s3://{bucket}")
    state.ask_backend("PUT", f"/{bucket}")
    handler = type("Handler", (_Handler,), {"state": state, "creating": threading.Lock()})
    server = _Server(("127.0.0.1", 0), handler)
    state.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    state: S3Proxy
    creating: threading.Lock

    def log_message(self, *args: object) -> None:
        """Silent."""

    def handle(self) -> None:
        try:
            super().handle()
        except ConnectionError:
            # The client is gone, as one that is killed is.
            return

    def _forward(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        fault = self.state.fault(self.command, self.path)
        if fault == "drop":
            return self._hang_up()
        if fault == "slow down":
            return self._answer(503, {"Content-Type": "application/xml"}, _SLOW_DOWN)
        if self.headers.get("If-None-Match"):
            # S3 looks whether a name is free and takes it in one step, moto in two.
            with self.creating:
                status, headers, content = self._ask(body)
        else:
            status, headers, content = self._ask(body)
        if fault == "lose answer":
            return self._hang_up()
        if fault == "deny answer":
            return self._answer(503, {"Content-Type": "application/xml"}, _SLOW_DOWN)
        return self._answer(status, headers, content, is_cut=fault == "cut")

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _forward  # noqa: N815

    def _ask(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection(*self.state.backend)
        try:
            connection.request(self.command, self.path, body, dict(self.headers))
            answer = connection.getresponse()
            content = answer.read()
            headers = {k: v for k, v in answer.getheaders() if k.lower() not in _HOP_BY_HOP}
            if self.command == "HEAD":
                headers["Content-Length"] = answer.getheader("Content-Length", "0")
            return answer.status, headers, content
        finally:
            connection.close()

    def _answer(
        self, status: int, headers: dict[str, str], content: bytes, is_cut: bool = False
    ) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if self.command != "HEAD":
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "HEAD":
            return None
        self.wfile.write(content[: len(content) // 2] if is_cut else content)
        return self._hang_up() if is_cut else None

    def _hang_up(self) -> None:
        self.wfile.flush()
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)
