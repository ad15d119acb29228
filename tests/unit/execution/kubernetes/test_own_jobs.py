"""Jobs of our own under the executor: made, bound, ended, forgotten; and dying in between."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from typing import Any

import pytest
from support.clock import ManualClock
from support.execution import launch_order, stop_order
from support.kubernetes import objects
from support.kubernetes.fake_server import ADMIN, FakeApiServer
from support.kubernetes.faults import Fault
from support.kubernetes.resources import NODES, PODS
from support.kubernetes.storage import Change
from typing_extensions import override

from scheduler.clock import iso
from scheduler.errors import FencedError
from scheduler.execution.kubernetes.binder import Binder
from scheduler.execution.kubernetes.cluster import Cluster
from scheduler.execution.kubernetes.evict import Evictor
from scheduler.execution.kubernetes.executor import KubernetesExecutor
from scheduler.execution.kubernetes.fence import Fence, namespace_manifest
from scheduler.execution.kubernetes.launching import Launching
from scheduler.execution.kubernetes.nodes import node_of
from scheduler.execution.kubernetes.pinning import Pinner
from scheduler.execution.kubernetes.pods import Pod, pod_of
from scheduler.execution.kubernetes.server import STRATEGIC_MERGE_PATCH, ApiServer
from scheduler.execution.kubernetes.upkeep import Upkeep
from scheduler.model.execution import AttemptObservation, Outcome, Phase
from scheduler.model.lifecycle import EndCause
from scheduler.model.quantity import AttemptId, UtcSeconds

ORDER = launch_order("true", tasks=3)
A1 = ORDER.attempt_id


async def _no_sleep(_: float) -> None:
    await asyncio.sleep(0)


async def _none_launched(_: Sequence[AttemptId]) -> dict[AttemptId, frozenset[str]]:
    return {}


class Life:
    """One daemon's life on a fake cluster, which it is shown when a test says so."""

    def __init__(self, fake: FakeApiServer, server: ApiServer) -> None:
        self.fake, self.server = fake, server
        self.clock = ManualClock()
        self.cluster = Cluster(told=lambda: None, job_namespace="default")
        self.evictor = Evictor(server, self.clock)
        binder = Binder(server, self.evictor, fence=None, sleep=_no_sleep)
        self.leading = True
        self.launching = Launching(
            server,
            self.cluster,
            self.evictor,
            namespace="default",
            image="registry.example/x",
            leads=self.lead,
        )
        self.executor = KubernetesExecutor(
            self.cluster,
            binder,
            Pinner(server, binder, self.evictor, told=lambda *_: None),
            self.evictor,
            self.launching,
            self.clock,
            synced=lambda: True,
            launched=_none_launched,
        )
        self.upkeep = self.upkeep_by(binder)
        self.shown: set[str] = set()
        for node in fake.objects(NODES):
            self.cluster.node_seen(node_of(node))

    def upkeep_by(self, binder: Binder) -> Upkeep:
        return Upkeep(
            binder,
            self.cluster,
            self.evictor,
            self.clock,
            epoch=ORDER.epoch,
            keep_s=60.0,
            start_s=900.0,
            given_up=self.executor.give_up,
        )

    def be_at(self, now: float) -> None:
        self.clock.advance(now - self.clock.now())

    async def lead(self, epoch: int) -> bool:
        assert epoch == ORDER.epoch
        return self.leading

    def show(self) -> None:
        pods = [pod_of(each) for each in self.fake.objects(PODS)]
        here = {str(each.ref) for each in pods}
        for gone in self.shown - here:
            self.cluster.pod_gone(gone)
        for each in pods:
            self.cluster.pod_seen(each)
        self.shown = here

    async def seen(self) -> AttemptObservation:
        self.show()
        (seen,) = await self.executor.observe([A1])
        return seen

    async def end(self, rank: int, phase: str, code: int, **status: Any) -> None:
        state = {"terminated": {"exitCode": code, "reason": "Error" if code else "Completed"}}
        body = {"phase": phase, "containerStatuses": [{"name": "main", "state": state}], **status}
        await self.server.patch(f"{path(rank)}/status", {"status": body})

    def pods(self) -> list[Pod]:
        return [pod_of(each) for each in self.fake.objects(PODS)]


