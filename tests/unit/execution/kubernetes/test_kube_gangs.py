from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

import pytest
from support import kube_objects
from support.kube_objects import Raw, api_object, owner

from scheduler.execution.kubernetes.gangs import Gang, Gangs, gangs_of, owner_keys
from scheduler.execution.kubernetes.levels import levels_of
from scheduler.execution.kubernetes.owners import Owner, OwnerKey, owner_of
from scheduler.execution.kubernetes.pods import Pod, pod_of
from scheduler.model.job import Topology
from scheduler.model.quantity import Resources
from scheduler.model.site import Operator, Requirement

GANG = "haversack.dev/gang"
SIZE = "haversack.dev/gang-size"
INDEX = "batch.kubernetes.io/job-completion-index"
GPU = {"cpu": "8", "memory": "64Gi", "nvidia.com/gpu": "1"}


def pod(name: str, **fields: object) -> Pod:
    return pod_of(kube_objects.pod(name, **{"requests": GPU, **fields}))  # type: ignore[arg-type] # any field of the spec


def own_gang(count: int, size: object = 4, name: str = "llama", **fields: object) -> list[Pod]:
    return [
        pod(f"{name}-{at}", labels={GANG: name}, annotations={SIZE: str(size)}, **fields)
        for at in range(count)
    ]


def owners(*raw: Raw) -> dict[OwnerKey, Owner]:
    found = [owner_of(each) for each in raw]
    return {each.key: each for each in found if each}


def group(pods: Iterable[Pod], *objects: Raw) -> Gangs:
    return gangs_of(pods, owners(*objects))


def one(found: Gangs) -> Gang:
    (gang,) = found.complete
    return gang


def reason(found: Gangs) -> str:
    assert not found.complete
    (waiting,) = found.waiting
    return waiting.reason


def names(pods: Sequence[Pod]) -> list[str]:
    return [pod.ref.name for pod in pods]


def test_pods_of_no_group_are_gangs_of_one() -> None:
    found = group([pod("b"), pod("a", owner=owner("ReplicaSet", "web", api_version="apps/v1"))])
    assert [names(gang.members) for gang in found.complete] == [["a"], ["b"]]
    gang = found.complete[0]
    assert (gang.group, gang.name, gang.placed) == ("pod/team/a/uid-a", "a", 0)
    assert gang.shape.tasks == 1
    assert gang.shape.per_task == Resources(1, 8000, 65_536)
    assert gang.shape.extras == (("pods", 1),)
    assert not found.waiting


def test_our_own_label_and_size() -> None:
    gang = one(group(own_gang(4)))
    assert (gang.group, gang.name, gang.namespace) == ("gang/team/llama", "llama", "team")
    assert names(gang.members) == ["llama-0", "llama-1", "llama-2", "llama-3"]
    assert gang.shape.tasks == 4


def test_an_incomplete_gang_waits_and_says_for_how_many() -> None:
    assert reason(group(own_gang(3))) == "waiting for 3 of 4 pods"


def test_pods_gated_by_others_deleted_or_ended_do_not_count() -> None:
    pods = own_gang(2)
    pods += own_gang(3, schedulingGates=[{"name": "kueue.x-k8s.io/admission"}])[2:]
    pods += own_gang(4, metadata={"deletionTimestamp": "2026-11-01T10:00:00Z"})[3:]
    pods += own_gang(5, status={"phase": "Failed"})[4:]
    assert reason(group(pods)) == (
        "waiting for 2 of 4 pods (1 more: held by the scheduling gate kueue.x-k8s.io/admission)"
    )


def test_our_own_gate_holds_nobody_back() -> None:
    gated = own_gang(4, schedulingGates=[{"name": "haversack.dev/placement"}])
    assert len(one(group(gated)).members) == 4


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        (["", "", "", ""], "its pods have no annotation haversack.dev/gang-size"),
        (["4", "4", "4", "5"], "its pods name different sizes of their gang: 4, 5"),
        (["many"] * 4, "annotation haversack.dev/gang-size is no number from 1 to 1000000"),
        (["0"] * 4, "annotation haversack.dev/gang-size is no number from 1 to 1000000"),
    ],
)
def test_a_size_that_cannot_be_told_is_the_reason(sizes: list[str], expected: str) -> None:
    pods = [
        pod(f"p-{at}", labels={GANG: "llama"}, annotations={SIZE: size} if size else {})
        for at, size in enumerate(sizes)
    ]
    assert reason(group(pods)) == expected


