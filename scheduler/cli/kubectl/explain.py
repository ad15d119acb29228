"""`explain`: why a job, or the job of a pod, stands where it stands, and what would help."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from scheduler.cli.kubectl import tables
from scheduler.cli.kubectl.ages import age
from scheduler.cli.kubectl.call import call_of
from scheduler.cli.kubectl.naming import Named, job_of_pod, named, the_job
from scheduler.cli.kubectl.refusals import not_found
from scheduler.cli.render import Column, Record
from scheduler.cli.text import clean
from scheduler.errors import NotFoundError
from scheduler.model.quantity import UtcSeconds

if TYPE_CHECKING:
    from api.client import Client

EXAMPLES: Final = """\
# Say why a job waits, and what would help
kubectl haversack explain llama

# Say why a pod waits: as part of its gang, or on its own
kubectl haversack explain pod llama-worker-3 -n research
kubectl haversack explain research/llama-worker-3
"""


def explain(
    context: typer.Context,
    what: Annotated[
        list[str],
        typer.Argument(
            metavar="NAME|job NAME|pod NAME",
            help="A job by name or id, a pod by name or NAMESPACE/POD.",
        ),
    ],
) -> None:
    """Say why a job or a pod stands where it stands, and what would help.

    Every reason is told with its numbers, the limiting one first. A pod that is part of a gang is
    explained as its gang; one that is in no job yet, by what it lacks.
    """
    call = call_of(context)
    with call.connect() as client:
        now = call.session.clock.now()
        texts = [_one(client, each, call.namespace, now) for each in named(what, ("job", "pod"))]
    typer.echo("\n\n".join(texts))


def _one(client: Client, wanted: Named, namespace: str, now: UtcSeconds) -> str:
    before, slash, after = wanted.name.partition("/")
    if slash:  # no job's name has one
        return _pod(client, before, after, now)
    if wanted.type == "pod":
        return _pod(client, namespace, wanted.name, now)
    try:
        job = the_job(client, wanted.name, namespace)
    except NotFoundError as error:
        if wanted.type == "job":
            raise
        try:
            return _pod(client, namespace, wanted.name, now)
        except NotFoundError:
            raise error from None
    return f"job {clean(job['name'])} ({job['id']})\n{explanation(client.explain(job['id']), now)}"


def _pod(client: Client, namespace: str, name: str, now: UtcSeconds) -> str:
    head = f"pod {clean(namespace)}/{clean(name)}"
    found = job_of_pod(client, namespace, name)
    if found is None:
        try:
            reason = client.pod(namespace, name)["reason"]
        except NotFoundError as error:
            raise not_found(
                "pods",
                f"{namespace}/{name}",
                hint="Haversack knows pods whose spec.schedulerName is haversack; what others say"
                f" of it: kubectl describe pod {name} -n {namespace}",
            ) from error
        return f"{head} waits outside every job\nWhy:     {clean(reason)}"
    job = client.job(found["id"])
    pods = pods_of(job)
    if pods:
        place = next((str(at) for at, pod in enumerate(pods) if pod == f"{namespace}/{name}"), "?")
    else:  # made for the job, and named after its task
        place = name.rpartition("-")[2]
    member = f"task {place} of {job['tasks']} of job" if job["tasks"] > 1 else "job"
    return (
        f"{head} is {member} {clean(job['name'])} ({job['id']})\n"
        f"{explanation(client.explain(job['id']), now)}"
    )


def pods_of(job: Record) -> list[str]:
    """`namespace/name` of the pods that became task 0, 1, ...; empty for a job of no pods."""
    document: Mapping[str, Any] = job["document"]
    members = document.get("members")
    if not isinstance(members, list):
        return []
    return [str(member).rpartition("/")[0] for member in members]


def explanation(told: Record, now: UtcSeconds) -> str:
    """What the daemon says of a job; `told` is an ExplanationOut."""
    parts = [f"Status:  {clean(told['state'])}", f"Why:     {clean(told['summary'])}"]
    if told["reasons"]:
        parts.append(tables.section("Reasons", _REASON_COLUMNS, told["reasons"]))
    if told["funnel"]:
        steps = [f"{step['nodes_left']} after {clean(step['filter'])}" for step in told["funnel"]]
        parts.append("Nodes:   " + " -> ".join(steps))
    if told["decision_id"] is not None:
        gap = "" if told["gap"] is None else f", proven gap {told['gap']:.2%}"
        since = age(told["evaluated_at"], now)
        parts.append(f"From:    decision {clean(told['decision_id'])}, {since} ago{gap}")
    return "\n".join(parts)


_REASON_COLUMNS: Final = (
    Column("REASON", tables.field("code")),
    Column("OF", tables.field("dimension")),
    Column("NEED", lambda reason: f"{reason['need']:g}"),
    Column("FREE", lambda reason: f"{reason['free']:g}"),
    Column("LARGEST-BLOCK", lambda reason: f"{reason['largest_block']:g}"),
    # A daemon of before this column does not tell it.
    Column("WHAT-HELPS", lambda reason: reason.get("remedy", tables.NONE)),
    Column("WHY", tables.field("message")),  # last, as it may be long
)
