"""The daemon speaks TLS itself, and the command line trusts the authority it is told to."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from support.daemon import HAVERSACK, DaemonProcess


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    """A self-signed certificate for 127.0.0.1 and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(
        f"openssl req -x509 -newkey rsa:2048 -nodes -days 2 -keyout {key} -out {certificate}"
        " -subj /CN=haversack -addext subjectAltName=IP:127.0.0.1".split(),
        check=True,
        capture_output=True,
    )
    return certificate, key


def test_commands_reach_a_daemon_over_tls(tmp_path: Path, certificate: tuple[Path, Path]) -> None:
    cert, key = (str(path) for path in certificate)
    settings = {"API__TLS_CERTIFICATE": cert, "API__TLS_KEY": key}
    daemon = DaemonProcess(tmp_path / "data", settings=settings)
    daemon.start()
    environment = {**os.environ, "HAVERSACK_DATA": str(daemon.data_dir)}
    try:
        assert daemon.url.startswith("https://")
        for options, code in ((("--ca-file", cert), 0), ((), 7)):
            done = subprocess.run(
                [HAVERSACK, *options, "queue"],
                env=environment,
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == code, done.stderr
    finally:
        assert daemon.stop() == 0
