"""Objects of the API: the fake keeps the rules that a real kube-apiserver keeps."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from support.kubernetes import objects
from support.kubernetes.client import JSON_PATCH, STRATEGIC, Client
from support.kubernetes.ground import At, Ground
from support.kubernetes.resources import DEFINITIONS, EVENTS, NODES, PRIORITY_CLASSES, Resource

GATE = "haversack.dev/placement"
GPU_COUNT = {"resourceFieldRef": {"resource": "limits.nvidia.com/gpu"}}


def test_a_new_pod_has_what_the_server_adds(ground: Ground) -> None:
    async def act(at: At) -> None:
        pod = await at.pod("a", gpus=2, cpu="500m")
        spec, metadata = pod["spec"], pod["metadata"]
        assert pod["status"] == {"phase": "Pending", "qosClass": "Burstable"}
        asked = {"cpu": "500m", "nvidia.com/gpu": "2"}
        assert spec["containers"][0]["resources"] == {"limits": asked, "requests": asked}
        assert (spec["priority"], spec["preemptionPolicy"]) == (0, "PreemptLowerPriority")
        assert (spec["terminationGracePeriodSeconds"], spec["restartPolicy"]) == (30, "Never")
        assert [one["key"] for one in spec["tolerations"]] == [
            "node.kubernetes.io/not-ready",
            "node.kubernetes.io/unreachable",
        ]
        assert metadata["generation"] == 1
        assert len(metadata["uid"]) == 36
        assert metadata["creationTimestamp"].endswith("Z")

    ground.run(act)


def test_a_gated_pod_says_so(ground: Ground) -> None:
    async def act(at: At) -> None:
        pod = await at.pod("a", gates=[GATE])
        (condition,) = pod["status"]["conditions"]
        assert (condition["type"], condition["status"]) == ("PodScheduled", "False")
        assert condition["reason"] == "SchedulingGated"

    ground.run(act)


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"containers": []}, 422),
        ({"priority": 5}, 403),
        ({"priorityClassName": "no-such-class"}, 403),
        ({"gates": [GATE], "nodeName": "n1"}, 422),
        ({"env": [{"name": "N", "valueFrom": GPU_COUNT}]}, 422),
    ],
)
def test_a_pod_that_is_refused(ground: Ground, fields: dict[str, Any], code: int) -> None:
    async def act(at: At) -> None:
        made = objects.pod("a", namespace=at.namespace, **fields)
        assert (await at.client.post(at.pods(), made)).status == code

    ground.run(act)


def test_names(ground: Ground) -> None:
    async def act(at: At) -> None:
        made = objects.pod("a", namespace=at.namespace)
        assert (await at.client.post(at.pods(), made)).status == 201
        again = await at.client.post(at.pods(), made)
        assert (again.status, again.body["reason"]) == (409, "AlreadyExists")
        nameless = {**made, "metadata": {}}
        assert (await at.client.post(at.pods(), nameless)).status == 422
        generated = {**made, "metadata": {"generateName": "gen-"}}
        one = (await at.client.post(at.pods(), generated)).ok()["metadata"]["name"]
        other = (await at.client.post(at.pods(), generated)).ok()["metadata"]["name"]
        assert one != other
        assert len(one) == len("gen-") + 5
        wrong = {**made, "metadata": {"name": "Bad_Name"}}
        assert (await at.client.post(at.pods(), wrong)).status == 422
        elsewhere = {**made, "metadata": {"name": "b", "namespace": "default"}}
        assert (await at.client.post(at.pods(), elsewhere)).status == 400
        versioned = {**made, "metadata": {"name": "b", "resourceVersion": "5"}}
        assert (await at.client.post(at.pods(), versioned)).status == 500

    ground.run(act)


def test_what_is_not_there(ground: Ground) -> None:
    async def act(at: At) -> None:
        gone = await at.client.get(at.pods("nobody"))
        assert (gone.status, gone.body["reason"]) == (404, "NotFound")
        assert gone.body["message"] == 'pods "nobody" not found'
        homeless = objects.pod("a", namespace="no-such-namespace")
        path = "/api/v1/namespaces/no-such-namespace/pods"
        assert (await at.client.post(path, homeless)).status == 404
        assert (await at.client.get("/apis/nobody.example/v1/things")).status == 404
        assert (await at.client.get("/apis/batch/v1/nothings")).status == 404
        assert (await at.client.post(at.pods("a"), homeless)).status == 405

    ground.run(act)


def test_priority_comes_from_the_class(ground: Ground) -> None:
    async def act(at: At) -> None:
        high = objects.priority_class(f"{at.namespace}-high", 1000, preemptionPolicy="Never")
        (await at.client.post(PRIORITY_CLASSES.path(), high)).ok()
        pod = await at.pod("a", priorityClassName=f"{at.namespace}-high")
        assert (pod["spec"]["priority"], pod["spec"]["preemptionPolicy"]) == (1000, "Never")

    ground.run(act)


def test_lists_select_and_carry_a_version(ground: Ground) -> None:
    async def act(at: At) -> None:
        await at.pod("a", labels={"team": "red"})
        await at.pod("b", labels={"team": "blue"}, scheduler="default-scheduler")
        await at.pod("c")
        await at.bind("c")

        async def names(**query: str) -> list[str]:
            found = (await at.client.get(at.pods(), **query)).ok()
            return [item["metadata"]["name"] for item in found["items"]]

        assert await names() == ["a", "b", "c"]
        assert await names(labelSelector="team=red") == ["a"]
        assert await names(labelSelector="team") == ["a", "b"]
        assert await names(labelSelector="!team") == ["c"]
        assert await names(labelSelector="team!=red") == ["b", "c"]
        assert await names(labelSelector="team in (red, blue),team notin (blue)") == ["a"]
        assert await names(fieldSelector="spec.nodeName=n1") == ["c"]
        assert await names(fieldSelector="spec.nodeName=") == ["a", "b"]
        assert await names(fieldSelector="spec.schedulerName!=haversack") == ["b"]
        assert await names(fieldSelector="status.phase=Pending,metadata.name=b") == ["b"]
        assert (await at.client.get(at.pods(), fieldSelector="spec.priority=1")).status == 400
        assert (await at.client.get(at.pods(), labelSelector="a=(b")).status == 400
        whole = (await at.client.get(at.pods())).ok()
        assert whole["kind"] == "PodList"
        assert "kind" not in whole["items"][0]
        newest = max(int(item["metadata"]["resourceVersion"]) for item in whole["items"])
        assert int(whole["metadata"]["resourceVersion"]) >= newest

    ground.run(act)


def test_a_list_in_pages_is_one_picture(ground: Ground) -> None:
    async def act(at: At) -> None:
        for name in "abcde":
            await at.pod(name)
        first = (await at.client.get(at.pods(), limit=2)).ok()
        assert first["metadata"]["remainingItemCount"] == 3
        await at.pod("bb")
        names, page = [], first
        while True:
            names += [item["metadata"]["name"] for item in page["items"]]
            assert page["metadata"]["resourceVersion"] == first["metadata"]["resourceVersion"]
            token = page["metadata"].get("continue", "")
            if not token:
                break
            page = (await at.client.get(at.pods(), limit=2, **{"continue": token})).ok()
        assert names == list("abcde")
        whole = (await at.client.get(at.pods(), limit=2, resourceVersion="0")).ok()
        assert "continue" not in whole["metadata"]

    ground.run(act)


def test_versions_of_lists(ground: Ground) -> None:
    async def act(at: At) -> None:
        future = await at.client.get(at.pods(), resourceVersion=2**40)
        assert (future.status, future.body["reason"]) == (504, "Timeout")
        assert future.body["details"]["causes"][0]["reason"] == "ResourceVersionTooLarge"
        ground.compact()
        exact = {"resourceVersion": "2", "resourceVersionMatch": "Exact"}
        past = await at.client.get(at.pods(), **exact)
        assert (past.status, past.body["reason"]) == (410, "Expired")
        assert (await at.client.get(at.pods(), sendInitialEvents=True)).status == 422

    ground.run(act)


def test_a_lease_is_locked_by_its_version(ground: Ground) -> None:
    async def act(at: At) -> None:
        path, lease = at.leases("lock"), objects.lease("lock", namespace=at.namespace, holder="a")
        made = await at.client.put(path, lease)
        assert made.status == 201
        assert (await at.client.put(path, lease)).status == 422
        stored = made.body
        stored["spec"]["holderIdentity"] = "b"
        assert (await at.client.put(path, stored)).status == 200
        late = await at.client.put(path, stored)
        assert (late.status, late.body["reason"]) == (409, "Conflict")
        same = (await at.client.get(path)).ok()
        again = (await at.client.put(path, same)).ok()
        assert again["metadata"]["resourceVersion"] == same["metadata"]["resourceVersion"]
        same["spec"]["holderIdentity"] = ""
        assert (await at.client.put(path, same)).status == 200
        stale = {"metadata": {"resourceVersion": "5"}, "spec": {"holderIdentity": "z"}}
        assert (await at.client.patch(path, stale)).status == 409
        for wrong in ({"leaseDurationSeconds": 0}, {"leaseTransitions": -1}, {"renewTime": "now"}):
            assert (await at.client.patch(path, {"spec": wrong})).status == 422

    ground.run(act)


def test_updates_name_what_they_update(ground: Ground) -> None:
    async def act(at: At) -> None:
        pod = await at.pod("a")
        other = {**pod, "metadata": {**pod["metadata"], "name": "b"}}
        assert (await at.client.put(at.pods("a"), other)).status == 400
        assert (await at.client.put(at.pods("b"), other)).status == 404
        reborn = {**pod["metadata"], "uid": "00000000-0000-0000-0000-000000000000"}
        assert (await at.client.put(at.pods("a"), {**pod, "metadata": reborn})).status == 409
        uid = {"metadata": {"uid": reborn["uid"]}}
        assert (await at.client.patch(at.pods("a"), uid)).status == 422
        free = {key: value for key, value in pod["metadata"].items() if key != "resourceVersion"}
        free["labels"] = {"x": "1"}
        assert (await at.client.put(at.pods("a"), {**pod, "metadata": free})).status == 200

    ground.run(act)


def test_conditions_merge_by_type(ground: Ground) -> None:
    async def act(at: At) -> None:
        await at.pod("a")

        async def condition(kind: str, **fields: str) -> list[dict[str, Any]]:
            patch = {"status": {"conditions": [{"type": kind, **fields}]}}
            reply = await at.client.patch(at.pods("a", "status"), patch, STRATEGIC)
            found: list[dict[str, Any]] = reply.ok()["status"]["conditions"]
            return found

        await condition("PodScheduled", status="False", reason="Unschedulable", message="full")
        await condition("DisruptionTarget", status="True", reason="PreemptionByScheduler")
        found = await condition("PodScheduled", status="False", message="still full")
        told = {one["type"]: (one.get("reason"), one.get("message")) for one in found}
        assert told == {
            "PodScheduled": ("Unschedulable", "still full"),
            "DisruptionTarget": ("PreemptionByScheduler", None),
        }

    ground.run(act)


def test_status_and_spec_are_written_apart(ground: Ground) -> None:
    async def act(at: At) -> None:
        await at.pod("a")
        ignored = (await at.client.patch(at.pods("a"), {"status": {"phase": "Running"}})).ok()
        assert ignored["status"]["phase"] == "Pending"
        both = {"spec": {"nodeName": "n1"}, "status": {"phase": "Running"}}
        taken = (await at.client.patch(at.pods("a", "status"), both)).ok()
        assert taken["status"]["phase"] == "Running"
        assert "nodeName" not in taken["spec"]
        name = await at.node(gpus=0)
        amounts = {"status": {"allocatable": {"nvidia.com/gpu": "4"}}}
        node = await at.client.patch(NODES.path("", name, "status"), amounts, STRATEGIC)
        assert node.ok()["status"]["allocatable"]["nvidia.com/gpu"] == "4"
        assert node.ok()["status"]["allocatable"]["cpu"] == "64"

    ground.run(act)


def test_forms_of_patches(ground: Ground) -> None:
    async def act(at: At) -> None:
        pod = await at.pod("a", annotations={"one": "1", "two": "2"})
        dropped = {"metadata": {"annotations": {"one": None, "three": "3"}}}
        merged = (await at.client.patch(at.pods("a"), dropped)).ok()
        assert merged["metadata"]["annotations"] == {"two": "2", "three": "3"}
        steps = [
            {"op": "test", "path": "/metadata/uid", "value": pod["metadata"]["uid"]},
            {"op": "add", "path": "/metadata/annotations/haversack.dev~1epoch", "value": "7"},
            {"op": "remove", "path": "/metadata/annotations/two"},
        ]
        stepped = (await at.client.patch(at.pods("a"), steps, JSON_PATCH)).ok()
        assert stepped["metadata"]["annotations"] == {"three": "3", "haversack.dev/epoch": "7"}
        wrong = [{"op": "test", "path": "/metadata/uid", "value": "someone else's"}, steps[1]]
        assert (await at.client.patch(at.pods("a"), wrong, JSON_PATCH)).status == 422
        absent = [{"op": "remove", "path": "/metadata/annotations/two"}]
        assert (await at.client.patch(at.pods("a"), absent, JSON_PATCH)).status == 422
        assert (await at.client.patch(at.pods("a"), {}, "application/json")).status == 415
        assert (await at.client.patch(at.pods("nobody"), {})).status == 404

    ground.run(act)


@pytest.mark.parametrize(
    "change",
    [
        {"schedulerName": "other"},
        {"nodeName": "n1"},
        {"nodeSelector": {"zone": "a"}},
        {"schedulingGates": [{"name": GATE}]},
        {"tolerations": [{"key": "other", "operator": "Exists"}]},
    ],
)
def test_a_pod_cannot_become_another(ground: Ground, change: dict[str, Any]) -> None:
    async def act(at: At) -> None:
        await at.pod("a", tolerations=[{"key": "own", "operator": "Exists"}])
        assert (await at.client.patch(at.pods("a"), {"spec": change})).status == 422

    ground.run(act)


def test_tolerations_that_the_server_adds_come_back(ground: Ground) -> None:
    async def act(at: At) -> None:
        await at.pod("a")
        emptied = (await at.client.patch(at.pods("a"), {"spec": {"tolerations": []}})).ok()
        assert len(emptied["spec"]["tolerations"]) == 2

    ground.run(act)


def test_ungating_and_pinning_happen_once(ground: Ground) -> None:
    async def act(at: At) -> None:
        term = {"matchExpressions": [{"key": "disk", "operator": "In", "values": ["ssd"]}]}
        required = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}}
        affinity = {"nodeAffinity": required}
        await at.pod("a", gates=[GATE, "example.org/other"], affinity=affinity)
        where = (
            "/spec/affinity/nodeAffinity/requiredDuringSchedulingIgnoredDuringExecution"
            "/nodeSelectorTerms"
        )
        more_terms = [{"op": "add", "path": f"{where}/-", "value": term}]
        assert (await at.client.patch(at.pods("a"), more_terms, JSON_PATCH)).status == 422
        fields = [{"key": "metadata.name", "operator": "In", "values": ["n1"]}]
        steps = [
            {"op": "remove", "path": "/spec/schedulingGates/0"},
            {"op": "add", "path": f"{where}/0/matchFields", "value": fields},
        ]
        pinned = (await at.client.patch(at.pods("a"), steps, JSON_PATCH)).ok()
        assert pinned["metadata"]["generation"] == 2
        selector = {"spec": {"nodeSelector": {"kubernetes.io/hostname": "n1"}}}
        assert (await at.client.patch(at.pods("a"), selector)).status == 200
        freed = {"spec": {"schedulingGates": None}}
        assert (await at.client.patch(at.pods("a"), freed)).status == 200
        selector = {"spec": {"nodeSelector": {"more": "n1"}}}
        assert (await at.client.patch(at.pods("a"), selector)).status == 422

    ground.run(act)


def test_events_have_required_fields(ground: Ground) -> None:
    async def act(at: At) -> None:
        pod = await at.pod("a")
        path = at.path(EVENTS)

        async def post(name: str, **fields: object) -> int:
            body = objects.event(name, pod, reason="FailedScheduling", note="full") | fields
            kept = {key: value for key, value in body.items() if value is not None}
            return (await at.client.post(path, kept)).status

        assert await post("a.1") == 201
        assert await post("a.1") == 409
        for absent in ("eventTime", "reportingController", "reportingInstance", "action", "reason"):
            assert await post("a.2", **{absent: None}) == 422, absent
        assert await post("a.2", type="Odd") == 422
        assert await post("a.2", note="x" * 1025) == 422
        assert await post("a.2", reason="x" * 129) == 422
        assert await post("a.2", deprecatedCount=3) == 422
        series = {"count": 2, "lastObservedTime": "2026-01-01T00:01:00.000000Z"}
        assert await post("a.2", series=series) == 201
        again = {"series": {**series, "count": 3}}
        told = (await at.client.patch(at.path(EVENTS, "a.2"), again)).ok()
        assert told["series"]["count"] == 3

    ground.run(act)


def test_strangers_and_the_powerless(ground: Ground) -> None:
    async def act(at: At) -> None:
        assert (await at.client.get(at.pods())).status == 200
        if ground.real:
            powerless = at.another("system:serviceaccount:haversack-system:haversack")
            async with Client(powerless) as client:
                refused = await client.get(at.pods())
                assert (refused.status, refused.body["reason"]) == (403, "Forbidden")

    ground.run(act)


def test_types_of_others(ground: Ground) -> None:
    async def act(at: At) -> None:
        group = f"{at.namespace}.example.org"
        definition = {
            "apiVersion": "apiextensions.k8s.io/v1",
            "kind": "CustomResourceDefinition",
            "metadata": {"name": f"gangs.{group}"},
            "spec": {
                "group": group,
                "scope": "Namespaced",
                "names": {"plural": "gangs", "singular": "gang", "kind": "Gang"},
                "versions": [
                    {
                        "name": "v1",
                        "served": True,
                        "storage": True,
                        "subresources": {"status": {}},
                        "schema": {
                            "openAPIV3Schema": {
                                "type": "object",
                                "x-kubernetes-preserve-unknown-fields": True,
                            }
                        },
                    }
                ],
            },
        }
        (await at.client.post(DEFINITIONS.path(), definition)).ok()
        gangs = Resource(group, "v1", "gangs", "Gang", custom=True)
        async with asyncio.timeout(30):
            while (await at.client.get(at.path(gangs))).status == 404:  # noqa: ASYNC110 - no event
                await asyncio.sleep(0.1)
        served = (await at.client.get(f"/apis/{group}/v1")).ok()
        assert "gangs" in [one["name"] for one in served["resources"]]
        made = {
            "apiVersion": f"{group}/v1",
            "kind": "Gang",
            "metadata": {"name": "g"},
            "spec": {"size": 3},
            "status": {"phase": "Dreamt"},
        }
        stored = (await at.client.post(at.path(gangs), made)).ok()
        assert "status" not in stored
        told = {"spec": {"size": 9}, "status": {"phase": "Waiting"}}
        taken = (await at.client.patch(at.path(gangs, "g", "status"), told)).ok()
        assert (taken["spec"], taken["status"]) == ({"size": 3}, {"phase": "Waiting"})
        assert (await at.client.patch(at.path(gangs, "g"), told, STRATEGIC)).status == 415
        grown = (await at.client.patch(at.path(gangs, "g"), {"spec": {"size": 4}})).ok()
        assert grown["metadata"]["generation"] == 2
        (listed,) = (await at.client.get(at.path(gangs))).ok()["items"]
        assert listed["kind"] == "Gang"
        unguarded = {**made, "spec": {"size": 5}}
        assert (await at.client.put(at.path(gangs, "g"), unguarded)).status == 422
        (await at.client.delete(DEFINITIONS.path("", f"gangs.{group}"))).ok()

    ground.run(act)
