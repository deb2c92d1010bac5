"""A studio that is served: the address, the browser, and the end."""

import asyncio
import errno
import os
import socket
import sys
import threading
import webbrowser
from collections.abc import Callable
from dataclasses import replace

import uvicorn

from openblip.runtime.errors import OpenBlipError
from openblip.studio.app import Studio, create_app
from openblip.studio.guard import Access
from openblip.studio.routes import WORKER_NAME

_EVERYWHERE = ("0.0.0.0", "::")
"""All addresses of this machine."""

# Connections, which cost little while they wait; what is answered at once is bounded by `Access`.
_MAX_CONNECTIONS = 512


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Args:
        host: name or address.
        port: 0 for any that is free.

    Raises:
        OpenBlipError: it cannot, for example because the port is taken.
    """
    try:
        ((family, _, _, _, address), *_) = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        sock = socket.create_server(address[:2], family=family, backlog=128)
        # asyncio does so for sockets that name their protocol alone. Connections inherit it; else
        # the body of an answer waits 40 ms until its head is acknowledged.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock
    except PermissionError as error:
        raise OpenBlipError(f"port {port} is not allowed: give another one with --port") from error
    except OSError as error:
        if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
            raise OpenBlipError(f"--host {host}: this machine has no such address") from error
        raise OpenBlipError(
            f"port {port} of {host} cannot be used ({error.strerror}), perhaps another studio has "
            "it: give another one with --port, or --port 0 for any that is free"
        ) from error


def address_of(sock: socket.socket, access: Access) -> str:
    """The address to open, with the token where there is one."""
    port = sock.getsockname()[1]
    name = access.host
    if name in _EVERYWHERE:
        name = socket.gethostname()
    name = f"[{name}]" if ":" in name else name
    return f"http://{name}:{port}/" + (f"?token={access.token}" if access.token else "")


class Server(uvicorn.Server):
    """A server that does not wait for requests when it is told to end."""

    def __init__(self, studio: Studio, access: Access, on_start: Callable[[], None]) -> None:
        """Serves nothing yet.

        Args:
            studio: what is served.
            access: from where it is reached.
            on_start: called when it listens.
        """
        config = uvicorn.Config(
            create_app(studio, access),
            http="h11",
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
            limit_concurrency=_MAX_CONNECTIONS,
            timeout_keep_alive=30,
        )
        super().__init__(config)
        self._on_start = on_start

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen, and say so."""
        await super().startup(sockets)
        if self.started:
            self._on_start()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End at once: a model that computes would be waited for, for minutes perhaps."""
        for server in self.servers:
            server.close()
        for sock in sockets or []:
            sock.close()
        for connection in list(self.server_state.connections):
            connection.shutdown()
        for task in self.server_state.tasks:
            task.cancel()
        # Those that were called off still say so to whoever waits for them.
        await asyncio.sleep(0.05)
        # A browser may have opened one while this ended, or read no more: nobody is at this end.
        for connection in list(self.server_state.connections):
            if connection.transport is not None:
                connection.transport.abort()
        await self.lifespan.shutdown()


def serve(
    studio: Studio,
    access: Access,
    port: int,
    tell: Callable[[str], object],
    open_browser: bool,
    room: str = "",
) -> None:
    """Serve until Ctrl-C.

    Args:
        studio: what is served.
        access: from where it is reached.
        port: 0 for any that is free.
        tell: is told the address once it answers.
        open_browser: where there is a screen.
        room: which is shown first, with what it is to show, as in `#review?size=100`.

    Raises:
        OpenBlipError: the port is taken.
    """
    with listen(access.host, port) as sock:
        address = address_of(sock, access) + room

        def started() -> None:
            tell(address)
            if access.host in _EVERYWHERE:
                # The name may be nobody's but ours: that of a container, say.
                here = address_of(sock, replace(access, host="127.0.0.1")) + room
                tell(f"{here} on this machine")
            if open_browser and _has_screen():
                webbrowser.open(address)

        try:
            Server(studio, access, started).run([sock])
        except KeyboardInterrupt:
            if any(thread.name == WORKER_NAME for thread in threading.enumerate()):
                _end_at_once()
            raise


def _end_at_once() -> None:
    """End the process under a thread that computes.

    It cannot be told to stop, and an interpreter that shuts down under PyTorch's code aborts. What
    must last is on the disk by now: verdicts are, and jobs are processes of their own.
    """
    sys.stderr.write("interrupted\n")
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(130)


def _has_screen() -> bool:
    """Whether a browser would have a window: in a terminal it would take the terminal's place."""
    if sys.platform == "darwin":
        return True
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
