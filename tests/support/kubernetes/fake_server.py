"""An API server in this process: real HTTP on loopback, kube-apiserver's rules, injected faults.

The same contract tests run against it and against a real kube-apiserver, which is the judge
(`tests/integration/kubernetes/test_api_contract.py`). It knows no server-side apply, no managed
fields, no CEL beyond the fence, and no controllers: like a bare API server it collects no garbage.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self, TypeVar

import orjson
from aiohttp import web
from support.kubernetes.faults import REQUEST_FAULTS, Deed, Fault, Faults
from support.kubernetes.operations import Operations
from support.kubernetes.refusals import (
    Json,
    RefusedError,
    bad_request,
    conflict,
    expired,
    forbidden,
    internal,
    no_such_resource,
    too_many,
    unauthorized,
    unavailable,
)
from support.kubernetes.resources import (
    BUILTIN,
    THIRD_PARTY,
    Registry,
    Resource,
    Target,
)
from support.kubernetes.selectors import selection
from support.kubernetes.storage import Signal, Storage
from support.kubernetes.watching import StreamCutError, Watch, WatchOptions

from scheduler.clock import Clock, SystemClock
from scheduler.execution.kubernetes.access import Access

ADMIN = "haversack-admin"
_ADMIN_TOKEN = "admin-token"
_NAMESPACES = ("default", "kube-system", "kube-public", "kube-node-lease")
_HEALTH = ("/livez", "/readyz", "/healthz")
_COMPRESSED_FROM_BYTES = 128 * 1024
_JOURNAL_LENGTH = 100_000
_VERSION = {"major": "1", "minor": "36", "gitVersion": "v1.36.2-fake"}
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
        await self._runner.cleanup()
        self._runner = None

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

    # HTTP.

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        user, deed, name, status = "", Deed("", ""), "", 0
        try:
            user = self._user(request)
            if request.path in _HEALTH:
                status = 200
                return web.Response(text="ok")
            known = self._discovery(request)
            if known is not None:
                status = 200
                return _json(200, known)
            target = self._registry.target(request.path)
            deed, name = _deed(request, target), target.name
            self._check_rights(user, deed, target)
            response = await self._with_faults(request, target, deed, user)
            status = response.status
        except RefusedError as refusal:
            status = refusal.code
            response = _json(status, refusal.status())
            if refusal.retry_after_s is not None:
                response.headers["Retry-After"] = str(refusal.retry_after_s)
        finally:
            self.journal.append(Request(deed.verb, deed.what, name, user, status))
        return response

    def _user(self, request: web.Request) -> str:
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if token not in self._users:
            raise unauthorized()
        return self._users[token]

    def _check_rights(self, user: str, deed: Deed, target: Target) -> None:
        wanted = [(deed.verb, deed.what), (_RULE_OF_ALL, deed.what), (deed.verb, _RULE_OF_ALL)]
        if any((user, *rule) in self._denied for rule in wanted):
            where = f' in the namespace "{target.namespace}"' if target.namespace else ""
            why = (
                f'User "{user}" cannot {deed.verb} resource "{deed.what}" in API group '
                f'"{target.resource.group}"{where}'
            )
            raise forbidden(target.resource.qualified, target.name, why)

    def _discovery(self, request: web.Request) -> Json | None:
        match [part for part in request.path.split("/") if part]:
            case ["version"]:
                return _VERSION
            case ["api"]:
                return {"kind": "APIVersions", "versions": ["v1"]}
            case ["apis"]:
                groups = self._registry.groups()
                return {
                    "kind": "APIGroupList",
                    "apiVersion": "v1",
                    "groups": [_group(group, versions) for group, versions in groups.items()],
                }
            case ["apis", group]:
                versions = self._registry.groups().get(group)
                if versions is None:
                    raise no_such_resource()
                return {**_group(group, versions), "kind": "APIGroup", "apiVersion": "v1"}
            case ["api", version]:
                return self._resource_list("", version)
            case ["apis", group, version]:
                return self._resource_list(group, version)
            case _:
                return None

    def _resource_list(self, group: str, version: str) -> Json:
        found = self._registry.group_version(group, version)
        if not found:
            raise no_such_resource()
        return {
            "kind": "APIResourceList",
            "apiVersion": "v1",
            "groupVersion": found[0].api_version,
            "resources": [
                {"name": one.plural, "kind": one.kind, "namespaced": one.namespaced}
                for one in found
            ],
        }

    async def _with_faults(
        self, request: web.Request, target: Target, deed: Deed, user: str
    ) -> web.StreamResponse:
        if deed.verb == "watch":
            if self.faults.strikes(deed, (Fault.WATCH_GONE,)):
                raise expired("too old resource version")
            return await self._watch(request, target)
        fault = self.faults.strikes(deed, REQUEST_FAULTS)
        await self._before(fault, request, target)
        response = await self._carry_out(request, target, deed, user)
        match fault:
            case Fault.REPLY_LOST:
                _cut(request)
            case Fault.ERROR_AFTER:
                raise internal("Internal error occurred: injected after the work")
            case Fault.UNAVAILABLE_AFTER:
                raise unavailable()
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
                _cut(request)
                raise internal("nobody hears this")
            case Fault.DELAY_BEFORE:
                await asyncio.sleep(self.faults.delay_s)
            case _:
                pass

    async def _carry_out(
        self, request: web.Request, target: Target, deed: Deed, user: str
    ) -> web.Response:
        query, run = dict(request.query), self.operations
        dry = query.get("dryRun") == "All"
        match deed.verb:
            case "get":
                return _json(200, run.get(target))
            case "list":
                chosen = _selection(target, query)
                return _listed(run.list(target.resource, chosen, query))
            case "deletecollection":
                chosen = _selection(target, query)
                options = await _body(request) or {}
                return _json(200, run.delete_collection(target.resource, chosen, options))
            case "delete":
                options = await _body(request) or _options(query)
                return _json(200, run.delete(target, options, dry=dry))
            case "patch":
                kind = request.headers.get("Content-Type", "")
                return _json(200, run.patch(target, kind, await _body(request), dry=dry))
        document = _checked_kind(target, await _body(request))
        if deed.verb == "update":
            return _json(*run.update(target, document, dry=dry))
        if target.subresource:
            return _json(201, run.subresource(target, document, user, dry=dry))
        return _json(201, run.create(target, document, dry=dry))

    async def _watch(self, request: web.Request, target: Target) -> web.StreamResponse:
        watch = Watch(
            self._storage,
            target.resource,
            _selection(target, dict(request.query)),
            WatchOptions.read(request.query),
            self.faults,
            bookmark_every_s=self._bookmark_every_s,
        )
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        response.enable_chunked_encoding()
        await response.prepare(request)
        try:
            async for line in watch.lines():
                await response.write(line)
        except StreamCutError:
            _cut(request)
        return response


def _deed(request: web.Request, target: Target) -> Deed:
    what = target.resource.plural + (f"/{target.subresource}" if target.subresource else "")
    one = bool(target.name)
    watched = request.query.get("watch") in ("1", "true")
    match request.method, one:
        case "GET", _ if watched:
            verb = "watch"
        case "GET", _:
            verb = "get" if one else "list"
        case "POST", _ if one == bool(target.subresource):
            verb = "create"
        case "PUT", True:
            verb = "update"
        case "PATCH", True:
            verb = "patch"
        case "DELETE", _:
            verb = "delete" if one else "deletecollection"
        case _:
            raise RefusedError(
                405,
                "MethodNotAllowed",
                "the server does not allow this method on the requested resource",
            )
    return Deed(verb, what)


def _selection(target: Target, query: dict[str, str]) -> Any:
    fields = query.get("fieldSelector", "")
    if target.name:
        fields = f"metadata.name={target.name}"
    return selection(target.resource, target.namespace, query.get("labelSelector", ""), fields)


def _options(query: dict[str, str]) -> Json:
    grace = query.get("gracePeriodSeconds")
    return {} if grace is None else {"gracePeriodSeconds": int(grace)}


async def _body(request: web.Request) -> Any:
    data = await request.read()
    if not data:
        return None
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise bad_request(
            f"the object provided is unrecognized: json parse error: {error}"
        ) from error


def _checked_kind(target: Target, document: Any) -> Json:
    resource = target.resource
    if not isinstance(document, dict):
        raise bad_request(f"the object provided is unrecognized (must be of type {resource.kind})")
    sent = document.get("kind", resource.kind)
    if not target.subresource and sent != resource.kind:
        raise bad_request(
            f'{sent} in version "{document.get("apiVersion")}" cannot be handled as a '
            f"{resource.kind}"
        )
    return document


def _group(group: str, versions: tuple[str, ...]) -> Json:
    shown = [{"groupVersion": f"{group}/{version}", "version": version} for version in versions]
    return {"name": group, "versions": shown, "preferredVersion": shown[0]}


def _json(status: int, body: Json) -> web.Response:
    return web.Response(status=status, body=orjson.dumps(body), content_type="application/json")


def _listed(body: Json) -> web.Response:
    response = _json(200, body)
    assert isinstance(response.body, bytes)
    if len(response.body) > _COMPRESSED_FROM_BYTES:
        response.enable_compression()
    return response


def _cut(request: web.Request) -> None:
    """Close the connection without another byte."""
    if request.transport is not None:
        request.transport.abort()


class RunningFake:
    """A fake in a thread of its own, for tests that block.

    Attributes:
        fake: touch it only through `do`.
        access: its address.
    """

    def __init__(self, fake: FakeApiServer, loop: asyncio.AbstractEventLoop) -> None:
        self.fake = fake
        self.access = fake.access
        self._loop = loop

    def do(self, act: Callable[[FakeApiServer], T]) -> T:
        """Run something in the fake's loop and wait for it."""

        async def acting() -> T:
            return act(self.fake)

        return asyncio.run_coroutine_threadsafe(acting(), self._loop).result()


@contextmanager
def running_fake(fake: FakeApiServer | None = None) -> Iterator[RunningFake]:
    """A fake in a thread and loop of its own."""
    served = fake or FakeApiServer()
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="fake-api-server", daemon=True)
    thread.start()
    try:
        asyncio.run_coroutine_threadsafe(served.__aenter__(), loop).result()
        try:
            yield RunningFake(served, loop)
        finally:
            asyncio.run_coroutine_threadsafe(served.__aexit__(), loop).result()
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
