"""The `haversack` command: the HTTP-only CLI plus the commands that run a daemon or simulate.

Everything heavy is imported inside the command that needs it, so that `haversack --help` and shell
completion stay quick.
"""

from __future__ import annotations

import asyncio
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from scheduler.agent.command import agent
from scheduler.cli.main import app, run_app
from scheduler.errors import ConfigurationError
from scheduler.simulator.command import simulate

if TYPE_CHECKING:
    from scheduler.backends.backend import BackendMaker
    from scheduler.daemon import Endpoint
    from scheduler.settings import Settings
    from scheduler.standby import Replica


class RoleOption(StrEnum):
    """Which half of the daemon to run."""

    ALL = "all"


class ExecutorOption(StrEnum):
    """Where jobs run."""

    LOCAL = "local"
    KUBERNETES = "kubernetes"


DataOption = Annotated[
    Path | None,
    typer.Option(
        "--data", help="Folder for database, token, logs and attempts (default .haversack)."
    ),
]
HostOption = Annotated[
    str | None, typer.Option("--host", help="Address to listen on (default 127.0.0.1).")
]
PortOption = Annotated[
    int | None,
    typer.Option("--port", min=0, max=65535, help="Port (default 8470; 0 picks a free one)."),
]
VirtualOption = Annotated[
    str,
    typer.Option(
        "--virtual", help="Offer simulated GPUs instead of this host's, for example 16x8:H100."
    ),
]


@app.command(rich_help_panel="Run a daemon")
def up(
    data: DataOption = None,
    virtual: VirtualOption = "",
    host: HostOption = None,
    port: PortOption = None,
) -> None:
    """Run API, scheduler and local execution on this box; Ctrl-C stops it, jobs go on."""
    settings = _settings(data=data, database="", virtual=virtual, host=host, port=port)
    _serve(settings, _local(settings), friendly=True)


@app.command(rich_help_panel="Run a daemon")
def serve(
    *,
    role: Annotated[RoleOption, typer.Option(help="Which half of the daemon.")] = RoleOption.ALL,
    executor: Annotated[
        ExecutorOption, typer.Option(help="Where jobs run.")
    ] = ExecutorOption.LOCAL,
    kubeconfig: Annotated[
        Path | None,
        typer.Option(
            "--kubeconfig",
            help="How to reach the cluster, with --executor kubernetes; default: as a pod of it.",
        ),
    ] = None,
    data: DataOption = None,
    database: Annotated[
        str,
        typer.Option(help="PostgreSQL URL (postgresql+psycopg://...); default SQLite in --data."),
    ] = "",
    virtual: VirtualOption = "",
    host: HostOption = None,
    port: PortOption = None,
) -> None:
    """Run the daemon as a service: JSON logs on stderr, settings from HAVERSACK_* variables."""
    del role  # one value today; Typer has refused all others
    settings = _settings(data=data, database=database, virtual=virtual, host=host, port=port)
    if executor is ExecutorOption.LOCAL:
        if kubeconfig is not None:
            raise typer.BadParameter(
                "it goes with --executor kubernetes", param_hint="--kubeconfig"
            )
        _serve(settings, _local(settings), friendly=False)
        return
    if virtual:
        raise typer.BadParameter("a cluster has its own nodes", param_hint="--virtual")
    _serve(settings, _kubernetes(settings, kubeconfig), friendly=False)


def _local(settings: Settings) -> BackendMaker:
    from scheduler.agent.inventory import local_inventory  # noqa: PLC0415 - lazy by design
    from scheduler.backends.local import Local  # noqa: PLC0415 - lazy by design

    return Local(local_inventory(settings.virtual))


def _kubernetes(settings: Settings, kubeconfig: Path | None) -> BackendMaker:
    try:
        from scheduler.backends.kubernetes import Kubernetes  # noqa: PLC0415 - lazy by design
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"--executor kubernetes needs the package {error.name}",
            hint="in a checkout of Haversack: pip install '.[kubernetes]'",
        ) from error
    if kubeconfig is None:
        return Kubernetes(settings.kubernetes)
    return Kubernetes(settings.kubernetes.model_copy(update={"kubeconfig": kubeconfig}))


def _settings(
    *, data: Path | None, database: str, virtual: str, host: str | None, port: int | None
) -> Settings:
    """The settings of the environment, with the options that were given in their place.

    Raises:
        ConfigurationError: a variable's value is refused, or no setting has its name.
    """
    from pydantic import ValidationError  # noqa: PLC0415 - see the module's docstring
    from pydantic_settings import SettingsError  # noqa: PLC0415 - see the module's docstring

    from scheduler.settings import Settings  # noqa: PLC0415 - see the module's docstring

    try:
        base = Settings()
    except ValidationError as error:
        raise ConfigurationError(
            "; ".join(
                f"HAVERSACK_{'__'.join(map(str, wrong['loc'])).upper()}: {wrong['msg']}"
                for wrong in error.errors()
            ),
            hint="docs/reference/settings.md lists the settings",
        ) from error
    except SettingsError as error:
        raise ConfigurationError(
            f"a HAVERSACK_* variable cannot be read: {error}",
            hint="lists are written as JSON: HAVERSACK_API__TRUSTED_PROXIES='[\"10.0.0.1\"]'",
        ) from error
    api = base.api.model_copy(
        update={k: v for k, v in (("host", host), ("port", port)) if v is not None}
    )
    store = base.store.model_copy(
        update={
            "data_dir": (data or base.store.data_dir).expanduser().absolute(),
            "database_url": database or base.store.database_url,
        }
    )
    return base.model_copy(update={"api": api, "store": store, "virtual": virtual or base.virtual})


def _serve(settings: Settings, backend: BackendMaker, *, friendly: bool) -> None:
    import uvloop  # noqa: PLC0415 - lazy by design

    from scheduler import daemon  # noqa: PLC0415 - lazy by design
    from scheduler.observability import configure_logging  # noqa: PLC0415 - lazy by design

    configure_logging(quiet=friendly)
    daemon.end_with_any_thread()

    def ready(endpoint: Endpoint) -> None:
        if friendly:
            _greet(endpoint, simulated=bool(settings.virtual))

    serving: daemon.Daemon | Replica
    if daemon.one_of_several(settings, backend):
        # It answers while it stands by, so that it needs the API at once.
        from scheduler import standby  # noqa: PLC0415 - lazy by design

        serving = standby.Replica(settings, backend)
    else:
        serving = daemon.Daemon(settings, backend)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serving.run(ready))
    if friendly:
        sys.stderr.write("stopped; jobs that were running go on, the next start adopts them\n")


def _greet(endpoint: Endpoint, *, simulated: bool) -> None:
    label = "  SIMULATED GPUs: jobs here get no real GPU\n" if simulated else ""
    sys.stderr.write(
        f"Haversack is up at {endpoint.url}\n{label}"
        f"  data   {endpoint.data_dir}\n"
        f"  token  {endpoint.token_file} (mode 0600; commands run from here find it)\n"
        "  next   haversack submit -f job.yaml | haversack jobs | haversack dashboard\n"
    )


app.command(rich_help_panel="Run a daemon")(agent)
app.command(rich_help_panel="Try things out")(simulate)


def run() -> None:
    """Entry point of the console script."""
    run_app(app)
