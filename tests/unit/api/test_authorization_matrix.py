"""Every route x method x role x {own, other, anonymous}: exactly what GRANTS says, nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from fastapi import APIRouter
from support.builders import job_spec, node
from support.clock import ManualClock
from support.edge import BASE, JOB, Edge, edge_over
from support.usecases import BLUE, RED, ROOT, actor

from api import app as app_module
from api.app import api_routes
from api.dependencies import permission_of
from scheduler import service
from scheduler.model.access import Permission, Role
from scheduler.model.lifecycle import JobState
from scheduler.model.quantity import SYSTEM_TENANT, TenantId
from scheduler.store.database import Database

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
TENANT_SCOPED = ("job_id", "token_id", "namespace")
BODIES: dict[str, object] = {
    "/api/v1/jobs": JOB,
    "/api/v1/tokens": {"name": "fresh", "role": "viewer"},
    "/api/v1/tenants": {"name": "green"},
}


@dataclass
class World:
    """Two tenants with a job and a token each, one decision, one node."""

    edge: Edge
    objects: dict[TenantId, dict[str, str]]
    made: int = 0

    def path(self, template: str, tenant: TenantId) -> str:
        """The template filled with `tenant`'s objects; jobs and tokens are new each time."""
        if not any(name in TENANT_SCOPED for name in parameters(template)):
            return filled(template, self.objects[tenant])
        return filled(template, self._fresh(tenant))

    def _fresh(self, tenant: TenantId) -> dict[str, str]:
        office = self.edge.office
        self.made += 1
        job = office.submit(actor(tenant, Role.USER), job_spec(gpus=0))
        self.edge.token(Role.VIEWER, tenant, name=f"spare-{self.made}")
        token = max(
            (
                t
                for t in office.read(lambda tx: service.list_tokens(tx, ROOT))
                if t.tenant == tenant
            ),
            key=lambda t: t.id,
        )
        return {**self.objects[tenant], "job_id": job.id, "token_id": token.id}


@pytest.fixture
def world(sqlite_database: Database, clock: ManualClock) -> World:
    edge = edge_over(sqlite_database, clock)
    office = edge.office
    office.nodes(node("n0", 4))
    for tenant in (RED, BLUE):
        office.tenant(tenant)
    placed = office.submit(actor(RED, Role.USER))
    office.bring_to(placed.id, JobState.RUNNING, node("n0", 4))
    [decision] = office.read(
        lambda tx: service.list_decisions(tx, ROOT, cursor=None, limit=1)
    ).items
    shared = {"node_id": "n-n0", "gpu_id": "GPU-n0-0", "decision_id": decision.id}
    edge.app.stop_streams()  # an event stream ends at once instead of never
    edge.pods = {f"{tenant}/p": "waiting for 1 of 2 pods" for tenant in (RED, BLUE)}
    return World(
        edge, {tenant: {**shared, "namespace": tenant, "pod": "p"} for tenant in (RED, BLUE)}
    )


def declared(edge: Edge) -> Iterator[tuple[str, str, Permission]]:
    """(method, path template, permission) of every route."""
    for route in api_routes(edge.app):
        permission = permission_of(route)
        assert permission is not None, f"{route.path} declares no permission"
        for method in sorted(route.methods or ()):
            yield method, route.path, permission


def parameters(path: str) -> list[str]:
    return [part.split("}")[0].removesuffix(":id") for part in path.split("{")[1:]]


def filled(path: str, objects: dict[str, str]) -> str:
    for name in parameters(path):
        path = path.replace("{" + name + ":id}", objects[name])
    return path


def request(world: World, method: str, path: str, token: str | None) -> int:
    query = ""
    if path.endswith("/login"):
        query = f"?ticket={world.edge.app.context.tickets.issue(ROOT)}"
    body = BODIES.get(path) if method == "POST" else None
    if path == "/api/v1/tenants" and body is not None:
        body = {"name": f"green-{world.made}"}
        world.made += 1
    answer = world.edge.call(method, path + query, token, body=body)
    if answer.status_code >= 400:
        assert answer.headers["content-type"] == "application/problem+json"
    return answer.status_code


def test_anonymous_callers_reach_public_routes_only(world: World) -> None:
    for method, path, permission in declared(world.edge):
        status = request(world, method, world.path(path, RED), None)
        if permission is Permission.PUBLIC:
            assert status < 400, (method, path, status)
        else:
            assert status == 401, (method, path, status)


