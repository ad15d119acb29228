"""`kubectl haversack`, run as people run it: through kubectl where there is one, else by itself."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from support.daemon import DaemonProcess
from support.fake_daemon import FakeDaemon, items
from support.kubernetes.real_server import NoControlPlaneError, program
from typer.testing import Result

from scheduler.cli.kubectl.program import app

BIN = Path(sys.executable).parent
PLUGIN = BIN / "kubectl-haversack"


def command() -> list[str]:
    """The words before a verb."""
    try:
        return [str(program("kubectl")), "haversack"]
    except NoControlPlaneError:
        return [str(PLUGIN)]


def environ(daemon: DaemonProcess) -> dict[str, str]:
    """An environment in which the daemon is found, and no cluster."""
    kept = {name: text for name, text in os.environ.items() if not name.startswith("HAVERSACK_")}
    return {
        **kept,
        "HAVERSACK_DATA": str(daemon.data_dir),
        "KUBECONFIG": str(daemon.data_dir / "no-kubeconfig"),
        "PATH": f"{BIN}:/usr/bin:/bin",
    }


def kubectl_haversack(
    daemon: DaemonProcess, *arguments: str, stdin: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run one command line to its end."""
    return subprocess.run(
        [*command(), *arguments],
        env=environ(daemon),
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def kubectl(daemon: FakeDaemon, *arguments: str, **more: Any) -> Result:
    """Run one command line in this process, against canned answers."""
    return replace(daemon, program=app).run(*arguments, **more)


def listing(*jobs: object) -> FakeDaemon:
    """A daemon that lists these jobs."""
    return FakeDaemon().on("GET", "jobs", items(*jobs))
