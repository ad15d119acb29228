"""The agent keeps a node's annotation equal to what it sees, and the scheduler reads it back."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace

import pytest
from support.kubernetes import objects
from support.kubernetes.client import Client
from support.kubernetes.fake_server import FakeApiServer
from support.kubernetes.resources import NODES

from scheduler.agent.advertise import Advertiser
from scheduler.errors import ConfigurationError
from scheduler.execution.kubernetes.boards import annotation_of, gpus_of
from scheduler.execution.kubernetes.server import ApiServer
from scheduler.model.node import Gpu, Health, Links, Node
from scheduler.model.quantity import GpuId, NodeId, Resources

TOPOLOGY = "haversack.dev/topology"


def _host(*health: Health) -> Node:
    gpus = tuple(
        Gpu(GpuId(f"GPU-{index}"), index, "H200", 143771, health=each)
        for index, each in enumerate(health)
    )
    size = len(gpus)
    return Node(NodeId("host"), "host", Resources(gpus=size), gpus, Links.uniform(size, 18, 450.0))


@dataclass
class _Inventory:
    node: Node

    def nodes(self) -> Sequence[Node]:
        return (self.node,)


async def _annotation(fake: FakeApiServer) -> str | None:
    async with Client(fake.access) as client:
        node = (await client.get(NODES.path(name="n1"))).ok()
        found: str | None = node["metadata"].get("annotations", {}).get(TOPOLOGY)
        return found


def _on_a_node(act: Callable[[FakeApiServer, ApiServer], Awaitable[None]]) -> None:
    async def acting() -> None:
        async with FakeApiServer() as fake, ApiServer(fake.access) as server:
            async with Client(fake.access) as client:
                (await client.post(NODES.path(), objects.node("n1", gpus=2))).ok()
            await act(fake, server)

    asyncio.run(acting())


def test_what_is_written_is_what_the_scheduler_reads() -> None:
    host = _host(Health.HEALTHY, Health.UNHEALTHY, Health.HEALTHY)
    left = [host.gpus[0], host.gpus[2]]
    read = gpus_of("uid", 2, {}, annotation_of(left, host.links))
    assert read.warnings == ()
    assert [gpu.id for gpu in read.gpus] == ["GPU-0", "GPU-2"]
    assert read.links == Links.uniform(2, 18, 450.0)


def test_it_is_written_once_and_follows_what_is_seen() -> None:
    async def act(fake: FakeApiServer, server: ApiServer) -> None:
        inventory = _Inventory(_host(Health.HEALTHY, Health.HEALTHY))
        advertiser = Advertiser(server, "n1", take_inventory=lambda: inventory)
        assert await advertiser.advertise()
        assert not await advertiser.advertise()
        whole = await _annotation(fake)
        assert whole == annotation_of(inventory.node.gpus, inventory.node.links)

        inventory.node = _host(Health.HEALTHY, Health.UNHEALTHY)
        assert await advertiser.advertise()
        assert gpus_of("uid", 1, {}, await _annotation(fake) or "").warnings == ()

        inventory.node = _host(Health.HEALTHY, Health.UNKNOWN)
        assert await advertiser.advertise()
        assert await _annotation(fake) is None

    _on_a_node(act)


def test_a_driver_that_comes_late_is_found() -> None:
    async def act(fake: FakeApiServer, server: ApiServer) -> None:
        empty = replace(_host(), gpus=(), links=Links((), ()))
        hosts = [empty, _host(Health.HEALTHY), _host()]
        advertiser = Advertiser(server, "n1", take_inventory=lambda: _Inventory(hosts.pop(0)))
        assert not await advertiser.advertise()
        assert await advertiser.advertise()
        assert not await advertiser.advertise()
        assert await _annotation(fake) is not None
        assert len(hosts) == 1  # an inventory with GPUs is kept

    _on_a_node(act)


def test_an_unknown_node_is_said_at_once() -> None:
    async def act(fake: FakeApiServer, server: ApiServer) -> None:
        del fake
        advertiser = Advertiser(
            server, "elsewhere", take_inventory=lambda: _Inventory(_host(Health.HEALTHY))
        )
        with pytest.raises(ConfigurationError, match="node elsewhere cannot be annotated"):
            await advertiser.run()

    _on_a_node(act)


def test_a_trouble_that_passes_is_lived_through() -> None:
    async def act(fake: FakeApiServer, server: ApiServer) -> None:
        inventory = _Inventory(_host(Health.HEALTHY))
        rounds = iter(("node goes", "node comes", "end"))

        async def sleep(_: float) -> None:
            async with Client(fake.access) as client:
                match next(rounds):
                    case "node goes":
                        (await client.delete(NODES.path(name="n1"))).ok()
                    case "node comes":
                        (await client.post(NODES.path(), objects.node("n1", gpus=1))).ok()
                    case _:
                        raise asyncio.CancelledError

        with pytest.raises(asyncio.CancelledError):
            await Advertiser(server, "n1", take_inventory=lambda: inventory, sleep=sleep).run()
        assert await _annotation(fake) is not None

    _on_a_node(act)