def path(rank: int) -> str:
    return f"/api/v1/namespaces/default/pods/test-{A1}-{rank}"


def play(story: Callable[[Life], Awaitable[None]]) -> None:
    async def acting() -> None:
        async with AsyncExitStack() as stack:
            fake = await stack.enter_async_context(FakeApiServer())
            fake.create(objects.node("box"))
            server = await stack.enter_async_context(ApiServer(fake.access, sleep=_no_sleep))
            await story(Life(fake, server))

    asyncio.run(acting())


def services(fake: FakeApiServer) -> int:
    resource = fake.target("/api/v1/services").resource
    return len(fake.objects(resource))


def test_a_job_is_made_bound_run_and_let_go() -> None:
    async def story(life: Life) -> None:
        receipt = await life.executor.launch(ORDER)
        assert receipt.outcome is Outcome.DONE, receipt
        # Nothing is missing although no watch has shown anything yet.
        (seen,) = await life.executor.observe([A1])
        assert seen.phase is Phase.STARTING
        assert (await life.seen()).phase is Phase.STARTING
        assert [pod.node_name for pod in life.pods()] == ["box"] * 3
        assert not life.cluster.waiting()
        for rank in range(3):
            await life.end(rank, "Succeeded", 0)
        seen = await life.seen()
        assert (seen.phase, seen.cause) == (Phase.EXITED, EndCause.COMPLETED)
        await life.executor.forget([A1])
        assert services(life.fake) == 0
        assert not any(pod.kept for pod in life.pods())
        assert len(life.pods()) == 3

    play(story)


def test_pods_of_our_own_are_no_gang_and_no_use_by_others() -> None:
    async def story(life: Life) -> None:
        made = await life.launching.make(ORDER)
        life.show()
        assert made.outcome is Outcome.DONE
        assert not life.cluster.waiting()
        assert not life.cluster.take_pods_changed()
        await life.executor.launch(ORDER)
        life.show()
        (node,) = life.cluster.take_node_changes().seen
        assert dict(node.extras)["pods"] == 110

    play(story)


def test_wherever_a_launch_dies_the_next_leader_completes_it_with_the_same_pods() -> None:
    async def died(after: int) -> int:
        async with AsyncExitStack() as stack:
            fake = await stack.enter_async_context(FakeApiServer())
            fake.create(objects.node("box"))
            server = await stack.enter_async_context(ApiServer(fake.access, sleep=_no_sleep))
            first, written, bound = Life(fake, server), [], []

            def witness(change: Change) -> None:
                written.append(change)
                pod = change.now or {}
                if pod.get("kind") == "Pod" and pod["spec"].get("nodeName"):
                    bound.append((pod["metadata"]["name"], pod["metadata"]["uid"]))
                if len(written) == after:
                    launch.cancel()

            launch = asyncio.ensure_future(first.executor.launch(ORDER))
            fake.witness(witness)
            with contextlib.suppress(asyncio.CancelledError):
                await launch
            await asyncio.sleep(0)
            before = {pod.ref.name: pod.ref.uid for pod in first.pods()}
            second = Life(fake, server)
            second.show()
            second.executor.resume(A1, (), whole=False)
            receipt = await second.executor.launch(ORDER)
            assert receipt.outcome is Outcome.DONE, (after, receipt)
            now = {pod.ref.name: pod.ref.uid for pod in second.pods()}
            assert len(now) == 3
            assert before.items() <= now.items()
            assert len(set(bound)) == 3
            return len(written)

    for after in range(1, 8):
        asyncio.run(died(after))


