"""Object stores: the only file that knows how `s3://` and `gs://` addresses are reached.

Credentials, region and endpoint come from the environment that every AWS and Google tool reads;
there are no settings of our own. Whatever fails for a while is tried again, with growing pauses.
"""

import os
import random
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

from openblip.runtime.errors import MissingExtra, StorageError, install_extra

_T = TypeVar("_T")
_SCHEMES = ("s3://", "gs://")
_TRY_AGAIN_VARIABLE = "OBJECT_STORE_CLIENT_RETRY_TIMEOUT"
_TRY_AGAIN_SECONDS = 180
_MAX_PAUSE_SECONDS = 15.0
# One request may take this long, its retries by the client library not counted.
_REQUEST_SECONDS = 60
_WRITER = "writer"
_FROM_A_STORE = re.compile(
    r"Generic (S3|GCS)|Error performing|HTTP error|non-2xx|no providers in chain|CredentialsNot"
)
_ABSENT = re.compile(r"404 Not Found")
_ANONYMOUS = ("1", "true")
_PIECE_BYTES = 16 << 20

# What a message says, and what is to be done about it; the rest may pass by itself.
_LASTING = (
    (
        re.compile(r"NoSuchBucket|bucket does not exist"),
        "there is no such bucket at {endpoint}: create it, or set AWS_ENDPOINT_URL to the service "
        "that has it",
    ),
    (
        re.compile(
            r"InvalidAccessKeyId|SignatureDoesNotMatch|ExpiredToken|InvalidToken|AccessDenied"
            r"|InvalidClientTokenId|AuthFailure|40[13] (Forbidden|Unauthorized)|lack valid auth"
        ),
        "{endpoint} refuses the credentials ({code}): set AWS_ACCESS_KEY_ID and "
        "AWS_SECRET_ACCESS_KEY (with AWS_SESSION_TOKEN if they are temporary) or AWS_PROFILE to "
        "ones that may read and write there, then run the same command again",
    ),
    (
        re.compile(r"no providers in chain|CredentialsNot"),
        "there are no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE",
    ),
    (
        re.compile(r"PermanentRedirect|redirect without LOCATION|AuthorizationHeaderMalformed"),
        "the bucket is in another region than {region}: set AWS_REGION",
    ),
)


