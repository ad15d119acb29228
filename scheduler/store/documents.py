"""What the stored document of a job says about running it, whoever made the job.

A job of the API keeps the job file it was submitted as. A gang that waits outside keeps who its
members are: what they run is written where they wait, and nobody asks us to start it a second time.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import orjson

from scheduler.errors import FieldProblem, InvalidRequestError
from scheduler.jobspec import parse_job_json
from scheduler.model.job import CheckpointSpec, LauncherKind, RetrySpec
from scheduler.model.outside import OutsideGang

API_VERSION = "haversack.dev/v1"
"""Version of the documents that this module writes itself."""
POD_GANG = "PodGang"
"""Kind of the document of a gang of pods that somebody else made."""


@dataclass(frozen=True, slots=True)
class Program:
    """How the tasks of a job are started and stopped, and what follows when they fail.

    Attributes:
        members: what waits outside to become task 0, 1, ...; empty when executors make the tasks.
    """

    launcher: LauncherKind = LauncherKind.NONE
    processes: int = 1
    command: tuple[str, ...] = ()
    env: tuple[tuple[str, str], ...] = ()
    workdir: str | None = None
    image: str | None = None
    max_runtime_s: float | None = None
    retry: RetrySpec = field(default_factory=RetrySpec)
    checkpoint: CheckpointSpec = field(default_factory=CheckpointSpec)
    members: tuple[str, ...] = ()


def of_gang(gang: OutsideGang) -> str:
    """The document of a gang that waits outside."""
    found = {
        "apiVersion": API_VERSION,
        "kind": POD_GANG,
        "metadata": {"name": gang.name, "namespace": gang.tenant},
        "spec": {
            "queue": gang.queue,
            "priority": gang.priority,
            "priorityClass": gang.priority_class,
            "preemptible": gang.preemptible,
            "evicts": gang.evicts,
            "shape": gang.shape,
        },
        "members": gang.members,
    }
    return orjson.dumps(found, option=orjson.OPT_SORT_KEYS).decode()


def priority_class_of(document: str) -> str:
    """What gave a gang from outside its priority, by name; "" if nothing with a name did."""
    try:
        found = orjson.loads(document)
    except orjson.JSONDecodeError:
        return ""
    spec = found.get("spec") if isinstance(found, dict) else None
    name = spec.get("priorityClass") if isinstance(spec, dict) else None
    return name if isinstance(name, str) else ""


def program(document: str) -> Program:
    """How to run the job of this document.

    Raises:
        InvalidRequestError: this version cannot read it.

    Cost: microseconds for a gang from outside, hundreds of them for a job file.
    """
    members = members_of(document)
    if members:
        return Program(members=members)
    spec = parse_job_json(document)[0]
    return Program(
        launcher=spec.launcher,
        processes=spec.task.processes,
        command=spec.task.command,
        env=spec.task.env,
        workdir=spec.task.workdir,
        image=spec.task.image,
        max_runtime_s=spec.max_runtime_s,
        retry=spec.retry,
        checkpoint=spec.checkpoint,
    )


def members_of(document: str) -> tuple[str, ...]:
    """What waits outside to become task 0, 1, ...; empty for a job that nobody else made.

    Raises:
        InvalidRequestError: it is a gang from outside, and this version cannot read it.
    """
    try:
        found = orjson.loads(document)
    except orjson.JSONDecodeError:
        return ()  # no document of ours; whoever reads job files words what is wrong
    if not isinstance(found, dict) or found.get("kind") != POD_GANG:
        return ()
    if found.get("apiVersion") != API_VERSION:
        raise _unreadable("apiVersion", f"is not {API_VERSION}")
    members = found.get("members")
    if not isinstance(members, list) or not members:
        raise _unreadable("members", "names nobody")
    if not all(isinstance(member, str) and member for member in members):
        raise _unreadable("members", "holds something that is no name")
    return tuple(members)


def _unreadable(path: str, message: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"the document of a gang cannot be read: {path} {message}",
        problems=(FieldProblem(path, message),),
    )
