from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from support.kubernetes import objects
from support.kubernetes.fake_server import FakeApiServer
from support.kubernetes.node_logs import NodeLogs
from support.kubernetes.resources import PODS

from scheduler.execution.kubernetes.cluster import Cluster
from scheduler.execution.kubernetes.pod_logs import PodLogs
from scheduler.execution.kubernetes.pods import pod_of
from scheduler.execution.kubernetes.server import ApiServer
from scheduler.model.execution import LogChunk
from scheduler.model.quantity import AttemptId

A1 = AttemptId("a-1")


class Scene:
    """One pod of rank 0 on a node that serves its log."""

    def __init__(self, fake: FakeApiServer, server: ApiServer, log: Path) -> None:
        self.fake, self.server, self.log = fake, server, log
        self.running = True
        self.cluster = Cluster(told=lambda: None)
        self.logs = self.logs_with()

    def logs_with(self, **times_s: float) -> PodLogs:
        return PodLogs(asyncio.get_running_loop(), self.server, self.cluster, **times_s)

    def status(self, phase: str) -> None:
        self.running = phase == "Running"
        target = self.fake.target("/api/v1/namespaces/default/pods/p/status")
        pod = self.fake.operations.get(target)
        status = {**pod["status"], "phase": phase}
        self.fake.operations.update(target, {**pod, "status": status})
        for each in self.fake.objects(PODS):
            self.cluster.pod_seen(pod_of(each))

    async def read(self, offset: int, limit: int = 65_536, rank: int = 0) -> LogChunk:
        return await asyncio.to_thread(self.logs.read, A1, rank, offset, limit)

    async def read_until(self, offset: int, enough: Callable[[LogChunk], bool]) -> LogChunk:
        async with asyncio.timeout(20):
            while True:
                chunk = await self.read(offset)
                if enough(chunk):
                    return chunk
                await asyncio.sleep(0.01)

    def asked(self) -> int:
        """Streams that are over."""
        return sum(each.what == "pods/log" for each in self.fake.journal)


def play(folder: Path, story: Callable[[Scene], Awaitable[None]]) -> None:
    log = folder / "main.log"

    async def acting() -> None:
        async with AsyncExitStack() as stack:
            fake = await stack.enter_async_context(FakeApiServer())
            server = await stack.enter_async_context(ApiServer(fake.access))
            scene = Scene(fake, server, log)
            node_logs = await stack.enter_async_context(
                NodeLogs(
                    folder,
                    lambda _namespace, _name: log if log.exists() else None,
                    lambda _namespace, _name: scene.running,
                )
            )
            node = objects.node("n1")
            node["status"] |= node_logs.status
            fake.create(node)
            uid = fake.create(objects.pod("p"))["metadata"]["uid"]
            marks = {"haversack.dev/marked": uid, "haversack.dev/attempt": A1}
            await server.post(
                "/api/v1/namespaces/default/pods/p/binding",
                objects.binding("p", "n1", annotations=marks),
            )
            try:
                await story(scene)
            finally:
                await scene.logs.close()

    asyncio.run(acting())


def test_a_pod_that_has_not_started_has_no_log(tmp_path: Path) -> None:
    async def story(scene: Scene) -> None:
        scene.status("Pending")
        assert list(scene.logs.ranks(A1)) == []
        with pytest.raises(LookupError, match="rank 0"):
            await scene.read(0)
        scene.status("Running")
        assert list(scene.logs.ranks(A1)) == [0]
        with pytest.raises(LookupError, match="waiting to start"):
            await scene.read(0)
        with pytest.raises(ValueError, match="offset -1"):
            await scene.read(-1)

    play(tmp_path, story)