def test_a_size_without_a_gang_is_a_mistake_to_name() -> None:
    assert "give all of them the label haversack.dev/gang" in reason(
        group([pod("a", annotations={SIZE: "4"})])
    )


def test_keys_name_identities_and_groups_stay() -> None:
    """A pod that is made anew under its old name makes another gang of the same group."""
    first, again = one(group(own_gang(4))), one(group(reversed(own_gang(4))))
    assert first == again
    anew = pod("llama-3", uid="new", labels={GANG: "llama"}, annotations={SIZE: "4"})
    replaced = [*own_gang(3), anew]
    other = one(group(replaced))
    assert other.group == first.group
    assert other.key != first.key


def test_gangs_of_one_name_in_two_namespaces_are_two() -> None:
    found = group(own_gang(4) + own_gang(4, namespace="other"))
    assert {gang.namespace for gang in found.complete} == {"team", "other"}


def indexed(index: int, job: str = "llama", uid: str = "", **fields: object) -> Pod:
    made_by = owner("Job", job, uid=uid)
    return pod(f"{job}-{index}-x", owner=made_by, labels={INDEX: str(index)}, **fields)


def job(name: str = "llama", **spec: object) -> Raw:
    return api_object("batch/v1", "Job", name, {"completionMode": "Indexed", **spec})


def test_an_unmodified_indexed_job_is_a_gang_in_the_order_of_its_indexes() -> None:
    pods = [indexed(index) for index in (10, 2, 0, *range(3, 10), 1, 11)]
    gang = one(group(pods, job(completions=12, parallelism=12)))
    assert [int(member.label(INDEX)) for member in gang.members] == list(range(12))
    assert gang.group == "job.batch/team/llama/uid-llama"


def test_an_indexed_job_that_runs_its_pods_in_turns_is_no_gang() -> None:
    found = group([indexed(at) for at in range(3)], job(completions=9, parallelism=3))
    assert [len(gang.members) for gang in found.complete] == [1, 1, 1]
    assert len({gang.key for gang in found.complete}) == 3


def test_pods_of_a_job_without_indexes_come_and_go_alone() -> None:
    pods = [pod(f"work-{at}", owner=owner("Job", "work")) for at in range(3)]
    assert not owner_keys(pods)
    assert len(group(pods).complete) == 3


def test_a_job_that_cannot_be_read_needs_the_annotation() -> None:
    pods = [indexed(at) for at in range(4)]
    assert reason(group(pods)) == (
        "job.batch/team/llama does not exist or cannot be read, and its pods have no annotation"
        " haversack.dev/gang-size: the size of the gang is unknown"
    )
    key = OwnerKey("batch", "Job", "team", "llama")
    assert owner_keys(pods) == {key}
    denied = gangs_of(pods, {}, unread={key: "we lack the right"})
    assert reason(denied).startswith("we lack the right, and its pods have no annotation")
    said = [indexed(at, annotations={SIZE: "4"}) for at in range(4)]
    assert len(one(group(said)).members) == 4


def test_a_job_made_again_under_its_name_is_another_group() -> None:
    old = [indexed(at, uid="old", node="n") for at in range(2)]
    new = [indexed(at, uid="new", metadata={"uid": f"new-{at}"}) for at in range(2)]
    gang = one(group(old + new, job(completions=2, parallelism=2)))
    assert gang.group.endswith("/new")
    assert gang.placed == 0


def test_an_unknown_kind_is_a_gang_if_its_pods_say_so() -> None:
    made_by = owner("Fleet", "alpha", api_version="example.org/v1")
    loose = [pod(f"a-{at}", owner=made_by) for at in range(2)]
    assert len(group(loose).complete) == 2
    said = [pod(f"a-{at}", owner=made_by, annotations={SIZE: "2"}) for at in range(2)]
    assert one(group(said)).group == "fleet.example.org/team/alpha/uid-alpha"


def job_set(**spec: object) -> Raw:
    replicated = [
        {"name": "driver", "replicas": 1, "template": {"spec": {"parallelism": 1}}},
        {"name": "workers", "replicas": 2, "template": {"spec": {"parallelism": 2}}},
    ]
    return api_object(
        "jobset.x-k8s.io/v1alpha2", "JobSet", "llama", {"replicatedJobs": replicated, **spec}
    )


