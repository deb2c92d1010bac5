"""Captions from a server: chat completions over HTTP, many requests at once.

What is done with a request that brings no text:

| the server | what is done |
| --- | --- |
| is busy (429), fails (5xx), hangs, cuts off, answers nonsense | asked again, later and later |
| says `Retry-After` | no sooner than that |
| has answered no request for `patience` seconds | the job stops; the same command goes on |
| fails `MAX_FAILURES` times with one image while it answers others | the row has no text |
| refuses an image (another 4xx, a content filter), but no grey one | the row has no text |
| refuses a small grey image too | the job stops: it is not the image's fault |
| refuses `MAX_REFUSALS` images in a row | the job stops |
"""

import base64
import io
import json
import os
import platform
import queue
import random
import re
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, wait
from contextlib import contextmanager
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from openblip.jobs.units import NoAnswerError
from openblip.runtime.errors import RecipeError, install_extra, one_line
from openblip.runtime.progress import duration
from openblip.runtime.ranges import Count, NotNegative, Positive, check_ranges

if TYPE_CHECKING:
    from PIL import Image

    from openblip.capfilt.captioners import Pending, WebRows, Written
    from openblip.capfilt.job import CapFiltSettings

MAX_FAILURES = 5
MAX_REFUSALS = 100
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 30.0
_TELL_AFTER = 2.0
_MAX_ANSWER = 8 << 20
# Timeout, conflict, too early, too many requests: to be asked again, as every error of the server.
_LATER = (408, 409, 425, 429)
_BUSY = (429, 503)
_QUALITY = 95
_THOUGHT = re.compile(r".*</think>", re.DOTALL)
_REMEDIES = {
    401: "; give its key: --api-key-of VARIABLE, the environment variable that holds it",
    404: "; the address ends before /chat/completions, such as http://127.0.0.1:8000/v1#MODEL",
}


class EndpointError(NoAnswerError):
    """A server gives no captions any more; what was finished is kept."""


@dataclass(frozen=True)
class Address:
    """Where a server is, and which of its models is asked."""

    url: str
    """Of its API, without a slash at the end."""
    model: str


def parse_address(text: str) -> Address:
    """The address of `http://127.0.0.1:8000/v1#model`.

    Raises:
        RecipeError: it is none, names no model, or has something secret in it.
    """
    parts = urlsplit(text)
    if parts.username or parts.password or parts.query:
        # Not repeated: what stands there may be a key.
        raise RecipeError(
            "--captioner openai:...: the address has a name, a password or a query in it, which "
            "would stand in the job's files; give a key by --api-key-of VARIABLE"
        )
    if parts.scheme not in ("http", "https") or not parts.hostname or not parts.fragment:
        raise RecipeError(
            f"--captioner openai:{text}: give openai:URL#MODEL, such as "
            "openai:http://127.0.0.1:8000/v1#Qwen/Qwen2.5-VL-7B-Instruct"
        )
    return Address(f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}", parts.fragment)


