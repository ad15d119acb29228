"""Which daemon to talk to, with which token: found, checked, connected."""

from __future__ import annotations

import json
import os
import stat
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import typer

from scheduler.clock import Clock, SystemClock
from scheduler.errors import ConfigurationError, UnauthenticatedError

if TYPE_CHECKING:
    import ssl

    import httpx

    from api.client import Client

DEFAULT_SERVER = "http://127.0.0.1:8470"
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True, slots=True)
class Target:
    """The daemon to talk to.

    Attributes:
        address: base URL.
        address_from: where the address was found, for people.
        token: bearer token, or "" when there is none.
        token_from: where the token was found, for people.
        data_dir: the data directory that was found, if any.
    """

    address: str
    address_from: str
    token: str
    token_from: str
    data_dir: Path | None


@dataclass(frozen=True, slots=True)
class Session:
    """What one command works with; tests replace its parts.

    Attributes:
        server, token_file, tenant, ca_file: the global options.
        transport: replaces the network.
        sleep: pauses between polls.
        idle_s: a stream that brings nothing for this long has told all it knows.
    """

    server: str | None = None
    token_file: Path | None = None
    tenant: str | None = None
    ca_file: Path | None = None
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)
    directory: Path = field(default_factory=Path.cwd)
    transport: httpx.BaseTransport | None = None
    sleep: Callable[[float], None] = time.sleep
    clock: Clock = field(default_factory=SystemClock)
    idle_s: float = 1.0

    def with_options(
        self,
        *,
        server: str | None,
        token_file: Path | None,
        ca_file: Path | None,
        tenant: str | None = None,
    ) -> Session:
        """This session with the global options of a command line."""
        named_ca = self.environ.get("HAVERSACK_CA_FILE")
        return replace(
            self,
            server=server,
            token_file=token_file,
            tenant=tenant,
            ca_file=ca_file or (Path(named_ca) if named_ca else None),
        )

    def target(self) -> Target:
        """The daemon that options, environment and data directory name, in this order.

        Raises:
            ConfigurationError: a named file cannot be read or is not what it should be.
            UnauthenticatedError: the token file is open to other users.
        """
        data_dir = self._data_dir()
        endpoint = None if data_dir is None else _endpoint(data_dir)
        address, address_from = DEFAULT_SERVER, "default"
        if self.server:
            address, address_from = self.server, "--server"
        elif self.environ.get("HAVERSACK_SERVER"):
            address, address_from = self.environ["HAVERSACK_SERVER"], "HAVERSACK_SERVER"
        elif endpoint is not None and data_dir is not None:
            address, address_from = endpoint, str(data_dir / "endpoint.json")
        address = _checked_address(address)
        token, token_from = "", "none found"
        if self.token_file is not None:
            token, token_from = read_token(self.token_file), str(self.token_file)
        elif self.environ.get("HAVERSACK_TOKEN"):
            token, token_from = self.environ["HAVERSACK_TOKEN"].strip(), "HAVERSACK_TOKEN"
        elif (
            data_dir is not None
            and (data_dir / "token").exists()
            # The token of the daemon here is for the daemon here, never for a remote one.
            and (address == endpoint or urlsplit(address).hostname in _LOOPBACK)
        ):
            token, token_from = read_token(data_dir / "token"), str(data_dir / "token")
        if not (token.isascii() and token.isprintable()) or " " in token:
            raise ConfigurationError(
                f"the token from {token_from} is no token: it is not plain text"
            )
        return Target(address, address_from, token, token_from, data_dir)

    def connect(self) -> Client:
        """A client for the daemon.

        Raises:
            ConfigurationError, UnauthenticatedError: as `target`; or there is no token at all.
        """
        from api.client import Client  # noqa: PLC0415 - httpx costs 150 ms that --help need not pay

        target = self.target()
        if not target.token:
            raise UnauthenticatedError(
                f"no token for {target.address}",
                hint=(
                    "run where `haversack up` keeps its .haversack folder, or set HAVERSACK_DATA to"
                    " that folder; for another daemon set HAVERSACK_TOKEN or give --token-file"
                ),
            )
        return Client(
            target.address,
            target.token,
            tenant=self.tenant,
            transport=self.transport,
            verify=self.trusted(),
        )

    def trusted(self) -> ssl.SSLContext | bool:
        """Whose certificates to trust: those of `ca_file`, or True for the public ones.

        Raises:
            ConfigurationError: the bundle cannot be used.
        """
        if self.ca_file is None:
            return True
        import ssl  # noqa: PLC0415 - only a private CA needs it

        try:
            return ssl.create_default_context(cafile=self.ca_file)
        except OSError as error:
            raise ConfigurationError(
                f"the CA file {self.ca_file} cannot be used: {error}",
                hint="it must hold certificates in PEM form",
            ) from error

    def _data_dir(self) -> Path | None:
        named = self.environ.get("HAVERSACK_DATA")
        if named:
            return Path(named).expanduser()
        for folder in (self.directory, *self.directory.parents):
            found = folder / ".haversack"
            if (found / "endpoint.json").is_file() or (found / "token").is_file():
                return found
        return None


def session_of(context: typer.Context) -> Session:
    """The session that the global options made."""
    session = context.obj
    assert isinstance(session, Session)
    return session


def read_token(path: Path) -> str:
    """The token in `path`.

    Raises:
        ConfigurationError: the file cannot be read, or is empty.
        UnauthenticatedError: other users can read or change it.
    """
    try:
        found = path.stat()
        text = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeError) as error:
        raise ConfigurationError(f"the token file {path} cannot be read: {error}") from error
    mode = stat.S_IMODE(found.st_mode)
    if stat.S_ISREG(found.st_mode) and mode & 0o077:
        raise UnauthenticatedError(
            f"the token file {path} is open to other users (mode {mode:04o})",
            hint=f"chmod 600 {path}; if others may have read it, revoke the token too",
        )
    if not text:
        raise ConfigurationError(f"the token file {path} is empty")
    return text


def _endpoint(data_dir: Path) -> str | None:
    path = data_dir / "endpoint.json"
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["url"]).rstrip("/")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigurationError(
            f"{path} is not the endpoint file of a daemon: {error}",
            hint="name the daemon with --server, or start it again",
        ) from error


def _checked_address(address: str) -> str:
    try:
        parts = urlsplit(address)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable or not address.isprintable() or " " in address:
        raise ConfigurationError(
            f"{address!r} is not the address of a daemon",
            hint="write it as http://host:port or https://host:port",
        )
    return address.rstrip("/")
