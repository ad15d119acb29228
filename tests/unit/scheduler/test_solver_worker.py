from __future__ import annotations

import io
from collections.abc import Iterator

import pytest
from support.clusters import NOW, make_job, make_node, shape

from scheduler.decide import decide
from scheduler.model.plan import Plan
from scheduler.model.ports import Effort, Profile
from scheduler.model.quantity import UtcSeconds
from scheduler.model.snapshot import Snapshot, SnapshotDelta
from scheduler.solver_protocol import (
    FRAME_BYTES_MAX,
    HEADER,
    Candidate,
    Decide,
    Done,
    Failed,
    Feed,
    FromWorker,
    ProtocolError,
    Ready,
    ToWorker,
    body_bytes,
    frame,
    message_of,
)
from scheduler.solver_worker import Worker, decider_named

NODE = make_node("a")
JOB = make_job("x", shape(2))
FULL = SnapshotDelta(0, 5, nodes=(NODE,), waiting=(JOB,))
ASK = Decide(3, "priority-age", Effort(), NOW, 0)


def said(output: io.BytesIO) -> list[ToWorker | FromWorker]:
    output.seek(0)
    found = []
    while header := output.read(HEADER.size):
        found.append(message_of(output.read(body_bytes(header))))
    return found


def test_a_fed_worker_sends_candidates_then_done() -> None:
    output = io.BytesIO()
    worker = Worker(decide, output)
    worker.handle(Feed(FULL))
    worker.handle(ASK)
    first, *_, last = said(output)
    assert isinstance(first, Candidate)
    assert first.plan.snapshot_revision == 5
    assert [placement.job_id for placement in first.plan.placements] == [JOB.id]
    assert last == Done(3)


def test_deltas_change_what_is_decided_on() -> None:
    output = io.BytesIO()
    worker = Worker(decide, output)
    worker.handle(Feed(FULL))
    worker.handle(Feed(SnapshotDelta(5, 6, waiting_gone=(JOB.id,))))
    worker.handle(ASK)
    (candidate, done) = said(output)
    assert isinstance(candidate, Candidate)
    assert (candidate.plan.snapshot_revision, candidate.plan.placements) == (6, ())
    assert done == Done(3)


def test_a_delta_that_does_not_follow_is_an_error() -> None:
    with pytest.raises(ValueError, match="delta starts at revision 4"):
        Worker(decide, io.BytesIO()).handle(Feed(SnapshotDelta(4, 5)))


def test_a_defect_is_told_after_what_was_found() -> None:
    def broken(
        snapshot: Snapshot, profile: Profile, effort: Effort, now: UtcSeconds, seed: int
    ) -> Iterator[Plan]:
        yield Plan(snapshot.revision)
        raise ZeroDivisionError("by design")

    output = io.BytesIO()
    Worker(broken, output).handle(ASK)
    assert said(output) == [Candidate(3, Plan(0)), Failed(3, "ZeroDivisionError: by design")]


def test_an_unknown_policy_is_told() -> None:
    output = io.BytesIO()
    Worker(decide, output).handle(Decide(1, "lottery", Effort(), NOW, 0))
    (failed,) = said(output)
    assert isinstance(failed, Failed)
    assert "lottery" in failed.message


def test_frames_that_are_not_ours_are_refused() -> None:
    with pytest.raises(ProtocolError, match="unreadable"):
        message_of(b"not a pickle")
    with pytest.raises(ProtocolError, match="int"):
        message_of(b"\x80\x04K\x01.")
    with pytest.raises(ProtocolError, match="bytes"):
        body_bytes(HEADER.pack(FRAME_BYTES_MAX + 1))
    with pytest.raises(ProtocolError, match="a worker got a Ready"):
        Worker(decide, io.BytesIO()).handle(Ready())
    assert message_of(frame(Feed(FULL))[HEADER.size :]) == Feed(FULL)


def test_deciders_are_named_by_module_and_function() -> None:
    assert decider_named("scheduler.decide:decide") is decide
    with pytest.raises(AttributeError):
        decider_named("scheduler.decide:nothing")
