"""A server on this machine that speaks what the hub's client needs, and counts what it is asked."""

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "a" * 40


@dataclass
class Hub:
    """What the server has, and what was asked of it."""

    url: str = ""
    """Where it listens, without a slash at the end."""
    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    """Files by repository and name; all revisions are the same commit. The repositories of datasets
    begin with `datasets/`, as in their addresses."""
    revisions: set[str] = field(default_factory=lambda: {"main", "v1", COMMIT})
    gated: set[str] = field(default_factory=set)
    """Repositories whose description is public, and whose files are not."""
    fail_with: int | None = None
    """Status that everything is answered with."""
    cut_after: list[int] = field(default_factory=list)
    """Bytes after which the connection is cut, for each coming GET of a longer file."""
    shorten_to: int | None = None
    """Bytes that a GET says a longer file has, and sends of it."""
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    """Method, path and Range of every request, in order."""

    def fetched(self) -> list[str]:
        """Names of the files that were asked for with a GET, in order of names."""
        files = (
            re.fullmatch(r".*/resolve/[^/]+/(.+)", path)
            for m, path, _ in self.requests
            if m == "GET"
        )
        return sorted(match[1] for match in files if match)

    def ranges(self) -> list[str]:
        """The Range of every request that had one."""
        return [span for _, _, span in self.requests if span is not None]


@contextmanager
def serve_hub(**settings: Any) -> Iterator[Hub]:
    """A hub in threads of this process, until the block ends."""
    hub = Hub(**settings)
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_POST(self) -> None:
        self._answer(with_body=True)

    def log_message(self, *args: object) -> None:
        """Silent."""

    def _answer(self, with_body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.command, path, self.headers.get("Range")))
        if self.hub.fail_with is not None:
            return self._refuse(self.hub.fail_with)
        described = r"(?:/(?P<what>revision|tree|paths-info)/(?P<rev>[^/]+)(?:/(?P<below>.+))?)?"
        kind, name = r"(?:models/|(?=datasets/))", r"(?:datasets/)?[^/]+(?:/[^/]+)??"
        pattern = rf"/api/{kind}(?P<repo>{name}){described}"
        pattern += r"|/(?P<repo2>.+)/resolve/(?P<rev2>[^/]+)/(?P<file>.+)"
        match = re.fullmatch(pattern, path)
        if match is None:
            return self._refuse(404)
        repo = match["repo"] or match["repo2"]
        if repo not in self.hub.repositories:
            # The hub does not tell a stranger whether a private repository exists.
            return self._refuse(401, "RepoNotFound")
        if (match["rev"] or match["rev2"] or "main") not in self.hub.revisions:
            return self._refuse(404, "RevisionNotFound")
        files = self.hub.repositories[repo]
        if match["repo"]:
            return self._send_json(self._description(repo, match["what"], match["below"]))
        if repo in self.hub.gated:
            return self._refuse(403, "GatedRepo")
        if match["file"] not in files:
            return self._refuse(404, "EntryNotFound")
        return self._send_file(files[match["file"]], with_body)

    def _description(self, repo: str, what: str | None, below: str | None) -> object:
        """What the hub says of a repository, or of files and folders in it."""
        files = self.hub.repositories[repo]
        if what == "tree":
            is_deep = "recursive=true" in self.path.lower()
            return _listing(files, f"{below}/" if below else "", is_deep)
        if what == "paths-info":
            length = int(self.headers["Content-Length"])
            wanted = parse_qs(self.rfile.read(length).decode()).get("paths", [])
            return [_entry(name, files[name]) for name in wanted if name in files]
        return {"id": repo.removeprefix("datasets/"), "sha": COMMIT, "siblings": []}

    def _send_json(self, value: object) -> None:
        data = json.dumps(value).encode()
        self._head(200, {"Content-Type": "application/json", "Content-Length": len(data)})
        self.wfile.write(data)

    def _send_file(self, data: bytes, with_body: bool) -> None:
        headers: dict[str, object] = {
            "ETag": f'"{hashlib.sha256(data).hexdigest()}"',
            "X-Repo-Commit": COMMIT,
            "Accept-Ranges": "bytes",
        }
        span = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        body = data
        if span:
            start, end = int(span[1]), min(int(span[2] or len(data)), len(data) - 1)
            headers["Content-Range"] = f"bytes {start}-{end}/{len(data)}"
            body = data[start : end + 1]
        if with_body and self.hub.shorten_to is not None:
            body = body[: self.hub.shorten_to]
        self._head(206 if span else 200, {**headers, "Content-Length": len(body)})
        if not with_body:
            return
        if self.hub.cut_after and self.hub.cut_after[0] < len(body):
            body = body[: self.hub.cut_after.pop(0)]
            self.close_connection = True
        self.wfile.write(body)

    def _refuse(self, status: int, code: str | None = None) -> None:
        headers = {"X-Error-Code": code, "X-Error-Message": code} if code else {}
        self._head(status, {**headers, "Content-Length": 0})

    def _head(self, status: int, headers: dict[str, Any]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, str(value))
        self.end_headers()


def _listing(files: dict[str, bytes], inside: str, is_deep: bool) -> list[dict[str, object]]:
    found = {}
    for name, data in files.items():
        child, is_below, _ = name.removeprefix(inside).partition("/")
        if name.startswith(inside) and is_below and not is_deep:
            path = inside + child
            found[path] = {"type": "directory", "path": path, "oid": "0" * 40}
        elif name.startswith(inside):
            found[name] = _entry(name, data)
    return list(found.values())


def _entry(name: str, data: bytes) -> dict[str, object]:
    oid = hashlib.sha1(data).hexdigest()
    return {"type": "file", "path": name, "size": len(data), "oid": oid}
