"""Binding, deleting and evicting pods: on the fake as on a real kube-apiserver."""

from __future__ import annotations

import asyncio
from typing import Any

from support.kubernetes import objects
from support.kubernetes.client import MERGE
from support.kubernetes.ground import At, Ground
from support.kubernetes.resources import BUDGETS, POLICIES, POLICY_BINDINGS

GATE = "haversack.dev/placement"
_FENCE_PATIENCE_S = 30.0


def test_a_binding_sets_everything_in_one_write(ground: Ground) -> None:
    async def act(at: At) -> None:
        node = await at.node(labels={"topology.kubernetes.io/zone": "z1"})
        pod = await at.pod("a", annotations={"kept": "1", "haversack.dev/epoch": "1"})
        notes = {"haversack.dev/epoch": "2", "haversack.dev/gpus": "g0,g1"}
        body = objects.binding(
            "a", node, uid=pod["metadata"]["uid"], annotations=notes, labels={"x": "y"}
        )
        reply = await at.client.post(at.pods("a", "binding"), body)
        assert (reply.status, reply.body["status"]) == (201, "Success")
        bound = (await at.client.get(at.pods("a"))).ok()
        assert bound["spec"]["nodeName"] == node
        assert bound["metadata"]["annotations"] == {"kept": "1", **notes}
        assert bound["metadata"]["labels"] == {"x": "y", "topology.kubernetes.io/zone": "z1"}
        (condition,) = bound["status"]["conditions"]
        assert (condition["type"], condition["status"]) == ("PodScheduled", "True")
        assert bound["status"]["phase"] == "Pending"

    ground.run(act)


def test_a_binding_asks_nobody_about_the_node(ground: Ground) -> None:
    async def act(at: At) -> None:
        node = await at.node(gpus=1)
        for name in ("a", "b"):
            await at.pod(name, gpus=1)
            assert await at.bind(name, node) == 201
        await at.pod("c")
        assert await at.bind("c", "no-such-node") == 201

    ground.run(act)


def test_bindings_that_are_refused(ground: Ground) -> None:
    async def act(at: At) -> None:
        await at.pod("a")
        await at.pod("gated", gates=[GATE])
        assert await at.bind("a", uid="00000000-0000-0000-0000-000000000000") == 409
        assert await at.bind("a", resourceVersion="3") == 409
        assert await at.bind("gated") == 409
        assert await at.bind("nobody") == 404
        named = await at.client.post(at.pods("a", "binding"), objects.binding("b", "n1"))
        assert named.status == 400
        for target in ({"kind": "Pod", "name": "n1"}, {"kind": "Node", "name": ""}):
            body = {**objects.binding("a", "n1"), "target": target}
            assert (await at.client.post(at.pods("a", "binding"), body)).status == 500
        dry = await at.client.post(
            at.pods("a", "binding"), objects.binding("a", "n1"), dryRun="All"
        )
        assert dry.status == 201
        assert await at.bind("a", "n1") == 201
        again = await at.client.post(at.pods("a", "binding"), objects.binding("a", "n2"))
        assert (again.status, again.body["reason"]) == (409, "Conflict")
        assert 'already assigned to node "n1"' in again.body["message"]

    ground.run(act)


def test_a_bound_pod_leaves_gracefully(ground: Ground) -> None:
    async def act(at: At) -> None:
        await at.pod("a")
        await at.bind("a")
        leaving = (await at.client.delete(at.pods("a"))).ok()
        assert leaving["metadata"]["deletionGracePeriodSeconds"] == 30
        assert "deletionTimestamp" in leaving["metadata"]
        assert leaving["metadata"]["generation"] == 2
        sooner = (await at.client.delete(at.pods("a"), {"gracePeriodSeconds": 5})).ok()
        assert sooner["metadata"]["deletionGracePeriodSeconds"] == 5
        later = (await at.client.delete(at.pods("a"), {"gracePeriodSeconds": 20})).ok()
        assert later["metadata"]["deletionGracePeriodSeconds"] == 5
        ended = {"status": {"phase": "Failed"}}
        assert (await at.client.patch(at.pods("a", "status"), ended)).status == 200
        assert (await at.client.get(at.pods("a"))).status == 200
        assert (await at.client.delete(at.pods("a"), {"gracePeriodSeconds": 0})).status == 200
        assert (await at.client.get(at.pods("a"))).status == 404

    ground.run(act)