def job_set_pods(attempt: str = "0", **fields: object) -> list[Pod]:
    """One driver, and two jobs of two workers, last first."""
    found = []
    worker_places = ((2, 1), (2, 0), (1, 1), (1, 0))
    for role, number, index in [*(("workers", *at) for at in worker_places), ("driver", 0, 0)]:
        labels = {
            "jobset.sigs.k8s.io/jobset-name": "llama",
            "jobset.sigs.k8s.io/replicatedjob-name": role,
            "jobset.sigs.k8s.io/job-global-index": str(number),
            "jobset.sigs.k8s.io/restart-attempt": attempt,
            INDEX: str(index),
        }
        name = f"llama-{role}-{number}-{index}-{attempt}"
        found.append(pod(name, labels=labels, owner=owner("Job", f"llama-{role}"), **fields))
    return found


def test_an_unmodified_job_set_is_one_gang_over_its_jobs() -> None:
    gang = one(group(job_set_pods(), job_set()))
    assert names(gang.members) == [
        "llama-driver-0-0-0",
        "llama-workers-1-0-0",
        "llama-workers-1-1-0",
        "llama-workers-2-0-0",
        "llama-workers-2-1-0",
    ]
    assert gang.name == "llama"


def test_a_restarted_job_set_does_not_wait_for_its_old_pods() -> None:
    old = job_set_pods("0", node="n", metadata={"deletionTimestamp": "2026-11-01T10:00:00Z"})
    assert len(one(group(old + job_set_pods("1"), job_set())).members) == 5


def test_a_job_set_that_starts_in_order_does_not_wait_for_jobs_not_yet_made() -> None:
    in_order = job_set(startupPolicy={"startupPolicyOrder": "InOrder"})
    driver = job_set_pods()[-1:]
    assert names(one(group(driver, in_order)).members) == ["llama-driver-0-0-0"]
    assert reason(group(job_set_pods()[:3], in_order)) == "waiting for 3 of 4 pods"
    assert len(group(job_set_pods(), in_order).complete) == 2


def test_a_pytorch_job_puts_its_master_first() -> None:
    def member(role: str, index: int) -> Pod:
        labels = {
            "training.kubeflow.org/job-name": "llama",
            "training.kubeflow.org/replica-type": role,
            "training.kubeflow.org/replica-index": str(index),
        }
        made_by = owner("PyTorchJob", "llama", api_version="kubeflow.org/v1")
        return pod(f"llama-{role}-{index}", labels=labels, owner=made_by)

    replicas = {"Master": {"replicas": 1}, "Worker": {"replicas": 2}}
    training = api_object(
        "kubeflow.org/v1", "PyTorchJob", "llama", {"pytorchReplicaSpecs": replicas}
    )
    gang = one(group([member("worker", 1), member("worker", 0), member("master", 0)], training))
    assert names(gang.members) == ["llama-master-0", "llama-worker-0", "llama-worker-1"]


def pod_group(api_group: str, **spec: object) -> Raw:
    return api_object(f"{api_group}/v1", "PodGroup", "llama", spec)


@pytest.mark.parametrize(
    "key", ["scheduling.k8s.io/group-name", "scheduling.volcano.sh/group-name"]
)
def test_a_volcano_group(key: str) -> None:
    pods = [pod(f"v-{at}", annotations={key: "llama"}) for at in range(3)]
    made = pod_group("scheduling.volcano.sh", minMember=3)
    assert one(group(pods, made)).group == "podgroup.scheduling.volcano.sh/team/llama"
    assert "does not exist or cannot be read" in reason(group(pods))


def test_volcanos_annotation_stands_in_for_a_group_we_cannot_read() -> None:
    pods = [
        pod(
            f"v-{at}",
            annotations={
                "scheduling.k8s.io/group-name": "llama",
                "scheduling.volcano.sh/group-min-member": "2",
            },
        )
        for at in range(2)
    ]
    assert len(one(group(pods)).members) == 2


def test_a_coscheduling_group() -> None:
    pods = [pod(f"c-{at}", labels={"scheduling.x-k8s.io/pod-group": "llama"}) for at in range(2)]
    made = pod_group("scheduling.x-k8s.io", minMember=2)
    assert one(group(pods, made)).group == "podgroup.scheduling.x-k8s.io/team/llama"


def native(count: int, **fields: object) -> list[Pod]:
    return [
        pod(f"n-{at}", schedulingGroup={"podGroupName": "llama"}, **fields) for at in range(count)
    ]


def native_group(count: int, **spec: object) -> Raw:
    policy = {"schedulingPolicy": {"gang": {"minCount": count}}}
    return api_object("scheduling.k8s.io/v1alpha2", "PodGroup", "llama", {**policy, **spec})


