"""What a replica answers while another leads: that it lives, and who leads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from starlette.types import ASGIApp, Receive, Scope, Send

from api.dependencies import Json
from api.middleware import HostCheck, RequestContext, send_problem
from api.problems import problem_of
from api.routes.health import VERSION
from api.schemas import HealthOut, ReadyOut
from scheduler.clock import Clock
from scheduler.errors import NotLeaderError
from scheduler.ids import IdSource
from scheduler.observability import Metrics
from scheduler.settings import ApiSettings


@dataclass(frozen=True, slots=True)
class Standing:
    """How things are while we stand by.

    Attributes:
        leader: who leads; "" while nobody does, which is when we take over.
        trouble: why we could not take over now; "" if we could.
    """

    leader: str = ""
    trouble: str = ""


def standby_app(
    api: ApiSettings, clock: Clock, ids: IdSource, standing: Callable[[], Standing]
) -> ASGIApp:
    """The application of a replica that stands by.

    Probes are answered to anybody: it is ready when it could take over, so that a rollout goes on.
    Everything else is refused with the problem `not-leader`, before anybody is asked who they are.

    Args:
        api: whose names are served.
        clock: for the durations of requests.
        ids: makes request ids.
        standing: asked at each request.
    """

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
        elif scope["type"] == "http":
            await _answer(scope, receive, send, standing())

    # What is counted here nobody could ask for: /metrics is the leader's.
    return RequestContext(HostCheck(app, api), clock, ids, Metrics())


async def _answer(scope: Scope, receive: Receive, send: Send, now: Standing) -> None:
    if scope["path"] == "/healthz":
        alive: HealthOut = {"status": "ok", "version": VERSION}
        await Json(alive)(scope, receive, send)
    elif scope["path"] == "/readyz":
        ready: ReadyOut = {
            "ready": not now.trouble,
            "role": "standby",
            "troubles": {"store": now.trouble} if now.trouble else {},
            "warnings": {},
        }
        await Json(ready, status_code=503 if now.trouble else 200)(scope, receive, send)
    else:
        await send_problem(scope, send, problem_of(_refusal(now)))


def _refusal(now: Standing) -> NotLeaderError:
    if not now.leader:
        return NotLeaderError("this replica is taking over", hint="try again in a moment")
    return NotLeaderError(
        f"this replica stands by: {now.leader} leads",
        hint="ask that one, or the Service, which reaches whoever leads",
    )


async def _lifespan(receive: Receive, send: Send) -> None:
    """Nothing is to be started or stopped."""
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