@pytest.mark.parametrize("tenant", [RED, SYSTEM_TENANT])
@pytest.mark.parametrize("role", list(Role))
def test_each_role_may_do_exactly_what_it_is_granted(
    world: World, role: Role, tenant: TenantId
) -> None:
    token = world.edge.token(role, tenant)
    who = actor(tenant, role)
    for method, path, permission in declared(world.edge):
        for owner in (RED, BLUE):
            status = request(world, method, world.path(path, owner), token)
            case = (method, path, str(role), tenant, owner, status)
            foreign = tenant not in (owner, SYSTEM_TENANT)
            if not who.may(permission):
                assert status == 403, case
            elif foreign and any(name in TENANT_SCOPED for name in parameters(path)):
                assert status == 404, case
            elif path.endswith(("{token_id:id}:revoke", "hold", "requeue")):
                assert status in (200, 409), case
            elif path.endswith("release"):
                assert status == 409, case  # granted, but the job is not held
            else:
                assert status < 400, case


def test_methods_that_no_route_declares_are_refused(world: World) -> None:
    token = world.edge.root
    offered: dict[str, set[str]] = {}
    for method, path, _ in declared(world.edge):
        offered.setdefault(path, set()).add(method)
    for path, methods in offered.items():
        for method in set(METHODS) - methods:
            status = request(world, method, world.path(path, RED), token)
            assert status == 405, (method, path, status)


@pytest.mark.parametrize("role", list(Role))
def test_read_only_identities_change_nothing(world: World, role: Role) -> None:
    bearer = world.edge.token(role, SYSTEM_TENANT, read_only=True)
    full = world.edge.token(role, SYSTEM_TENANT)
    before = world.edge.office.read(service.head_revision)
    for method, path, _ in declared(world.edge):
        if method == "GET":
            continue
        target = filled(path, {**world.objects[RED], "job_id": "j-1", "token_id": "t-1"})
        body = BODIES.get(path)
        assert world.edge.call(method, target, bearer, body=body).status_code == 403
        cookie = {"Cookie": f"haversack_session={full}", "Origin": BASE}
        by_cookie = world.edge.call(method, target, body=body, headers=cookie)
        assert by_cookie.status_code == 403, (method, path)
    assert world.edge.office.read(service.head_revision) == before


def test_denied_changes_are_audited_with_who_and_what(world: World) -> None:
    viewer = world.edge.token(Role.VIEWER, RED)
    edge = world.edge
    assert edge.call("POST", "/api/v1/jobs/j-77:cancel", viewer).status_code == 403
    assert edge.call("POST", "/api/v1/jobs", body=JOB).status_code == 401
    assert edge.call("GET", "/api/v1/audit", viewer).status_code == 403

    denied = [row for row in edge.office.audited() if row.outcome == "denied"]
    assert [(row.tenant_id, row.action, row.object_id) for row in denied] == [
        (RED, "POST /api/v1/jobs/{job_id}:cancel", "j-77"),
        (SYSTEM_TENANT, "POST /api/v1/jobs", ""),
    ]


def test_nobody_issues_a_token_above_themselves(world: World) -> None:
    admin = world.edge.token(Role.ADMIN, RED)
    for body, status in (
        ({"name": "x", "role": "admin"}, 201),
        ({"name": "y", "role": "agent"}, 403),
        ({"name": "z", "role": "viewer", "tenant": BLUE}, 404),
        ({"name": "z", "role": "viewer", "tenant": SYSTEM_TENANT}, 404),
        ({"name": "z", "role": "owner"}, 422),
        ({"name": "z", "role": "viewer", "extra": 1}, 422),
    ):
        answer = world.edge.call("POST", "/api/v1/tokens", admin, body=body)
        assert answer.status_code == status, (body, answer.text)


def test_the_system_acts_for_the_tenant_it_names_and_others_for_their_own(world: World) -> None:
    edge = world.edge

    def submit(token: str, tenant: str) -> tuple[int, str]:
        headers = {"X-Haversack-Tenant": tenant}
        answer = edge.call("POST", "/api/v1/jobs", token, body=JOB, headers=headers)
        return answer.status_code, answer.json().get("tenant", "")

    assert submit(edge.root, RED) == (201, RED)
    assert submit(edge.root, "nobody") == (404, "")
    red = edge.token(Role.USER, RED)
    assert submit(red, RED) == (201, RED)
    assert submit(red, BLUE) == (404, "")


def test_an_application_with_an_undeclared_route_is_not_built(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    stray = APIRouter()

    @stray.get("/stray")
    async def forgotten() -> None: ...

    monkeypatch.setattr(app_module, "_ROUTERS", (stray,))
    with pytest.raises(AssertionError, match="/stray declares no permission"):
        Edge(world.edge.office)
