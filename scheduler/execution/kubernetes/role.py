"""Marks the pod of the replica that leads, for a Service to find it.

The mark is a convenience of routing and guards nothing: who may bind is the fence's to say. Should
two pods carry it for a moment, one of them answers that it does not lead.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from scheduler.errors import FencedError, HaversackError
from scheduler.execution.kubernetes.labels import LEADER, ROLE
from scheduler.execution.kubernetes.server import ApiServer, RejectedError

EVERY_S = 30.0


class RoleLabel:
    """The label `haversack.dev/role: leader`, on one pod of an installation.

    Args:
        server: the cluster.
        namespace: the installation's.
        pod: name of our own pod.

    Attributes:
        trouble: why it could not be set last time; "" when it could.
    """

    def __init__(self, server: ApiServer, namespace: str, pod: str) -> None:
        self._server = server
        self._pods = f"/api/v1/namespaces/{namespace}/pods"
        self._pod = pod
        self.trouble = ""

    async def keep(self, we_lead: Callable[[], Awaitable[None]]) -> None:
        """Hold the label until cancelled, should somebody take it off.

        Args:
            we_lead: raises FencedError if we do not: a leader that is back from a long pause must
                not take the label from its successor.

        Raises:
            FencedError: another leader has taken over.
        """
        while True:
            try:
                await we_lead()
                await self.take()
            except FencedError:
                raise
            except HaversackError as error:
                self.trouble = str(error)
            else:
                self.trouble = ""
            await asyncio.sleep(EVERY_S)

    async def take(self) -> None:
        """Have our pod carry it, and no other. One list, and a patch for each pod that is wrong.

        Raises what requests raise (`server.py`).
        """
        found = await self._server.list(self._pods, {"labelSelector": f"{ROLE}={LEADER}"})
        marked = {str(pod["metadata"]["name"]) for pod in found["items"]}
        for name in sorted(marked - {self._pod}):
            await self._unmark(name)
        if self._pod not in marked:
            await self._patch(self._pod, LEADER)

    async def _unmark(self, name: str) -> None:
        try:
            await self._patch(name, None)
        except RejectedError as error:
            if not error.missing:
                raise

    async def _patch(self, name: str, value: str | None) -> None:
        await self._server.patch(f"{self._pods}/{name}", {"metadata": {"labels": {ROLE: value}}})
