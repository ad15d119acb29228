"""The address we listen on, and the server that answers there."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp
from typing_extensions import override

from scheduler.errors import ConfigurationError
from scheduler.settings import ApiSettings

LOOPBACK = ("127.0.0.1", "::1", "localhost")
SHUTDOWN_S = 20
BACKLOG = 2048
_STARTED_EVERY_S = 0.01


def check_binding(api: ApiSettings) -> None:
    """Refuse to serve strangers in the clear.

    Raises:
        ConfigurationError: the address is not loopback and nothing encrypts the way to it.
    """
    if api.host in LOOPBACK or api.trusted_proxies or (api.tls_certificate and api.tls_key):
        return
    raise ConfigurationError(
        f"refusing to listen on {api.host}: tokens would cross the network in the clear",
        hint=(
            "listen on 127.0.0.1; or set HAVERSACK_API__TLS_CERTIFICATE and HAVERSACK_API__TLS_KEY;"
            " or, behind a proxy that terminates TLS, name its addresses in"
            " HAVERSACK_API__TRUSTED_PROXIES"
        ),
    )


class Door:
    """A listening socket and what answers on it: one application after the other.

    The socket stays open in between, so that whoever connects meanwhile waits and is not refused.
    """

    def __init__(self, api: ApiSettings) -> None:
        """Listen.

        Raises:
            ConfigurationError: an address that must not be served in the clear, is taken, or is
                not ours.
        """
        check_binding(api)
        self._api = api
        self._listener = _bind(api)
        self._server: _Server | None = None
        self._serving: asyncio.Task[None] | None = None

    @property
    def url(self) -> str:
        """Where it is."""
        scheme = "https" if self._api.tls_certificate else "http"
        host, port = self._listener.getsockname()[:2]
        return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"

    async def open(self, app: ASGIApp) -> asyncio.Task[None]:
        """Answer by `app` from now on, and no longer by what answered before.

        Returns:
            The task that serves. If it ends before `leave` or `shut`, it has failed.

        Raises:
            ConfigurationError: the server ended before it had started.
        """
        await self.shut()
        server = self._server = _Server(self._config(app))
        # A copy, as the server closes what it was given.
        serving = asyncio.create_task(server.serve(sockets=[self._listener.dup()]), name="api")
        self._serving = serving
        while not server.started:
            if serving.done():
                serving.result()
                raise ConfigurationError("the API server ended before it had started")
            await asyncio.sleep(_STARTED_EVERY_S)
        return serving

    def leave(self) -> None:
        """Take no further requests; those under way are answered. `shut` waits for them."""
        if self._server is not None:
            self._server.should_exit = True

    async def shut(self) -> None:
        """Answer no more, after what is under way. The socket stays. Idempotent, never raises."""
        self.leave()
        if self._serving is not None:
            await asyncio.gather(self._serving, return_exceptions=True)
        self._server = self._serving = None

    def close(self) -> None:
        """Listen no more. Idempotent."""
        self._listener.close()

    def _config(self, app: ASGIApp) -> uvicorn.Config:
        api = self._api
        return uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            lifespan="on",
            proxy_headers=bool(api.trusted_proxies),
            forwarded_allow_ips=list(api.trusted_proxies),
            server_header=False,
            timeout_graceful_shutdown=SHUTDOWN_S,
            ssl_certfile=api.tls_certificate,
            ssl_keyfile=api.tls_key,
        )


class EndpointFile:
    """`endpoint.json` in the data directory, by which commands that run there find the daemon."""

    def __init__(self, data_dir: Path) -> None:
        self._path = data_dir / "endpoint.json"

    def write(self, url: str) -> None:
        """Say where we answer.

        Raises:
            OSError: it cannot be written.
        """
        partial = self._path.with_suffix(".partial")
        partial.write_text(json.dumps({"url": url, "pid": os.getpid()}))
        partial.replace(self._path)

    def remove(self) -> None:
        """Nobody answers any more. Idempotent."""
        self._path.unlink(missing_ok=True)


def _bind(api: ApiSettings) -> socket.socket:
    family = socket.AF_INET6 if ":" in api.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((api.host, api.port))
        listener.listen(BACKLOG)  # with SO_REUSEADDR only this keeps a second daemon off the port
    except OSError as error:
        listener.close()
        raise ConfigurationError(
            f"cannot listen on {api.host}:{api.port}: {error.strerror}",
            hint="another program uses the port; choose one with --port (0 picks a free one)",
        ) from error
    return listener


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: the daemon has one order of shutting down."""

    @override
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to the daemon."""
        yield
