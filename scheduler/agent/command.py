"""The `agent` command: runs on each GPU node of a cluster."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from scheduler.errors import ConfigurationError

if TYPE_CHECKING:
    from scheduler.agent.advertise import Advertiser


def agent(
    node: Annotated[
        str,
        typer.Option(
            "--node",
            envvar="HAVERSACK_NODE",
            help="This node's name in the cluster; in a pod, the field spec.nodeName.",
        ),
    ],
    kubeconfig: Annotated[
        Path | None,
        typer.Option("--kubeconfig", help="How to reach the cluster; default: as a pod of it."),
    ] = None,
    every: Annotated[
        float, typer.Option("--every", min=1.0, help="Seconds between two looks at the GPUs.")
    ] = 60.0,
    *,
    once: Annotated[bool, typer.Option("--once", help="Look once, and end.")] = False,
) -> None:
    """Annotate this node of a cluster with its GPUs and the NVLinks between them."""
    from scheduler.observability import configure_logging  # noqa: PLC0415 - lazy by design

    try:
        from scheduler.agent.advertise import Advertiser  # noqa: PLC0415 - lazy by design
        from scheduler.execution.kubernetes.access import load_access  # noqa: PLC0415 - likewise
        from scheduler.execution.kubernetes.server import ApiServer  # noqa: PLC0415 - likewise
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"the agent of a cluster's node needs the package {error.name}",
            hint="in a checkout of Haversack: pip install '.[kubernetes]'",
        ) from error

    configure_logging()

    async def advertising() -> None:
        async with ApiServer(load_access(kubeconfig)) as server:
            advertiser = Advertiser(server, node, every_s=every)
            if once:
                await advertiser.begin()
            else:
                await _until_told(advertiser)

    asyncio.run(advertising())


async def _until_told(advertiser: Advertiser) -> None:
    """Run until SIGTERM or SIGINT: as the first process of a container it must listen itself."""
    running = asyncio.ensure_future(advertiser.run())
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, running.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await running
