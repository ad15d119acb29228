from __future__ import annotations

import pytest
from support import kube_objects
from support.kube_objects import Raw

from scheduler.execution.kubernetes.pods import Pod, pod_of
from scheduler.execution.kubernetes.unmodelled import (
    Claim,
    Path,
    Surroundings,
    claim_of,
    counted_drivers,
    dra_resources,
    route_of,
)

REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"
GATE = [{"name": "haversack.dev/placement"}]
CLAIMED = [{"name": "resource", "resourceClaims": "x"}]


def pod(name: str = "pod-0", **fields: object) -> Pod:
    return pod_of(kube_objects.pod(name, **fields))  # type: ignore[arg-type] # any field of the spec


def around(**claims: Claim) -> Surroundings:
    return Surroundings(claim=lambda _namespace, name: claims.get(name))


NOTHING = around()


def mounting(name: str) -> Pod:
    return pod(volumes=[{"persistentVolumeClaim": {"claimName": name}}])


def test_a_plain_pod_is_bound_directly() -> None:
    found = route_of(pod(requests={"cpu": "1", "nvidia.com/gpu": "1"}), NOTHING)
    assert found.path is Path.DIRECT
    assert found.needs == ()
    assert found.why == "asks for nothing but what Haversack itself judges"


def test_a_need_is_refused_with_field_and_remedy() -> None:
    found = route_of(pod(resourceClaims=CLAIMED), NOTHING)
    assert found.path is Path.REFUSED
    assert found.why.startswith("spec.resourceClaims is not modelled; leave schedulerName to")
    assert "haversack.dev/placement" in found.why


def test_the_same_need_passes_by_gate_and_pin() -> None:
    found = route_of(
        pod(resourceClaims=CLAIMED, schedulerName="default-scheduler", schedulingGates=GATE),
        NOTHING,
    )
    assert found.path is Path.GATE_AND_PIN
    assert found.why == "kube-scheduler judges spec.resourceClaims"


def test_our_gate_under_our_own_name_would_never_be_lifted() -> None:
    found = route_of(pod(schedulingGates=GATE), NOTHING)
    assert found.path is Path.REFUSED
    assert "create the pod without the gate, or with that name" in found.why


@pytest.mark.parametrize("gates", [[], [{"name": "other"}]])
def test_pods_of_other_schedulers_are_left_alone(gates: list[Raw]) -> None:
    found = route_of(pod(schedulerName="default-scheduler", schedulingGates=gates), NOTHING)
    assert found.path is Path.REFUSED
    assert found.needs[0].field == "spec.schedulerName"


@pytest.mark.parametrize(
    ("claim", "said"),
    [
        (None, "does not exist (yet) or cannot be read"),
        (Claim(bound=False, late=True), "WaitForFirstConsumer"),
        (Claim(bound=False), "placed once it is bound"),
        (Claim(bound=True, placed=True), "only some nodes reach"),
        (Claim(bound=True, one_pod=True), "ReadWriteOncePod"),
        (Claim(bound=True, counted=True), "limits the volumes of a node"),
    ],
)
def test_volumes_that_decide_about_the_node(claim: Claim | None, said: str) -> None:
    found = route_of(mounting("data"), around(**({"data": claim} if claim else {})))
    assert found.path is Path.REFUSED
    assert "PersistentVolumeClaim data" in found.why
    assert said in found.why


def test_a_volume_that_every_node_reaches_is_no_need() -> None:
    assert route_of(mounting("data"), around(data=Claim(bound=True))).path is Path.DIRECT


def test_resources_that_only_dra_serves() -> None:
    classes: list[Raw] = [{"spec": {"extendedResourceName": "nvidia.com/gpu"}}, {"spec": None}, {}]
    wants = pod(requests={"nvidia.com/gpu": "1"})
    only_dra = dra_resources(classes, ["cpu"])
    assert only_dra == {"nvidia.com/gpu"}
    refused = route_of(wants, Surroundings(NOTHING.claim, only_dra))
    assert "nvidia.com/gpu, which only DRA serves here" in refused.why
    plugin_too = dra_resources(classes, ["cpu", "nvidia.com/gpu"])
    assert route_of(wants, Surroundings(NOTHING.claim, plugin_too)).path is Path.DIRECT
    implicit = pod(requests={"deviceclass.resource.kubernetes.io/gpu": "1"})
    assert route_of(implicit, NOTHING).path is Path.REFUSED


def test_anti_affinity_of_pods_that_already_run_counts_both_ways() -> None:
    term = {"topologyKey": "zone", "labelSelector": {"matchLabels": {"app": "train"}}}
    shy = pod("shy", node="node-0", affinity={"podAntiAffinity": {REQUIRED: [term]}})
    near = Surroundings(NOTHING.claim, repelling=(shy,))
    refused = route_of(pod(labels={"app": "train"}), near)
    assert "the required anti-affinity of pod team/shy" in refused.why
    assert route_of(pod(labels={"app": "serve"}), near).path is Path.DIRECT


def claim(volume: Raw | None, storage_class: Raw | None = None, **spec: object) -> Claim:
    bound = {"volumeName": "pv"} if volume is not None else {}
    raw = {
        "spec": {**bound, **spec},
        "status": {"phase": "Bound" if volume is not None else "Pending"},
    }
    return claim_of(raw, volume, storage_class, frozenset({"limited.csi"}))


def test_what_a_claim_means() -> None:
    shared = {"spec": {"csi": {"driver": "shared.csi"}}}
    assert claim(shared) == Claim(bound=True)
    assert claim({"spec": {"csi": {"driver": "limited.csi"}}}).counted
    assert claim({"spec": {"nodeAffinity": {"required": {"nodeSelectorTerms": [{}]}}}}).placed
    assert claim({"metadata": {"labels": {"topology.kubernetes.io/zone": "z1"}}}).placed
    assert claim(shared, accessModes=["ReadWriteOncePod"]).one_pod
    late = {"volumeBindingMode": "WaitForFirstConsumer"}
    assert claim(None, late, storageClassName="fast") == Claim(bound=False, late=True)
    assert claim(None, {}, storageClassName="fast") == Claim(bound=False)
    assert claim(None, None, storageClassName="unseen").late, "the careful answer"


def test_a_bound_claim_whose_volume_is_unknown_may_be_anywhere() -> None:
    raw = {"spec": {"volumeName": "pv"}, "status": {"phase": "Bound"}}
    assert claim_of(raw, None, None, frozenset()).placed


def test_drivers_with_limits() -> None:
    drivers = [{"name": "a", "allocatable": {"count": 0}}, {"name": "b", "allocatable": {}}, {}]
    assert counted_drivers([{"spec": {"drivers": drivers}}, {}]) == {"a"}
