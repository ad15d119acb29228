"""The same random deeds on the fake and on a real kube-apiserver: equal answers, equal events."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

import pytest
from support.kubernetes import objects
from support.kubernetes.client import JSON_PATCH, MERGE, STRATEGIC, Client, Json
from support.kubernetes.fake_server import FakeApiServer
from support.kubernetes.real_server import ControlPlane
from support.kubernetes.resources import PODS

_NAMES = ("a", "b", "c")
_GATE, _KEEP = "haversack.dev/placement", "haversack.dev/exit"
_DEEDS = 250
Deed = tuple[str, str, Any, str]
"""Method, path below the namespace, body, content type (JSON if empty)."""

_TIMES = ("creationTimestamp", "lastTransitionTime", "startedAt", "finishedAt")


def _create(chance: random.Random, name: str) -> Deed:
    fields: dict[str, Any] = {"gpus": chance.randrange(3)}
    if chance.random() < 0.3:
        fields["gates"] = [_GATE]
    if chance.random() < 0.3:
        fields["finalizers"] = [_KEEP]
    if chance.random() < 0.2:
        fields["nodeSelector"] = {"zone": "one"}
    if chance.random() < 0.2:
        fields["terminationGracePeriodSeconds"] = chance.choice([0, 5])
    return "POST", "pods", objects.pod(name, namespace="", **fields), ""


def _bind(chance: random.Random, name: str) -> Deed:
    marks = {"annotations": {"haversack.dev/epoch": str(chance.randrange(3))}}
    body = objects.binding(name, chance.choice(["n1", "n2"]), **marks)
    if chance.random() < 0.2:
        body["metadata"]["uid"] = "00000000-0000-0000-0000-000000000000"
    return "POST", f"pods/{name}/binding", body, ""


def _delete(chance: random.Random, name: str) -> Deed:
    options: Json = {}
    if chance.random() < 0.6:
        options["gracePeriodSeconds"] = chance.choice([0, 3, 60])
    if chance.random() < 0.2:
        options["preconditions"] = {"resourceVersion": "1"}
    return "DELETE", f"pods/{name}", options, ""


def _tell(chance: random.Random, name: str) -> Deed:
    condition = {"type": chance.choice(["PodScheduled", "DisruptionTarget"])}
    condition |= {"status": chance.choice(["True", "False"]), "reason": "Test"}
    status: Json = {"conditions": [condition]}
    if chance.random() < 0.5:
        status["phase"] = chance.choice(["Running", "Succeeded", "Failed"])
    return "PATCH", f"pods/{name}/status", {"status": status}, STRATEGIC


def _let_go(_: random.Random, name: str) -> Deed:
    return "PATCH", f"pods/{name}", {"metadata": {"finalizers": None}}, MERGE


def _pin(_: random.Random, name: str) -> Deed:
    steps = [
        {"op": "remove", "path": "/spec/schedulingGates"},
        {"op": "add", "path": "/spec/nodeSelector", "value": {"zone": "one"}},
    ]
    return "PATCH", f"pods/{name}", steps, JSON_PATCH


def _label(chance: random.Random, name: str) -> Deed:
    labels = {"x": chance.choice(["1", "2", None])}
    return "PATCH", f"pods/{name}", {"metadata": {"labels": labels}}, STRATEGIC


def _change(chance: random.Random, name: str) -> Deed:
    spec = chance.choice(
        [
            {"nodeSelector": {"zone": "one", "rack": "two"}},
            {"schedulerName": "other"},
            {"activeDeadlineSeconds": chance.randrange(1, 1000)},
            {"tolerations": [{"key": "k", "operator": "Exists"}]},
        ]
    )
    return "PATCH", f"pods/{name}", {"spec": spec}, STRATEGIC


def _evict(_: random.Random, name: str) -> Deed:
    body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name}}
    return "POST", f"pods/{name}/eviction", body, ""


_CHOICE: tuple[Callable[[random.Random, str], Deed], ...] = (
    *[_create] * 3,
    *[_bind] * 2,
    _delete,
    _tell,
    _let_go,
    _pin,
    _label,
    _change,
    _evict,
)


def _plain(found: Any) -> Any:
    """An object without what differs from server to server and from second to second."""
    if isinstance(found, dict):
        out = {key: _plain(value) for key, value in found.items() if key not in _TIMES}
        for key in ("uid", "resourceVersion", "managedFields", "namespace", "message"):
            out.pop(key, None)
        if "deletionTimestamp" in out:
            out["deletionTimestamp"] = "some time"
        if "conditions" in out:
            out["conditions"] = sorted(out["conditions"], key=lambda one: str(one["type"]))
        return {key: value for key, value in out.items() if value not in (None, {}, [])}
    if isinstance(found, list):
        return [_plain(value) for value in found]
    return found


async def _answers(client: Client, namespace: str, seed: int) -> tuple[list[Any], list[Any]]:
    """Answers to the deeds of a seed, and the events that they made."""
    chance = random.Random(seed)
    (await client.post("/api/v1/namespaces", objects.namespace(namespace))).ok()
    path = PODS.path(namespace)
    version = (await client.get(path)).ok()["metadata"]["resourceVersion"]
    told: list[Any] = []
    for _ in range(_DEEDS):
        method, below, body, kind = chance.choice(_CHOICE)(chance, chance.choice(_NAMES))
        url = f"/api/v1/namespaces/{namespace}/{below}"
        reply = await client.ask(method, url, body, kind=kind or "application/json")
        if reply.status < 300:
            told.append((method, below, body, reply.status, _plain(reply.body)))
        else:
            told.append((method, below, body, reply.status, reply.body.get("reason")))
    query = {"resourceVersion": version, "timeoutSeconds": 2}
    async with client.watch(path, **query) as watch:
        events = [(event["type"], _plain(event["object"])) for event in await watch.rest()]
    return told, _telling(events)


def _telling(events: list[tuple[str, Json]]) -> list[tuple[str, Json]]:
    """The events that change something: managed fields, which the fake has not, are left out."""
    last: dict[str, tuple[str, Json]] = {}
    kept = []
    for event in events:
        name = event[1]["metadata"]["name"]
        if last.get(name, ("", {}))[1] != event[1] or event[0] != "MODIFIED":
            kept.append(event)
        last[name] = event
    return kept


@pytest.mark.cluster
@pytest.mark.parametrize("seed", range(3))
def test_random_deeds(plane: ControlPlane, seed: int) -> None:
    async def act() -> None:
        namespace = f"differential-{seed}"
        async with Client(plane.access) as client:
            real = await _answers(client, namespace, seed)
        async with FakeApiServer() as fake, Client(fake.access) as client:
            faked = await _answers(client, namespace, seed)
        for theirs, ours in zip(real[0] + real[1], faked[0] + faked[1], strict=True):
            assert ours == theirs
        assert {answer[3] for answer in real[0]} >= {200, 201, 404, 409, 422}

    asyncio.run(act())
