"""Vectors computed by hand from the rules in the module's docstring."""

from __future__ import annotations

import pytest
from support.kube_objects import Raw, container, sidecar

from scheduler.execution.kubernetes.requests import (
    EXTRAS_MAX,
    GPUS_MAX,
    MACHINE_MAX,
    Requests,
    requests_of,
)
from scheduler.model.quantity import Resources


def asked(spec: Raw, status: Raw | None = None) -> Requests:
    return requests_of(spec, status or {})


def cpu_and_memory(spec: Raw, status: Raw | None = None) -> tuple[int, int]:
    found = asked(spec, status)
    assert not found.problems
    return found.needs.cpu_milli, found.needs.memory_mib


A = {"cpu": "100m", "memory": "64Mi"}
B = {"cpu": "300m", "memory": "200Mi"}


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({}, (0, 0)),
        ({"containers": []}, (0, 0)),
        ({"containers": [container(A), container(B)]}, (400, 264)),
        # An init container that is larger than all the others together.
        (
            {"containers": [container(A)], "initContainers": [container({"cpu": "2"})]},
            (2000, 64),
        ),
        # The larger of two init containers, for they run one after the other.
        (
            {
                "containers": [container(A)],
                "initContainers": [container(B), container({"memory": "1Gi"})],
            },
            (300, 1024),
        ),
        # A sidecar adds to the containers.
        ({"containers": [container(A)], "initContainers": [sidecar(B)]}, (400, 264)),
        # An init container after a sidecar runs beside it: 300 + 500 > 100 + 300.
        (
            {
                "containers": [container(A)],
                "initContainers": [sidecar(B), container({"cpu": "500m", "memory": "10Mi"})],
            },
            (800, 264),
        ),
        # One before it does not: max(500, 100 + 300).
        (
            {
                "containers": [container(A)],
                "initContainers": [container({"cpu": "500m"}), sidecar(B)],
            },
            (500, 264),
        ),
        # Two sidecars and an init container between them: 100 + (300 + 300), 300 + 900.
        (
            {
                "containers": [container(A)],
                "initContainers": [sidecar(B), container({"cpu": "900m"}), sidecar(B)],
            },
            (1200, 464),
        ),
        # Overhead adds on top of the larger of both.
        (
            {
                "containers": [container(A)],
                "initContainers": [container(B)],
                "overhead": {"cpu": "50m", "memory": "10Mi"},
            },
            (350, 210),
        ),
        # The pod's own requests replace what its containers ask, also if they are less.
        (
            {
                "containers": [container(A), container(B)],
                "resources": {"requests": {"cpu": "250m"}},
                "overhead": {"cpu": "50m"},
            },
            (300, 264),
        ),
        # Its limits alone replace nothing.
        (
            {"containers": [container(A)], "resources": {"limits": {"cpu": "4"}}},
            (100, 64),
        ),
        # Sums are rounded, not summands: 0.4 + 0.4 MiB is 1 MiB, not 2.
        ({"containers": [container({"memory": "400Ki"}), container({"memory": "400Ki"})]}, (0, 1)),
        ({"containers": [container({"cpu": "400u"}), container({"cpu": "400u"})]}, (1, 0)),
    ],
)
def test_requests(spec: Raw, expected: tuple[int, int]) -> None:
    assert cpu_and_memory(spec) == expected


def test_pod_level_requests_replace_huge_pages_but_no_devices() -> None:
    spec = {
        "containers": [container({"hugepages-2Mi": "4Mi", "rdma/hca": "1", "cpu": "1"})],
        "resources": {"requests": {"hugepages-2Mi": "8Mi", "rdma/hca": "9"}},
    }
    found = asked(spec)
    assert dict(found.extras) == {"hugepages-2Mi": 8 * 2**20, "rdma/hca": 1, "pods": 1}
    assert found.needs.cpu_milli == 1000


def test_gpus_devices_and_the_slot_of_the_pod() -> None:
    found = asked(
        {
            "containers": [
                container({"nvidia.com/gpu": "4", "rdma/hca": 2, "ephemeral-storage": "1Gi"}),
                container({"nvidia.com/gpu": 4}),
            ]
        }
    )
    assert found.needs == Resources(gpus=8)
    assert found.gpu_resource == "nvidia.com/gpu"
    assert found.extras == (("ephemeral-storage", 2**30), ("pods", 1), ("rdma/hca", 2))


