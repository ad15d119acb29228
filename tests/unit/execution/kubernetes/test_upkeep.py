"""Upkeep of jobs of our own: what is broken, late or over is ended, and nothing else is."""

from __future__ import annotations

import pytest
from support.kubernetes.own_jobs import A1, ORDER, Life, path, play
from typing_extensions import override

from scheduler.clock import iso
from scheduler.execution.kubernetes.binder import Binder
from scheduler.execution.kubernetes.fence import Fence, namespace_manifest
from scheduler.execution.kubernetes.server import STRATEGIC_MERGE_PATCH
from scheduler.model.execution import Phase
from scheduler.model.lifecycle import EndCause
from scheduler.model.quantity import UtcSeconds


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
