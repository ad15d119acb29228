"""An API server in this process: real HTTP on loopback, kube-apiserver's rules, injected faults.

The same contract tests run against it and against a real kube-apiserver, which is the judge
(`tests/integration/kubernetes/test_api_contract.py`). It knows no server-side apply, no managed
fields, no CEL beyond the fence, and no controllers: like a bare API server it collects no garbage.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self, TypeVar

from aiohttp import web
from support.kubernetes.discovery import discovered
from support.kubernetes.faults import LIST_FAULTS, REQUEST_FAULTS, Deed, Fault, Faults
from support.kubernetes.loops import LoopThread, loop_thread
from support.kubernetes.node_logs import asked_node
from support.kubernetes.operations import Operations
from support.kubernetes.refusals import (
    Json,
    RefusedError,
    conflict,
    expired,
    forbidden,
    internal,
    too_many,
    unauthorized,
    unavailable,
)
from support.kubernetes.resources import (
    ACCESS_REVIEWS,
    BUILTIN,
    NODES,
    SELF_REVIEWS,
    THIRD_PARTY,
    Registry,
    Resource,
    Target,
)
from support.kubernetes.selectors import selection
from support.kubernetes.storage import Change, Signal, Storage
from support.kubernetes.watching import StreamCutError, Watch, WatchOptions
from support.kubernetes.wire import (
    body_of,
    checked_kind,
    cut,
    deed_of,
    json_response,
    query_options,
    selection_of,
)

from scheduler.clock import Clock, SystemClock
from scheduler.execution.kubernetes.access import Access

ADMIN = "haversack-admin"
_ADMIN_TOKEN = "admin-token"
_NAMESPACES = ("default", "kube-system", "kube-public", "kube-node-lease")
_HEALTH = ("/livez", "/readyz", "/healthz")
_JOURNAL_LENGTH = 100_000
_RULE_OF_ALL = "*"

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Request:
    """One request as the journal keeps it.

    Attributes:
        verb: as RBAC names it (`list`, `watch`, `patch`).
        what: plural, and the subresource after a slash.
        name: of the object; empty for a collection.
        user: who asked.
        status: HTTP status; 0 when the connection was cut instead.
    """

    verb: str
    what: str
    name: str
    user: str
    status: int


class FakeApiServer:
    """The server; `async with` runs it in the present loop.

    Args:
        resources: types that it serves.
        faults: what goes wrong; nothing by default.
        clock: for creation and deletion times.
        bookmark_every_s: period of bookmarks in watches.

    Attributes:
        faults: change what goes wrong while it runs.
        operations: the verbs without HTTP, to arrange a test quickly.
        journal: the last requests, oldest first.
    """

    def __init__(
        self,
        *,
        resources: Iterable[Resource] = (*BUILTIN, *THIRD_PARTY),
        faults: Faults | None = None,
        clock: Clock | None = None,
        bookmark_every_s: float = 60.0,
    ) -> None:
        self.faults = faults or Faults()
        self.journal: deque[Request] = deque(maxlen=_JOURNAL_LENGTH)
        self._registry = Registry(resources)
        self._storage = Storage()
        self.operations = Operations(self._registry, self._storage, (clock or SystemClock()).now)
        self._bookmark_every_s = bookmark_every_s
        self._users = {_ADMIN_TOKEN: ADMIN}
        self._denied: set[tuple[str, str, str]] = set()
        self._url = ""
        self._runner: web.AppRunner | None = None
        for name in _NAMESPACES:
            self.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})

    async def __aenter__(self) -> Self:
        app = web.Application(client_max_size=2**24)
        app.router.add_route("*", "/{path:.*}", self._answer)
        # A watcher that leaves ends its handler.
        runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0][:2]
        self._runner, self._url = runner, f"http://{host}:{port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._runner is not None
        self._storage.signal(Signal.CUT)
        # Who has just connected, or has not read its answer yet, would keep its connection open
        # beyond the loop's end: nobody is let in any more, then all are sent away.
        for site in tuple(self._runner.sites):
            await site.stop()
        await _turns()
        server = self._runner.server
        open_ones = [each.transport for each in server.connections] if server is not None else []
        await self._runner.cleanup()
        self._runner = None
        for transport in open_ones:
            if transport is not None:
                transport.abort()
        await _turns()

    # What a test arranges and looks at; call it in the server's own loop.

    @property
    def access(self) -> Access:
        """Its address, with an administrator's token."""
        return self.access_as(ADMIN)

    def access_as(self, user: str) -> Access:
        """Its address, with a token of some user."""
        token = _ADMIN_TOKEN if user == ADMIN else f"token-of-{user}"
        self._users[token] = user
        return Access(self._url, token=token)

    def revoke(self, user: str) -> None:
        """Answer 401 to a user from now on."""
        self._users = {token: one for token, one in self._users.items() if one != user}

    def deny(self, user: str, verb: str, what: str) -> None:
        """Answer 403 to some requests of a user; `*` stands for every verb or thing."""
        self._denied.add((user, verb, what))

    def allow(self, user: str) -> None:
        """Deny a user nothing any more."""
        self._denied = {rule for rule in self._denied if rule[0] != user}

    def create(self, document: Json) -> Json:
        """Store a new object as an administrator would; its namespace defaults to `default`."""
        resource = self._registry.of_kind(document["apiVersion"], document["kind"])
        namespace = document["metadata"].get("namespace", "default")
        target = Target(resource, namespace if resource.namespaced else "")
        return self.operations.create(target, document)

    def stock(self, document: Json) -> None:
        """Store an object as it is, unchecked: one that has been there for long."""
        metadata = document["metadata"]
        resource = self._registry.of_kind(document["apiVersion"], document["kind"])
        key = metadata.get("namespace", ""), metadata["name"]
        self._storage.put(resource.shelf, key, document)

    def target(self, path: str) -> Target:
        """What a request path names, for `operations`.

        Raises:
            RefusedError: nothing that is served.
        """
        return self._registry.target(path)

    def objects(self, resource: Resource) -> list[Json]:
        """All objects of a type, by namespace and name."""
        return self._storage.shelf(resource.shelf).listed(selection(resource, "", "", ""))

    @property
    def version(self) -> int:
        """resourceVersion of the last write."""
        return self._storage.version

    @property
    def watching(self) -> int:
        """Open watches."""
        return self._storage.watching()

    def compact(self) -> None:
        """Forget the past: older versions are 410 from now on."""
        self.operations.compact()

    def bookmark(self) -> None:
        """Send a bookmark now to every watch that allows them."""
        self._storage.signal(Signal.BOOKMARK)

    def end_watches(self) -> None:
        """End all watches in good order, as a server does that restarts or balances its load."""
        self._storage.signal(Signal.END)

    def cut_watches(self) -> None:
        """Cut the connections of all watches."""
        self._storage.signal(Signal.CUT)

    def witness(self, witness: Callable[[Change], None]) -> None:
        """Tell somebody of every write that is accepted, in order."""
        self._storage.witnesses.append(witness)

    # HTTP.

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        user, deed, name, status = "", Deed("", "", ""), "", 0
        try:
            user = self._user(request)
            if request.path in _HEALTH:
                status = 200
                return web.Response(text="ok")
            known = discovered(self._registry, request.path)
            if known is not None:
                status = 200
                return json_response(200, known)
            target = self._registry.target(request.path)
            deed, name = deed_of(request, target, user), target.name
            self._check_rights(deed, target)
            response = await self._with_faults(request, target, deed)
            status = response.status
        except RefusedError as refusal:
            status = refusal.code
            response = json_response(status, refusal.status())
            if refusal.retry_after_s is not None:
                response.headers["Retry-After"] = str(refusal.retry_after_s)
        finally:
            if request.transport is None or request.transport.is_closing():
                status = 0
            self.journal.append(Request(deed.verb, deed.what, name, user, status))
        return response

    def _user(self, request: web.Request) -> str:
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if token not in self._users:
            raise unauthorized()
        return self._users[token]

    def _check_rights(self, deed: Deed, target: Target) -> None:
        if not self._may(deed):
            where = f' in the namespace "{target.namespace}"' if target.namespace else ""
            why = (
                f'User "{deed.user}" cannot {deed.verb} resource "{deed.what}" in API group '
                f'"{target.resource.group}"{where}'
            )
            raise forbidden(target.resource.qualified, target.name, why)

    def _may(self, deed: Deed) -> bool:
        wanted = [(deed.verb, deed.what), (_RULE_OF_ALL, deed.what), (deed.verb, _RULE_OF_ALL)]
        return not any((deed.user, *rule) in self._denied for rule in wanted)

    async def _with_faults(
        self, request: web.Request, target: Target, deed: Deed
    ) -> web.StreamResponse:
        if deed.verb == "watch":
            if self.faults.strikes(deed, (Fault.WATCH_GONE,)):
                raise expired("too old resource version")
            return await self._watch(request, target, deed)
        if target.subresource == "log":
            pod = self.operations.get(target)
            nodes = {node["metadata"]["name"]: node for node in self.objects(NODES)}
            return await asked_node(request, pod, nodes.get(pod["spec"].get("nodeName", "")))
        fault = self.faults.strikes(deed, REQUEST_FAULTS)
        await self._before(fault, request, target)
        response = await self._carry_out(request, target, deed)
        match fault:
            case Fault.REPLY_LOST:
                cut(request)
            case Fault.ERROR_AFTER:
                raise internal("Internal error occurred: injected after the work")
            case Fault.UNAVAILABLE_AFTER:
                raise unavailable()
            case Fault.TIMED_OUT:
                raise RefusedError(504, "Timeout", "request did not complete in time")
            case Fault.DELAY_AFTER:
                await asyncio.sleep(self.faults.delay_s)
            case _:
                pass
        return response

    async def _before(self, fault: Fault | None, request: web.Request, target: Target) -> None:
        """The faults that come before any work."""
        match fault:
            case Fault.BUSY:
                message = "Too many requests, please try again later."
                raise too_many(message, retry_after_s=self.faults.retry_after_s)
            case Fault.ERROR_BEFORE:
                raise internal("Internal error occurred: injected before the work")
            case Fault.UNAVAILABLE_BEFORE:
                raise unavailable()
            case Fault.CONFLICT:
                raise conflict(target.resource.qualified, target.name)
            case Fault.CUT_BEFORE:
                cut(request)
                raise internal("nobody hears this")
            case Fault.DELAY_BEFORE:
                await asyncio.sleep(self.faults.delay_s)
            case _:
                pass

    async def _carry_out(self, request: web.Request, target: Target, deed: Deed) -> web.Response:
        if deed.verb in ("create", "update"):
            return await self._store(request, target, deed)
        query, run, resource = dict(request.query), self.operations, target.resource
        dry = query.get("dryRun") == "All"
        match deed.verb:
            case "get":
                body = run.get(target)
            case "list":
                stale_by = self.faults.stale_by if self.faults.strikes(deed, LIST_FAULTS) else 0
                chosen = selection_of(target, query)
                body = run.list(resource, chosen, query, stale_by=stale_by)
            case "deletecollection":
                options = await body_of(request) or {}
                body = run.delete_collection(resource, selection_of(target, query), options)
            case "delete":
                options = await body_of(request) or query_options(query)
                body = run.delete(target, options, dry=dry)
            case _:
                kind = request.headers.get("Content-Type", "")
                body = run.patch(target, kind, await body_of(request), by=deed.user, dry=dry)
        return json_response(200, body)

    async def _store(self, request: web.Request, target: Target, deed: Deed) -> web.Response:
        """POST and PUT, whose bodies are objects."""
        document, run = checked_kind(target, await body_of(request)), self.operations
        dry = request.query.get("dryRun") == "All"
        if deed.verb == "update":
            return json_response(*run.update(target, document, by=deed.user, dry=dry))
        if target.subresource:
            body = run.subresource(target, document, deed.user, dry=dry)
        elif target.resource in (SELF_REVIEWS, ACCESS_REVIEWS):
            body = {**document, "status": self._review(deed.user, document)}
        else:
            body = run.create(target, document, dry=dry)
        return json_response(201, body)

    def _review(self, user: str, asked: Json) -> Json:
        """Who somebody is, or whether they may do something."""
        wanted = (asked.get("spec") or {}).get("resourceAttributes")
        if wanted is None:
            return {"userInfo": {"username": user}}
        part = wanted.get("subresource")
        what = wanted.get("resource", "") + (f"/{part}" if part else "")
        return {"allowed": self._may(Deed(wanted.get("verb", ""), what, user))}

    async def _watch(self, request: web.Request, target: Target, deed: Deed) -> web.StreamResponse:
        watch = Watch(
            self._storage,
            target.resource,
            selection_of(target, dict(request.query)),
            WatchOptions.read(request.query),
            self.faults,
            deed,
            bookmark_every_s=self._bookmark_every_s,
        )
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        response.enable_chunked_encoding()
        await response.prepare(request)
        try:
            async for line in watch.lines():
                await response.write(line)
        except StreamCutError:
            cut(request)
        except ConnectionResetError:
            pass  # nobody listens any more
        return response


class RunningFake:
    """A fake in a thread of its own, for tests that block.

    Attributes:
        fake: touch it only through `do`.
        access: its address, with an administrator's token.
    """

    def __init__(self, fake: FakeApiServer, loop: LoopThread) -> None:
        self.fake = fake
        self.access = fake.access
        self._loop = loop

    def do(self, act: Callable[[FakeApiServer], T]) -> T:
        """Run something in the fake's loop and wait for it."""
        return self._loop.do(lambda: act(self.fake))


@contextmanager
def running_fake(fake: FakeApiServer | None = None) -> Iterator[RunningFake]:
    """A fake in a thread and loop of its own."""
    with loop_thread("fake-api-server") as loop, loop.inside(fake or FakeApiServer()) as served:
        yield RunningFake(served, loop)


async def _turns() -> None:
    """Let the loop finish what it has begun: accepting takes it some turns, and so does closing."""
    for _turn in range(5):
        await asyncio.sleep(0)