def test_a_native_group_never_starts_without_its_object() -> None:
    assert "podgroup.scheduling.k8s.io/team/llama does not exist" in reason(group(native(2)))
    assert len(one(group(native(2), native_group(2))).members) == 2


def test_the_priority_of_a_native_group_is_that_of_its_pods() -> None:
    assert one(group(native(2, priority=5), native_group(2, priority=70))).asked.priority == 70
    assert one(group(native(2, priority=5), native_group(2))).asked.priority == 5


def test_pods_beyond_the_minimum_follow_the_gang() -> None:
    found = group(native(5), native_group(3))
    assert names(one(found).members) == ["n-0", "n-1", "n-2"]
    (waiting,) = found.waiting
    assert names(waiting.pods) == ["n-3", "n-4"]
    assert waiting.reason == "its gang needs 3 pods; the others follow once those are placed"
    placed = native(3, node="node-0") + native(5)[3:]
    later = group(placed, native_group(3))
    assert [names(gang.members) for gang in later.complete] == [["n-3"], ["n-4"]]
    assert {gang.placed for gang in later.complete} == {3}


def test_a_replaced_pod_of_a_running_gang_is_placed_alone() -> None:
    pods = [indexed(at, node="node-0") for at in range(3)] + [indexed(3)]
    gang = one(group(pods, job(completions=4, parallelism=4)))
    assert names(gang.members) == ["llama-3-x"]
    assert gang.placed == 3


def test_what_was_found_before_stays_as_it_was() -> None:
    """A pod that comes late must not take the place of one whose gang the store already knows."""
    pods = native(4)
    taken = {str(member.ref) for member in pods[1:]}
    found = gangs_of(pods, owners(native_group(3)), taken=taken)
    assert reason(found) == "its gang needs 3 pods; the others follow once those are placed"
    assert not found.outgrown
    placed = native(1) + [pod for pod in native(4, node="node-0") if str(pod.ref) in taken]
    (gang,) = gangs_of(placed, owners(native_group(3)), taken=taken).complete
    assert names(gang.members) == ["n-0"]


def test_members_that_differ_count_with_the_most_each_needs() -> None:
    sizes = [{"cpu": "2", "memory": "100Gi"}, GPU, {**GPU, "rdma/hca": "1"}]
    pods = [
        pod(f"p-{at}", labels={GANG: "llama"}, annotations={SIZE: "3"}, requests=requests)
        for at, requests in enumerate(sizes)
    ]
    asked = one(group(pods)).asked
    assert asked.needs == Resources(1, 8000, 102_400)
    assert asked.extras == (("pods", 1), ("rdma/hca", 1))
    assert asked.site.selector == (("haversack.dev/gpu-resource", "nvidia.com/gpu"),)
    assert asked.notes == (
        "pods ask for 0 to 1 GPUs; each counts with the most",
        "pods ask for 2000 to 8000 thousandths of a core; each counts with the most",
        "pods ask for 65536 to 102400 MiB; each counts with the most",
        "pods ask for different further resources; each counts with the most",
    )


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"nodeSelector": {"zone": "b"}}, "spec.nodeSelector"),
        (
            {"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {}}}},
            "required node affinity",
        ),
        ({"tolerations": [{"operator": "Exists"}]}, "spec.tolerations"),
    ],
)
def test_members_that_want_different_nodes_wait_with_the_difference(spec: Raw, field: str) -> None:
    pods = own_gang(3) + own_gang(4, **spec)[3:]
    assert reason(group(pods)) == (
        f"pods llama-0 and llama-3 differ in {field}; tasks of one gang must ask for the same nodes"
    )


def test_gpus_of_two_makers_are_no_gang() -> None:
    pods = own_gang(3) + own_gang(4, requests={"amd.com/gpu": "1"})[3:]
    assert reason(group(pods)) == (
        "some of its pods ask for amd.com/gpu and some for nvidia.com/gpu"
    )


def test_the_lowest_priority_counts_and_all_must_want_to_preempt() -> None:
    pods = own_gang(3, priority=100) + own_gang(4, priority=7, preemptionPolicy="Never")[3:]
    asked = one(group(pods)).asked
    assert (asked.priority, asked.preempts) == (7, False)
    assert asked.notes == ("pods have priorities 7 to 100; the lowest counts",)


