from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace

import pytest
from support.clock import ManualClock
from support.kubernetes.fake_server import ADMIN, FakeApiServer
from support.kubernetes.faults import Fault
from support.kubernetes.objects import binding, pod
from support.kubernetes.resources import PODS

from scheduler.errors import FencedError, UnreachableError
from scheduler.execution.kubernetes.binder import Binder
from scheduler.execution.kubernetes.cluster import Cluster
from scheduler.execution.kubernetes.evict import Evictor
from scheduler.execution.kubernetes.executor import KubernetesExecutor
from scheduler.execution.kubernetes.fence import Fence
from scheduler.execution.kubernetes.launching import Launching
from scheduler.execution.kubernetes.pinning import Pinner
from scheduler.execution.kubernetes.pods import pod_of
from scheduler.execution.kubernetes.server import ApiServer
from scheduler.model.execution import (
    AttemptObservation,
    LaunchOrder,
    LaunchTask,
    Outcome,
    Phase,
    Receipt,
    StopOrder,
)
from scheduler.model.job import LauncherKind
from scheduler.model.lifecycle import EndCause
from scheduler.model.quantity import AttemptId, GpuId, JobId, NodeId, TenantId

A1 = AttemptId("a1")


async def _no_sleep(_: float) -> None:
    await asyncio.sleep(0)


async def _none_launched(_: Sequence[AttemptId]) -> dict[AttemptId, frozenset[str]]:
    return {}


class Stage:
    """A fake cluster that is shown to the executor only when a test says so."""

    def __init__(self, fake: FakeApiServer, server: ApiServer, fence: Fence) -> None:
        self.fake, self.server, self.fence = fake, server, fence
        self.synced = True
        self.cluster = Cluster(told=lambda: None)
        evictor = Evictor(server, ManualClock())
        binder = Binder(server, evictor, fence=fence, sleep=_no_sleep)
        self.executor = KubernetesExecutor(
            self.cluster,
            binder,
            Pinner(server, binder, evictor, told=lambda *_: None),
            evictor,
            Launching(
                server,
                self.cluster,
                evictor,
                namespace="haversack-jobs",
                image="",
                leads=binder.leads,
            ),
            ManualClock(),
            synced=lambda: self.synced,
            launched=_none_launched,
            at_once=1,
        )
        self.shown: set[str] = set()

    def show(self) -> None:
        """What a watch would have told by now."""
        pods = [pod_of(each) for each in self.fake.objects(PODS)]
        here = {str(each.ref) for each in pods}
        for gone in self.shown - here:
            self.cluster.pod_gone(gone)
        for each in pods:
            self.cluster.pod_seen(each)
        self.shown = here

    def gang(self, size: int) -> list[str]:
        members = []
        for place in range(size):
            made = self.fake.create(pod(f"g{place}"))
            members.append(f"default/g{place}/{made['metadata']['uid']}")
        self.show()
        return members

    def bound(self) -> list[str]:
        return [
            each["metadata"]["name"]
            for each in self.fake.objects(PODS)
            if each["spec"].get("nodeName") and "deletionTimestamp" not in each["metadata"]
        ]

    async def launch(self, members: Sequence[str], *, epoch: int = 1) -> Receipt:
        return await self.executor.launch(order(members, epoch=epoch))

    async def stop(self, cause: EndCause = EndCause.CANCELLED) -> Receipt:
        return await self.executor.stop(StopOrder(A1, 1, cause, 5.0))

    async def status(self, name: str, phase: str, code: int | None = None) -> None:
        status: dict[str, object] = {"phase": phase}
        if code is not None:
            state = {"terminated": {"exitCode": code, "reason": "Error" if code else "Completed"}}
            status["containerStatuses"] = [{"name": "main", "state": state}]
        path = f"/api/v1/namespaces/default/pods/{name}/status"
        await self.server.patch(path, {"status": status})

    async def delete(self, name: str) -> None:
        path = f"/api/v1/namespaces/default/pods/{name}"
        await self.server.delete(path, {"gracePeriodSeconds": 0})

    async def seen(self) -> AttemptObservation:
        (seen,) = await self.executor.observe([A1])
        return seen

    async def phase(self) -> Phase:
        return (await self.seen()).phase


def order(members: Sequence[str], *, epoch: int = 1) -> LaunchOrder:
    tasks = tuple(
        LaunchTask(place, NodeId("n"), f"n{place}", (GpuId(f"n{place}/0"),), False, 0, member)
        for place, member in enumerate(members)
    )
    return LaunchOrder(
        attempt_id=A1,
        job_id=JobId("j1"),
        tenant=TenantId("t"),
        job_name="j",
        number=1,
        epoch=epoch,
        tasks=tasks,
        processes=1,
        command=(),
        env=(),
        launcher=LauncherKind.TORCH,
        stop_signal="TERM",
        grace_s=5.0,
    )


