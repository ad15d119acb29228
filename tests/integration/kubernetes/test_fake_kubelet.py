"""The fake kubelet runs what is bound to its nodes and ends it when it is deleted."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pytest
from support.kubernetes import objects
from support.kubernetes.client import Client, Json
from support.kubernetes.fake_server import FakeApiServer
from support.kubernetes.ground import At, Ground
from support.kubernetes.kubelet import Kubelet, Pretence

_PATIENCE_S = 60.0
T = TypeVar("T")
Act = Callable[[At, Kubelet, str], Awaitable[None]]


def _run(ground: Ground, folder: Path, act: Act, pretence: Pretence | None = None) -> None:
    async def acting(at: At) -> None:
        node = await at.node(gpus=2, cpu="2", pods=4)
        async with Kubelet(ground.access, [node], folder=folder, pretence=pretence) as kubelet:
            await act(at, kubelet, node)

    ground.run(acting)


async def _until(look: Callable[[], Awaitable[T | None]]) -> T:
    """Look until there is something to see."""
    async with asyncio.timeout(_PATIENCE_S):
        while True:
            seen = await look()
            if seen:
                return seen
            await asyncio.sleep(0.05)


async def _phase(at: At, name: str, *wanted: str) -> Json:
    """The pod once it is in one of these phases."""

    async def look() -> Json | None:
        pod = (await at.client.get(at.pods(name))).ok()
        return pod if pod["status"]["phase"] in wanted else None

    return await _until(look)


async def _gone(at: At, name: str) -> None:
    async def look() -> bool:
        return (await at.client.get(at.pods(name))).status == 404

    await _until(look)


async def _says(kubelet: Kubelet, at: At, name: str) -> str:
    return kubelet.log(name, at.namespace)


def _ended(pod: Json) -> Json:
    state: Json = pod["status"]["containerStatuses"][0]["state"]["terminated"]
    return state


@pytest.mark.parametrize(("code", "phase"), [(0, "Succeeded"), (7, "Failed")])
def test_a_command_runs_and_its_exit_code_is_told(
    ground: Ground, tmp_path: Path, code: int, phase: str
) -> None:
    async def act(at: At, kubelet: Kubelet, node: str) -> None:
        await at.pod("a", command=["sh", "-c", f"echo said $WORD; exit {code}"], env=_env(WORD="x"))
        await at.bind("a", node)
        pod = await _phase(at, "a", "Succeeded", "Failed")
        assert pod["status"]["phase"] == phase
        assert _ended(pod)["exitCode"] == code
        assert kubelet.log("a", at.namespace) == "said x\n"

    _run(ground, tmp_path, act)


def _env(**values: str) -> list[Json]:
    return [{"name": name, "value": value} for name, value in values.items()]


def test_what_a_pod_knows_of_itself(ground: Ground, tmp_path: Path) -> None:
    def field(name: str, path: str) -> Json:
        return {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}

    async def act(at: At, kubelet: Kubelet, node: str) -> None:
        cores = {"resourceFieldRef": {"resource": "limits.cpu"}}
        env = [
            field("NAME", "metadata.name"),
            field("WHERE", "spec.nodeName"),
            field("RANK", "metadata.annotations['example.org/rank']"),
            {"name": "CORES", "valueFrom": cores},
            *_env(BOTH="$(RANK)/$(CORES)$$", HOST="a-0.group", URL="tcp://a-0.group:29500/x"),
        ]
        script = 'echo "$NAME $WHERE $RANK $CORES $BOTH $HOST $URL $0"'
        await at.pod(
            "a",
            cpu="1500m",
            command=["sh", "-c", script, f"a-0.group.{at.namespace}.svc.cluster.local:$(RANK)"],
            env=env,
            annotations={"example.org/rank": "3"},
            subdomain="group",
        )
        await at.bind("a", node)
        await _phase(at, "a", "Succeeded")
        told = kubelet.log("a", at.namespace).split()
        loopback = ["127.0.0.1", "tcp://127.0.0.1:29500/x", "127.0.0.1:3"]
        assert told == ["a", node, "3", "2", "3/2$", *loopback]

    _run(ground, tmp_path, act)


def test_a_deleted_pod_is_asked_to_stop_and_then_made_to(ground: Ground, tmp_path: Path) -> None:
    trap = "import signal,sys,time\nsignal.signal(signal.SIGTERM, lambda *_: {})\n"
    polite, stubborn = trap.format("sys.exit(3)"), trap.format("print('no', flush=True)")
    wait = "print('up', flush=True)\nwhile True: time.sleep(0.05)\n"

    async def act(at: At, kubelet: Kubelet, node: str) -> None:
        for name, script, grace in (("polite", polite, 60), ("stubborn", stubborn, 1)):
            command = [sys.executable, "-c", script + wait]
            keep = ["haversack.dev/exit"]
            await at.pod(
                name, command=command, finalizers=keep, terminationGracePeriodSeconds=grace
            )
            await at.bind(name, node)
            await _phase(at, name, "Running")
            await _until(partial(_says, kubelet, at, name))
            (await at.client.delete(at.pods(name))).ok()
        assert _ended(await _phase(at, "polite", "Failed"))["exitCode"] == 3
        killed = _ended(await _phase(at, "stubborn", "Failed"))["exitCode"]
        assert killed == 128 + signal.SIGKILL
        assert "no" in kubelet.log("stubborn", at.namespace)
        for name in ("polite", "stubborn"):
            await at.client.patch(at.pods(name), {"metadata": {"finalizers": None}})
            await _gone(at, name)

    _run(ground, tmp_path, act)


def test_a_pod_that_is_taken_away_at_once_takes_its_processes_along(
    ground: Ground, tmp_path: Path
) -> None:
    async def act(at: At, kubelet: Kubelet, node: str) -> None:
        mark = tmp_path / "alive"
        script = f"(while :; do date +%N > {mark}; sleep 0.05; done) & wait"
        await at.pod("a", command=["sh", "-c", script])
        await at.bind("a", node)

        async def alive() -> bool:
            return mark.exists()

        async def dead() -> bool:
            mark.unlink(missing_ok=True)
            await asyncio.sleep(0.3)
            return not mark.exists()

        await _until(alive)
        (await at.client.delete(at.pods("a"), {"gracePeriodSeconds": 0})).ok()

        await _until(dead)

    _run(ground, tmp_path, act)


def test_pods_beyond_the_capacity_fail(ground: Ground, tmp_path: Path) -> None:
    async def act(at: At, kubelet: Kubelet, node: str) -> None:
        for name in ("a", "b"):
            await at.pod(name, gpus=2)
            await at.bind(name, node)
        await _phase(at, "a", "Running")
        rejected = await _phase(at, "b", "Failed")
        assert rejected["status"]["reason"] == "OutOfnvidia.com/gpu"
        assert kubelet.rejected == [f"{at.namespace}/b"]
        (await at.client.delete(at.pods("a"))).ok()
        await _gone(at, "a")
        await at.pod("c", gpus=2)
        await at.bind("c", node)
        await _phase(at, "c", "Running")

    _run(ground, tmp_path, act, Pretence())


@pytest.mark.parametrize(
    "fields",
    [
        {"command": []},
        {"command": ["no-such-program-anywhere"]},
        {
            "command": ["true"],
            "env": [{"name": "S", "valueFrom": {"secretKeyRef": _env(S="x")[0]}}],
        },
    ],
)
def test_what_cannot_start_says_why(tmp_path: Path, fields: dict[str, Any]) -> None:

    async def act() -> None:
        async with FakeApiServer() as fake, Client(fake.access) as client:
            fake.create(objects.node("n1"))
            async with Kubelet(fake.access, folder=tmp_path):
                fake.create(objects.pod("a", nodeName="n1", **fields))
                at = At(client, "default", fake.access_as)
                failed = await _phase(at, "a", "Failed")
        assert failed["status"]["reason"] == "StartError"
        assert failed["status"]["message"]

    asyncio.run(act())


def test_pretended_pods_end_as_they_are_told(ground: Ground, tmp_path: Path) -> None:
    async def act(at: At, _: Kubelet, node: str) -> None:
        for name in ("a", "b", "c"):
            await at.pod(name)
            await at.bind(name, node)
        for name in ("a", "b", "c"):
            pod = await _phase(at, name, "Failed")
            assert _ended(pod)["exitCode"] == 4

    _run(ground, tmp_path, act, Pretence(run_s=0.2, exit_code=4))
