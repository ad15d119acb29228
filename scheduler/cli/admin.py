"""Commands for administrators: token, tenant, audit, and the dashboard's login link."""

from __future__ import annotations

import re
from typing import Annotated

import typer

from scheduler.cli.context import session_of
from scheduler.cli.render import (
    Column,
    Format,
    JsonOption,
    OutputOption,
    chosen,
    hint,
    pick,
    show_list,
    show_one,
)
from scheduler.cli.text import age
from scheduler.model.access import Role

_UNITS_S = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
_LIFETIME = re.compile(r"(\d{1,6})([smhd])")

token_app = typer.Typer(no_args_is_help=True, help="Create, list and revoke API tokens.")
tenant_app = typer.Typer(no_args_is_help=True, help="Create and list tenants.")


def _lifetime_s(text: str | None) -> float | None:
    """Seconds of `30d`, `12h`, `90m` or `45s`."""
    if text is None:
        return None
    match = _LIFETIME.fullmatch(text)
    if match is None or int(match[1]) == 0:
        raise typer.BadParameter(f"{text!r} is no length of time; write 30d, 12h, 90m or 45s")
    return float(int(match[1]) * _UNITS_S[match[2]])


@token_app.command("create")
def create_token(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Whom the token is for.")],
    *,
    role: Annotated[Role, typer.Option(help="What it may do.")] = Role.USER,
    tenant: Annotated[
        str | None, typer.Option("--for-tenant", help="Whose it is; yours if absent.")
    ] = None,
    description: Annotated[str, typer.Option(help="What it is for.")] = "",
    expires_in: Annotated[
        str | None, typer.Option(metavar="30d", help="How long it lives; for ever if absent.")
    ] = None,
    read_only: Annotated[
        bool, typer.Option("--read-only", help="It may look, never change.")
    ] = False,
    output: OutputOption = Format.TABLE,
    as_json: JsonOption = False,
) -> None:
    """Issue a token; its text is printed this once, on stdout."""
    lifetime_s = _lifetime_s(expires_in)
    with session_of(context).connect() as client:
        made = client.create_token(
            name,
            role.value,
            tenant=tenant,
            description=description,
            expires_in_s=lifetime_s,
            read_only=read_only,
        )
    show_one(made, chosen(output, as_json=as_json), lambda token: str(token["token"]))
    hint(
        f"{made['id']}: {made['role']} {made['principal_name']} of tenant {made['tenant']};"
        " keep the text safe, it is not stored; revoke it with"
        f" `haversack token revoke {made['id']}`"
    )


@token_app.command("list")
def list_tokens(
    context: typer.Context, output: OutputOption = Format.TABLE, *, as_json: JsonOption = False
) -> None:
    """List tokens, without their secrets."""
    session = session_of(context)
    with session.connect() as client:
        found = client.tokens()
    now = session.clock.now()
    columns = (
        Column("ID", pick("id")),
        Column("NAME", pick("principal_name")),
        Column("TENANT", pick("tenant")),
        Column("ROLE", pick("role")),
        Column("STATE", lambda token: "revoked" if token["revoked_at"] else "active"),
        Column("EXPIRES", pick("expires_at")),
        Column("DESCRIPTION", pick("description"), wide=True),
        Column("AGE", lambda token: age(token["created_at"], now)),
    )
    show_list(found, columns, chosen(output, as_json=as_json), kind="TokenList")


@token_app.command("revoke")
def revoke_token(
    context: typer.Context,
    token: Annotated[list[str], typer.Argument(metavar="ID...", help="Ids from `token list`.")],
) -> None:
    """Make tokens worthless, at once."""
    with session_of(context).connect() as client:
        for token_id in token:
            typer.echo(f"{client.revoke_token(token_id)['id']} revoked")


@tenant_app.command("create")
def create_tenant(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the tenant.")],
    output: OutputOption = Format.TABLE,
    *,
    as_json: JsonOption = False,
) -> None:
    """Add a tenant with its default queue."""
    with session_of(context).connect() as client:
        made = client.create_tenant(name)
    show_one(made, chosen(output, as_json=as_json), lambda tenant: str(tenant["id"]))
    hint(f"next: haversack token create NAME --for-tenant {made['id']}")


@tenant_app.command("list")
def list_tenants(
    context: typer.Context, output: OutputOption = Format.TABLE, *, as_json: JsonOption = False
) -> None:
    """List tenants."""
    session = session_of(context)
    with session.connect() as client:
        found = client.tenants()
    now = session.clock.now()
    columns = (
        Column("ID", pick("id")),
        Column("NAME", pick("name")),
        Column("AGE", lambda tenant: age(tenant["created_at"], now)),
    )
    show_list(found, columns, chosen(output, as_json=as_json), kind="TenantList")


def audit(
    context: typer.Context,
    *,
    limit: Annotated[int, typer.Option(min=1, max=500, help="At most this many.")] = 50,
    output: OutputOption = Format.TABLE,
    as_json: JsonOption = False,
) -> None:
    """Show who changed what, and what was denied; newest first."""
    with session_of(context).connect() as client:
        page = client.audit(limit=limit)
    columns = (
        Column("ID", pick("id")),
        Column("AT", pick("at")),
        Column("TENANT", pick("tenant")),
        Column("PRINCIPAL", pick("principal")),
        Column("ACTION", pick("action")),
        Column("OBJECT", pick("object_id")),
        Column("OUTCOME", pick("outcome")),
        Column("DETAIL", pick("detail"), wide=True),
    )
    show_list(page["items"], columns, chosen(output, as_json=as_json), kind="AuditList")
    if page["next_cursor"] is not None:
        hint(f"the newest {limit}; more with --limit")


def dashboard(context: typer.Context) -> None:
    """Print a one-time link that opens the dashboard in a browser."""
    with session_of(context).connect() as client:
        made = client.session()
    typer.echo(made["login_url"])
    hint(f"good once, within {made['expires_in_s']} s; whoever opens it may look, not change")


def register(app: typer.Typer) -> None:
    """Add these commands to `app`."""
    panel = "Administration"
    app.add_typer(token_app, name="token", rich_help_panel=panel)
    app.add_typer(tenant_app, name="tenant", rich_help_panel=panel)
    app.command(rich_help_panel=panel)(audit)
    app.command(rich_help_panel="Cluster")(dashboard)
