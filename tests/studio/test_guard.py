"""Who is let in: names, tokens, other pages, sizes."""

import http.client
import socket
from collections.abc import Callable, Iterator

import pytest

from openblip.runtime.errors import RecipeError
from openblip.studio.app import Studio
from openblip.studio.guard import HEADERS, Access

from .conftest import RunningStudio, serving, wait_until

TOKEN = "k3yk3yk3yk3yk3yk3y"


@pytest.fixture(scope="module")
def locked(make_studio: Callable[..., Studio], world_table: str) -> Iterator[RunningStudio]:
    """A studio that asks for a token."""
    with serving(make_studio(world_table), Access(token=TOKEN)) as running:
        yield running


@pytest.fixture(scope="module")
def narrow(make_studio: Callable[..., Studio]) -> Iterator[RunningStudio]:
    """A studio that takes little at once."""
    access = Access(max_bytes=2000, max_requests=2, body_seconds=0.5)
    with serving(make_studio(None), access) as running:
        yield running


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.7.7", "::", "example.org"])
def test_another_address_needs_a_token(host: str) -> None:
    with pytest.raises(RecipeError, match="--token"):
        Access(host=host)
    assert Access(host=host, token=TOKEN).token == TOKEN


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.8.8.8"])
def test_this_machine_needs_none(host: str) -> None:
    assert Access(host=host).is_local


@pytest.mark.parametrize("token", ["short", "with space and more words", "küstenküstenküsten"])
def test_a_token_that_can_be_guessed_or_not_be_sent_is_refused(token: str) -> None:
    with pytest.raises(RecipeError, match="--token"):
        Access(token=token)


@pytest.mark.parametrize("path", ["/", "/static/page.js", "/api/about", "/image/0?w=240", "/no"])
def test_every_answer_has_the_headers(studio: RunningStudio, path: str) -> None:
    headers = studio.ask(path).headers
    for name, value in HEADERS.items():
        assert headers[name.lower()] == value
    policy = headers["content-security-policy"]
    assert "unsafe" not in policy
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "server" not in headers


@pytest.mark.parametrize(
    "host", ["attacker.example", "attacker.example:7863", "10.0.0.7", "", None]
)
def test_a_name_that_leads_here_is_no_way_in(studio: RunningStudio, host: str | None) -> None:
    answer = studio.ask("/api/about", headers={"Host": host})
    assert answer.status in (400, 403)
    assert b"rows" not in answer.body


@pytest.mark.parametrize("host", ["localhost:1", "127.0.0.1", "[::1]:7863", "LOCALHOST"])
def test_the_names_of_this_machine_are(studio: RunningStudio, host: str) -> None:
    assert studio.ask("/api/about", headers={"Host": host}).status == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://attacker.example"},
        {"Origin": "null"},
        {"Origin": "http://[::1"},
        {"Origin": "http://127.0.0.1:1"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"X-Openblip": None},
        {"X-Openblip": "0"},
    ],
    ids=str,
)
def test_another_page_changes_nothing(
    studio: RunningStudio, headers: dict[str, str | None]
) -> None:
    answer = studio.ask("/api/search", {"texts": ["a red circle"]}, headers=headers)
    assert answer.status == 403
    assert "only the studio's own" in answer.error


@pytest.mark.parametrize("path", ["/api/about", "/image/0", "/static/page.js"])
def test_another_page_sees_nothing(studio: RunningStudio, path: str) -> None:
    foreign = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}
    assert studio.ask(path, headers=foreign).status == 403
    # A link elsewhere may lead to a picture's address: that is no picture for the other page.
    assert studio.ask(path, headers=foreign | {"Sec-Fetch-Mode": "navigate"}).status == 403


def test_a_link_from_elsewhere_opens_the_page(studio: RunningStudio) -> None:
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    assert studio.ask("/", headers=link).status == 200