def queued(*queues: str, key: str = "haversack.dev/queue") -> list[Pod]:
    return [
        pod(f"q-{at}", labels={GANG: "q", key: queue}, annotations={SIZE: str(len(queues))})
        for at, queue in enumerate(queues)
    ]


def test_queues() -> None:
    assert one(group(queued("nlp", "nlp"))).asked.queue == "nlp"
    assert reason(group(queued("nlp", "cv"))) == "its pods name the queues 'cv', 'nlp'"


def test_queue_labels_of_others_count_only_when_listed() -> None:
    kueue = "kueue.x-k8s.io/queue-name"
    pods = queued("nlp", key=kueue)
    assert one(group(pods)).asked.queue == ""
    listed = gangs_of(pods, {}, queue_labels=("haversack.dev/queue", kueue))
    assert one(listed).asked.queue == "nlp"


def test_topology_by_annotation() -> None:
    def close(*wishes: str) -> list[Pod]:
        return [
            pod(
                f"t-{at}",
                labels={GANG: "t"},
                annotations={SIZE: str(len(wishes)), "haversack.dev/topology": wish},
            )
            for at, wish in enumerate(wishes)
        ]

    assert one(group(close("same-rack", "same-rack"))).shape.topology is Topology.SAME_RACK
    assert "differ in annotation haversack.dev/topology" in reason(group(close("any", "same-rack")))
    assert "'nearby', not one of any, same-nvlink" in reason(group(close("nearby")))


def test_topology_of_a_native_group() -> None:
    rack = "cloud.google.com/gce-topology-block"
    made = native_group(2, schedulingConstraints={"topology": [{"key": rack}]})
    asked = one(group(native(2), made)).asked
    assert asked.topology is Topology.SAME_RACK
    assert asked.site.terms is not None
    assert asked.site.terms[0].labels == (Requirement(rack, Operator.EXISTS),)
    host = native_group(2, schedulingConstraints={"topology": [{"key": "kubernetes.io/hostname"}]})
    assert one(group(native(2), host)).asked.topology is Topology.SAME_NODE
    nearer = native(2, annotations={"haversack.dev/topology": "same-nvlink"})
    assert one(group(nearer, made)).asked.topology is Topology.SAME_NVLINK


def test_a_topology_that_is_no_level_is_a_reason() -> None:
    made = native_group(2, schedulingConstraints={"topology": [{"key": "example.org/hall"}]})
    assert "within one example.org/hall, which is no configured level" in reason(
        group(native(2), made)
    )
    found = gangs_of(native(2), owners(made), levels=levels_of((), rack=["example.org/hall"]))
    assert one(found).asked.topology is Topology.SAME_RACK


def test_a_member_that_is_refused_or_unreadable_holds_its_gang() -> None:
    pods = own_gang(4)
    found = gangs_of(pods, {}, refusals={str(pods[2].ref): "spec.resourceClaims is not modelled"})
    assert reason(found) == "pod llama-2: spec.resourceClaims is not modelled"
    broken = own_gang(3) + own_gang(4, requests={"cpu": "lots"})[3:]
    assert reason(group(broken)).startswith("pod llama-3: spec.containers[0].resources")


def test_a_refused_single_pod_holds_nobody_else() -> None:
    pods = [indexed(at) for at in range(3)]
    found = gangs_of(
        pods,
        owners(job(completions=9, parallelism=3)),
        refusals={str(pods[1].ref): "no"},
    )
    assert [names(gang.members) for gang in found.complete] == [["llama-0-x"], ["llama-2-x"]]
    assert [waiting.reason for waiting in found.waiting] == ["no"]


def test_preferences_without_effect_are_noted() -> None:
    spread = [{"whenUnsatisfiable": "ScheduleAnyway"}]
    assert one(group([pod("a", topologySpreadConstraints=spread)])).asked.notes == (
        "spec.topologySpreadConstraints[0] is only preferred and has no effect",
    )


def test_the_oldest_gang_comes_first_and_order_of_arrival_does_not_matter() -> None:
    made = [
        *own_gang(2, 2, "young", metadata={"creationTimestamp": "2026-11-01T12:00:00Z"}),
        *own_gang(2, 2, "old", metadata={"creationTimestamp": "2026-11-01T09:00:00Z"}),
        pod("middle"),
    ]
    expected = group(made)
    assert [gang.name for gang in expected.complete] == ["old", "middle", "young"]
    assert all(group(order) == expected for order in itertools.permutations(made))


def test_bound_pods_alone_are_no_gang() -> None:
    assert group(own_gang(4, node="n")) == Gangs((), ())
