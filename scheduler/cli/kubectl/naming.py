"""What people name: `job/NAME`, `pod NAME`, `NAMESPACE/POD`; and the job that it stands for.

Jobs are named by id or by name; names may be given again, and then the newest job counts.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from scheduler.cli.kubectl.refusals import UsageError, not_found
from scheduler.cli.render import hint
from scheduler.errors import NotFoundError

if TYPE_CHECKING:
    from api.client import Client
    from api.schemas import JobOut

GROUP: Final = "haversack.dev"
JOBS: Final = f"jobs.{GROUP}"
_JOB_ID: Final = re.compile(r"j-[0-9a-z]{16}")

_TYPES: Final = {
    "job": ("job", "jobs", JOBS, f"job.{GROUP}"),
    "queue": ("queue", "queues", f"queues.{GROUP}", f"queue.{GROUP}"),
    "gpu": ("gpu", "gpus", f"gpus.{GROUP}", f"gpu.{GROUP}"),
    "node": ("node", "nodes", "no", f"nodes.{GROUP}", f"node.{GROUP}"),
    "pod": ("pod", "pods", "po"),
}
"""Every way to write a type, by the one that `-o name` uses."""


@dataclass(frozen=True, slots=True)
class Named:
    """Something by type and name; `type` is "" when none was given."""

    type: str
    name: str


def type_of(text: str) -> str | None:
    """The type that `text` writes, as `_TYPES` calls it; None if it is none."""
    return next((kind for kind, names in _TYPES.items() if text.lower() in names), None)


def named(words: Sequence[str], types: Sequence[str]) -> tuple[Named, ...]:
    """What `TYPE NAME...`, `TYPE/NAME ...`, or names alone are about.

    Args:
        words: of the command line, at least one.
        types: that the command knows, the names in `_TYPES`.

    Raises:
        UsageError: a type that the command does not know, or a type without a name.
    """
    first = type_of(words[0])
    if first is not None and len(words) == 1:
        raise UsageError(f"name the {first}: {words[0]} NAME")
    if first is not None:
        _known(first, types)
        if first != "pod" and any("/" in name for name in words[1:]):
            raise UsageError("there is no need to name a type before TYPE/NAME")
        return tuple(Named(first, name) for name in words[1:])
    return tuple(_split(word, types) for word in words)


def _split(word: str, types: Sequence[str]) -> Named:
    before, slash, after = word.partition("/")
    kind = type_of(before) if slash else None
    if kind is None:
        return Named("", word)
    _known(kind, types)
    if not after:
        raise UsageError(f"there is no name after {word!r}")
    return Named(kind, after)


def _known(kind: str, types: Sequence[str]) -> None:
    if kind not in types:
        raise UsageError(f"this command is about {' and '.join(types)}, not about {kind}")


def the_job(client: Client, name: str, namespace: str) -> JobOut:
    """The job of this id, or the newest one of this name in the namespace.

    Raises:
        NotFoundError: there is none.
    """
    if _JOB_ID.fullmatch(name):
        try:
            return client.job(name)
        except NotFoundError as error:
            raise not_found(JOBS, name) from error
    found = client.jobs(name=name, tenant=namespace, sort="-submitted_at", limit=2)["items"]
    if not found:
        raise not_found(JOBS, name, hint=f"looked for in namespace {namespace}; another one: -n")
    if len(found) > 1:
        hint(f"Warning: several jobs are named {name}; this is the newest, {found[0]['id']}")
    return found[0]


def job_of_pod(client: Client, namespace: str, pod: str) -> JobOut | None:
    """The newest job that has, or had, this pod as a member."""
    found = client.jobs(pod=f"{namespace}/{pod}", sort="-submitted_at", limit=1)["items"]
    return found[0] if found else None
