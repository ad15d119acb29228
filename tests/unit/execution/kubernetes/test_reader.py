from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress

import numpy as np
import orjson
import pytest
from aiohttp import web
from support.kubernetes.fake_server import FakeApiServer
from support.kubernetes.faults import Fault, Faults
from support.kubernetes.objects import pod
from support.kubernetes.resources import PODS

from scheduler.execution.kubernetes.access import Access
from scheduler.execution.kubernetes.reader import Pace, Reader
from scheduler.execution.kubernetes.server import ApiServer, Document

PATH = "/api/v1/namespaces/default/pods"
SOON_S = 20.0


class Seen:
    """One pod as the tests keep it."""

    def __init__(self, raw: Document) -> None:
        metadata = raw["metadata"]
        self.key = f"{metadata['namespace']}/{metadata['name']}/{metadata['uid']}"
        self.name = str(metadata["name"])
        self.version = int(metadata["resourceVersion"])


class Books:
    """A sink that keeps objects and a story, and checks that no object ever goes back."""

    def __init__(self) -> None:
        self.objects: dict[str, Seen] = {}
        self.story: list[tuple[str, str]] = []
        self.gone: set[str] = set()
        self._news = asyncio.Event()

    def replaced(self, objects: Mapping[str, Seen]) -> None:
        assert not self.story, "told as a whole once, at first"
        self.objects = dict(objects)
        self.story.append(("replaced", " ".join(sorted(one.name for one in objects.values()))))
        self._news.set()

    def changed(self, seen: Seen) -> None:
        assert seen.key not in self.gone, "an object came back from the dead"
        before = self.objects.get(seen.key)
        assert before is None or before.version < seen.version
        self.objects[seen.key] = seen
        self.story.append(("changed", seen.name))
        self._news.set()

    def deleted(self, key: str) -> None:
        self.story.append(("deleted", self.objects.pop(key).name))
        self.gone.add(key)
        self._news.set()

    async def until(self, holds: Callable[[], bool]) -> None:
        """Wait for news until something holds."""
        async with asyncio.timeout(SOON_S):
            while not holds():
                self._news.clear()
                await self._news.wait()

    def agrees(self, fake: FakeApiServer) -> bool:
        """Whether it holds exactly what the server holds."""
        truth = {one.key: one.version for one in map(Seen, fake.objects(PODS))}
        return {key: seen.version for key, seen in self.objects.items()} == truth


class Naps:
    """Counts backoffs instead of waiting them out."""

    def __init__(self) -> None:
        self.taken: list[float] = []
        self.many = asyncio.Event()

    async def __call__(self, seconds: float) -> None:
        self.taken.append(seconds)
        if len(self.taken) >= 12:
            self.many.set()
        await asyncio.sleep(0.001)


def make(server: ApiServer, books: Books, **more: object) -> Reader[Seen]:
    reader: Reader[Seen] = Reader(
        server,
        PATH,
        Seen,
        books,
        sleep=Naps(),
        jitter=np.random.Generator(np.random.PCG64(1)),
        **more,  # type: ignore[arg-type] # a pace, a query
    )
    return reader


@asynccontextmanager
async def running(reader: Reader[Seen]) -> AsyncIterator[None]:
    task = asyncio.create_task(reader.run())
    try:
        yield
        assert not task.done(), "nothing ends a reader"
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def change(fake: FakeApiServer, name: str) -> Document:
    target = fake._registry.target(f"{PATH}/{name}")
    kind = "application/merge-patch+json"
    body = {"metadata": {"labels": {"turn": str(fake.version)}}}
    changed: Document = fake.operations.patch(target, kind, body, dry=False)
    return changed


def remove(fake: FakeApiServer, name: str) -> None:
    target = fake._registry.target(f"{PATH}/{name}")
    fake.operations.delete(target, {"gracePeriodSeconds": 0}, dry=False)


