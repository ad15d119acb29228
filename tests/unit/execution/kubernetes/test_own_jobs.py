"""Jobs of our own under the executor: made, bound, ended, forgotten; and dying in between."""

from __future__ import annotations

import asyncio
import contextlib
from contextlib import AsyncExitStack

import pytest
from support.execution import stop_order
from support.kubernetes import objects
from support.kubernetes.fake_server import ADMIN, FakeApiServer
from support.kubernetes.faults import Fault
from support.kubernetes.own_jobs import A1, ORDER, Life, no_sleep, path, play, services
from support.kubernetes.resources import NODES
from support.kubernetes.storage import Change

from scheduler.errors import FencedError
from scheduler.execution.kubernetes.launching import Launching
from scheduler.execution.kubernetes.server import ApiServer
from scheduler.model.execution import Outcome, Phase
from scheduler.model.lifecycle import EndCause


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
            server = await stack.enter_async_context(ApiServer(fake.access, sleep=no_sleep))
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


def test_an_order_for_a_node_that_has_left_is_refused() -> None:
    async def story(life: Life) -> None:
        life.cluster.node_gone("box", life.fake.objects(NODES)[0]["metadata"]["uid"])
        receipt = await life.executor.launch(ORDER)
        assert (receipt.outcome, receipt.message) == (
            Outcome.REFUSED,
            "node box has left the cluster",
        )

    play(story)
