"""How jobs look to people: the table's columns, the description, the explanation."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping

from scheduler.cli.render import Column, Record, fields, pick, table
from scheduler.cli.text import age, clean
from scheduler.model.quantity import UtcSeconds


def job_columns(now: UtcSeconds) -> tuple[Column, ...]:
    """Columns of `haversack jobs`; ages are counted to `now`."""
    return (
        Column("ID", pick("id")),
        Column("NAME", pick("name")),
        Column("QUEUE", pick("queue")),
        Column("STATE", pick("state")),
        Column("PRIO", pick("priority")),
        Column("TASKS", pick("tasks")),
        Column("GPUS", lambda job: f"{job['gpus']}{' (simulated)' if job['simulated'] else ''}"),
        Column("ATTEMPTS", pick("attempt_count")),
        Column("TENANT", pick("tenant"), wide=True),
        Column("TOPOLOGY", pick("topology"), wide=True),
        Column("STARTED", pick("started_at"), wide=True),
        Column("FINISHED", pick("finished_at"), wide=True),
        Column("CAUSE", pick("end_cause"), wide=True),
        Column("EXIT", pick("exit_code"), wide=True),
        Column("MESSAGE", pick("message"), wide=True),
        Column("AGE", lambda job: age(job["submitted_at"], now)),
    )


def description(job: Record, now: UtcSeconds, node_name: Callable[[str], str]) -> str:
    """Text of `haversack describe`: `job` is a JobDetailOut with its `history`."""
    per_task = (
        f"{job['gpus_per_task']} GPUs, {job['cpu_milli_per_task'] / 1000:g} cores,"
        f" {job['memory_mib_per_task']} MiB"
    )
    head = fields(
        [
            ("Name", job["name"]),
            ("Id", job["id"]),
            ("State", job["state"]),
            ("Message", job["message"]),
            ("End cause", job["end_cause"]),
            ("Exit code", job["exit_code"]),
            ("Queue", job["queue"]),
            ("Tenant", job["tenant"]),
            ("Priority", job["priority"]),
            ("Tasks", f"{job['tasks']} x ({per_task})"),
            ("GPU models", ", ".join(job["gpu_models"])),
            ("Topology", job["topology"]),
            ("Pool", job["pool"]),
            ("Simulated", "yes: no real GPU is used" if job["simulated"] else None),
            ("Submitted", f"{job['submitted_at']} ({age(job['submitted_at'], now)} ago)"),
            ("Started", job["started_at"]),
            ("Finished", job["finished_at"]),
            ("Command", _command(job["document"])),
        ]
    )
    history = "History:\n" + _indented(_history(job["history"]))
    attempts = [_attempt(attempt, node_name) for attempt in job["attempts"]]
    return "\n\n".join([head, *attempts, history])


def _command(document: Mapping[str, object]) -> str:
    spec = document.get("spec")
    task = spec.get("task") if isinstance(spec, Mapping) else None
    return json.dumps(task.get("command")) if isinstance(task, Mapping) else ""


def _attempt(attempt: Record, node_name: Callable[[str], str]) -> str:
    ended = attempt["exit"] or {}
    how = None
    if ended:
        signal = ended["signal"]
        how = f"rank {ended['rank']} " + (
            f"killed by signal {signal}" if signal is not None else f"exited {ended['exit_code']}"
        )
    head = fields(
        [
            ("Id", attempt["id"]),
            ("Decision", attempt["decision_id"]),
            ("Why here", attempt["why"]),
            ("Started", attempt["started_at"]),
            ("Ended", attempt["ended_at"]),
            ("Cause", attempt["end_cause"]),
            ("Exit", how),
            ("Message", attempt["message"]),
        ]
    )
    tasks = table(
        attempt["tasks"],
        (
            Column("TASK", pick("task_index")),
            Column("NODE", lambda task: node_name(task["node_id"])),
            Column("CPU", lambda task: f"{task['cpu_milli'] / 1000:g}"),
            Column("MEMORY", lambda task: f"{task['memory_mib']} MiB"),
            Column("GPUS", lambda task: ", ".join(task["gpu_ids"]) or "-"),
        ),
    )
    live = " (live)" if attempt["live"] else ""
    return f"Attempt {attempt['number']}{live}:\n" + _indented(f"{head}\n{tasks}")


def _history(moves: Iterable[Record]) -> str:
    return table(
        moves,
        (
            Column("AT", pick("at")),
            Column("EVENT", pick("event")),
            Column("STATE", pick("to_state")),
            Column("ATTEMPT", pick("attempt_id")),
        ),
    )


def explanation(record: Record, now: UtcSeconds) -> str:
    """Text of `haversack explain`: `record` is an ExplanationOut."""
    parts = [f"{clean(record['job_id'])} {clean(record['state'])}: {clean(record['summary'])}"]
    if record["reasons"]:
        parts.append("Reasons, the limiting one first:\n" + _indented(_reasons(record["reasons"])))
    if record["funnel"]:
        steps = [f"{step['nodes_left']} after {clean(step['filter'])}" for step in record["funnel"]]
        parts.append("Nodes left: " + " -> ".join(steps))
    if record["reasons"]:
        parts.append(f"Jobs ahead in the queue: {record['ahead']}")
    if record["decision_id"] is not None:
        gap = "" if record["gap"] is None else f", proven gap {record['gap']:.2%}"
        parts.append(
            f"From decision {clean(record['decision_id'])},"
            f" {age(record['evaluated_at'], now)} ago{gap}"
        )
    return "\n".join(parts)


def _reasons(reasons: Iterable[Record]) -> str:
    return table(
        reasons,
        (
            Column("CODE", pick("code")),
            Column("DIMENSION", pick("dimension")),
            Column("NEED", lambda reason: f"{reason['need']:g}"),
            Column("FREE", lambda reason: f"{reason['free']:g}"),
            Column("LARGEST BLOCK", lambda reason: f"{reason['largest_block']:g}"),
            Column("WHY", pick("message")),
        ),
    )


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.rstrip().splitlines())
