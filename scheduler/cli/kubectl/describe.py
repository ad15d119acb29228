"""`describe`: everything about a job or a node, for people."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from scheduler.cli.follow import NodeNames
from scheduler.cli.kubectl import tables
from scheduler.cli.kubectl.ages import age
from scheduler.cli.kubectl.call import Call, call_of
from scheduler.cli.kubectl.explain import explanation, pods_of
from scheduler.cli.kubectl.naming import GROUP, named, the_job
from scheduler.cli.kubectl.refusals import UsageError, not_found
from scheduler.cli.kubectl.resources import holder, share, standing
from scheduler.cli.render import Column, Record, fields
from scheduler.errors import NotFoundError
from scheduler.model.quantity import UtcSeconds

if TYPE_CHECKING:
    from api.client import Client

EXAMPLES: Final = """\
# Describe the newest job that is called llama
kubectl haversack describe job llama

# Describe a node: what is used of it, and by whom
kubectl haversack describe node gpu-7
"""


def describe(
    context: typer.Context,
    what: Annotated[
        list[str],
        typer.Argument(metavar="job|node NAME...", help="Or TYPE/NAME; several at once."),
    ],
) -> None:
    """Show a job or a node in detail.

    A job: what it asks for, its pods, its attempts, where they ran, why it waits, and its history.
    A node: what is used of it, and which job has which of its GPUs.
    """
    call = call_of(context)
    with call.connect() as client:
        texts = []
        for each in named(what, ("job", "node")):
            if not each.type:
                raise UsageError(f"say what {each.name!r} is: job {each.name}, or node {each.name}")
            if each.type == "job":
                texts.append(_job(client, call, each.name))
            else:
                texts.append(_node(client, each.name, call.session.clock.now()))
    typer.echo("\n\n\n".join(texts))


def _job(client: Client, call: Call, name: str) -> str:
    job = client.job(the_job(client, name, call.namespace)["id"])
    now = call.session.clock.now()
    node_name = NodeNames(client)
    parts = [fields(_job_fields(job, now))]
    if pods := pods_of(job):
        parts.append(tables.section("Pods", _POD_COLUMNS, _placed_pods(job, pods, node_name)))
    parts += [_attempt(attempt, node_name, now) for attempt in job["attempts"]]
    parts.append(explanation(client.explain(job["id"]), now))
    history = client.history(job["id"])
    parts.append(tables.section("Events", _event_columns(now), history))
    return "\n".join(parts)


def _job_fields(job: Record, now: UtcSeconds) -> list[tuple[str, object]]:
    per_task = (
        f"{job['gpus_per_task']} GPUs, {job['cpu_milli_per_task'] / 1000:g} cores,"
        f" {job['memory_mib_per_task']} MiB"
    )
    return [
        ("Name", job["name"]),
        ("ID", job["id"]),
        ("Namespace", job["tenant"]),
        ("Queue", job["queue"]),
        ("Priority", job["priority"]),
        ("Origin", job["origin"]),
        ("Status", job["state"]),
        ("Message", job["message"]),
        ("End Cause", job["end_cause"]),
        ("Exit Code", job["exit_code"]),
        ("Tasks", f"{job['tasks']} x ({per_task})"),
        ("GPU Models", ", ".join(job["gpu_models"])),
        ("Topology", job["topology"]),
        ("Pool", job["pool"]),
        ("Simulated", "yes: no real GPU is used" if job["simulated"] else None),
        ("Submitted", f"{job['submitted_at']} ({age(job['submitted_at'], now)} ago)"),
        ("Started", job["started_at"]),
        ("Finished", job["finished_at"]),
        ("Command", _command(job["document"])),
    ]


def _command(document: Mapping[str, Any]) -> str:
    spec = document.get("spec")
    task = spec.get("task") if isinstance(spec, Mapping) else None
    return json.dumps(task["command"]) if isinstance(task, Mapping) and "command" in task else ""


_POD_COLUMNS: Final = (
    Column("TASK", tables.field("task")),
    Column("NAME", tables.field("name")),
    Column("NODE", tables.field("node")),
    Column("GPUS", tables.field("gpus")),
)


def _placed_pods(
    job: Record, pods: Sequence[str], node_name: Callable[[str], str]
) -> list[dict[str, object]]:
    """Its pods, with where the live attempt has them."""
    live = [attempt for attempt in job["attempts"] if attempt["live"]]
    tasks = {task["task_index"]: task for task in live[-1]["tasks"]} if live else {}
    return [
        {
            "task": index,
            "name": pod,
            "node": node_name(tasks[index]["node_id"]) if index in tasks else "",
            "gpus": len(tasks[index]["gpu_ids"]) if index in tasks else "",
        }
        for index, pod in enumerate(pods)
    ]


def _attempt(attempt: Record, node_name: Callable[[str], str], now: UtcSeconds) -> str:
    ended = attempt["exit"] or {}
    how = None
    if ended:
        signal = ended["signal"]
        how = f"rank {ended['rank']} " + (
            f"killed by signal {signal}" if signal is not None else f"exited {ended['exit_code']}"
        )
    head = fields(
        [
            ("ID", attempt["id"]),
            ("Decision", attempt["decision_id"]),
            ("Why Here", attempt["why"]),
            ("Age", age(attempt["created_at"], now)),
            ("Started", attempt["started_at"]),
            ("Ended", attempt["ended_at"]),
            ("Cause", attempt["end_cause"]),
            ("Exit", how),
            ("Message", attempt["message"]),
        ]
    )
    tasks = tables.section(
        "Tasks",
        (
            Column("TASK", tables.field("task_index")),
            Column("NODE", lambda task: node_name(task["node_id"])),
            Column("CPU", lambda task: f"{task['cpu_milli'] / 1000:g}"),
            Column("MEMORY", lambda task: f"{task['memory_mib']}Mi"),
            Column("GPUS", tables.joined("gpu_ids")),
        ),
        attempt["tasks"],
    )
    live = " (live)" if attempt["live"] else ""
    inner = "\n".join(f"  {line}" for line in f"{head}\n{tasks}".splitlines())
    return f"Attempt {attempt['number']}{live}:\n{inner}"


def _event_columns(now: UtcSeconds) -> tuple[Column, ...]:
    return (
        Column("AGE", lambda move: age(move["at"], now)),
        Column("EVENT", tables.field("event")),
        Column("STATUS", tables.field("to_state")),
        Column("ATTEMPT", tables.field("attempt_id")),
    )


def _node(client: Client, name: str, now: UtcSeconds) -> str:
    try:
        node = client.node(name)
    except NotFoundError as error:
        raise not_found(f"nodes.{GROUP}", name) from error
    head = fields(
        [
            ("Name", node["name"]),
            ("ID", node["id"]),
            ("Status", standing(node)),
            ("Pool", node["pool"]),
            ("Rack", node["rack"]),
            ("Zone", node["zone"]),
            ("Price", node["price_class"]),
            ("GPU Models", ", ".join(node["gpu_models"])),
            ("GPUs Used", f"{node['gpus_used']}/{node['gpus']}"),
            ("CPU Used", share(node, "cpu_milli", 1000)),
            ("Memory Used", f"{share(node, 'memory_mib', 1024)} Gi"),
            ("Seen", f"{node['seen_at']} ({age(node['seen_at'], now)} ago)"),
        ]
    )
    here = [gpu for gpu in client.gpus() if gpu["node_id"] == node["id"]]
    columns = (
        Column("INDEX", tables.field("index")),
        Column("ID", tables.field("id")),
        Column("STATUS", standing),
        Column("MODEL", tables.field("model")),
        Column("JOB", holder),
    )
    return f"{head}\n{tables.section('GPUs', columns, here)}"