def played(story: Callable[[Stage], Awaitable[None]]) -> None:
    async def play() -> None:
        async with AsyncExitStack() as stack:
            fake = await stack.enter_async_context(FakeApiServer())
            server = await stack.enter_async_context(ApiServer(fake.access, sleep=_no_sleep))
            fence = Fence(server, holder="me", user=ADMIN, sleep=_no_sleep)
            await fence.ensure()
            await fence.publish(1)
            await story(Stage(fake, server, fence))

    asyncio.run(play())


def test_a_gang_is_bound_with_marks_and_runs_and_ends() -> None:
    async def story(stage: Stage) -> None:
        members = stage.gang(2)
        assert await stage.phase() is Phase.UNCLAIMED
        assert (await stage.launch(members)).outcome is Outcome.DONE
        stage.show()
        (first, _) = stage.cluster.members(A1).bound
        marks = dict(first.annotations)
        assert marks["haversack.dev/marked"] == first.ref.uid
        assert marks["haversack.dev/tasks"] == "2"
        assert marks["haversack.dev/gpus"] == "n0/0"
        assert await stage.phase() is Phase.STARTING
        assert await stage.executor.known() == (A1,)
        await stage.status("g0", "Running")
        stage.show()
        assert await stage.phase() is Phase.STARTING
        await stage.status("g1", "Running")
        stage.show()
        assert await stage.phase() is Phase.RUNNING
        await stage.status("g0", "Succeeded", 0)
        stage.show()
        assert await stage.phase() is Phase.RUNNING
        await stage.status("g1", "Failed", 7)
        stage.show()
        seen = await stage.seen()
        assert (seen.phase, seen.cause) == (Phase.EXITED, EndCause.USER)
        assert [each.exit_code for each in seen.ranks] == [0, 7]
        assert seen.first_failure == seen.ranks[1]
        await stage.executor.forget([A1])
        assert await stage.executor.known() == ()

    played(story)


def test_a_picture_that_lags_behind_our_own_bindings_is_no_loss() -> None:
    async def story(stage: Stage) -> None:
        await stage.launch(stage.gang(3))
        assert await stage.phase() is Phase.STARTING
        one = next(each for each in stage.fake.objects(PODS) if each["metadata"]["name"] == "g0")
        stage.cluster.pod_seen(pod_of(one))
        await stage.status("g0", "Succeeded", 0)
        stage.cluster.pod_seen(pod_of(stage.fake.objects(PODS)[0]))
        assert await stage.phase() is Phase.STARTING

    played(story)


def test_pods_that_were_bound_but_are_not_seen_so_are_stopped_too() -> None:
    async def story(stage: Stage) -> None:
        await stage.launch(stage.gang(2))
        assert (await stage.stop()).outcome is Outcome.DONE
        assert stage.bound() == []

    played(story)


def test_who_waits_and_was_not_launched_is_stopped_without_touching_its_pods() -> None:
    async def story(stage: Stage) -> None:
        members = stage.gang(2)
        stage.executor.resume(A1, members, whole=False)
        assert (await stage.stop()).outcome is Outcome.DONE
        assert await stage.phase() is Phase.ABSENT
        assert len(stage.fake.objects(PODS)) == 2
        assert (await stage.launch(members)).outcome is Outcome.REFUSED
        assert stage.bound() == []
        await stage.executor.forget([A1])
        assert await stage.executor.known() == ()

    played(story)


def test_a_stop_waits_until_a_launch_is_settled_which_then_undoes_itself() -> None:
    async def story(stage: Stage) -> None:
        members = stage.gang(3)
        # The first binding takes effect, the others get no answer that says anything.
        await stage.launch(members[:1])
        stage.show()
        await stage.executor.forget([A1])
        stage.fake.deny(ADMIN, "create", "pods/binding")
        assert (await stage.launch(members)).outcome is Outcome.UNKNOWN
        stage.fake.allow(ADMIN)
        assert await stage.phase() is Phase.UNCLAIMED
        receipt = await stage.stop()
        assert receipt.outcome is Outcome.UNKNOWN
        assert "under way" in receipt.message
        assert await stage.phase() is Phase.UNCLAIMED
        assert (await stage.launch(members)).outcome is Outcome.REFUSED
        assert (await stage.stop()).outcome is Outcome.DONE
        assert stage.bound() == []

    played(story)


