"""`kubectl haversack`, run as people run it: through kubectl where there is one, else by itself."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from support.daemon import DaemonProcess
from support.kubernetes.real_server import NoControlPlaneError, program

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