def test_amd_gpus_are_gpus_and_a_zero_is_none() -> None:
    found = asked({"containers": [container({"amd.com/gpu": "2", "nvidia.com/gpu": "0"})]})
    assert (found.needs.gpus, found.gpu_resource) == (2, "amd.com/gpu")
    assert found.extras == (("pods", 1),)


def test_gpus_of_two_makers_leave_the_second_as_a_device() -> None:
    found = asked({"containers": [container({"amd.com/gpu": "2", "nvidia.com/gpu": "1"})]})
    assert (found.needs.gpus, found.gpu_resource) == (1, "nvidia.com/gpu")
    assert dict(found.extras)["amd.com/gpu"] == 2


def status(
    requests: Raw | None,
    allocated: Raw | None = None,
    *,
    kind: str = "containerStatuses",
    **more: object,
) -> Raw:
    seen: Raw = {"name": "main"}
    if requests is not None:
        seen["resources"] = {"requests": requests}
    if allocated is not None:
        seen["allocatedResources"] = allocated
    return {kind: [seen], **more}


INFEASIBLE = [{"type": "PodResizePending", "status": "True", "reason": "Infeasible"}]
DEFERRED = [{"type": "PodResizePending", "status": "True", "reason": "Deferred"}]


@pytest.mark.parametrize(
    ("spec_cpu", "seen", "expected"),
    [
        ("1", status({"cpu": "2"}), 2000),  # shrinking: it still has two
        ("3", status({"cpu": "2"}, {"cpu": "2"}), 3000),  # growing: three are spoken for
        ("1", status({"cpu": "1"}, {"cpu": "4"}), 4000),  # promised four
        ("8", status({"cpu": "2"}, {"cpu": "2"}, conditions=INFEASIBLE), 2000),
        ("8", status({"cpu": "2"}, {"cpu": "2"}, conditions=DEFERRED), 8000),
        ("1", status(None, {"cpu": "4"}), 1000),  # without resources the status says nothing
        (
            "1",
            {"containerStatuses": [{"name": "other", "resources": {"requests": {"cpu": "9"}}}]},
            1000,
        ),
    ],
)
def test_a_resize_in_place_counts_with_the_most(spec_cpu: str, seen: Raw, expected: int) -> None:
    assert cpu_and_memory({"containers": [container({"cpu": spec_cpu})]}, seen) == (expected, 0)


def test_sidecars_are_resized_but_plain_init_containers_are_not() -> None:
    seen = status({"cpu": "5"}, kind="initContainerStatuses")
    assert cpu_and_memory({"initContainers": [sidecar({"cpu": "1"}, "main")]}, seen) == (5000, 0)
    assert cpu_and_memory({"initContainers": [container({"cpu": "1"})]}, seen) == (1000, 0)


def test_a_resize_of_the_pod_as_a_whole() -> None:
    """Its status includes the overhead: 5 - 1 have been given, and 1 comes on top again."""
    spec = {
        "containers": [container({"cpu": "1"})],
        "resources": {"requests": {"cpu": "2"}},
        "overhead": {"cpu": "1"},
    }
    seen = {"resources": {"requests": {"cpu": "5"}}, "allocatedResources": {"cpu": "3"}}
    assert cpu_and_memory(spec, seen) == (5000, 0)
    assert cpu_and_memory(spec) == (3000, 0)


def test_absurd_amounts_are_bounded_and_named() -> None:
    found = asked(
        {
            "containers": [
                container({"cpu": "1E", "memory": "8Ei", "nvidia.com/gpu": "1e15", "x/y": "1E"})
            ]
        }
    )
    assert found.needs == Resources(GPUS_MAX, MACHINE_MAX, MACHINE_MAX)
    assert dict(found.extras)["x/y"] == EXTRAS_MAX
    assert len(found.problems) == 4
    assert all("more than any node has" in problem for problem in found.problems)


@pytest.mark.parametrize(
    ("amount", "fault"),
    [("1K", "no quantity"), ([], "not list"), ("-1", "negative"), (True, "not bool")],
)
def test_an_amount_that_cannot_be_read_names_its_field(amount: object, fault: str) -> None:
    found = asked({"containers": [container(), container({"cpu": amount, "memory": "1Mi"}, "b")]})
    assert found.needs == Resources(0, 0, 1)
    (problem,) = found.problems
    assert problem.startswith("spec.containers[1].resources.requests[cpu]: ")
    assert fault in problem