def test_after_a_restart_a_gang_partly_bound_is_completed() -> None:
    async def story(stage: Stage) -> None:
        members = stage.gang(3)
        await stage.launch(members)
        later = Stage(stage.fake, stage.server, stage.fence)
        later.executor.resume(A1, members, whole=False)
        whole = [pod_of(each) for each in stage.fake.objects(PODS)]
        later.cluster.pod_seen(whole[0])
        for each in stage.cluster.members(A1).unbound[1:]:
            later.cluster.pod_seen(each)  # as if they had not been bound yet
        assert await later.phase() is Phase.UNCLAIMED
        assert (await later.launch(members)).outcome is Outcome.DONE
        later.show()
        assert await later.phase() is Phase.STARTING

    played(story)


def test_after_a_restart_a_running_gang_whose_pods_are_gone_has_vanished() -> None:
    async def story(stage: Stage) -> None:
        stage.executor.resume(A1, ["default/g0/gone"], whole=True)
        assert await stage.phase() is Phase.VANISHED

    played(story)


def test_a_gang_that_runs_and_loses_a_pod_goes_on_and_then_has_vanished() -> None:
    async def story(stage: Stage) -> None:
        await stage.launch(stage.gang(2))
        for name in ("g0", "g1"):
            await stage.status(name, "Running")
        stage.show()
        await stage.delete("g0")
        stage.show()
        assert await stage.phase() is Phase.RUNNING
        await stage.status("g1", "Succeeded", 0)
        stage.show()
        assert await stage.phase() is Phase.VANISHED

    played(story)


def test_a_lost_member_undoes_the_gang_and_its_room_is_ours_no_longer() -> None:
    async def story(stage: Stage) -> None:
        members = stage.gang(3)
        await stage.delete("g1")
        receipt = await stage.launch(members)
        assert receipt.outcome is Outcome.REFUSED
        assert "g1" in receipt.message
        assert stage.bound() == []

    played(story)


def test_a_stale_leader_is_told_that_it_is_fenced() -> None:
    async def story(stage: Stage) -> None:
        members = stage.gang(1)
        await Fence(stage.server, holder="next", user=ADMIN, sleep=_no_sleep).publish(2)
        with pytest.raises(FencedError):
            await stage.launch(members)
        assert stage.bound() == []

    played(story)


def test_marks_that_somebody_has_spoilt_do_not_keep_an_attempt_from_ending() -> None:
    async def story(stage: Stage) -> None:
        await stage.launch(stage.gang(2))
        spoilt = {"haversack.dev/rank": "first", "haversack.dev/tasks": "many"}
        path = "/api/v1/namespaces/default/pods/g1"
        await stage.server.patch(path, {"metadata": {"annotations": spoilt}})
        for name in ("g0", "g1"):
            await stage.status(name, "Succeeded", 0)
        stage.show()
        seen = await stage.seen()
        assert (seen.phase, seen.cause) == (Phase.EXITED, EndCause.COMPLETED)

    played(story)


def test_a_pod_that_its_node_turned_away_is_no_fault_of_the_program() -> None:
    async def story(stage: Stage) -> None:
        await stage.launch(stage.gang(1))
        await stage.status("g0", "Failed")
        stage.show()
        assert (await stage.seen()).cause is EndCause.INFRASTRUCTURE

    played(story)


def test_before_the_cluster_was_read_nothing_can_be_told() -> None:
    async def story(stage: Stage) -> None:
        stage.synced = False
        assert await stage.phase() is Phase.UNKNOWN
        assert (await stage.stop()).outcome is Outcome.UNKNOWN

    played(story)


@pytest.mark.parametrize("member", ["", "no-pod", "a/b/"])
def test_what_names_no_pod_is_refused(member: str) -> None:
    async def story(stage: Stage) -> None:
        assert (await stage.launch([member])).outcome is Outcome.REFUSED

    played(story)


def test_a_preempted_pod_is_marked_before_it_goes() -> None:
    async def story(stage: Stage) -> None:
        await stage.launch(stage.gang(1))
        await stage.status("g0", "Running")
        stage.show()
        assert (await stage.stop(EndCause.PREEMPTED)).outcome is Outcome.DONE
        (left,) = stage.fake.objects(PODS)
        conditions = {each["type"] for each in left["status"]["conditions"]}
        assert "DisruptionTarget" in conditions
        assert left["metadata"]["deletionGracePeriodSeconds"] == 30  # its own, not the order's

    played(story)


def test_who_gives_up_waiting_leaves_a_binding_that_the_next_one_finds() -> None:
    async def story(stage: Stage) -> None:
        members = stage.gang(1)
        stage.fake.faults.delay_s = 60.0
        stage.fake.faults.once(Fault.DELAY_AFTER, what="pods/binding")
        waiting = asyncio.create_task(stage.launch(members))
        async with asyncio.timeout(10):
            while not stage.bound():  # noqa: ASYNC110 - the fake tells nobody
                await asyncio.sleep(0.01)
        waiting.cancel()
        await asyncio.wait([waiting], timeout=10)
        assert waiting.cancelled()
        later = Stage(stage.fake, stage.server, stage.fence)
        assert (await later.launch(members)).outcome is Outcome.DONE

    played(story)