@pytest.mark.parametrize("refusal", ["its node has left", "no rights"])
def test_who_was_succeeded_while_it_made_pods_leaves_them_to_its_successor(refusal: str) -> None:
    """As after a pause at `pods-first-made`: then it is refused, in an old view or by right."""

    async def story(life: Life) -> None:
        successor = Life(life.fake, life.server)

        def witness(change: Change) -> None:
            if not life.leading or (change.now or {}).get("kind") != "Pod":
                return
            life.leading = False
            if refusal == "no rights":
                life.fake.deny(ADMIN, "create", "pods")
            else:
                box = life.fake.objects(NODES)[0]["metadata"]["uid"]
                life.cluster.node_gone("box", box)

        life.fake.witness(witness)
        with pytest.raises(FencedError):
            await life.executor.launch(ORDER)
        (first,) = life.pods()
        assert not first.deleting
        assert services(life.fake) == (refusal == "no rights")
        life.fake.allow(ADMIN)
        successor.show()
        successor.executor.resume(A1, (), whole=False)
        assert (await successor.executor.launch(ORDER)).outcome is Outcome.DONE
        assert [pod.node_name for pod in life.pods()] == ["box"] * 3
        assert first.ref in [pod.ref for pod in life.pods()]

    play(story)


def test_a_name_that_somebody_else_has_refuses_the_launch_and_leaves_nothing() -> None:
    async def story(life: Life) -> None:
        life.fake.create(objects.pod(f"test-{A1}-2", scheduler="other"))
        receipt = await life.executor.launch(ORDER)
        assert receipt.outcome is Outcome.REFUSED
        assert "somebody else's Pod" in receipt.message
        life.show()
        assert (await life.seen()).phase is Phase.ABSENT
        await life.executor.forget([A1])
        life.show()
        assert [pod.ref.name for pod in life.pods()] == [f"test-{A1}-2"]
        assert services(life.fake) == 0

    play(story)


def test_a_missing_namespace_and_missing_rights_name_the_remedy() -> None:
    async def story(life: Life) -> None:
        nowhere = Launching(
            life.server,
            life.cluster,
            life.evictor,
            namespace="nowhere",
            image="i",
            leads=life.lead,
        )
        made = await nowhere.make(ORDER)
        assert made.outcome is Outcome.REFUSED
        assert "HAVERSACK_KUBERNETES__JOB_NAMESPACE" in made.message
        life.fake.deny(ADMIN, "create", "services")
        receipt = await life.executor.launch(ORDER)
        assert receipt.outcome is Outcome.REFUSED
        assert "deploy/kubernetes/components/jobs" in receipt.message

    play(story)


def test_a_lost_answer_is_looked_after() -> None:
    async def story(life: Life) -> None:
        life.fake.faults.once(Fault.REPLY_LOST, verb="create", what="pods", times=2)
        life.fake.faults.once(Fault.REPLY_LOST, verb="create", what="services", times=1)
        assert (await life.executor.launch(ORDER)).outcome is Outcome.DONE
        assert len(life.pods()) == 3

    play(story)


def test_one_that_was_told_to_stop_is_not_made_and_what_is_made_goes() -> None:
    async def story(life: Life) -> None:
        await life.launching.make(ORDER)
        life.show()
        assert (await life.executor.stop(stop_order(A1))).outcome is Outcome.DONE
        assert (await life.executor.launch(ORDER)).outcome is Outcome.REFUSED
        assert (await life.seen()).phase is Phase.ABSENT
        assert all(pod.dropped for pod in life.pods())
        await life.executor.forget([A1])
        assert not life.pods()

    play(story)


def test_a_preempted_gang_is_marked_and_tells_how_it_ended() -> None:
    async def story(life: Life) -> None:
        await life.executor.launch(ORDER)
        for rank in range(3):
            await life.server.patch(f"{path(rank)}/status", {"status": {"phase": "Running"}})
        assert (await life.seen()).phase is Phase.RUNNING
        assert (await life.executor.stop(stop_order(A1, EndCause.PREEMPTED))).outcome is (
            Outcome.DONE
        )
        life.show()
        assert all(pod.disruption and pod.deleting for pod in life.pods())
        assert (await life.seen()).phase is Phase.RUNNING
        for rank in range(3):
            await life.end(rank, "Failed", 143)
            await life.server.delete(path(rank), {"gracePeriodSeconds": 0})
        seen = await life.seen()
        assert (seen.phase, seen.cause) == (Phase.EXITED, EndCause.PREEMPTED)
        assert [each.exit_code for each in seen.ranks] == [143, 143, 143]
        await life.executor.forget([A1])
        assert not life.pods()

    play(story)