def test_a_leaving_pod_cannot_be_bound(ground: Ground) -> None:
    async def act(at: At) -> None:
        await at.pod("a", finalizers=["haversack.dev/exit"])
        assert (await at.client.delete(at.pods("a"))).status == 200
        assert await at.bind("a") == 409

    ground.run(act)


def test_a_pod_on_no_node_leaves_at_once(ground: Ground) -> None:
    async def act(at: At) -> None:
        for name, gates in (("a", []), ("b", [GATE])):
            await at.pod(name, gates=gates)
            gone = (await at.client.delete(at.pods(name))).ok()
            assert gone["kind"] == "Pod"
            assert (await at.client.get(at.pods(name))).status == 404
            assert (await at.client.delete(at.pods(name))).status == 404

    ground.run(act)


def test_deletions_with_preconditions(ground: Ground) -> None:
    async def act(at: At) -> None:
        pod = await at.pod("a")
        metadata = pod["metadata"]

        async def delete(**wanted: str) -> int:
            body: dict[str, Any] = {"apiVersion": "v1", "kind": "DeleteOptions"}
            body["preconditions"] = wanted
            return (await at.client.delete(at.pods("a"), body)).status

        assert await delete(uid="00000000-0000-0000-0000-000000000000") == 409
        assert await delete(uid=metadata["uid"], resourceVersion="1") == 409
        await at.client.patch(at.pods("a"), {"metadata": {"labels": {"x": "1"}}})
        assert await delete(resourceVersion=metadata["resourceVersion"]) == 409
        assert await delete(uid=metadata["uid"]) == 200

    ground.run(act)


def test_finalizers_keep_an_object(ground: Ground) -> None:
    async def act(at: At) -> None:
        await at.pod("a", finalizers=["haversack.dev/exit"])
        await at.bind("a")
        await at.client.delete(at.pods("a"), {"gracePeriodSeconds": 0})
        kept = (await at.client.get(at.pods("a"))).ok()
        assert kept["metadata"]["deletionGracePeriodSeconds"] == 0
        ended = {"status": {"phase": "Succeeded"}}
        assert (await at.client.patch(at.pods("a", "status"), ended)).status == 200
        free = {"metadata": {"finalizers": None}}
        assert (await at.client.patch(at.pods("a"), free, MERGE)).status == 200
        assert (await at.client.get(at.pods("a"))).status == 404
        lease = objects.lease("l", namespace=at.namespace)
        lease["metadata"]["finalizers"] = ["haversack.dev/exit"]
        (await at.client.post(at.leases(), lease)).ok()
        leaving = (await at.client.delete(at.leases("l"))).ok()
        assert leaving["metadata"]["deletionGracePeriodSeconds"] == 0
        assert (await at.client.patch(at.leases("l"), free)).status == 200
        assert (await at.client.get(at.leases("l"))).status == 404

    ground.run(act)


def test_what_a_deletion_answers(ground: Ground) -> None:
    async def act(at: At) -> None:
        lease = objects.lease("l", namespace=at.namespace)
        made = (await at.client.post(at.leases(), lease)).ok()
        gone = (await at.client.delete(at.leases("l"))).ok()
        assert gone["status"] == "Success"
        assert gone["details"] == {
            "name": "l",
            "group": "coordination.k8s.io",
            "kind": "leases",
            "uid": made["metadata"]["uid"],
        }
        for name in "abc":
            await at.pod(name, labels={"some": "x"} if name != "b" else {})
        await at.client.delete(at.pods(), labelSelector="some=x")
        left = (await at.client.get(at.pods())).ok()["items"]
        assert [item["metadata"]["name"] for item in left] == ["b"]

    ground.run(act)