@pytest.mark.parametrize("streamed", [True, False])
def test_the_first_picture_then_each_change(*, streamed: bool) -> None:
    async def play() -> None:
        books = Books()
        async with FakeApiServer() as fake, ApiServer(fake.access) as server:
            for place in range(5):
                fake.create(pod(f"p{place}"))
            reader = make(server, books, pace=Pace(page=2))
            reader._streams_lists = streamed
            async with running(reader):
                await reader.synced.wait()
                assert books.story == [("replaced", "p0 p1 p2 p3 p4")]
                fake.create(pod("p5"))
                change(fake, "p1")
                remove(fake, "p0")
                await books.until(lambda: books.agrees(fake))
                assert books.story[1:] == [
                    ("changed", "p5"),
                    ("changed", "p1"),
                    ("changed", "p0"),  # its deletion has begun
                    ("deleted", "p0"),
                ]
                assert reader.age_s < SOON_S
                assert reader.trouble == ""
        watches = [each for each in fake.journal if each.verb == "watch"]
        assert len([each for each in fake.journal if each.verb == "list"]) == (0 if streamed else 3)
        assert len(watches) == (2 if streamed else 1)

    asyncio.run(play())


def test_an_empty_cluster_is_a_picture_too() -> None:
    async def play() -> None:
        books = Books()
        async with FakeApiServer() as fake, ApiServer(fake.access) as server:
            reader = make(server, books)
            assert reader.age_s == float("inf")
            async with running(reader):
                await reader.synced.wait()
                assert books.story == [("replaced", "")]
                fake.create(pod("p"))
                await books.until(lambda: books.agrees(fake))

    asyncio.run(play())


@pytest.mark.parametrize(
    "fault",
    [
        Fault.WATCH_GONE,
        Fault.WATCH_EXPIRED,
        Fault.WATCH_CUT,
        Fault.WATCH_ENDED,
        Fault.WATCH_SILENT,
        Fault.EVENT_TWICE,
        Fault.EVENT_REPLAYED,
        Fault.EVENTS_SWAPPED,
    ],
)
def test_no_fault_of_a_watch_loses_a_change(fault: Fault) -> None:
    async def play() -> None:
        books = Books()
        async with FakeApiServer() as fake, ApiServer(fake.access) as server:
            for place in range(4):
                fake.create(pod(f"p{place}"))
            reader = make(server, books, pace=Pace(silence_s=0.3))
            async with running(reader):
                await reader.synced.wait()
                fake.faults.once(fault, times=3)
                for turn in range(6):
                    change(fake, f"p{turn % 2}")
                    await asyncio.sleep(0.01)
                fake.end_watches()
                remove(fake, "p3")
                fake.create(pod("p9"))
                change(fake, "p2")
                await books.until(lambda: books.agrees(fake))
        assert fake.faults.total > 0

    asyncio.run(play())


def test_what_was_deleted_while_the_version_expired_is_told() -> None:
    async def play() -> None:
        books = Books()
        async with FakeApiServer() as fake, ApiServer(fake.access) as server:
            for name in ("stays", "goes", "again"):
                fake.create(pod(name))
            reader = make(server, books)
            async with running(reader):
                await reader.synced.wait()
                # All in one breath: the reader finds a server that has forgotten the past.
                fake.cut_watches()
                remove(fake, "goes")
                remove(fake, "again")
                fake.create(pod("again"))
                fake.compact()
                await books.until(lambda: books.agrees(fake))
            told = books.story[1:]
            assert sorted(told[:2]) == [("deleted", "again"), ("deleted", "goes")]
            assert told[2:] == [("changed", "again")], "what stays is not told again"

    asyncio.run(play())


def test_lost_events_are_healed_by_a_new_list() -> None:
    async def play() -> None:
        books = Books()
        async with FakeApiServer() as fake, ApiServer(fake.access) as server:
            fake.create(pod("p"))
            fake.create(pod("q"))
            reader = make(server, books, pace=Pace(relist_s=0.5))
            async with running(reader):
                await reader.synced.wait()
                fake.faults.once(Fault.EVENT_SWALLOWED, times=2)
                remove(fake, "p")
                change(fake, "q")
                await books.until(lambda: books.agrees(fake))
        assert fake.faults.total == 2

    asyncio.run(play())


def test_watches_that_end_as_asked_on_a_quiet_cluster_are_no_trouble() -> None:
    async def play() -> None:
        books, naps = Books(), Naps()
        async with FakeApiServer() as fake, ApiServer(fake.access) as server:
            reader: Reader[Seen] = Reader(
                server, PATH, Seen, books, pace=Pace(relist_s=1.0), sleep=naps
            )
            async with running(reader):
                async with asyncio.timeout(SOON_S):
                    while len(naps.taken) < 4:  # noqa: ASYNC110 - a nap tells nobody
                        await asyncio.sleep(0.05)
        assert max(naps.taken) <= 0.1, "else lists come later and later"

    asyncio.run(play())


