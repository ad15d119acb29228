import asyncio
import threading

import pytest

from scheduler.execution.blocking import OnThreads


def test_calls_run_beside_the_loop_and_each_other() -> None:
    blocking = OnThreads(2, "test")
    meet = threading.Barrier(2, timeout=30)

    def call(number: int, *, factor: int) -> tuple[int, str]:
        meet.wait()  # passes only if both run at once
        return number * factor, threading.current_thread().name

    async def both() -> tuple[tuple[int, str], tuple[int, str]]:
        return await asyncio.gather(
            blocking.run(call, 1, factor=10), blocking.run(call, 2, factor=10)
        )

    answers = asyncio.run(both())
    blocking.close()
    assert [value for value, _ in answers] == [10, 20]
    assert all(name.startswith("test") for _, name in answers)


def test_what_a_call_raises_goes_to_its_caller() -> None:
    def fail() -> None:
        raise OSError("no")

    blocking = OnThreads(1, "test")
    with pytest.raises(OSError, match="no"):
        asyncio.run(blocking.run(fail))
    blocking.close()
