"""The API behind a real server and a real socket, called by our own client."""

from __future__ import annotations

import http.client
import socket
from collections.abc import Iterator

import pytest
from support.builders import job_spec, node
from support.clock import ManualClock
from support.edge import JOB, Edge, edge_over, serving
from support.usecases import actor

from api.client import Client
from scheduler import service
from scheduler.errors import UnreachableError
from scheduler.model.lifecycle import JobState
from scheduler.store.database import Database


@pytest.fixture
def edge(sqlite_database: Database, clock: ManualClock) -> Edge:
    made = edge_over(sqlite_database, clock)
    made.office.nodes(node("n0", 4))
    return made


@pytest.fixture
def port(edge: Edge) -> Iterator[int]:
    """The port of a server that runs `edge`."""
    with serving(edge) as address:
        yield int(address.rpartition(":")[2])


def test_submit_follow_and_events_over_a_socket(edge: Edge, port: int) -> None:
    with Client(f"http://127.0.0.1:{port}", edge.token()) as client:
        made = client.submit(JOB)
        placed = edge.office.submit(spec=job_spec(gpus=1))
        edge.office.bring_to(placed.id, JobState.FAILED, node("n0", 4))
        [attempt] = edge.office.read(lambda tx: service.job_attempts(tx, actor(), placed.id))
        edge.logs.text[attempt.id, 0] = b"hello\n"
        records = list(client.follow_logs(placed.id))
        assert [record.get("data") for record in records] == ["hello\n", None]
        assert records[-1]["state"] == "FAILED"
        assert records[-1]["exit_code"] == 3
        for event in client.events(since=0):
            if event["object_id"] == made["id"]:
                break


def test_nobody_there_is_unreachable_with_the_address() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        free = taken.getsockname()[1]
    client = Client(f"http://127.0.0.1:{free}", "hvs_x")
    with pytest.raises(UnreachableError, match=f"127.0.0.1:{free}"):
        client.health()


def test_a_body_streamed_without_a_length_is_cut_off_at_the_bound(edge: Edge, port: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request(
        "POST",
        "/api/v1/jobs",
        body=(b"y" * 65_536 for _ in range(40)),
        headers={"Authorization": f"Bearer {edge.token()}", "Content-Type": "application/json"},
        encode_chunked=True,
    )
    assert connection.getresponse().status == 413
    connection.close()
