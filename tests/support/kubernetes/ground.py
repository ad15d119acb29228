"""Where a contract test runs: the same test on the fake and on a real API server."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.kubernetes import objects
from support.kubernetes.client import Client, Json
from support.kubernetes.resources import LEASES, NODES, PODS, Resource

from scheduler.execution.kubernetes.access import Access

_numbers = itertools.count(1)


@dataclass(frozen=True, slots=True)
class At:
    """What a test works with.

    Attributes:
        client: of an administrator.
        namespace: of this test alone.
        another: access of a user without rights, or with those that the test gives.
    """

    client: Client
    namespace: str
    another: Callable[[str], Access]

    def path(self, resource: Resource, name: str = "", part: str = "") -> str:
        """Request path in the test's namespace."""
        return resource.path(self.namespace, name, part)

    def pods(self, name: str = "", part: str = "") -> str:
        """Request path of pods."""
        return self.path(PODS, name, part)

    def leases(self, name: str = "") -> str:
        """Request path of leases."""
        return self.path(LEASES, name)

    async def pod(self, name: str, **fields: Any) -> Json:
        """A new pod."""
        made = objects.pod(name, namespace=self.namespace, **fields)
        return (await self.client.post(self.pods(), made)).ok()

    async def node(self, **fields: Any) -> str:
        """A new node, named after the namespace and a number."""
        made = objects.node(f"{self.namespace}-{next(_numbers)}", **fields)
        (await self.client.post(NODES.path(), made)).ok()
        return str(made["metadata"]["name"])

    async def bind(self, name: str, node: str = "n1", **metadata: Any) -> int:
        """Post a Binding; the HTTP status."""
        body = objects.binding(name, node, **metadata)
        return (await self.client.post(self.pods(name, "binding"), body)).status


@dataclass(frozen=True, slots=True)
class Ground:
    """A server to test against.

    Attributes:
        access: an administrator's.
        access_as: another user's.
        compact: has the server forget its past.
        real: whether it is a real one.
        authority: certificate that its own is checked against; None without TLS.
        denials: how many writes admission policies have refused so far, as the server counts them.
    """

    access: Access
    access_as: Callable[[str], Access]
    compact: Callable[[], None]
    real: bool
    authority: Path | None = None
    denials: Callable[[], int] = lambda: 0

    def run(self, act: Callable[[At], Awaitable[None]]) -> None:
        """Run a test in a namespace of its own."""

        async def acting() -> None:
            async with Client(self.access) as client:
                namespace = f"test-{os.getpid()}-{next(_numbers)}"
                (await client.post("/api/v1/namespaces", objects.namespace(namespace))).ok()
                await act(At(client, namespace, self.access_as))

        asyncio.run(acting())