def test_a_bookmark_moves_the_version_and_tells_nothing() -> None:
    async def play() -> None:
        books = Books()
        async with FakeApiServer(bookmark_every_s=0.05) as fake, ApiServer(fake.access) as server:
            reader = make(server, books)
            async with running(reader):
                await reader.synced.wait()
                fake.create({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}})
                async with asyncio.timeout(SOON_S):
                    while reader._version != str(fake.version):  # noqa: ASYNC110 - tells nobody
                        await asyncio.sleep(0.01)
                assert books.story == [("replaced", "")]

    asyncio.run(play())


def test_a_version_from_the_future_does_not_hang_for_ever() -> None:
    async def play() -> None:
        books = Books()
        async with FakeApiServer() as fake, ApiServer(fake.access) as server:
            fake.create(pod("p"))
            reader = make(server, books, pace=Pace(silence_s=0.1))
            async with running(reader):
                await reader.synced.wait()
                # As after a restore of etcd from a backup: our version lies ahead of all.
                reader._version, reader._version_number = "999999999", 999_999_999
                fake.cut_watches()
                remove(fake, "p")
                await books.until(lambda: books.agrees(fake))

    asyncio.run(play())


@pytest.mark.parametrize("verb", ["list", "watch"])
def test_a_list_of_the_past_is_not_believed(verb: str) -> None:
    async def play() -> None:
        books = Books()
        async with FakeApiServer() as fake, ApiServer(fake.access) as server:
            for name in "pqr":
                fake.create(pod(name))
            reader = make(server, books)
            async with running(reader):
                await reader.synced.wait()
                remove(fake, "q")
                await books.until(lambda: books.agrees(fake))
                # The watch expires, and so does the streamed list where a paged one is wanted.
                fake.faults.once(Fault.WATCH_EXPIRED, times=2 if verb == "list" else 1)
                fake.faults.once(Fault.LIST_STALE, verb=verb)
                fake.cut_watches()
                fake.create(pod("s"))
                await books.until(lambda: books.agrees(fake))
        assert fake.faults.counts[Fault.LIST_STALE] == 1

    asyncio.run(play())


def test_an_object_that_cannot_be_read_blinds_nobody() -> None:
    class PickyError(Exception):
        pass

    def project(raw: Document) -> Seen | None:
        if raw["metadata"].get("labels", {}).get("turn"):
            raise PickyError
        return None if raw["metadata"]["name"].startswith("x") else Seen(raw)

    async def play() -> None:
        books = Books()
        async with FakeApiServer() as fake, ApiServer(fake.access) as server:
            for name in ("p", "q", "x"):
                fake.create(pod(name))
            change(fake, "q")
            reader: Reader[Seen] = Reader(server, PATH, project, books, sleep=Naps())
            async with running(reader):
                await reader.synced.wait()
                assert books.story == [("replaced", "p")]
                change(fake, "p")
                change(fake, "x")
                fake.create(pod("r"))
                await books.until(lambda: ("changed", "r") in books.story)
                assert len(books.objects) == 2, "p stays as it was last understood"
                names = {key.split("/")[1] for key in reader.unreadable}
                assert names == {"p", "q", "x"}
                reader._version = ""
                fake.cut_watches()
                fake.create(pod("s"))
                await books.until(lambda: ("changed", "s") in books.story)
                assert not books.gone

    asyncio.run(play())


def test_an_object_that_is_no_longer_of_interest_is_gone() -> None:
    def project(raw: Document) -> Seen | None:
        return None if raw["metadata"].get("labels", {}).get("turn") else Seen(raw)

    async def play() -> None:
        books = Books()
        async with FakeApiServer() as fake, ApiServer(fake.access) as server:
            fake.create(pod("p"))
            reader: Reader[Seen] = Reader(server, PATH, project, books, sleep=Naps())
            async with running(reader):
                await reader.synced.wait()
                change(fake, "p")
                await books.until(lambda: ("deleted", "p") in books.story)

    asyncio.run(play())


def test_rotated_credentials_do_not_end_it() -> None:
    async def play() -> None:
        books = Books()
        async with FakeApiServer() as fake:
            tokens = [fake.access_as("old"), fake.access_as("new")]
            held = iter([access.headers()["Authorization"] for access in tokens])
            access = Access(fake.access.base_url, renew=lambda _refused: next(held))
            async with ApiServer(access) as server:
                reader = make(server, books)
                async with running(reader):
                    await reader.synced.wait()
                    fake.revoke("old")
                    fake.cut_watches()
                    fake.create(pod("p"))
                    await books.until(lambda: books.agrees(fake))

    asyncio.run(play())


