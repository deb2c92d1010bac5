"""A server of chat completions on this machine that misbehaves as it is told."""

import base64
import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from typing import Any

from PIL import Image

WORDS = ("red", "green", "blue", "small", "large", "round", "dog", "cat", "house", "tree")


@dataclass
class Reply:
    """What a request is answered with."""

    status: int = 200
    text: str | None = None
    """Of the completion; None: words that the image and the seed decide."""
    content: bytes | None = None
    """Instead of a completion."""
    headers: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    """How long it takes."""
    cut: bool = False
    """Closes the connection in the middle of the answer."""
    ended: str = "stop"


Choose = Callable[[int, dict[str, Any]], Reply]
"""From the number of a request and its body to what it is answered with."""


class ChatServer:
    """Serves until it is stopped; may be started again at the same address.

    Attributes:
        choose: what a request is answered with.
        bodies: of the requests so far.
        keys: their headers of authorization.
        most_at_once: requests under way at a time.
    """

    def __init__(self) -> None:
        self.choose: Choose = lambda number, body: Reply()
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.most_at_once = self._now = 0
        self._lock = threading.Lock()
        self._server: ThreadingHTTPServer | None = None
        self._port = 0
        self.start()

    @property
    def url(self) -> str:
        """Of the API."""
        return f"http://127.0.0.1:{self._port}/v1"

    def start(self) -> None:
        """Serve, at the address of before."""
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                owner._answer(self, body)

            def log_message(self, *_: object) -> None:
                """Nothing is printed."""

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

            def handle_error(self, *_: object) -> None:
                """A client that has gone is none of a test's business."""

        self._server = Server(("127.0.0.1", self._port), Handler)
        self._port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        """Die: connections are refused from now on, and those that wait get no answer."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def _answer(self, handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        with self._lock:
            number = len(self.bodies)
            self.bodies.append(body)
            self.keys.append(handler.headers["Authorization"])
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)
        try:
            reply = self.choose(number, body)
            time.sleep(reply.seconds)
            # A server that has died meanwhile says nothing more.
            if self._server is None:
                handler.close_connection = True
                return
            content = reply.content
            if content is None:
                content = json.dumps(completion(body, reply)).encode()
            handler.send_response(reply.status)
            for name, value in reply.headers.items():
                handler.send_header(name, value)
            handler.send_header("Content-Length", str(len(content)))
            handler.end_headers()
            handler.wfile.write(content[: len(content) // 2] if reply.cut else content)
            handler.close_connection = handler.close_connection or reply.cut
        finally:
            with self._lock:
                self._now -= 1


def completion(body: dict[str, Any], reply: Reply) -> dict[str, Any]:
    """An answer of the interface."""
    text = written_for(body) if reply.text is None else reply.text
    return {
        "object": "chat.completion",
        "model": body["model"],
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": text},
                "finish_reason": reply.ended,
            }
        ],
        "usage": {"prompt_tokens": 100, "completion_tokens": 7},
    }


def written_for(body: dict[str, Any]) -> str:
    """Words that a request's image and seed decide."""
    url = body["messages"][0]["content"][0]["image_url"]["url"]
    digest = hashlib.sha256(f"{url} {body.get('seed')}".encode()).digest()
    return " ".join(WORDS[byte % len(WORDS)] for byte in digest[:5])


def image_of(body: dict[str, Any]) -> Image.Image:
    """The image that a request has in it."""
    url = body["messages"][0]["content"][0]["image_url"]["url"]
    return Image.open(BytesIO(base64.b64decode(url.split(",")[1])))


def is_grey(body: dict[str, Any]) -> bool:
    """Whether it is the plain image with which a server is tried."""
    return image_of(body).getextrema() == ((128, 128),) * 3


@contextmanager
def chat_server() -> Iterator[ChatServer]:
    """A server for a test."""
    server = ChatServer()
    try:
        yield server
    finally:
        server.stop()
