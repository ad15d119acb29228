"""The Typer application: global options, all commands, errors to exit codes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typing_extensions import override

from scheduler.cli import admin, cluster, doctor, jobs
from scheduler.cli.context import Session
from scheduler.cli.exits import report
from scheduler.errors import HaversackError


class Commands(TyperGroup):
    """The commands; an error of ours ends as a message on stderr and an exit code."""

    @override
    def invoke(self, ctx: Any) -> Any:  # Typer's own Click is private
        """Run the command."""
        try:
            return super().invoke(ctx)
        except HaversackError as error:
            raise typer.Exit(report(error)) from error


app = typer.Typer(
    name="haversack",
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help=(
        "Schedule GPU jobs, watch them, and learn why they wait. Data goes to stdout, hints to"
        " stderr; docs/reference/cli.md lists the exit codes."
    ),
)


@app.callback()
def options(
    context: typer.Context,
    *,
    server: Annotated[
        str | None,
        typer.Option(metavar="URL", help="The daemon's address; or HAVERSACK_SERVER."),
    ] = None,
    token_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="File with your token, mode 0600; or HAVERSACK_TOKEN."),
    ] = None,
    tenant: Annotated[
        str | None,
        typer.Option(help="Act for this tenant (cluster administrators only)."),
    ] = None,
    ca_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="CA certificates to trust; or HAVERSACK_CA_FILE."),
    ] = None,
) -> None:
    """Keep the global options for the command that follows."""
    session = context.obj if isinstance(context.obj, Session) else Session()
    context.obj = session.with_options(
        server=server, token_file=token_file, ca_file=ca_file, tenant=tenant
    )


for group in (jobs, cluster, admin, doctor):
    group.register(app)


def run_app(application: typer.Typer) -> None:
    """Run `application` with this process's arguments; never returns."""
    try:
        application()
    except BrokenPipeError:
        # The reader of our output left (`haversack jobs | head`): nothing is wrong.
        sys.stderr.close()
        raise SystemExit(0) from None
