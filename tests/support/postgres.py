"""A throw-away PostgreSQL server for the tests, or the one that HAVERSACK_TEST_POSTGRES names."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import pwd
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
from psycopg import sql
from sqlalchemy import make_url
from support.folders import quick_folder

_START_LIMIT_S = 60.0
_SETTINGS = {
    # Nothing here outlives the session, so nothing needs the disk.
    "fsync": "off",
    "full_page_writes": "off",
    "synchronous_commit": "off",
    "listen_addresses": "",
    "max_connections": "60",
    "shared_buffers": "32MB",
    "logging_collector": "off",
}


class NoPostgresError(Exception):
    """There is no server to test with; the message says why."""


@dataclass
class PostgresServer:
    """A server and the databases made on it.

    Attributes:
        url: SQLAlchemy URL of its maintenance database.
    """

    url: str
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def create_database(self, *, template: str | None = None) -> str:
        """A new database, empty or a copy of `template`; its URL."""
        name = f"haversack_{os.getpid()}_{next(self._numbers)}"
        statement = sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(
            sql.Identifier(name), sql.Identifier(template or "template0")
        )
        self._run(statement)
        return make_url(self.url).set(database=name).render_as_string(hide_password=False)

    def drop_database(self, url: str) -> None:
        """Drop a database of `create_database`, whoever is still connected."""
        name = make_url(url).database
        assert name is not None
        self._run(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))

    def _run(self, statement: sql.Composed) -> None:
        with psycopg.connect(libpq_url(self.url), autocommit=True) as connection:
            connection.execute(statement)


def libpq_url(url: str) -> str:
    """The URL as psycopg itself wants it."""
    return make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)


def _programs() -> Path:
    """The folder of initdb and postgres, newest version first."""
    versions = sorted(
        Path("/usr/lib/postgresql").glob("*/bin"), key=lambda found: -int(found.parent.name)
    )
    on_path = shutil.which("initdb")
    folders = [*versions, *([Path(on_path).resolve().parent] if on_path else [])]
    for folder in folders:
        if (folder / "initdb").exists() and (folder / "postgres").exists():
            return folder
    raise NoPostgresError("neither HAVERSACK_TEST_POSTGRES nor initdb (package postgresql) found")


def _unprivileged() -> pwd.struct_passwd | None:
    """Whom to run the server as: PostgreSQL refuses root."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    raise NoPostgresError("running as root, and there is no user postgres or nobody to run it as")


@contextlib.contextmanager
def postgres_server() -> Iterator[PostgresServer]:
    """The server for one test session.

    Raises:
        NoPostgresError: there is none and none can be started.
    """
    named = os.environ.get("HAVERSACK_TEST_POSTGRES")
    if named:
        yield PostgresServer(named)
        return
    programs, user = _programs(), _unprivileged()
    with quick_folder() as folder:
        if user is not None:
            os.chown(folder, user.pw_uid, user.pw_gid)
        with _running(programs, folder, user) as url:
            yield PostgresServer(url)


_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)


def _stop_with_parent() -> None:
    """Have the kernel stop this process when a test session that was killed cannot."""
    _libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGQUIT), 0, 0, 0)


@contextlib.contextmanager
def _running(programs: Path, folder: Path, user: pwd.struct_passwd | None) -> Iterator[str]:
    uid, gid = (None, None) if user is None else (user.pw_uid, user.pw_gid)
    groups = None if user is None else [user.pw_gid]
    data = folder / "data"
    made = subprocess.run(
        [
            programs / "initdb",
            f"--pgdata={data}",
            "--username=haversack",
            "--auth=trust",
            "--encoding=UTF8",
            "--locale=C",
            "--no-sync",
        ],
        user=uid,
        group=gid,
        extra_groups=groups,
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    if made.returncode != 0:
        raise NoPostgresError(f"initdb failed: {made.stderr.strip()[-500:]}")
    options = [f"-c{name}={value}" for name, value in _SETTINGS.items()]
    log = (folder / "log").open("wb")
    server = subprocess.Popen(
        [programs / "postgres", f"-D{data}", f"-k{folder}", *options],
        user=uid,
        group=gid,
        extra_groups=groups,
        cwd=folder,
        stdout=log,
        stderr=log,
        preexec_fn=_stop_with_parent,  # noqa: PLW1509 - one system call, its library loaded before
    )
    try:
        url = f"postgresql+psycopg://haversack@/postgres?host={folder}"
        _wait_until_up(server, url, folder / "log")
        yield url
    finally:
        server.send_signal(signal.SIGQUIT)
        server.wait()
        log.close()


def _wait_until_up(server: subprocess.Popen[bytes], url: str, log: Path) -> None:
    limit = time.monotonic() + _START_LIMIT_S
    while True:
        try:
            psycopg.connect(libpq_url(url)).close()
        except psycopg.OperationalError as error:
            if server.poll() is not None or time.monotonic() > limit:
                told = log.read_text(errors="replace")[-500:]
                raise NoPostgresError(f"PostgreSQL did not start: {told}") from error
            time.sleep(0.05)
        else:
            return