def test_backoffs_grow_to_half_a_minute() -> None:
    async def play() -> None:
        naps = Naps()
        access = Access("http://127.0.0.1:9")  # the discard port: nobody listens
        async with ApiServer(access) as server:
            reader: Reader[Seen] = Reader(server, PATH, Seen, Books(), sleep=naps)
            async with running(reader):
                await asyncio.wait_for(naps.many.wait(), SOON_S)
                assert "no API server answers" in reader.trouble
                assert not reader.synced.is_set()
        first, *later = naps.taken
        assert first < 0.8
        assert 0.8 <= later[0] <= 1.2
        assert all(0.8 <= nap <= 30.0 for nap in later)
        assert later[-1] == 30.0

    asyncio.run(play())


class OldServer:
    """Lists in pages, streams no lists, and sheds its first watches."""

    def __init__(self) -> None:
        self.shed = 2
        self.asked: list[dict[str, str]] = []

    async def answer(self, request: web.Request) -> web.StreamResponse:
        query = dict(request.query)
        self.asked.append(query)
        if "sendInitialEvents" in query:
            return web.json_response({"kind": "Status", "code": 422}, status=422)
        if "watch" not in query:
            number = int(query.get("continue") or 0)
            metadata = {"resourceVersion": "50", "continue": "" if number else "1"}
            return web.json_response({"metadata": metadata, "items": [_raw(f"p{number}", 3)]})
        if self.shed:
            self.shed -= 1
            return web.Response(status=429, headers={"Retry-After": "17"})
        response = web.StreamResponse()
        await response.prepare(request)
        for kind, raw in (
            ("MODIFIED", _raw("p0", 3)),  # older than the list
            ("ADDED", _raw("dead", 49)),  # older than the list, which does not know it
            ("DELETED", _raw("p1", 51)),
            ("MODIFIED", _raw("p1", 50)),  # after its own end
            ("MODIFIED", _raw("p0", 52)),
        ):
            await response.write(orjson.dumps({"type": kind, "object": raw}) + b"\n")
        await response.write(b"this is no event\n")
        await asyncio.sleep(60)
        return response


def _raw(name: str, version: int) -> Document:
    metadata = {"namespace": "default", "name": name, "uid": f"u-{name}"}
    return {"metadata": {**metadata, "resourceVersion": str(version)}}


def test_an_old_server_and_old_events() -> None:
    async def play() -> None:
        old, books, naps = OldServer(), Books(), Naps()
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", old.answer)
        runner = web.AppRunner(app, access_log=None, handler_cancellation=True)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0][:2]
        try:
            async with ApiServer(Access(f"http://{host}:{port}")) as server:
                reader: Reader[Seen] = Reader(server, PATH, Seen, books, sleep=naps)
                async with running(reader):
                    await books.until(lambda: ("changed", "p0") in books.story)
        finally:
            await runner.cleanup()
        assert books.story == [("replaced", "p0 p1"), ("deleted", "p1"), ("changed", "p0")]
        watches = [query for query in old.asked if "watch" in query and len(query) < 6]
        assert {query["resourceVersion"] for query in watches[:3]} == {"50"}
        assert min(naps.taken[:2]) >= 17.0

    asyncio.run(play())


def test_a_hundred_faults_by_chance() -> None:
    async def play() -> None:
        books = Books()
        chances = dict.fromkeys((fault for fault in Fault if fault.name != "WATCH_SILENT"), 0.03)
        faults = Faults(seed=7, chances=chances, limit=100, delay_s=0.01)
        dice = np.random.Generator(np.random.PCG64(7))
        async with FakeApiServer(faults=faults) as fake, ApiServer(fake.access) as server:
            for place in range(20):
                fake.create(pod(f"p{place}"))
            reader = make(server, books, pace=Pace(relist_s=1.0, silence_s=2.0))
            async with running(reader):
                made = 20
                while faults.total < 100:
                    names = [one["metadata"]["name"] for one in fake.objects(PODS)]
                    name = names[int(dice.integers(len(names)))]
                    if dice.random() < 0.2:
                        remove(fake, name)
                        fake.create(pod(f"p{made}"))
                        made += 1
                    else:
                        change(fake, name)
                    await asyncio.sleep(0.002)
                await books.until(lambda: books.agrees(fake))

    asyncio.run(play())
