"""kube-scheduler as a judge: which nodes all its plugins let a pod through to.

It tells a filter extender (HTTP API `k8s.io/kube-scheduler/extender/v1`); this one notes the nodes
and lets none through, so the pod stays where it is. Where no node is left it is not asked, and the
pod's condition alone says so.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from aiohttp import web
from support.kubernetes.client import Client, Json
from support.kubernetes.real_server import ControlPlane
from support.kubernetes.resources import PODS

_ASKED_MAX = 2**24
"""Bytes: what the extender is asked names every node that passed."""


@dataclass(frozen=True, slots=True)
class Judged:
    """What kube-scheduler says of a pod: the nodes that would do, and its own words on the rest."""

    nodes: frozenset[str]
    message: str


@dataclass(slots=True)
class Judge:
    """Asks kube-scheduler about pods.

    Attributes:
        passed: nodes that all plugins let a pod through to, by the pod's uid.
    """

    _client: Client
    passed: dict[str, frozenset[str]] = field(default_factory=dict)

    async def filter(self, request: web.Request) -> web.Response:
        """The extender: notes what passed, and lets none through."""
        asked = await request.json()
        names = asked.get("NodeNames") or []
        self.passed.setdefault(asked["Pod"]["metadata"]["uid"], frozenset(names))
        return web.json_response({"NodeNames": [], "FailedNodes": dict.fromkeys(names, "noted")})

    async def judged(self, pod: Json) -> Judged:
        """Wait for its word on a pod that was created, and take the pod away."""
        metadata = pod["metadata"]
        message = None
        while message is None:  # the server may end any watch at any time
            message = await self._told(metadata)
        path = PODS.path(metadata["namespace"], metadata["name"])
        (await self._client.delete(path, {"gracePeriodSeconds": 0})).ok()
        return Judged(self.passed.pop(metadata["uid"], frozenset()), message)

    async def _told(self, metadata: Json) -> str | None:
        """What its condition says; None when the watch ends before it says anything."""
        async with self._client.watch(
            PODS.path(metadata["namespace"]),
            resourceVersion=metadata["resourceVersion"],
            fieldSelector=f"metadata.name={metadata['name']}",
        ) as watch:
            while (event := await watch.next()) is not None:
                message = _word(event["object"])
                if message is not None:
                    return message
        return None


def _word(pod: Json) -> str | None:
    """What the pod's condition says, once it does."""
    assert not pod["spec"].get("nodeName"), "the pod was bound"
    for condition in pod["status"].get("conditions", ()):
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            assert condition["reason"] == "Unschedulable", condition
            return str(condition["message"])
    return None


@asynccontextmanager
async def judging(plane: ControlPlane, client: Client, scheduler_name: str) -> AsyncIterator[Judge]:
    """kube-scheduler with the extender, for pods that name this scheduler."""
    judge = Judge(client)
    app = web.Application(client_max_size=_ASKED_MAX)
    app.router.add_post("/filter", judge.filter)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0][:2]
        plane.start_scheduler(_configuration(f"http://{host}:{port}", scheduler_name))
        try:
            yield judge
        finally:
            plane.stop("kube-scheduler")
    finally:
        await runner.cleanup()


def _configuration(url: str, scheduler_name: str) -> Json:
    """All its own plugins but preemption, which would clear nodes for a pod that nobody binds."""
    no_preemption = {"postFilter": {"disabled": [{"name": "*"}]}}
    extender = {
        "urlPrefix": url,
        "filterVerb": "filter",
        "nodeCacheCapable": True,
        "weight": 1,
        "httpTimeout": "30s",
    }
    return {
        "percentageOfNodesToScore": 100,
        "profiles": [{"schedulerName": scheduler_name, "plugins": no_preemption}],
        "extenders": [extender],
    }
