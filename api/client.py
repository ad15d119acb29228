"""The typed HTTP client: what the CLI and scripts use. One method per route, errors as ours.

Every method raises `UnreachableError` when no daemon answers, and otherwise the error of
`scheduler.errors` that the daemon's problem+json stands for, with its message, hint and field
problems. Answers are the wire types of `api.schemas`.
"""

from __future__ import annotations

import json
import ssl
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self, cast
from urllib.parse import quote

import httpx

from api.problems import error_of
from api.schemas import (
    AuditOut,
    DecisionDetailOut,
    DecisionOut,
    EventOut,
    ExplanationOut,
    GpuOut,
    HealthOut,
    HistoryOut,
    JobDetailOut,
    JobOut,
    LogOut,
    LogsOut,
    NewTokenOut,
    NodeOut,
    PageOut,
    PodOut,
    QueueOut,
    ReadyOut,
    SessionOut,
    SubmittedOut,
    TenantOut,
    TokenOut,
)
from scheduler.errors import HaversackError, UnreachableError

API = "/api/v1"
RECONNECT_PAUSE_S = 0.5
RECONNECT_WITHIN_S = 60.0
"""How long a broken stream is tried again before the follower gives up and says so."""
_HTTP_ERRORS_FROM = 400
_SERVICE_UNAVAILABLE = 503

Json = dict[str, Any]


def _path(*parts: str) -> str:
    return "/".join((API, *(quote(part, safe=":") for part in parts)))


def _present(**params: object) -> dict[str, Any]:
    """Query parameters that were given."""
    return {name: value for name, value in params.items() if value not in (None, (), "")}


