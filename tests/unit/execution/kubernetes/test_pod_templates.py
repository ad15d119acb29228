"""What pods of one template share, and what tells templates apart."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import pytest
from support import kube_objects

from scheduler.execution.kubernetes.pods import pod_of
from scheduler.execution.kubernetes.templates import Template, template_of
from scheduler.model.quantity import Resources


def _template(raw: Mapping[str, Any]) -> Template:
    return template_of(raw["spec"], raw["status"], raw["metadata"]["namespace"])


def test_pods_of_one_template_share_what_they_ask_for() -> None:
    one, other = kube_objects.training_pod(1), kube_objects.training_pod(2)
    # As the server names the volume of each pod's own token.
    other["spec"]["volumes"][2]["name"] = "kube-api-access-q9w2z"
    other["spec"]["containers"][0]["env"].append({"name": "RANK", "value": "2"})
    assert _template(one) is _template(other)
    assert pod_of(one).constraints is pod_of(other).constraints
    assert pod_of(one).needs == Resources(1, 12_000, 180 * 1024)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("containers", 0, "resources", "requests", "cpu"), "13"),
        (("containers", 0, "ports"), [{"hostPort": 8080}]),
        (("initContainers",), [{"name": "a", "resources": {"requests": {"cpu": "64"}}}]),
        (("overhead",), {"cpu": "1"}),
        (("nodeSelector", "zone"), "b"),
        (("tolerations", 0, "key"), "amd.com/gpu"),
        (("volumes", 1), {"name": "data", "rbd": {"image": "x"}}),
        (("affinity",), {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [{}]}}),
    ],
)
def test_what_decides_on_a_place_tells_templates_apart(
    path: tuple[str | int, ...], value: object
) -> None:
    one = kube_objects.training_pod(1)
    other = deepcopy(one)
    at = other["spec"]
    for step in path[:-1]:
        at = at[step]
    at[path[-1]] = value
    assert _template(one) != _template(other)


def test_a_pod_that_is_resized_in_place_counts_with_what_it_has() -> None:
    resized = kube_objects.training_pod(1)
    seen = resized["status"]["containerStatuses"][0]
    seen["resources"] = {"requests": {"cpu": "20", "memory": "180Gi", "nvidia.com/gpu": "1"}}
    assert _template(resized).needs.cpu_milli == 20_000
    assert _template(kube_objects.training_pod(1)).needs.cpu_milli == 12_000
    resized["spec"]["containers"][0]["resources"]["requests"]["cpu"] = "40"
    assert _template(resized).needs.cpu_milli == 40_000
    resized["status"]["conditions"].append({"type": "PodResizePending", "reason": "Infeasible"})
    assert _template(resized).needs.cpu_milli == 20_000


@pytest.mark.parametrize("odd", [None, 7, "text", [None, 3], {"a": 10**30}])
def test_what_is_no_spec_reads_as_one_all_the_same(odd: object) -> None:
    raw = kube_objects.training_pod(1)
    raw["spec"] |= {"containers": odd, "initContainers": odd, "volumes": odd, "overhead": odd}
    raw["status"] |= {"containerStatuses": odd, "resources": odd, "conditions": odd}
    assert _template(raw).needs.gpus == 0