@dataclass(frozen=True, kw_only=True)
class Requests:
    """How servers are asked; nothing of it decides what they write."""

    at_once: Count = 8
    """Requests under way at a time, of all workers together; with Ray and no number of workers, of
    each of them."""
    seconds: Positive = 120.0
    """A request that has no answer by then has failed, and is made again."""
    patience: NotNegative = 600.0
    """Seconds for which a server that answers nothing any more is waited for."""
    key_of: tuple[str, ...] = ()
    """Environment variables that hold the keys of servers: VARIABLE for all, HOST=VARIABLE for one.
    Where the workers are on other machines, it must be set there."""

    def __post_init__(self) -> None:
        check_ranges(self)

    def shared(self, workers: int) -> "Requests":
        """The part of each of some workers, at least one request."""
        return replace(self, at_once=max(-(-self.at_once // workers), 1))

    def key(self, host: str) -> str | None:
        """The key for a server; None where it has none.

        Raises:
            RecipeError: the variable that should hold it is not set on this machine.
        """
        parts = [entry.rpartition("=") for entry in self.key_of]
        by_host = {named: variable for named, _, variable in parts}
        variable = by_host.get(host) or by_host.get("")
        if variable is None:
            return None
        if not (key := os.environ.get(variable)):
            raise RecipeError(
                f"--api-key-of {variable}: there is no such environment variable, or it is empty, "
                f"on {platform.node()}; set it to the key of {host}"
            )
        return key


_Work = tuple[Future[Any], dict[str, Any]]


class _Later(Exception):  # noqa: N818 - no error yet
    """A request has failed, and may do better another time."""

    def __init__(self, reason: str, *, is_busy: bool = False, seconds: float = 0.0) -> None:
        super().__init__(reason)
        self.is_busy, self.seconds = is_busy, seconds


class _Refused(Exception):  # noqa: N818 - one of the server's answers
    """The server does not want to answer a request."""

    def __init__(self, reason: str, status: int = 200) -> None:
        super().__init__(reason)
        self.status = status


class _Health:
    """What all threads know of the server: whether it answers, and since when it does not."""

    def __init__(self, url: str, patience: float) -> None:
        self._url, self._patience = url, patience
        self._changed = threading.Condition()
        self._away_since: float | None = None
        self._reason = ""
        self._recoveries = self._refusals = 0
        self.answered = 0
        """Requests that were answered, whatever they were about."""
        self.stopped = ""
        """Why nobody asks any more; empty while somebody may."""

    def succeeded(self, *, with_row: bool = True) -> None:
        """A request was answered; `with_row`: it was about a row of the table."""
        with self._changed:
            self.answered += 1
            self._refusals = 0 if with_row else self._refusals
            if self._away_since is not None and time.monotonic() - self._away_since > _TELL_AFTER:
                # Who waits for a server that was away need not sleep to the end.
                self._recoveries += 1
                self._changed.notify_all()
            self._away_since = None

    def failed(self, reason: str) -> None:
        """A request has failed; after too long a time without any answer the job stops."""
        now = time.monotonic()
        with self._changed:
            self._away_since, self._reason = self._away_since or now, reason
            if now - self._away_since > self._patience:
                self._stop(
                    f"{self._url} has not answered for {duration(now - self._away_since)} "
                    f"({reason}); what is finished is kept: run the same command to go on when "
                    "it is back (--patience waits longer)"
                )

    def refused(self, reason: str) -> None:
        """The server refuses a row, though it answers; too many of them stop the job."""
        with self._changed:
            self._refusals += 1
            if self._refusals >= MAX_REFUSALS:
                self._stop(
                    f"{self._url} has refused {self._refusals} images in a row, the last with: "
                    f"{reason}; look at what it wants (--image-side makes smaller images), then "
                    "run the same command to go on"
                )

    def stop(self, reason: str) -> None:
        """Nobody asks any more."""
        with self._changed:
            self._stop(reason)

    def _stop(self, reason: str) -> None:
        self.stopped = self.stopped or reason
        self._changed.notify_all()

    def pause(self, seconds: float, *, may_end: bool) -> None:
        """Sleeps; `may_end`: not after the server was away and answers again."""
        with self._changed:
            before = self._recoveries
            self._changed.wait_for(
                lambda: self.stopped or (may_end and self._recoveries > before), timeout=seconds
            )

    def line(self) -> str:
        """What is to be told of a server that is away; empty where there is nothing to tell."""
        with self._changed:
            since = self._away_since
            if since is None or time.monotonic() - since < _TELL_AFTER:
                return ""
            return (
                f"{self._url} does not answer ({self._reason}): it is asked again and again, for "
                f"up to {duration(self._patience)}"
            )


class Endpoint:
    """A captioner behind a server of chat completions."""

    columns: tuple[str, ...] = ()

    def __init__(
        self,
        address: Address,
        name: str,
        settings: "CapFiltSettings",
        requests: Requests,
        instruction: str | None = None,
    ) -> None:
        """Asks nothing yet.

        Raises:
            RecipeError: httpx is not installed, or the server's key is not in the environment.
        """
        from openblip.capfilt.captioners import INSTRUCTION

        self.name, self._address, self._settings = name, address, settings
        self._key = requests.key(urlsplit(address.url).hostname or "")
        self._client = _client(requests, self._key)
        self._requests = requests
        self._health = _Health(address.url, requests.patience)
        self._instruction = instruction or INSTRUCTION
        # Some servers want the same number under the name that has taken this one's place.
        self._limit_name = "max_tokens"
        self._work: queue.SimpleQueue[tuple[Future[Any], dict[str, Any]] | None] = (
            queue.SimpleQueue()
        )
        self._threads: list[threading.Thread] = []
        self._starting, self._probing = threading.Lock(), threading.Lock()
        # Its own: workers that were refused together must not come back together.
        self._jitter = random.Random()

    def begin(self, rows: "WebRows") -> "Pending":
        """See `Captioner.begin`: the requests wait for their turn, or are under way."""
        from openblip.batches.shuffle import keyed_hash
        from openblip.capfilt.captioners import Pending

        count = self._settings.num_captions
        asked: list[Future[Written]] = []
        for row in rows.rows:
            image = data_url(row.image, self._settings.image_side)
            # 31 bits: more than some engines take.
            seeds = [keyed_hash(row.seed, number) >> 33 for number in range(count)]
            asked += [self._submit(self._body(image, seed)) for seed in seeds]

        def finish() -> "list[Written]":
            if self._health.stopped and not all(future.done() for future in asked):
                raise EndpointError(self._health.stopped)
            written = [future.result() for future in asked]
            return [_joined(written[n : n + count]) for n in range(0, len(written), count)]

        return Pending(finish, lambda seconds: self._wait(asked, seconds))

    def close(self) -> None:
        """See `Captioner.close`: nobody waits for what is still under way."""
        self._health.stop("the job has ended")
        for _ in self._threads:
            self._work.put(None)
        self._client.close()

    def _wait(self, asked: "list[Future[Written]]", seconds: float) -> str | None:
        if self._health.stopped:
            return None
        _, missing = wait(asked, timeout=seconds)
        return self._health.line() if missing and not self._health.stopped else None

    def _submit(self, body: dict[str, Any]) -> "Future[Written]":
        # Threads of our own, which end with the process: those of an executor are waited for at
        # its exit, for minutes where a server hangs.
        with self._starting:
            if not self._threads:
                self._threads = [
                    threading.Thread(target=self._serve, name="openblip-request", daemon=True)
                    for _ in range(self._requests.at_once)
                ]
                for thread in self._threads:
                    thread.start()
        future: Future[Written] = Future()
        self._work.put((future, body))
        return future

    def _serve(self) -> None:
        while (work := self._work.get()) is not None:
            future, body = work
            try:
                future.set_result(self._ask(body))
            # Whatever it is, it belongs to whoever waits for the text.
            except BaseException as error:
                future.set_exception(error)

    def _body(self, image: str, seed: int) -> dict[str, Any]:
        """A request, but for the name of the limit."""
        decoding = self._settings.decoding
        content = [
            {"type": "image_url", "image_url": {"url": image}},
            {"type": "text", "text": self._instruction},
        ]
        body: dict[str, Any] = {
            "model": self._address.model,
            "messages": [{"role": "user", "content": content}],
            "seed": seed,
        }
        if decoding.method == "greedy":
            return {**body, "temperature": 0.0}
        body |= {"temperature": 1.0, "top_p": decoding.top_p}
        # No part of the interface that all servers have: sent only where they are asked for.
        body |= {"top_k": decoding.top_k} if decoding.top_k else {}
        penalty = decoding.repetition_penalty
        return body | ({"repetition_penalty": penalty} if penalty != 1.0 else {})

    def _ask(self, body: dict[str, Any]) -> "Written":
        """The text for a request, after as many tries as it takes; or why there is none.

        Raises:
            EndpointError: the job cannot go on.
        """
        tries = failures = 0
        while not self._health.stopped:
            answered, limit = self._health.answered, self._limit_name
            try:
                written = self._once(body, limit)
            except _Later as trouble:
                self._health.failed(str(trouble))
                tries += 1
                failures += not trouble.is_busy
                is_stuck = failures and failures % MAX_FAILURES == 0
                # By who was answered during the last try: it may have gone away after the others.
                if is_stuck and self._takes_others(answered):
                    return _nothing(f"failed {failures} times, the last time: {trouble}")
                self._pause(tries, trouble)
            except _Refused as refusal:
                if limit == "max_tokens" and "max_completion_tokens" in str(refusal):
                    self._limit_name = "max_completion_tokens"
                elif refusal.status == 200 or self._takes_others(answered):
                    # A content filter is an answer like others.
                    self._health.succeeded(with_row=False)
                    self._health.refused(str(refusal))
                    return _nothing(str(refusal))
            else:
                self._health.succeeded()
                return written
        raise EndpointError(self._health.stopped)

    def _pause(self, tries: int, trouble: _Later) -> None:
        """Waits until the server may be asked again, or nobody waits for it any more."""
        longest = min(_FIRST_PAUSE * 2 ** min(tries - 1, 10), _LONGEST_PAUSE)
        until = time.monotonic() + max(self._jitter.uniform(longest / 2, longest), trouble.seconds)
        # Not longer at once than anybody waits: a job that must stop finds it out by asking once
        # more, or without that where the server wants to be asked later still.
        patience = max(self._requests.patience, 1.0)
        self._health.pause(min(until - time.monotonic(), patience), may_end=not trouble.seconds)
        while trouble.seconds and not self._health.stopped and time.monotonic() < until:
            self._health.failed(str(trouble))
            self._health.pause(min(until - time.monotonic(), patience), may_end=False)

    def _takes_others(self, answered: int) -> bool:
        """Whether the server has answered anybody since it had answered so many requests.

        Where nobody else has asked, it is asked about a small grey image. If it refuses that too,
        the job stops: what it refuses is none of an image's fault.
        """
        with self._probing:
            # Another thread may have found it out meanwhile.
            if self._health.answered > answered or self._health.stopped:
                return not self._health.stopped
            try:
                self._once(self._body(data_url(_grey(), 64), 0), self._limit_name)
            except _Refused as plain:
                if plain.status != 200:
                    self._health.stop(
                        f"{self._address.url} refuses every request, also with a small grey image: "
                        f"{plain}{_REMEDIES.get(plain.status, '')}"
                    )
                    return False
            except _Later as trouble:
                self._health.failed(str(trouble))
                self._pause(1, trouble)
                return False
            self._health.succeeded(with_row=False)
            return True

    def _once(self, body: dict[str, Any], limit: str) -> "Written":
        """One request, with the longest length under a name.

        Raises:
            _Later, _Refused: it brings no text.
        """
        body = {**body, limit: self._settings.max_new_tokens}
        # A socket's timeout begins anew with every byte; this one does not.
        until = time.monotonic() + self._requests.seconds
        with _as_later(self._requests.seconds):
            url = f"{self._address.url}/chat/completions"
            with self._client.stream("POST", url, content=json.dumps(body).encode()) as response:
                content = b""
                for part in response.iter_bytes():
                    content += part
                    if time.monotonic() > until or len(content) > _MAX_ANSWER:
                        raise _Later("its answer has no end")
        if response.status_code == 200:
            return _written(content)
        said = f"HTTP {response.status_code}: {self._said(content)}"
        if response.status_code in _LATER or response.status_code >= 500:
            is_busy = response.status_code in _BUSY
            raise _Later(said, is_busy=is_busy, seconds=_retry_after(response.headers))
        raise _Refused(said, response.status_code)

    def _said(self, content: bytes) -> str:
        """What the server has to say of an error, in one line, without the key."""
        text = content.decode("utf-8", "replace")
        try:
            told: Any = json.loads(text)
            for name in ("error", "message", "detail"):
                told = told.get(name, told) if isinstance(told, dict) else told
            text = told if isinstance(told, str) else json.dumps(told)
        except ValueError:
            pass
        if self._key:
            text = text.replace(self._key, "***")
        return one_line(text)[:300] or "no reason given"


def _client(requests: Requests, key: str | None) -> Any:
    try:
        import httpx
    except ImportError as error:
        raise RecipeError(
            f"a captioner openai:... needs httpx: {install_extra('endpoint')}"
        ) from error
    headers = {"Content-Type": "application/json"}
    if key:
        headers["Authorization"] = f"Bearer {key}"
    limits = httpx.Limits(
        max_connections=requests.at_once + 1, max_keepalive_connections=requests.at_once + 1
    )
    return httpx.Client(timeout=requests.seconds, limits=limits, headers=headers)


@contextmanager
def _as_later(seconds: float) -> Iterator[None]:
    """What goes wrong on the way is to be tried again."""
    import httpx

    try:
        yield
    except httpx.TimeoutException as error:
        raise _Later(f"no answer within {seconds:g} s") from error
    # Closed meanwhile, it raises a RuntimeError.
    except (httpx.HTTPError, httpx.StreamError, OSError, RuntimeError) as error:
        raise _Later(one_line(error) or type(error).__name__) from error


def _written(content: bytes) -> "Written":
    """The text of an answer.

    Raises:
        _Later: it is no chat completion.
        _Refused: it says that there will be no text.
    """
    from openblip.capfilt.captioners import Usage, Written

    try:
        answer = json.loads(content)
        choice = answer["choices"][0]
        message, ended = choice["message"], choice.get("finish_reason")
        told = message.get("content")
        usage = answer.get("usage") or {}
        read, wrote = (int(usage.get(f"{what}_tokens") or 0) for what in ("prompt", "completion"))
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise _Later(f"its answer is no chat completion ({one_line(error)[:80]})") from error
    if isinstance(told, list):
        told = " ".join(str(part.get("text", "")) for part in told if isinstance(part, Mapping))
    # What a model thinks before it answers is none of the caption.
    text = " ".join(_THOUGHT.sub("", told if isinstance(told, str) else "").split())
    if ended == "content_filter" or message.get("refusal"):
        raise _Refused(f"it refuses ({one_line(message.get('refusal') or ended)[:200]})")
    if not text:
        why = "; raise --max-new-tokens" if ended == "length" else ""
        raise _Refused(f"its text is empty (finish_reason {ended}{why})")
    return Written([text], usage=Usage(read, wrote, cut=int(ended == "length")))


def _nothing(reason: str) -> "Written":
    from openblip.capfilt.captioners import Written

    return Written([], reason=reason)


def _joined(parts: "list[Written]") -> "Written":
    """The texts about one image, of several requests; what was refused is told once."""
    from openblip.capfilt.captioners import Usage, Written

    reasons = dict.fromkeys(part.reason for part in parts if part.reason)
    return Written(
        [text for part in parts for text in part.texts],
        reason="; ".join(reasons) or None,
        usage=sum((part.usage for part in parts), Usage()),
    )


def _retry_after(headers: Mapping[str, str]) -> float:
    """Seconds from now until the server wants to be asked again; 0 where it does not say."""
    told = headers.get("retry-after", "")
    try:
        return max(float(told), 0.0)
    except ValueError:
        pass
    try:
        return max(parsedate_to_datetime(told).timestamp() - time.time(), 0.0)
    except (ValueError, TypeError):
        return 0.0


def _grey() -> "Image.Image":
    from PIL import Image

    return Image.new("RGB", (64, 64), (128, 128, 128))


def data_url(image: "Image.Image", side: int) -> str:
    """An image as the text of a JPEG whose longer side has at most so many pixels."""
    from PIL import Image

    if max(image.size) > side:
        scale = side / max(image.size)
        width, height = (max(round(length * scale), 1) for length in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
