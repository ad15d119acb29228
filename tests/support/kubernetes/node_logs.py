"""The part of a kubelet that API servers ask for logs: HTTPS, a path for each container."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from aiohttp import ClientSession, ClientTimeout, web

Json = dict[str, Any]

_LOOK_S = 0.05
_LOOPBACK = "127.0.0.1"
_PIECE_BYTES = 65_536


class NodeLogs:
    """Serves the logs of the pods of one machine's nodes; `async with` runs it.

    Args:
        folder: for its certificate.
        log_of: the file that a pod writes, by namespace and name; None if it has none.
        runs: whether that pod still runs.
    """

    def __init__(
        self,
        folder: Path,
        log_of: Callable[[str, str], Path | None],
        runs: Callable[[str, str], bool],
    ) -> None:
        self._folder = folder
        self._log_of = log_of
        self._runs = runs
        self._runner: web.AppRunner | None = None
        self._connections: weakref.WeakSet[asyncio.BaseTransport] = weakref.WeakSet()

    async def __aenter__(self) -> Self:
        app = web.Application()
        app.router.add_get("/containerLogs/{namespace}/{pod}/{container}", self._answer)
        # Whoever follows a log for ever must not hold up the end.
        runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0)
        await runner.setup()
        await web.TCPSite(runner, _LOOPBACK, 0, ssl_context=_certificate(self._folder)).start()
        self._runner = runner
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._runner is not None
        await self._runner.cleanup()
        # No TLS farewell from whoever keeps its connections for later requests.
        for transport in tuple(self._connections):
            if isinstance(transport, asyncio.WriteTransport):
                transport.abort()
        for _turn in range(3):
            await asyncio.sleep(0)

    @property
    def status(self) -> Json:
        """What a node's status says about the way to it."""
        assert self._runner is not None
        return {
            "addresses": [{"type": "InternalIP", "address": _LOOPBACK}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": self._runner.addresses[0][1]}},
        }

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        if request.transport is not None:
            self._connections.add(request.transport)
        namespace, pod = request.match_info["namespace"], request.match_info["pod"]
        path = self._log_of(namespace, pod)
        if path is None:
            return web.Response(status=400, text=f'container in pod "{pod}" is waiting to start')
        response = web.StreamResponse(headers={"Content-Type": "text/plain"})
        await response.prepare(request)
        left = int(request.query.get("limitBytes", 2**62))
        with path.open("rb") as log:
            while left:
                # Asked first: what is there after the end is all there is.
                more = request.query.get("follow") == "true" and self._runs(namespace, pod)
                data = log.read(min(left, _PIECE_BYTES))
                if data:
                    left -= len(data)
                    await response.write(data)
                elif more:
                    await asyncio.sleep(_LOOK_S)
                else:
                    break
        return response


def _certificate(folder: Path) -> ssl.SSLContext:
    """A self-signed one: API servers check kubelets only where they are told an authority."""
    key, certificate = folder / "kubelet.key", folder / "kubelet.crt"
    if not certificate.exists():
        command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt"]
        command += ["ec_paramgen_curve:prime256v1", "-nodes", "-days", "2", "-subj", "/CN=node"]
        subprocess.run(
            [*command, "-keyout", str(key), "-out", str(certificate)],
            check=True,
            capture_output=True,
        )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context


async def asked_node(request: web.Request, pod: Json, node: Json | None) -> web.StreamResponse:
    """What an API server answers about a pod's log: it asks the pod's node, and hands it on."""
    endpoint = ((node or {}).get("status") or {}).get("daemonEndpoints") or {}
    port = (endpoint.get("kubeletEndpoint") or {}).get("Port", 0)
    metadata = pod["metadata"]
    container = request.query.get("container") or pod["spec"]["containers"][0]["name"]
    url = f"https://{_LOOPBACK}:{port}/containerLogs"
    url += f"/{metadata['namespace']}/{metadata['name']}/{container}"
    query = {key: value for key, value in request.query.items() if key != "container"}
    async with (
        ClientSession(timeout=ClientTimeout(total=None)) as session,
        session.get(url, params=query, ssl=False) as answer,
    ):
        response = web.StreamResponse(status=answer.status, headers={"Content-Type": "text/plain"})
        response.enable_chunked_encoding()
        await response.prepare(request)
        async for chunk in answer.content.iter_any():
            await response.write(chunk)
        return response
