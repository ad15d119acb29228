"""Reading logs may take seconds: it takes no thread from the event loop's own work."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

from support.edge import Edge

from api.logs import ranks_of, read_piece
from scheduler.model.quantity import AttemptId, DecisionId, UtcSeconds
from scheduler.model.view import AttemptView

ATTEMPT = AttemptView(
    id=AttemptId("a-1"),
    number=1,
    live=True,
    decision_id=DecisionId("d-1"),
    tasks=(),
    why="",
    created_at=UtcSeconds(0.0),
    started_at=None,
    ended_at=None,
    end_cause=None,
    exit=None,
    message="",
)


def test_logs_are_read_while_every_other_thread_is_busy(edge: Edge) -> None:
    edge.logs.text[ATTEMPT.id, 0] = b"hello"
    leave = threading.Event()

    async def story() -> None:
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(1))
        busy = loop.run_in_executor(None, leave.wait)
        try:
            async with asyncio.timeout(10):
                assert list(await ranks_of(edge.app.context, ATTEMPT.id)) == [0]
                piece = await read_piece(edge.app.context, ATTEMPT, 0, 0, 10)
        finally:
            leave.set()
            await busy
        assert piece is not None
        assert piece["data"] == "hello"

    asyncio.run(story())