def test_a_broken_gang_is_ended_and_the_one_that_broke_it_is_named() -> None:
    async def story(life: Life) -> None:
        await life.executor.launch(ORDER)
        await life.end(1, "Failed", 7)
        life.show()
        assert life.cluster.take_own_changed() == (A1,)
        await life.upkeep.look([A1])
        assert [pod.deleting for pod in life.pods()] == [True, False, True]
        for rank in (0, 2):
            await life.end(rank, "Failed", 143)
        seen = await life.seen()
        assert seen.first_failure is not None
        assert (seen.first_failure.rank, seen.first_failure.exit_code) == (1, 7)
        assert seen.cause is EndCause.USER

    play(story)


def test_a_pod_that_somebody_deletes_takes_its_gang_along_and_is_no_fault_of_the_job() -> None:
    async def story(life: Life) -> None:
        await life.executor.launch(ORDER)
        await life.server.delete(path(2))
        await life.end(2, "Failed", 143)
        life.show()
        await life.upkeep.look([A1])
        for rank in (0, 1):
            await life.end(rank, "Failed", 143)
        assert (await life.seen()).cause is EndCause.INFRASTRUCTURE

    play(story)


def test_a_pod_that_was_forced_away_with_its_finalizer_takes_its_gang_along() -> None:
    async def story(life: Life) -> None:
        await life.executor.launch(ORDER)
        life.show()
        await life.server.patch(path(2), {"metadata": {"finalizers": None}})
        await life.server.delete(path(2), {"gracePeriodSeconds": 0})
        life.show()
        await life.upkeep.look([A1])
        for rank in (0, 1):
            await life.end(rank, "Failed", 143)
        assert (await life.seen()).phase is Phase.VANISHED

    play(story)


def test_a_gang_whose_pod_does_not_start_gives_up_its_place_and_says_why() -> None:
    async def story(life: Life) -> None:
        await life.executor.launch(ORDER)
        waiting = {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}
        status = {"containerStatuses": [{"name": "main", "state": waiting}]}
        await life.server.patch(f"{path(1)}/status", {"status": status})
        for rank in (0, 2):
            await life.server.patch(f"{path(rank)}/status", {"status": {"phase": "Running"}})
        life.show()
        bound_at = await bound_late(life, 1)
        life.be_at(bound_at + 899.0)
        await life.upkeep.look([A1])
        assert not any(pod.deleting for pod in life.pods())
        life.be_at(bound_at + 901.0)
        await life.upkeep.look([A1])
        assert all(pod.deleting for pod in life.pods())
        for rank in (0, 2):
            await life.end(rank, "Failed", 143)
        await life.server.delete(path(1), {"gracePeriodSeconds": 0})
        seen = await life.seen()
        assert seen.phase is Phase.VANISHED
        assert seen.message.endswith("within 900 s: ImagePullBackOff: no such image")

    play(story)


async def bound_late(life: Life, rank: int) -> float:
    """Have it that a pod was bound an hour after it was made; when that was."""
    at = UtcSeconds(life.pods()[rank].created_at + 3600.0)
    condition = {"type": "PodScheduled", "status": "True", "lastTransitionTime": iso(at)}
    body = {"status": {"conditions": [condition]}}
    await life.server.patch(f"{path(rank)}/status", body, kind=STRATEGIC_MERGE_PATCH)
    return at