def test_who_is_stopped_while_it_waits_for_its_turn_is_never_bound() -> None:
    async def story(stage: Stage) -> None:
        first, second = (order([member]) for member in stage.gang(2))
        second = replace(second, attempt_id=AttemptId("a2"))
        stage.fake.faults.delay_s = 0.5
        stage.fake.faults.once(Fault.DELAY_AFTER, what="pods/binding")
        launches = [asyncio.create_task(stage.executor.launch(each)) for each in (first, second)]
        async with asyncio.timeout(10):
            while not stage.bound():  # noqa: ASYNC110 - the fake tells nobody
                await asyncio.sleep(0.01)
        stop = StopOrder(second.attempt_id, 1, EndCause.CANCELLED, 5.0)
        assert (await stage.executor.stop(stop)).outcome is Outcome.UNKNOWN
        receipts = await asyncio.gather(*launches)
        assert [receipt.outcome for receipt in receipts] == [Outcome.DONE, Outcome.REFUSED]
        assert (await stage.executor.stop(stop)).outcome is Outcome.DONE
        assert stage.bound() == ["g0"]
        assert len(stage.fake.objects(PODS)) == 2

    played(story)


def test_a_closed_executor_begins_nothing_more() -> None:
    async def story(stage: Stage) -> None:
        members = stage.gang(1)
        stage.executor.close()
        with pytest.raises(UnreachableError, match="shutting down"):
            await stage.launch(members)
        with pytest.raises(UnreachableError, match="shutting down"):
            await stage.stop()
        assert stage.bound() == []

    played(story)


def gated(stage: Stage, size: int) -> list[str]:
    """A gang that is left to kube-scheduler."""
    gates = ["haversack.dev/placement"]
    for place in range(size):
        stage.fake.create(pod(f"g{place}", scheduler="default-scheduler", gates=gates))
    stage.show()
    return [str(each.ref) for each in stage.cluster.waiting()]


async def bound_by_kube_scheduler(stage: Stage, name: str, node: str) -> None:
    # The test has the daemon's own account, whose bindings must show the epoch.
    body = binding(name, node, annotations={"haversack.dev/epoch": "1"})
    await stage.server.post(f"/api/v1/namespaces/default/pods/{name}/binding", body)


def test_a_gated_gang_is_pinned_and_starts_once_kube_scheduler_has_bound_it() -> None:
    async def story(stage: Stage) -> None:
        members = gated(stage, 2)
        receipt = await stage.launch(members)
        told = "path gate-and-pin: kube-scheduler judges it too"
        assert receipt == Receipt(Outcome.DONE, told)
        assert await stage.phase() is Phase.STARTING
        stage.show()
        assert await stage.phase() is Phase.STARTING
        assert (stage.bound(), stage.cluster.waiting()) == ([], ())
        for place in range(2):
            await bound_by_kube_scheduler(stage, f"g{place}", f"n{place}")
            await stage.status(f"g{place}", "Running")
        stage.show()
        assert await stage.phase() is Phase.RUNNING

    played(story)


def test_pins_of_a_launch_that_was_not_finished_go_with_a_stop() -> None:
    async def story(stage: Stage) -> None:
        members = gated(stage, 2)
        stage.executor.resume(A1, members, whole=False)
        stage.fake.faults.once(Fault.CUT_BEFORE, verb="patch", what="pods", skip=1, times=100)
        assert (await stage.launch(members)).outcome is Outcome.UNKNOWN
        stage.fake.faults.stop()
        stage.show()
        assert await stage.phase() is Phase.UNCLAIMED
        assert (await stage.stop()).outcome is Outcome.UNKNOWN
        stage.show()
        assert (await stage.launch(members)).outcome is Outcome.REFUSED
        assert (await stage.stop()).outcome is Outcome.DONE
        stage.show()
        # One was pinned, which nothing can undo; the other waits as before.
        assert [each.ref.name for each in stage.cluster.waiting()] == ["g1"]
        assert await stage.phase() is Phase.ABSENT

    played(story)


def test_an_attempt_that_was_given_up_says_why() -> None:
    async def story(stage: Stage) -> None:
        await stage.launch(gated(stage, 1))
        stage.show()
        stage.executor.give_up(A1, "kube-scheduler does not bind it")
        await stage.delete("g0")
        stage.show()
        seen = await stage.seen()
        assert (seen.phase, seen.message) == (Phase.VANISHED, "kube-scheduler does not bind it")

    played(story)