@dataclass(frozen=True)
class _Settings:
    """What the environment says; credentials of S3 are asked for anew when they expire."""

    endpoint: str | None
    region: str | None
    try_again_seconds: int
    session: Any
    """Botocore's session; None for Google, or where requests are not signed."""

    @property
    def client_seconds(self) -> int:
        """How long a client library tries again; some do it six times over, as for listings."""
        return max(1, self.try_again_seconds // 10)


def is_object_address(uri: str) -> bool:
    """Whether a path is the address of something in an object store."""
    return uri.startswith(_SCHEMES)


def lance_options(uri: str) -> dict[str, str] | None:
    """The `storage_options` with which Lance reaches `uri`; None for a local path.

    Credentials are not among them: Lance finds them in the same places.

    Raises:
        StorageError: the extra, credentials or region are missing.
    """
    if not is_object_address(uri):
        return None
    settings = _settings(uri)
    options = {
        "client_max_retries": "1000",
        "client_retry_timeout": str(settings.client_seconds),
        "download_retry_count": "3",
        # Its own retries come on top of the client's, and would multiply their time.
        "lance_aimd_max_retries": "0",
        "timeout": f"{_REQUEST_SECONDS}s",
    }
    if settings.region:
        options["aws_region"] = settings.region
    if settings.endpoint:
        options["aws_endpoint"] = settings.endpoint
        options["allow_http"] = str(_is_http(settings.endpoint)).lower()
    return options


def persist(uri: str, action: Callable[[], _T]) -> _T:
    """What `action` returns, which is called again, after a pause, while the object store fails.

    Args:
        uri: what the action reads or writes; for a local path it is called once.
        action: must be safe to call again after it failed at any point.

    Raises:
        StorageError: it still failed after `OBJECT_STORE_CLIENT_RETRY_TIMEOUT` seconds (180), or
            will always: wrong credentials, region or bucket.
    """
    if not is_object_address(uri):
        return action()
    until: float | None = None
    pause = 0.1
    began = time.monotonic()
    while True:
        try:
            return action()
        except (OSError, ValueError, RuntimeError, _store_error()) as error:
            if not _FROM_A_STORE.search(str(error)):
                raise
            settings = _settings(uri)
            if (reason := _lasting_reason(error, settings)) is not None:
                raise StorageError(f"{uri}: {reason}") from error
            if _ABSENT.search(str(error)):
                raise
            now = time.monotonic()
            # The client has been trying for so long already.
            began = max(began, now - 6 * settings.client_seconds)
            until = until or began + settings.try_again_seconds
            if now >= until:
                raise StorageError(_gave_up(uri, error, settings)) from error
        # Many readers that failed together must not come back together.
        time.sleep(random.uniform(pause / 2, pause))
        pause = min(2 * pause, _MAX_PAUSE_SECONDS)


def read_object(uri: str, max_bytes: int | None = None) -> bytes | None:
    """The content of an object; None if there is none.

    Args:
        uri: its `s3://` or `gs://` address.
        max_bytes: a larger one is not read.

    Raises:
        ValueError: it is larger.
        StorageError: it cannot be reached.
    """
    folder, _, name = uri.rpartition("/")
    return ObjectFolder(folder).read(name, max_bytes)


@dataclass(frozen=True)
class StoredObject:
    """An object as a listing tells of it."""

    name: str
    """Relative to the folder that was listed."""
    size: int
    """Bytes."""
    tag: str
    """Changes with the content; empty where the store has none."""


class ObjectFolder:
    """The objects whose names begin with one address: whole or not there, as in a folder.

    Names are relative, with `/` between their parts. Safe to use from many threads, processes and
    machines; what `write` and `create` have returned from is seen by every reader.
    """

    def __init__(self, uri: str) -> None:
        """Asks for nothing yet.

        Raises:
            StorageError: the extra, credentials or region are missing.
        """
        self.uri = uri.rstrip("/")
        # Not parsed as a web address: a name may have any character, such as # or %.
        scheme, _, path = self.uri.partition("://")
        bucket, _, self._prefix = path.partition("/")
        self._bucket = f"{scheme}://{bucket}"
        _settings(self.uri)

    def read(self, name: str, max_bytes: int | None = None) -> bytes | None:
        """The content of an object; None if there is none.

        Raises:
            ValueError: it is larger than `max_bytes`.
            StorageError: it cannot be reached.
        """

        def get() -> bytes | None:
            try:
                result = self._store.get(self._key(name))
                if max_bytes is not None and result.meta["size"] > max_bytes:
                    raise ValueError(
                        f"{self.uri}/{name} has {result.meta['size']} bytes, more than {max_bytes}"
                    )
                return bytes(result.bytes())
            except FileNotFoundError as error:
                _check_bucket(error)
                return None
            except _store_error() as error:
                # Removed while its content was read, and asked for again.
                if _ABSENT.search(str(error)):
                    return None
                raise

        return persist(f"{self.uri}/{name}", get)

    def write(self, name: str, content: bytes) -> None:
        """Writes or replaces an object: readers get the old content or the new, never a part.

        Raises:
            StorageError: it cannot be written; the old content stays.
        """
        persist(f"{self.uri}/{name}", lambda: self._put(name, content, "overwrite"))

    def create(self, name: str, content: bytes) -> bool:
        """Writes an object that must not exist; of several that try at once one gets True.

        Raises:
            StorageError: it cannot be written.
        """
        # The answer to a request that was carried out may get lost, and the same request, sent
        # again, is refused: who wrote what is there then tells.
        writer = uuid4().hex

        def put() -> bool:
            from obstore.exceptions import AlreadyExistsError

            try:
                self._put(name, content, "create", {_WRITER: writer})
            except AlreadyExistsError:
                return self._writer(name) == writer
            return True

        return persist(f"{self.uri}/{name}", put)

    def names(self, prefix: str = "") -> list[str]:
        """Names of all objects that begin with `prefix`, in sorted order.

        Raises:
            StorageError: they cannot be listed.
        """
        found = self.objects(prefix.rpartition("/")[0])
        return sorted(one.name for one in found if one.name.startswith(prefix))

    def objects(self, folder: str = "") -> list[StoredObject]:
        """All objects in the folder, or in one in it and below, in the order of their names.

        Raises:
            StorageError: they cannot be listed.
        """
        start = len(self._prefix) + 1 if self._prefix else 0

        def listing() -> list[StoredObject]:
            chunks = self._store.list(self._key(folder) or None)
            return [
                StoredObject(str(one["path"])[start:], one["size"], one["e_tag"] or "")
                for chunk in chunks
                for one in chunk
            ]

        return sorted(persist(self.uri, listing), key=lambda one: one.name)

    def fetch(self, found: StoredObject, path: Path) -> None:
        """Writes the content of an object to a file, in pieces.

        Args:
            found: as it was listed.
            path: of the file, which is made or replaced.

        Raises:
            StorageError: it is gone or has changed since, or cannot be reached.
            OSError: the file cannot be written.
        """
        where = f"{self.uri}/{found.name}"
        with path.open("wb") as file:
            # Each piece is a request of its own: a large object takes longer than one may.
            for start in range(0, found.size, _PIECE_BYTES):
                end = min(start + _PIECE_BYTES, found.size)
                file.write(persist(where, partial(self._piece, found, start, end)))

    def _piece(self, found: StoredObject, start: int, end: int) -> bytes:
        try:
            result = self._store.get(self._key(found.name), options={"range": (start, end)})
            content, tag = bytes(result.bytes()), result.meta["e_tag"] or ""
        except FileNotFoundError as error:
            _check_bucket(error)
            content, tag = b"", ""
        if tag != found.tag or len(content) != end - start:
            raise StorageError(
                f"{self.uri}/{found.name} has changed since it was listed: run the same command "
                "again"
            )
        return content

    def some_names(self) -> list[str]:
        """The first names of objects, about a thousand; enough to see what lies there.

        Raises:
            StorageError: they cannot be listed.
        """
        start = len(self._prefix) + 1 if self._prefix else 0
        chunks = persist(self.uri, lambda: list(islice(self._store.list(self._prefix or None), 1)))
        return [str(entry["path"])[start:] for chunk in chunks for entry in chunk]

    def remove(self, name: str) -> None:
        """Removes an object; none by this name is fine.

        Raises:
            StorageError: it is there and cannot be removed.
        """

        def delete() -> None:
            try:
                self._store.delete(self._key(name))
            except FileNotFoundError as error:
                _check_bucket(error)

        persist(f"{self.uri}/{name}", delete)

    @property
    def _store(self) -> Any:
        return _bucket_store(self._bucket, _environment())

    def _key(self, name: str) -> str:
        return f"{self._prefix}/{name}".strip("/")

    def _put(
        self, name: str, content: bytes, mode: str, attributes: dict[str, str] | None = None
    ) -> None:
        try:
            # In one request, which alone can be conditional.
            self._store.put(
                self._key(name), content, mode=mode, attributes=attributes, use_multipart=False
            )
        except FileNotFoundError as error:
            raise OSError(str(error)) from error

    def _writer(self, name: str) -> str | None:
        try:
            writer: str | None = self._store.get(self._key(name)).attributes.get(_WRITER)
        except FileNotFoundError:
            return None
        return writer


@lru_cache(maxsize=64)
def _bucket_store(bucket: str, environment: tuple[tuple[str, str], ...]) -> Any:
    """The client of one bucket in this environment, shared by all threads."""
    import obstore.store

    from_url: Any = obstore.store.from_url
    settings = _settings(bucket)
    retries = {
        "max_retries": 1000,
        "retry_timeout": timedelta(seconds=settings.client_seconds),
    }
    client = {
        "timeout": timedelta(seconds=_REQUEST_SECONDS),
        "allow_http": _is_http(settings.endpoint),
    }
    if bucket.startswith("gs://"):
        return from_url(bucket, client_options=client, retry_config=retries)
    config: dict[str, Any] = {"region": settings.region or "us-east-1"}
    if settings.endpoint:
        config["endpoint"] = settings.endpoint
    if settings.session is None:
        config["skip_signature"] = True
    else:
        config["credential_provider"] = _provider(settings.session.get_credentials())
    return from_url(bucket, client_options=client, retry_config=retries, **config)


def _provider(credentials: Any) -> Callable[[], dict[str, Any]]:
    def current() -> dict[str, Any]:
        # Botocore renews credentials that are about to expire; that is what is asked for.
        frozen = credentials.get_frozen_credentials()
        return {
            "access_key_id": frozen.access_key,
            "secret_access_key": frozen.secret_key,
            "token": frozen.token,
            "expires_at": datetime.now(UTC) + timedelta(minutes=5),
        }

    return current


def _environment() -> tuple[tuple[str, str], ...]:
    prefixes = ("AWS_", "GOOGLE_", "OBJECT_STORE_")
    return tuple(sorted((k, v) for k, v in os.environ.items() if k.startswith(prefixes)))


def _settings(uri: str) -> _Settings:
    try:
        return _read_settings(uri.partition("://")[0], _environment())
    except StorageError as error:
        raise type(error)(f"{uri}: {error}") from error


@lru_cache(maxsize=64)
def _read_settings(scheme: str, environment: tuple[tuple[str, str], ...]) -> _Settings:
    values = dict(environment)
    seconds = _seconds(values.get(_TRY_AGAIN_VARIABLE))
    try:
        import obstore  # noqa: F401
        from botocore.exceptions import BotoCoreError
        from botocore.session import Session
    except ImportError as error:
        raise MissingExtra(
            f"object stores need two more packages ({error}): {install_extra('cloud')}"
        ) from error
    if scheme == "gs":
        return _Settings(None, None, seconds, None)
    session = Session()
    try:
        profile = session.get_scoped_config()
        is_anonymous = values.get("AWS_SKIP_SIGNATURE", "").lower() in _ANONYMOUS
        if not is_anonymous and session.get_credentials() is None:
            raise StorageError(
                "there are no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or "
                "AWS_PROFILE (or AWS_SKIP_SIGNATURE=true for a public bucket)"
            )
    except BotoCoreError as error:
        raise StorageError(f"{error}: mend AWS_PROFILE or the file that it names") from error
    variables = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
    endpoint = _first(values, variables) or profile.get("endpoint_url")
    region = _first(values, ("AWS_REGION", "AWS_DEFAULT_REGION")) or profile.get("region")
    if not region and not endpoint:
        raise StorageError(
            "the region is not known: set AWS_REGION, or AWS_ENDPOINT_URL for a service that is "
            "not Amazon's"
        )
    return _Settings(endpoint, region or "us-east-1", seconds, None if is_anonymous else session)


def _seconds(text: str | None) -> int:
    if text is None:
        return _TRY_AGAIN_SECONDS
    if not text.isdecimal():
        raise StorageError(f"{_TRY_AGAIN_VARIABLE} must be a number of seconds. Got {text!r}.")
    return int(text)


def _first(values: Mapping[str, str], names: tuple[str, ...]) -> str | None:
    return next((values[name] for name in names if values.get(name)), None)


def _is_http(endpoint: str | None) -> bool:
    return endpoint is not None and endpoint.startswith("http://")


def _store_error() -> type[Exception]:
    from obstore.exceptions import BaseError

    return BaseError


def _check_bucket(error: FileNotFoundError) -> None:
    """An object that is not there is no failure; a bucket that is not there is."""
    if _LASTING[0][0].search(str(error)):
        raise OSError(str(error)) from error


def _lasting_reason(error: Exception, settings: _Settings) -> str | None:
    for pattern, advice in _LASTING:
        if pattern.search(str(error)):
            place = settings.endpoint or "S3"
            return advice.format(endpoint=place, code=_code(error), region=settings.region)
    return None


def _gave_up(uri: str, error: Exception, settings: _Settings) -> str:
    return (
        f"{uri}: {settings.endpoint or 'the object store'} has failed for "
        f"{settings.try_again_seconds} s ({_code(error)}). What was finished is kept: run the same "
        f"command again when it answers, or set {_TRY_AGAIN_VARIABLE} to wait longer"
    )


def _code(error: Exception) -> str:
    """The store's own word for what is wrong, or a short one."""
    message = str(error)
    for pattern in (r"<Code>(\w+)</Code>", r"non-2xx status code: (\d+ [A-Z][A-Za-z ]+)"):
        if found := re.search(pattern, message):
            return found[1]
    if found := re.search(r"HTTP error: ([a-z ]+)", message):
        return found[1].strip()
    return message.splitlines()[0][:160]