def test_an_eviction_asks_the_budget(ground: Ground) -> None:
    async def act(at: At) -> None:
        budget = objects.disruption_budget("guard", {"app": "x"}, namespace=at.namespace)
        (await at.client.post(at.path(BUDGETS), budget)).ok()
        ready = {"type": "Ready", "status": "True"}
        running = {"status": {"phase": "Running", "conditions": [ready]}}
        for name in ("a", "b"):
            await at.pod(name, labels={"app": "x"})
            await at.bind(name)
            (await at.client.patch(at.pods(name, "status"), running)).ok()

        async def allow(count: int) -> None:
            status = {"observedGeneration": 1, "disruptionsAllowed": count, "currentHealthy": 2}
            status |= {"desiredHealthy": 1, "expectedPods": 2}
            path = at.path(BUDGETS, "guard", "status")
            (await at.client.patch(path, {"status": status})).ok()

        async def evict(name: str, **options: Any) -> tuple[int, str]:
            body = {
                "apiVersion": "policy/v1",
                "kind": "Eviction",
                "metadata": {"name": name, "namespace": at.namespace},
                "deleteOptions": options,
            }
            reply = await at.client.post(at.pods(name, "eviction"), body)
            return reply.status, reply.body.get("reason", "")

        await allow(0)
        assert await evict("a") == (429, "TooManyRequests")
        await allow(1)
        stranger = {"uid": "00000000-0000-0000-0000-000000000000"}
        assert (await evict("a", preconditions=stranger))[0] == 409
        await allow(1)
        assert await evict("a") == (201, "")
        assert "deletionTimestamp" in (await at.client.get(at.pods("a"))).ok()["metadata"]
        assert await evict("b") == (429, "TooManyRequests")
        assert (await evict("nobody"))[0] == 404
        unready = {"status": {"conditions": [{**ready, "status": "False"}]}}
        (await at.client.patch(at.pods("b", "status"), unready)).ok()
        assert await evict("b") == (201, "")

    ground.run(act)


def test_the_fence_turns_a_stale_epoch_away(ground: Ground) -> None:
    async def act(at: At) -> None:
        lease = objects.lease("epoch", namespace=at.namespace, holder="one", transitions=7)
        (await at.client.post(at.leases(), lease)).ok()
        policy, rule = objects.fence(
            f"{at.namespace}-fence", at.namespace, "epoch", namespaces=[at.namespace]
        )
        (await at.client.post(POLICIES.path(), policy)).ok()
        (await at.client.post(POLICY_BINDINGS.path(), rule)).ok()

        async def bind(name: str, epoch: str | None) -> int:
            notes = {} if epoch is None else {"haversack.dev/epoch": epoch}
            return await at.bind(name, annotations=notes)

        async def refused(name: str, epoch: str | None) -> None:
            """A real server learns of policies and parameters a moment later: ask until it did."""
            async with asyncio.timeout(_FENCE_PATIENCE_S):
                while True:
                    body = objects.binding(name, "n1")
                    if epoch is not None:
                        body["metadata"]["annotations"] = {"haversack.dev/epoch": epoch}
                    path = at.pods(name, "binding")
                    reply = await at.client.post(path, body, dryRun="All")
                    if reply.status != 201:
                        assert reply.status == 422, reply.body
                        assert "denied request: stale epoch" in reply.body["message"]
                        return
                    await asyncio.sleep(0.1)

        await at.pod("a")
        await refused("a", None)
        assert await bind("a", None) == 422
        assert await bind("a", "6") == 422
        assert await bind("a", "7") == 201
        await at.pod("b")
        (await at.client.patch(at.leases("epoch"), {"spec": {"leaseTransitions": 8}})).ok()
        await refused("b", "7")
        assert await bind("b", "8") == 201

    ground.run(act)


def test_a_fence_without_its_lease_is_shut(ground: Ground) -> None:
    async def act(at: At) -> None:
        policy, rule = objects.fence(
            f"{at.namespace}-fence", at.namespace, "epoch", namespaces=[at.namespace]
        )
        (await at.client.post(POLICIES.path(), policy)).ok()
        (await at.client.post(POLICY_BINDINGS.path(), rule)).ok()
        await at.pod("a")
        note = {"haversack.dev/epoch": "1"}
        body = objects.binding("a", "n1", annotations=note)
        async with asyncio.timeout(_FENCE_PATIENCE_S):
            while True:
                reply = await at.client.post(at.pods("a", "binding"), body, dryRun="All")
                if reply.status != 201:
                    break
                await asyncio.sleep(0.1)
        assert (reply.status, reply.body["reason"]) == (422, "Invalid")
        assert "no params found" in reply.body["message"]

    ground.run(act)