def test_the_page_itself_is_let_in(studio: RunningStudio) -> None:
    own = {"Origin": f"http://127.0.0.1:{studio.port}", "Sec-Fetch-Site": "same-origin"}
    answer = studio.ask("/api/search", {"texts": ["a red circle"], "k": 1}, headers=own)
    assert answer.status == 200


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
def test_other_methods_are_refused(studio: RunningStudio, method: str) -> None:
    assert studio.ask("/api/about", method=method).status == 403
    answer = studio.ask("/api/about", method=method, headers={"X-Openblip": "1"})
    assert answer.status == 405
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize(
    "path",
    ["/", "/api/about", "/image/0", "/static/page.js", f"/?token={TOKEN[:-1]}", "/?token="],
)
def test_without_the_token_nothing_is_answered(locked: RunningStudio, path: str) -> None:
    answer = locked.ask(path)
    assert answer.status == 403
    assert "token" in answer.error


def test_a_person_is_told_in_words_and_a_page_in_json(locked: RunningStudio) -> None:
    answer = locked.ask("/", headers={"Sec-Fetch-Mode": "navigate"})
    assert answer.headers["content-type"].startswith("text/plain")
    assert answer.body.startswith(b"openblip studio: the token is missing")


def test_the_token_in_the_address_becomes_a_cookie(locked: RunningStudio) -> None:
    first = locked.ask(f"/?token={TOKEN}&x=1")
    assert (first.status, first.headers["location"]) == (303, "/?x=1")
    cookie = first.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "samesite=lax" in cookie.lower()
    given = cookie.split(";")[0]
    assert locked.ask("/api/about", headers={"Cookie": given}).status == 200
    assert locked.ask("/api/about", headers={"Cookie": given[:-1]}).status == 403
    assert locked.ask("/api/about", headers={"Cookie": "%%%; =;;"}).status == 403
    assert locked.ask("/api/about", headers={"Authorization": f"Bearer {TOKEN}"}).status == 200


@pytest.mark.parametrize("path", ["//attacker.example/", "/\\attacker.example"])
def test_the_token_leads_nobody_elsewhere(locked: RunningStudio, path: str) -> None:
    answer = locked.ask(f"{path}?token={TOKEN}")
    location = answer.headers.get("location", "/")
    assert location[1:2] not in ("/", "\\")


def test_a_body_that_is_too_large_is_refused_before_it_is_read(narrow: RunningStudio) -> None:
    assert narrow.ask("/api/search", body=b"{" + b" " * 3000).status == 413
    # Its length is not said beforehand: it is counted as it comes.
    headers: dict[str, str | None] = {"Transfer-Encoding": "chunked"}
    chunks = b"".join(b"400\r\n" + b" " * 1024 + b"\r\n" for _ in range(4)) + b"0\r\n\r\n"
    answer = narrow.ask("/api/search", body=chunks, headers=headers)
    assert answer.status == 413
    assert "smaller" in answer.error
    assert narrow.ask("/api/about").status == 200


def test_a_length_that_is_a_lie_is_refused(narrow: RunningStudio) -> None:
    answer = narrow.ask("/api/about", headers={"Content-Length": "-5"})
    assert answer.status in (400, 413)


def begun(port: int) -> socket.socket:
    """A request whose body does not come."""
    waiting = socket.create_connection(("127.0.0.1", port), timeout=10)
    head = f"POST /api/search HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nX-Openblip: 1\r\n"
    waiting.sendall(f"{head}Content-Length: 100\r\n\r\n{{".encode())
    return waiting


def test_no_more_than_so_many_are_answered_at_once(narrow: RunningStudio) -> None:
    slow = [begun(narrow.port) for _ in range(2)]
    try:
        wait_until(lambda: narrow.ask("/api/about").status == 503)
        assert narrow.ask("/api/about").headers["retry-after"] == "1"
        # Who does not go on is given up, and others have room again.
        answer = http.client.HTTPResponse(slow[0])
        answer.begin()
        assert answer.status == 408
        wait_until(lambda: narrow.ask("/api/about").status == 200)
    finally:
        for waiting in slow:
            waiting.close()
