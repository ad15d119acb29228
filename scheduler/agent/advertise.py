"""Writes what a node's GPUs are and how they are linked on the node itself, for the scheduler.

A device plugin says only how many GPUs there are. The agent runs on each GPU node, looks through
NVML, and keeps the annotation `haversack.dev/topology` equal to what it sees. It changes nothing
else, and a node without whole, healthy GPUs carries no annotation at all: then the scheduler goes
by labels.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from scheduler.agent.inventory import HostInventory
from scheduler.errors import ConfigurationError, HaversackError
from scheduler.execution.kubernetes import labels
from scheduler.execution.kubernetes.boards import annotation_of
from scheduler.execution.kubernetes.raw import mapping, text
from scheduler.execution.kubernetes.server import ApiServer, RejectedError
from scheduler.model.node import Health, Node
from scheduler.model.ports import Inventory

log = structlog.get_logger(__name__)


class Advertiser:
    """Keeps one node's annotation true.

    Args:
        server: the API server; the right to get and patch this node is enough.
        node: the node's name in the cluster.
        take_inventory: opens this host's inventory; again as long as it shows no GPU, as a driver
            may be installed after the agent.
        every_s: seconds between two looks.
        sleep: waits between them.
    """

    def __init__(
        self,
        server: ApiServer,
        node: str,
        *,
        take_inventory: Callable[[], Inventory] = HostInventory,
        every_s: float = 60.0,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._server = server
        self._path = f"/api/v1/nodes/{node}"
        self._node = node
        self._take_inventory = take_inventory
        self._inventory: Inventory | None = None
        self._every_s = every_s
        self._sleep = sleep

    async def run(self) -> None:
        """Advertise until cancelled.

        Raises:
            ConfigurationError: as `begin`.
        """
        await self.begin()
        while True:
            await self._sleep(self._every_s)
            try:
                await self.advertise()
            except HaversackError as error:
                log.warning("the node is not annotated; trying again", why=str(error))

    async def begin(self) -> None:
        """Advertise for the first time.

        Raises:
            ConfigurationError: no such node, or no right to change it.
            HaversackError: the API server does not answer.
        """
        try:
            await self.advertise()
        except RejectedError as error:
            raise ConfigurationError(
                f"node {self._node} cannot be annotated: {error}",
                hint="--node is its name in the cluster (in a pod: the field spec.nodeName), and"
                " the account needs get and patch on nodes (deploy/kubernetes/components/agent)",
            ) from error

    async def advertise(self) -> bool:
        """Look once, and write if the annotation says something else; whether it was written.

        Raises:
            HaversackError: the API server does not answer, or refuses.
        """
        told = await asyncio.to_thread(self._look)
        found = await self._server.get(self._path)
        before = text(
            mapping(mapping(found.get("metadata")).get("annotations")).get(labels.TOPOLOGY)
        )
        if told == before:
            return False
        body = {"metadata": {"annotations": {labels.TOPOLOGY: told or None}}}
        await self._server.patch(self._path, body)
        log.info("node annotated", node=self._node, topology=told)
        return True

    def _look(self) -> str:
        """The annotation, or "" if there is nothing to say. Blocks some milliseconds per GPU."""
        if self._inventory is None:
            self._inventory = self._take_inventory()
        (node,) = self._inventory.nodes()
        if not node.gpus:
            self._inventory = None
        return _told(node)


def _told(node: Node) -> str:
    if any(gpu.health is Health.UNKNOWN for gpu in node.gpus):
        return ""  # cut into slices: what is offered is not these GPUs
    whole = [gpu for gpu in node.gpus if gpu.health is Health.HEALTHY]
    return annotation_of(whole, node.links) if whole else ""
