from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from support import kube_objects
from support.kubernetes.fake_server import ADMIN, FakeApiServer
from support.kubernetes.faults import Fault

from scheduler.errors import HaversackError
from scheduler.execution.kubernetes.lookup import Lookup
from scheduler.execution.kubernetes.owners import OwnerKey
from scheduler.execution.kubernetes.pods import Pod, pod_of
from scheduler.execution.kubernetes.server import ApiServer

Story = Callable[[FakeApiServer, Lookup], Awaitable[None]]


def played(story: Story) -> None:
    async def play() -> None:
        async with FakeApiServer() as fake, ApiServer(fake.access) as server:
            await story(fake, Lookup(server))

    asyncio.run(play())


def job(name: str, size: int) -> dict[str, object]:
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "parallelism": size,
            "completions": size,
            "completionMode": "Indexed",
            "template": {
                "spec": {
                    "restartPolicy": "Never",
                    "containers": [{"name": "main", "image": "registry.example/work:1"}],
                }
            },
        },
    }


def of(name: str, *, kind: str = "Job", group: str = "batch") -> OwnerKey:
    return OwnerKey(group, kind, "default", name)


def mounting(claim: str) -> Pod:
    volume = {"name": "data", "persistentVolumeClaim": {"claimName": claim}}
    return pod_of(kube_objects.pod("p", namespace="default", volumes=[volume]))


def test_owners_that_are_there_say_how_large_they_are() -> None:
    async def story(fake: FakeApiServer, lookup: Lookup) -> None:
        fake.create(job("there", 3))
        found = await lookup.owners([of("there"), of("gone"), of("there", kind="Unheard")])
        assert {key.name: owner.size for key, owner in found.found.items()} == {"there": 3}
        assert found.unread == {
            of("gone"): "job.batch/default/gone does not exist",
            of("there", kind="Unheard"): "unheard.batch/default/there cannot be read: the cluster"
            " has no unheard.batch",
        }

    played(story)


def test_a_kind_that_the_preferred_version_lacks_is_found_in_another() -> None:
    """The preferred version of scheduling.k8s.io has PriorityClasses only."""

    async def story(fake: FakeApiServer, lookup: Lookup) -> None:
        spec = {"schedulingPolicy": {"gang": {"minCount": 5}}}
        group = kube_objects.api_object(
            "scheduling.k8s.io/v1alpha2", "PodGroup", "five", spec, namespace="default"
        )
        fake.create(group)
        key = of("five", kind="PodGroup", group="scheduling.k8s.io")
        assert (await lookup.owners([key])).found[key].size == 5

    played(story)


def test_the_place_of_a_kind_is_asked_once_however_many_want_it() -> None:
    async def story(fake: FakeApiServer, lookup: Lookup) -> None:
        for number in range(10):
            fake.create(job(f"j{number}", 1))
        await lookup.owners([of(f"j{number}") for number in range(10)])
        asked = len(fake.journal)
        await lookup.owners([of(f"j{number}") for number in range(10)])
        assert len(fake.journal) == asked
        assert sum(each.name != "" for each in fake.journal) == 10

    played(story)


def test_an_answer_from_before_is_no_good_to_who_needs_it_as_it_is_now() -> None:
    async def story(fake: FakeApiServer, lookup: Lookup) -> None:
        fake.create(job("there", 3))
        await lookup.owners([of("there")])
        fake.deny(ADMIN, "get", "jobs")
        assert (await lookup.owners([of("there")])).found
        now = asyncio.get_running_loop().time()
        assert (await lookup.owners([of("there")], since=now)).unread

    played(story)


def test_what_we_may_not_see_is_said_and_a_fault_is_told() -> None:
    async def story(fake: FakeApiServer, lookup: Lookup) -> None:
        fake.create(job("hidden", 3))
        fake.deny(ADMIN, "get", "jobs")
        hidden = await lookup.owners([of("hidden")])
        assert hidden.found == {}
        assert hidden.unread == {
            of("hidden"): "job.batch/default/hidden cannot be read: our account lacks the right"
            " `get` on jobs in API group batch; grant it with a ClusterRole"
        }
        fake.allow(ADMIN)
        fake.faults.once(Fault.ERROR_BEFORE, what="jobs")
        with pytest.raises(HaversackError):
            await lookup.owners([of("another")])

    played(story)


@pytest.mark.parametrize("name", ["../../../nodes", "a/b", "..", "x?y=z", "a%2Fb", "", "A"])
def test_names_that_lead_elsewhere_are_not_followed(name: str) -> None:
    async def story(fake: FakeApiServer, lookup: Lookup) -> None:
        fake.create(job("there", 1))
        await lookup.owners([of("there")])
        await lookup.claims([mounting("none")])
        asked = len(fake.journal)
        assert (await lookup.owners([of(name)])).found == {}
        assert await lookup.claims([mounting(name)]) == {}
        assert len(fake.journal) == asked

    played(story)


def test_pods_without_claims_cost_no_request() -> None:
    async def story(fake: FakeApiServer, lookup: Lookup) -> None:
        assert await lookup.claims([pod_of(kube_objects.pod())]) == {}
        assert not fake.journal

    played(story)