class Client:
    """A connection to one daemon. Use it as a context manager, or call `close`.

    Args:
        address: base URL, for example `http://127.0.0.1:8470`.
        token: bearer token; empty for the public routes only.
        tenant: tenant to act for (principals of the system tenant only).
        timeout_s: for one request; streams have no end but expect a heartbeat within 45 s.
        transport: replaces the network, for tests.
        verify: whose certificates to trust; True for the public ones that httpx brings.
    """

    def __init__(
        self,
        address: str,
        token: str,
        *,
        tenant: str | None = None,
        timeout_s: float = 30.0,
        transport: httpx.BaseTransport | None = None,
        verify: ssl.SSLContext | bool = True,
    ) -> None:
        self.address = address.rstrip("/")
        headers = {"Accept": "application/json", "User-Agent": "haversack-client"}
        if token:
            headers["Authorization"] = f"Bearer {token}"
        if tenant is not None:
            headers["X-Haversack-Tenant"] = tenant
        self._http = httpx.Client(
            base_url=self.address,
            headers=headers,
            timeout=timeout_s,
            transport=transport,
            verify=verify,
            trust_env=False,  # a proxy from the environment must never see the token
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    # -- jobs ---------------------------------------------------------------------------------

    def submit(
        self,
        document: str | bytes | Mapping[str, object],
        *,
        idempotency_key: str | None = None,
        dry_run: bool = False,
    ) -> SubmittedOut:
        """Submit a job document (JSON text, or a mapping)."""
        body = json.dumps(document) if isinstance(document, Mapping) else document
        headers = {"Content-Type": "application/json"}
        if idempotency_key is not None:
            headers["Idempotency-Key"] = idempotency_key
        answer = self._call(
            "POST",
            _path("jobs"),
            content=body if isinstance(body, bytes) else body.encode(),
            headers=headers,
            params={"dryRun": "true"} if dry_run else {},
        )
        return cast("SubmittedOut", answer)

    def jobs(
        self,
        *,
        states: Sequence[str] = (),
        queue: str | None = None,
        name: str | None = None,
        tenant: str | None = None,
        pod: str | None = None,
        sort: str | None = None,
        limit: int = 100,
        cursor: str | None = None,
    ) -> PageOut[JobOut]:
        """One page of jobs, newest first unless `sort` says otherwise.

        `pod` is `namespace/name` of one: the jobs that have or had it.
        """
        params = _present(
            state=",".join(states),
            queue=queue,
            name=name,
            tenant=tenant,
            pod=pod,
            sort=sort,
            limit=limit,
            cursor=cursor,
        )
        return cast("PageOut[JobOut]", self._call("GET", _path("jobs"), params=params))

    def all_jobs(
        self,
        *,
        states: Sequence[str] = (),
        queue: str | None = None,
        name: str | None = None,
        tenant: str | None = None,
        pod: str | None = None,
        sort: str | None = None,
    ) -> Iterator[JobOut]:
        """Every job, page by page."""
        cursor = None
        while True:
            page = self.jobs(
                states=states,
                queue=queue,
                name=name,
                tenant=tenant,
                pod=pod,
                sort=sort,
                limit=500,
                cursor=cursor,
            )
            yield from page["items"]
            cursor = page["next_cursor"]
            if cursor is None:
                return

    def job(self, job_id: str) -> JobDetailOut:
        """One job with its attempts and document."""
        return cast("JobDetailOut", self._call("GET", _path("jobs", job_id)))

    def history(self, job_id: str) -> list[HistoryOut]:
        """Every move of a job, oldest first."""
        return cast("list[HistoryOut]", self._items(_path("jobs", job_id, "history")))

    def explain(self, job_id: str) -> ExplanationOut:
        """Why the job stands where it stands."""
        return cast("ExplanationOut", self._call("GET", _path("jobs", job_id, "explain")))

    def pod(self, namespace: str, name: str) -> PodOut:
        """A pod that waits outside every job, and why."""
        return cast("PodOut", self._call("GET", _path("pods", namespace, name)))

    def cancel(self, job_id: str, *, if_match: int | None = None) -> JobOut:
        """Cancel a job; cancelling it again changes nothing."""
        return self._job_verb(job_id, "cancel", if_match)

    def hold(self, job_id: str, *, if_match: int | None = None) -> JobOut:
        """Keep a waiting job from starting."""
        return self._job_verb(job_id, "hold", if_match)

    def release(self, job_id: str, *, if_match: int | None = None) -> JobOut:
        """Let a held or quarantined job wait for its turn again."""
        return self._job_verb(job_id, "release", if_match)

    def requeue(self, job_id: str, *, if_match: int | None = None) -> JobOut:
        """Send a job back to the queue."""
        return self._job_verb(job_id, "requeue", if_match)

    def logs(
        self,
        job_id: str,
        *,
        rank: int = 0,
        offset: int = 0,
        limit: int = 65_536,
        attempt: int | None = None,
    ) -> LogOut:
        """A piece of one rank's log, from byte `offset`."""
        params = _present(rank=rank, offset=offset, limit=limit, attempt=attempt)
        return cast("LogOut", self._call("GET", _path("jobs", job_id, "logs"), params=params))

    def all_logs(self, job_id: str, *, limit: int = 65_536, attempt: int | None = None) -> LogsOut:
        """The first `limit` bytes of every rank's log."""
        params = _present(rank="all", limit=limit, attempt=attempt)
        return cast("LogsOut", self._call("GET", _path("jobs", job_id, "logs"), params=params))

    def follow_logs(
        self,
        job_id: str,
        *,
        rank: int | str = 0,
        offset: int = 0,
        attempt: int | None = None,
    ) -> Iterator[Json]:
        """Records of a job's log until the job has ended; survives a restart of the daemon.

        Yields:
            chunks (`LogOut`), `{"attempt": n}` when the job went on with another attempt (only if
            no `attempt` was asked for), and at the very end a record with `end`, `state`,
            `exit_code`, `end_cause` and `message`. A stream that breaks without that record is
            taken up again where it stopped.

        Raises:
            UnreachableError: the daemon stayed away for a minute.
        """
        offsets = {} if rank == "all" or offset == 0 else {int(rank): offset}
        last_news = time.monotonic()
        at_attempt = None
        while True:
            params = _present(
                rank=rank,
                follow="true",
                attempt=attempt,
                from_attempt=None if attempt is not None else at_attempt,
                offsets=",".join(f"{r}:{at}" for r, at in sorted(offsets.items())),
            )
            try:
                for record in self._stream_lines(_path("jobs", job_id, "logs"), params):
                    last_news = time.monotonic()
                    if "next_offset" in record:
                        offsets[record["rank"]] = record["next_offset"]
                        at_attempt = record["attempt"]
                    elif "attempt" in record:
                        at_attempt, offsets = record["attempt"], {}
                    yield record
                    if record.get("end") is True and "state" in record:
                        return
            except UnreachableError:
                if time.monotonic() - last_news > RECONNECT_WITHIN_S:
                    raise
            time.sleep(RECONNECT_PAUSE_S)

    # -- cluster ------------------------------------------------------------------------------

    def queues(self) -> list[QueueOut]:
        """Queues with their counts."""
        return cast("list[QueueOut]", self._items(_path("queues")))

    def nodes(self) -> list[NodeOut]:
        """Every node."""
        return cast("list[NodeOut]", self._items(_path("nodes")))

    def node(self, node: str) -> NodeOut:
        """One node, by id or name."""
        return cast("NodeOut", self._call("GET", _path("nodes", node)))

    def cordon_node(self, node: str, *, cordoned: bool, if_match: int | None = None) -> NodeOut:
        """Stop (or allow again) placing new work on a node."""
        answer = self._verb(_path("nodes", f"{node}:cordon"), {"cordoned": cordoned}, if_match)
        return cast("NodeOut", answer)

    def gpus(self) -> list[GpuOut]:
        """Every GPU and who holds it."""
        return cast("list[GpuOut]", self._items(_path("gpus")))

    def gpu(self, gpu_id: str) -> GpuOut:
        """One GPU."""
        return cast("GpuOut", self._call("GET", _path("gpus", gpu_id)))

    def cordon_gpu(self, gpu_id: str, *, cordoned: bool, if_match: int | None = None) -> GpuOut:
        """Stop (or allow again) placing new work on a GPU."""
        answer = self._verb(_path("gpus", f"{gpu_id}:cordon"), {"cordoned": cordoned}, if_match)
        return cast("GpuOut", answer)

    def decisions(self, *, limit: int = 20, cursor: str | None = None) -> PageOut[DecisionOut]:
        """What cycles decided, newest first."""
        params = _present(limit=limit, cursor=cursor)
        return cast("PageOut[DecisionOut]", self._call("GET", _path("decisions"), params=params))

    def decision(self, decision_id: str) -> DecisionDetailOut:
        """One decision with its document."""
        return cast("DecisionDetailOut", self._call("GET", _path("decisions", decision_id)))

    def events(self, *, since: int | None = None) -> Iterator[EventOut]:
        """Committed changes as they happen, after revision `since` (default: from now on).

        Endless; takes a broken stream up again after the last event seen.

        Raises:
            UnreachableError: the daemon stayed away for a minute.
        """
        last_news = time.monotonic()
        while True:
            try:
                for event in self._stream_events(since):
                    last_news = time.monotonic()
                    since = event["revision"]
                    yield event
            except UnreachableError:
                if time.monotonic() - last_news > RECONNECT_WITHIN_S:
                    raise
            time.sleep(RECONNECT_PAUSE_S)

    # -- administration -----------------------------------------------------------------------

    def tokens(self) -> list[TokenOut]:
        """Tokens, without their secrets."""
        return cast("list[TokenOut]", self._items(_path("tokens")))

    def create_token(
        self,
        name: str,
        role: str,
        *,
        tenant: str | None = None,
        description: str = "",
        expires_in_s: float | None = None,
        read_only: bool = False,
    ) -> NewTokenOut:
        """Issue a token for the principal `name`; the only answer that shows its text."""
        body = {
            "name": name,
            "role": role,
            "tenant": tenant,
            "description": description,
            "expires_in_s": expires_in_s,
            "read_only": read_only,
        }
        return cast("NewTokenOut", self._call("POST", _path("tokens"), json=body))

    def revoke_token(self, token_id: str) -> TokenOut:
        """Make a token worthless."""
        return cast("TokenOut", self._verb(_path("tokens", f"{token_id}:revoke"), None, None))

    def tenants(self) -> list[TenantOut]:
        """Every tenant."""
        return cast("list[TenantOut]", self._items(_path("tenants")))

    def create_tenant(self, name: str) -> TenantOut:
        """Add a tenant with its default queue."""
        return cast("TenantOut", self._call("POST", _path("tenants"), json={"name": name}))

    def audit(self, *, limit: int = 100, cursor: str | None = None) -> PageOut[AuditOut]:
        """Who changed what, and what was denied; newest first."""
        params = _present(limit=limit, cursor=cursor)
        return cast("PageOut[AuditOut]", self._call("GET", _path("audit"), params=params))

    def session(self) -> SessionOut:
        """A one-time link that opens the dashboard in a browser."""
        return cast("SessionOut", self._call("POST", _path("sessions")))

    def health(self) -> HealthOut:
        """Whether the process answers, and its version."""
        return cast("HealthOut", self._call("GET", "/healthz"))

    def ready(self) -> ReadyOut:
        """Whether every part works; answers also when the daemon is not ready."""
        response = self._send("GET", "/readyz")
        if response.status_code not in (httpx.codes.OK, _SERVICE_UNAVAILABLE):
            raise self._error(response)
        return cast("ReadyOut", response.json())

    def job_schema(self) -> Json:
        """JSON Schema of the job file."""
        return self._call("GET", _path("schemas", "job"))

    # -- how ----------------------------------------------------------------------------------

    def _job_verb(self, job_id: str, verb: str, if_match: int | None) -> JobOut:
        return cast("JobOut", self._verb(_path("jobs", f"{job_id}:{verb}"), None, if_match))

    def _verb(self, path: str, body: Json | None, if_match: int | None) -> Json:
        headers = {} if if_match is None else {"If-Match": f'"{if_match}"'}
        return self._call("POST", path, json=body, headers=headers)

    def _items(self, path: str) -> list[Json]:
        return cast("list[Json]", self._call("GET", path)["items"])

    def _call(self, method: str, path: str, **options: Any) -> Json:
        response = self._send(method, path, **options)
        if response.status_code >= _HTTP_ERRORS_FROM:
            raise self._error(response)
        return cast("Json", response.json())

    def _send(self, method: str, path: str, **options: Any) -> httpx.Response:
        try:
            return self._http.request(method, path, **options)
        except httpx.TransportError as error:
            raise self._unreachable(error) from error

    def _unreachable(self, error: httpx.TransportError) -> UnreachableError:
        return UnreachableError(
            f"no daemon answers at {self.address}: {str(error) or type(error).__name__}",
            hint="start one with `haversack up`, or name another address with --server",
        )

    def _error(self, response: httpx.Response) -> HaversackError:
        return error_of(response.status_code, response.content, response.headers)

    def _stream(self, path: str, params: Json, accept: str) -> Iterator[str]:
        """Lines of a streamed answer; ends quietly where the connection ends."""
        timeout = httpx.Timeout(45.0, connect=10.0)
        try:
            with self._http.stream(
                "GET", path, params=params, headers={"Accept": accept}, timeout=timeout
            ) as response:
                if response.status_code >= _HTTP_ERRORS_FROM:
                    response.read()
                    if response.status_code == _SERVICE_UNAVAILABLE:
                        raise UnreachableError(f"{self.address} is not serving streams now")
                    raise self._error(response)
                yield from response.iter_lines()
        except httpx.TransportError as error:
            raise self._unreachable(error) from error

    def _stream_lines(self, path: str, params: Json) -> Iterator[Json]:
        for line in self._stream(path, params, "application/x-ndjson"):
            if line:  # an empty line is a heartbeat
                yield cast("Json", json.loads(line))

    def _stream_events(self, since: int | None) -> Iterator[EventOut]:
        params = _present(since=since)
        for line in self._stream(_path("events"), params, "text/event-stream"):
            if line.startswith("data:"):
                yield cast("EventOut", json.loads(line[5:]))