def test_whoever_reads_on_gets_what_is_new_over_the_same_stream(tmp_path: Path) -> None:
    async def story(scene: Scene) -> None:
        scene.log.write_bytes(b"one\ntwo\n")
        scene.status("Running")
        assert await scene.read(0, 4) == LogChunk(0, 0, 4, b"one\n", end=False)
        assert await scene.read(4) == LogChunk(0, 4, 8, b"two\n", end=False)
        assert (await scene.read(8)).data == b""
        with scene.log.open("ab") as log:
            log.write(b"three\n")
        chunk = await scene.read_until(8, lambda chunk: bool(chunk.data))
        assert chunk == LogChunk(0, 8, 14, b"three\n", end=False)
        assert scene.asked() == 0, "the stream is still open"
        scene.status("Succeeded")
        chunk = await scene.read_until(14, lambda chunk: chunk.end)
        assert (chunk.data, chunk.next_offset) == (b"", 14)

    play(tmp_path, story)


def test_readers_at_different_places_do_not_disturb_each_other(tmp_path: Path) -> None:
    async def story(scene: Scene) -> None:
        scene.log.write_bytes(b"0123456789")
        scene.status("Running")
        found = await asyncio.gather(*(scene.read(at, 2) for at in (0, 4, 4, 8)))
        assert [chunk.data for chunk in found] == [b"01", b"45", b"45", b"89"]
        assert (await scene.read(10)).data == b""
        assert (await scene.read(6, 9)).data == b"6789"

    play(tmp_path, story)


def test_a_long_log_of_a_pod_that_is_over_comes_whole(tmp_path: Path) -> None:
    whole = b"".join(b"%07d\n" % number for number in range(120_000))

    async def story(scene: Scene) -> None:
        scene.log.write_bytes(whole)
        scene.status("Failed")
        read, ended = b"", False
        while not ended:
            chunk = await scene.read(len(read), 262_144)
            assert chunk.offset == len(read)
            read += chunk.data
            ended = chunk.end
        assert read == whole
        assert (await scene.read(len(whole) + 5)).data == b""

    play(tmp_path, story)


def test_a_pod_that_is_gone_has_no_log(tmp_path: Path) -> None:
    async def story(scene: Scene) -> None:
        scene.log.write_bytes(b"x")
        scene.status("Succeeded")
        await scene.server.delete("/api/v1/namespaces/default/pods/p")
        with pytest.raises(LookupError, match="not found"):
            await scene.read(0)

    play(tmp_path, story)


async def closed(scene: Scene, count: int) -> None:
    async with asyncio.timeout(20):
        while True:
            if scene.asked() == count:
                return
            await asyncio.sleep(0.01)


def test_a_pod_that_never_pauses_is_read_piece_by_piece(tmp_path: Path) -> None:
    async def story(scene: Scene) -> None:
        async def chat() -> None:
            with scene.log.open("ab", buffering=0) as log:
                while True:
                    log.write(b"tick\n")
                    await asyncio.sleep(0.02)

        scene.log.write_bytes(b"begin\n")
        scene.status("Running")
        chatting = asyncio.create_task(chat())
        try:
            first = await scene.read(0)
            assert first.data.startswith(b"begin\n")
            assert first.next_offset < 65_536
            second = await scene.read_until(first.next_offset, lambda chunk: bool(chunk.data))
            assert b"tick\n" in second.data
            assert scene.asked() == 0, "it is one stream"
        finally:
            chatting.cancel()

    play(tmp_path, story)


def test_a_stream_is_closed_when_its_reader_gives_up(tmp_path: Path) -> None:
    async def story(scene: Scene) -> None:
        scene.log.write_bytes(b"")
        scene.status("Running")
        scene.logs = scene.logs_with(read_s=0.5)  # it waits longer for a first byte
        assert (await scene.read(0)).data == b""
        await closed(scene, 1)
        assert scene.running

    play(tmp_path, story)


def test_a_stream_that_nobody_reads_on_is_closed_in_time(tmp_path: Path) -> None:
    async def story(scene: Scene) -> None:
        scene.log.write_bytes(b"one\n")
        scene.status("Running")
        scene.logs = scene.logs_with(idle_s=0.1)
        assert (await scene.read(0, 4)).data == b"one\n"
        await closed(scene, 1)
        assert scene.running
        assert (await scene.read(0, 4)).data == b"one\n", "who comes later begins anew"

    play(tmp_path, story)
