"""Before the first cycle: the daemon's own identity, the administrator's token, its policy."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from policies.registry import profile_named
from scheduler.clock import Clock
from scheduler.errors import ConfigurationError
from scheduler.ids import IdSource
from scheduler.model.access import Actor, Role
from scheduler.model.ports import Profile, Sees
from scheduler.model.quantity import DEFAULT_TENANT, SYSTEM_TENANT, PrincipalId
from scheduler.service import authenticate, create_token
from scheduler.settings import QueueSettings
from scheduler.store.database import Database
from scheduler.tokens import digest, new_token

BOOTSTRAP = Actor(
    principal=PrincipalId("bootstrap"),
    name="bootstrap",
    tenant=SYSTEM_TENANT,
    role=Role.ADMIN,
    acts_for=DEFAULT_TENANT,
)
"""Whom the daemon speaks for when it issues the first token."""


def daemon_identity(data_dir: Path) -> str:
    """A name that survives restarts: who held the lease before a crash may take it back at once.

    Safe because the lock on the data directory proves that the former holder is dead.

    Raises:
        OSError: the data directory cannot be written.
    """
    path = data_dir / "identity"
    if not path.exists():
        _write_private(path, f"{os.uname().nodename}-{secrets.token_hex(8)}")
    return path.read_text().strip()


def live_profile(queue: QueueSettings) -> Profile:
    """The policy that a daemon decides by.

    Raises:
        ConfigurationError: there is none of that name, or it goes by what only a simulation knows:
            a live cluster has no run times, so all its jobs would look alike to it.
    """
    setting = "HAVERSACK_QUEUE__POLICY"
    try:
        profile = profile_named(queue.policy)
    except ValueError as error:
        raise ConfigurationError(
            f"{setting}: {error}", hint=f"set {setting} to one of them, or unset it"
        ) from error
    if profile.sees is Sees.DURATIONS:
        raise ConfigurationError(
            f"{setting} is {profile.name}, which goes by run times that nobody knows beforehand",
            hint=(
                f"unset {setting}, or choose a policy whose name does not end in -oracle;"
                f" try {profile.name} on recorded work with: haversack simulate"
            ),
        )
    return profile


def ensure_admin_token(database: Database, data_dir: Path, clock: Clock, ids: IdSource) -> Path:
    """Make sure that `data_dir/token` holds a valid administrator token, readable by us alone.

    An existing file is kept if the database still honours it (it may have been revoked, or the
    database may be new).

    Raises:
        OSError: the file cannot be written.
        StorageError: the store cannot be written.
    """
    path = data_dir / "token"
    if path.exists():
        known = digest(path.read_text().strip())
        if database.read_sync(lambda tx: authenticate(tx, known, now=clock.now())) is not None:
            return path
    token = new_token()
    database.write_sync(
        lambda tx: create_token(
            tx,
            BOOTSTRAP,
            tenant=SYSTEM_TENANT,
            name="admin",
            role=Role.ADMIN,
            description="made at first start; kept in the data directory",
            expires_at=None,
            sha256_hex=digest(token),
            read_only=False,
            now=clock.now(),
            ids=ids,
        )
    )
    _write_private(path, token)
    return path


def _write_private(path: Path, text: str) -> None:
    """Write atomically with mode 0600: nobody ever sees half of it, or another mode."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.unlink(missing_ok=True)
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text + "\n")
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