def test_the_time_to_start_counts_from_the_binding_and_is_not_asked_for_all_the_time() -> None:
    async def story(life: Life) -> None:
        await life.executor.launch(ORDER)
        bound_at = await bound_late(life, 0)
        for rank in (1, 2):
            await bound_late(life, rank)
        life.show()
        life.be_at(bound_at + 1.0)
        for _ in range(10):
            await life.upkeep.look([A1])
        assert not any(pod.deleting for pod in life.pods())
        reads = [each for each in life.fake.journal if each.verb == "get" and each.what == "pods"]
        assert len(reads) == 3

    play(story)


def test_what_runs_by_now_is_not_deleted_for_an_old_picture() -> None:
    """As after a suspension: time has gone on, and the connection is not known to be lost yet."""

    async def story(life: Life) -> None:
        await life.executor.launch(ORDER)
        life.show()
        for rank in range(3):
            await life.server.patch(f"{path(rank)}/status", {"status": {"phase": "Running"}})
        life.be_at(life.pods()[0].created_at + 3600.0)
        await life.upkeep.look([A1])
        assert not any(pod.deleting for pod in life.pods())
        for rank in range(3):
            await life.end(rank, "Succeeded", 0)
        assert "did not start" not in (await life.seen()).message

    play(story)


def test_what_starts_while_it_is_judged_is_not_deleted() -> None:
    class Slow(Binder):
        """Pauses between its look at a pod and its deletion."""

        @override
        async def leads(self, epoch: int) -> bool:
            for rank in range(3):
                await life.server.patch(f"{path(rank)}/status", {"status": {"phase": "Running"}})
            return await super().leads(epoch)

    life: Life

    async def story(playing: Life) -> None:
        nonlocal life
        life = playing
        await life.executor.launch(ORDER)
        life.show()
        life.be_at(life.pods()[0].created_at + 3600.0)
        await life.upkeep_by(Slow(life.server, life.evictor, fence=None)).look([A1])
        assert not any(pod.deleting for pod in life.pods())
        for rank in range(3):
            await life.end(rank, "Succeeded", 0)
        assert "did not start" not in (await life.seen()).message

    play(story)


@pytest.mark.parametrize("rank_1", ["Pending", "Failed"])
def test_who_was_succeeded_deletes_nothing(rank_1: str) -> None:
    async def story(life: Life) -> None:
        fence = Fence(life.server, holder="us")
        await life.server.post("/api/v1/namespaces", namespace_manifest())
        await fence.publish(ORDER.epoch + 1)
        await life.executor.launch(ORDER)
        await life.server.patch(f"{path(1)}/status", {"status": {"phase": rank_1}})
        life.show()
        life.be_at(life.pods()[0].created_at + 3600.0)
        await life.upkeep_by(Binder(life.server, life.evictor, fence=fence)).look([A1])
        assert not any(pod.deleting for pod in life.pods())
        await life.upkeep.look([A1])
        assert any(pod.deleting for pod in life.pods()), "that was for want of the lead alone"

    play(story)


def test_one_that_ran_for_too_long_is_timed_out() -> None:
    async def story(life: Life) -> None:
        await life.executor.launch(ORDER)
        for rank in range(3):
            await life.end(rank, "Failed", 143, reason="DeadlineExceeded")
        assert (await life.seen()).cause is EndCause.TIMED_OUT

    play(story)


def test_pods_stay_for_a_while_after_the_end_and_then_go() -> None:
    async def story(life: Life) -> None:
        await life.executor.launch(ORDER)
        for rank in range(3):
            await life.end(rank, "Succeeded", 0)
        await life.seen()
        life.clock.advance(10_000_000_000.0)
        await life.upkeep.look([A1])
        assert len(life.pods()) == 3, "their end is not stored yet"
        await life.executor.forget([A1])
        life.show()
        await life.upkeep.look([A1])
        assert not life.pods()

    play(story)


def test_an_order_for_a_node_that_has_left_is_refused() -> None:
    async def story(life: Life) -> None:
        life.cluster.node_gone("box", life.fake.objects(NODES)[0]["metadata"]["uid"])
        receipt = await life.executor.launch(ORDER)
        assert (receipt.outcome, receipt.message) == (
            Outcome.REFUSED,
            "node box has left the cluster",
        )

    play(story)
