from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from support.kubernetes.fake_server import FakeApiServer
from support.kubernetes.faults import Fault
from support.kubernetes.objects import disruption_budget, node, pod

from scheduler.errors import HaversackError, UnreachableError
from scheduler.execution.kubernetes.access import Access
from scheduler.execution.kubernetes.server import (
    ApiServer,
    Lane,
    LaneLimit,
    Limits,
    OutcomeUnknownError,
    RejectedError,
    TooBusyError,
)

PODS = "/api/v1/namespaces/default/pods"
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Naps:
    """Counts sleeps instead of sleeping."""

    def __init__(self) -> None:
        self.taken: list[float] = []

    async def __call__(self, seconds: float) -> None:
        self.taken.append(seconds)
        await asyncio.sleep(0)


@asynccontextmanager
async def served(handler: Handler) -> AsyncIterator[str]:
    """The URL of a server with one handler."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    try:
        yield f"http://{host}:{port}"
    finally:
        await runner.cleanup()


def test_the_verbs_of_an_object_s_life() -> None:
    async def play() -> None:
        async with FakeApiServer() as fake, ApiServer(fake.access) as server:
            made = await server.post("/api/v1/nodes", node("n1"))
            assert (await server.get("/api/v1/nodes/n1"))["metadata"]["uid"] == (
                made["metadata"]["uid"]
            )
            changed = await server.patch("/api/v1/nodes/n1", {"metadata": {"labels": {"a": "b"}}})
            assert changed["metadata"]["labels"]["a"] == "b"
            changed["spec"]["unschedulable"] = True
            assert (await server.put("/api/v1/nodes/n1", changed))["spec"]["unschedulable"]
            with pytest.raises(RejectedError) as stale:
                await server.put("/api/v1/nodes/n1", changed)
            assert stale.value.conflict
            assert [
                one["metadata"]["name"] for one in (await server.list("/api/v1/nodes"))["items"]
            ]
            await server.delete("/api/v1/nodes/n1", {"gracePeriodSeconds": 0})
            with pytest.raises(RejectedError) as gone:
                await server.get("/api/v1/nodes/n1")
            assert gone.value.missing
            assert gone.value.reason == "NotFound"

    asyncio.run(play())


def test_refusals_say_what_they_are() -> None:
    async def play() -> None:
        async with FakeApiServer() as fake:
            access = fake.access_as("eve")
            fake.deny("eve", "create", "pods")
            async with ApiServer(access) as server:
                with pytest.raises(RejectedError) as forbidden:
                    await server.post(PODS, pod("p"))
                with pytest.raises(RejectedError) as invalid:
                    await server.post("/api/v1/nodes", node("Not A Name"))
            assert forbidden.value.forbidden
            assert "eve" in str(forbidden.value)
            assert invalid.value.invalid

    asyncio.run(play())


def test_a_busy_server_is_asked_again_when_it_says_so() -> None:
    async def play() -> None:
        naps = Naps()
        async with FakeApiServer() as fake, ApiServer(fake.access, sleep=naps) as server:
            fake.faults.retry_after_s = 7
            fake.faults.once(Fault.BUSY, verb="create", times=2)
            await server.post(PODS, pod("p"))
            assert naps.taken == [7.0, 7.0]
            fake.faults.once(Fault.BUSY, verb="create", times=100)
            with pytest.raises(TooBusyError) as busy:
                await server.post(PODS, pod("q"))
            assert busy.value.retry_after_s == 7.0
            assert len(naps.taken) == 2 + Limits().busy_tries - 1

    asyncio.run(play())


def test_a_budget_s_429_is_a_refusal_and_not_repeated() -> None:
    async def play() -> None:
        naps = Naps()
        async with FakeApiServer() as fake, ApiServer(fake.access, sleep=naps) as server:
            fake.create(disruption_budget("b", {"app": "x"}))
            fake.create(pod("p", labels={"app": "x"}))
            await server.patch(f"{PODS}/p/status", {"status": {"phase": "Running"}})
            body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "p"}}
            with pytest.raises(RejectedError) as blocked:
                await server.post(f"{PODS}/p/eviction", body)
            assert blocked.value.status == 429
            assert naps.taken == []

    asyncio.run(play())


@pytest.mark.parametrize(
    ("fault", "done"),
    [
        (Fault.REPLY_LOST, True),
        (Fault.ERROR_AFTER, True),
        (Fault.UNAVAILABLE_AFTER, True),
        (Fault.CUT_BEFORE, False),
        (Fault.ERROR_BEFORE, False),
        (Fault.UNAVAILABLE_BEFORE, False),
    ],
)
def test_what_nobody_knows_is_told_as_unknown_and_not_repeated(fault: Fault, *, done: bool) -> None:
    async def play() -> None:
        async with FakeApiServer() as fake, ApiServer(fake.access) as server:
            fake.faults.once(fault, verb="create")
            with pytest.raises(OutcomeUnknownError):
                await server.post(PODS, pod("p"))
            found = (await server.list(PODS))["items"]
            assert bool(found) is done
            assert sum(each.verb == "create" for each in fake.journal) == 1

    asyncio.run(play())


def test_a_reply_that_is_late_is_unknown() -> None:
    async def play() -> None:
        async with (
            FakeApiServer() as fake,
            ApiServer(fake.access, Limits(reply_s=0.05)) as server,
        ):
            fake.faults.delay_s = 30.0
            fake.faults.once(Fault.DELAY_BEFORE, verb="create")
            with pytest.raises(OutcomeUnknownError):
                await server.post(PODS, pod("p"))

    asyncio.run(play())


@pytest.mark.parametrize("body", [b"<html>", b"[]", b""])
def test_a_reply_that_is_no_object_is_unknown(body: bytes) -> None:
    async def answer(_: web.Request) -> web.Response:
        return web.Response(body=body, content_type="application/json")

    async def play() -> None:
        async with served(answer) as url, ApiServer(Access(url)) as server:
            with pytest.raises(OutcomeUnknownError):
                await server.get("/x")

    asyncio.run(play())


def test_where_nobody_listens_nothing_was_done() -> None:
    async def answer(_: web.Request) -> web.Response:
        return web.Response()

    async def play() -> None:
        async with served(answer) as url:
            pass
        async with ApiServer(Access(url)) as server:
            with pytest.raises(UnreachableError, match=url):
                await server.post("/x", {})

    asyncio.run(play())


def test_refused_credentials_are_read_again_once() -> None:
    tokens = iter(["Bearer old", "Bearer new", "Bearer newer"])
    asked: list[bool] = []

    def renew(refused: bool) -> str:  # noqa: FBT001 - the shape of `Renew`
        asked.append(refused)
        return next(tokens)

    good = {"Bearer new"}
    seen: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        seen.append(request.headers["Authorization"])
        ok = seen[-1] in good
        return web.json_response({"kind": "Status"}, status=200 if ok else 401)

    async def play() -> None:
        async with served(answer) as url, ApiServer(Access(url, renew=renew)) as server:
            await server.post("/x", {})
            assert seen == ["Bearer old", "Bearer new"]
            good.clear()
            with pytest.raises(RejectedError) as refused:
                await server.post("/x", {})
            assert refused.value.status == 401
            assert seen[2:] == ["Bearer new", "Bearer newer"]
            assert asked == [False, True, True]

    asyncio.run(play())


def test_many_refused_requests_renew_once() -> None:
    asked: list[bool] = []

    def renew(refused: bool) -> str:  # noqa: FBT001 - the shape of `Renew`
        asked.append(refused)
        return f"Bearer {len(asked)}"

    async def answer(request: web.Request) -> web.Response:
        ok = request.headers["Authorization"] == "Bearer 2"
        return web.json_response({}, status=200 if ok else 401)

    async def play() -> None:
        async with served(answer) as url, ApiServer(Access(url, renew=renew)) as server:
            await asyncio.gather(*(server.get("/x") for _ in range(8)))

    asyncio.run(play())
    assert asked == [False, True]


def test_a_lane_bounds_what_is_under_way_and_holds_up_no_other() -> None:
    now, most = 0, 0
    free, full = asyncio.Event(), asyncio.Event()

    async def answer(request: web.Request) -> web.Response:
        nonlocal now, most
        if request.method == "POST":
            now += 1
            most = max(most, now)
            if now == 3:
                full.set()
            await free.wait()
            now -= 1
        return web.json_response({})

    async def play() -> None:
        slow = LaneLimit(in_flight=3, per_s=1e6, burst=10)
        limits = Limits(lanes=dict.fromkeys(Lane, slow))
        async with served(answer) as url, ApiServer(Access(url), limits) as server:
            writes = [asyncio.create_task(server.post("/x", {})) for _ in range(10)]
            await full.wait()
            await server.get("/y")
            free.set()
            await asyncio.gather(*writes)
        assert most == 3

    asyncio.run(play())


def test_a_lane_holds_its_rate() -> None:
    async def answer(_: web.Request) -> web.Response:
        return web.json_response({})

    async def play() -> float:
        limits = Limits(lanes={Lane.READ: LaneLimit(in_flight=8, per_s=100.0, burst=5)})
        async with served(answer) as url, ApiServer(Access(url), limits) as server:
            began_s = asyncio.get_running_loop().time()
            await asyncio.gather(*(server.get("/x") for _ in range(15)))
            return asyncio.get_running_loop().time() - began_s

    # Five at once, then ten at 100 a second: never faster, however slow the machine.
    assert asyncio.run(play()) >= 0.09


def test_replies_are_told_for_metrics() -> None:
    told: list[tuple[str, Lane, int]] = []

    async def play() -> None:
        async with (
            FakeApiServer() as fake,
            ApiServer(fake.access, answered=lambda *one: told.append(one[:3])) as server,
        ):
            await server.get("/api/v1/namespaces/default")
            fake.faults.once(Fault.REPLY_LOST, verb="create")
            with pytest.raises(OutcomeUnknownError):
                await server.post(PODS, pod("p"), lane=Lane.BIND)

    asyncio.run(play())
    assert told == [("GET", Lane.READ, 200), ("POST", Lane.BIND, 0)]


def test_lines_come_whole_however_they_are_cut() -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for part in (b'{"a":', b"1}\n{}\n", b"\n" + b"x" * 300_000, b"\n", b"half a li"):
            await response.write(part)
            await asyncio.sleep(0.01)
        assert request.transport is not None
        request.transport.abort()
        return response

    lines, error = asyncio.run(_lines_of(answer, silence_s=5))
    assert lines == [b'{"a":1}', b"{}", b"x" * 300_000]
    assert isinstance(error, OutcomeUnknownError)


def test_a_silent_stream_is_given_up() -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"one\n")
        await asyncio.sleep(60)
        return response

    lines, error = asyncio.run(_lines_of(answer, silence_s=0.05))
    assert lines == [b"one"]
    assert isinstance(error, OutcomeUnknownError)


async def _lines_of(
    handler: Handler, silence_s: float
) -> tuple[list[bytes], HaversackError | None]:
    """The lines that came, and what ended them."""
    lines = []
    async with served(handler) as url, ApiServer(Access(url)) as server:
        try:
            async for line in server.lines("/x", {}, silence_s=silence_s):
                lines.append(line)  # noqa: PERF401 - what came before the end must be kept
        except HaversackError as error:
            return lines, error
    return lines, None
