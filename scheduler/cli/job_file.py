"""A job file on its way to the daemon: read, checked where its lines are known, sent once."""

from __future__ import annotations

import secrets
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from scheduler.errors import ConfigurationError, InvalidRequestError, UnreachableError

if TYPE_CHECKING:
    from api.client import Client
    from api.schemas import SubmittedOut


def read(file: str) -> bytes:
    """What is in `file`; `-` is stdin.

    Raises:
        ConfigurationError: it cannot be read.
    """
    if file == "-":
        return sys.stdin.buffer.read()
    try:
        return Path(file).read_bytes()
    except OSError as error:
        raise ConfigurationError(f"the job file {file} cannot be read: {error.strerror}") from error


def document(file: str, raw: bytes) -> str:
    """The canonical JSON of a job file.

    Raises:
        InvalidRequestError: it is not a job; its problems name lines and columns.
    """
    from scheduler.jobspec import parse_job_json, parse_job_yaml  # noqa: PLC0415 - pydantic: 100 ms

    if file.endswith(".json"):
        return parse_job_json(raw)[1]
    folder = Path.cwd() if file == "-" else Path(file).absolute().parent
    return parse_job_yaml(raw, folder)[1]


def send(
    client: Client, document: str, raw: bytes, key: str | None = None, *, dry_run: bool
) -> SubmittedOut:
    """Send a job; what the daemon finds wrong is placed in `raw`, the file people see.

    Raises:
        InvalidRequestError: as the daemon says.
        UnreachableError: no answer; its hint says how to make sure of exactly one job.
    """
    from scheduler.jobspec import placed_in  # noqa: PLC0415 - as above

    key = key or secrets.token_hex(16)
    try:
        return client.submit(document, idempotency_key=key, dry_run=dry_run)
    except InvalidRequestError as error:
        error.problems = placed_in(raw, error.problems)
        raise
    except UnreachableError as error:
        if not dry_run and type(error.__cause__).__name__ != "ConnectError":
            error.hint = (
                "the job may have been stored; submit again with"
                f" `--idempotency-key {key}` to be sure of exactly one"
            )
        raise
