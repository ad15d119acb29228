"""What the hosts offer, written into the store: nodes and GPUs come, change and go.

A row is never deleted: a node or GPU that is gone is only no longer `present`, and what runs on it
keeps its allocations until it is proved dead (I6). Operators own `cordoned`; hosts own the rest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import bindparam, insert, select, update

from scheduler.model.node import Node
from scheduler.model.quantity import SYSTEM_TENANT, UtcSeconds
from scheduler.store import codec
from scheduler.store.tables import gpus, nodes, pools
from scheduler.store.transaction import Transaction

_NODE_ROW = update(nodes).where(nodes.c.id == bindparam("node"))
_GPU_ROW = update(gpus).where(gpus.c.id == bindparam("gpu"))
_SEEN = update(nodes).where(nodes.c.id == bindparam("node")).values(seen_at=bindparam("at"))
_LEAVES = 1  # GPUs are not shared yet


def sync_nodes(tx: Transaction, found: Sequence[Node], *, now: UtcSeconds) -> int:
    """Make the store's nodes those of `found`; all others are no longer present.

    A node's revision and version move only when something about it or its GPUs changed.

    Args:
        tx: a write transaction.
        found: every node of the cluster as last seen.
        now: when it was seen.

    Returns:
        How many nodes changed, appeared or left.

    Cost: three statements when nothing changed.
    """
    run = tx.connection.execute
    node_rows = {row["id"]: row for row in run(select(nodes)).mappings()}
    gpu_rows = {row["id"]: row for row in run(select(gpus)).mappings()}
    gpus_of: dict[str, set[str]] = {}
    for row in gpu_rows.values():
        if row["present"]:
            gpus_of.setdefault(row["node_id"], set()).add(row["id"])
    _add_pools(tx, found, now)
    _free_names(tx, found, node_rows)
    everywhere = {gpu.id for node in found for gpu in node.gpus}
    changes = 0
    for node in found:
        old = node_rows.get(node.id)
        new_gpus = [gpu for gpu in _gpu_columns(node) if _differs(gpu_rows.get(gpu["id"]), gpu)]
        lost_gpus = gpus_of.get(node.id, set()) - {gpu.id for gpu in node.gpus}
        columns = _node_columns(node)
        if not (_differs(old, columns) or new_gpus or lost_gpus):
            continue
        changes += 1
        revision = _journal(tx, node.name, node.id, "present", now)
        _write_node(tx, columns, old, revision=revision, now=now)
        _write_gpus(tx, new_gpus, gpu_rows, revision=revision)
        # One that moved to another of the nodes is not lost.
        _lose_gpus(tx, sorted(lost_gpus - everywhere), gpu_rows, revision=revision)
    here = {node.id for node in found}
    for row in node_rows.values():
        if row["present"] and row["id"] not in here:
            changes += 1
            revision = _journal(tx, row["name"], row["id"], "gone", now)
            versions = {"version": row["version"] + 1, "revision": revision}
            run(_NODE_ROW, {"node": row["id"], "present": False, **versions})
            lost_gpus = gpus_of.get(row["id"], set()) - everywhere
            _lose_gpus(tx, sorted(lost_gpus), gpu_rows, revision=revision)
    if here:
        run(_SEEN, [{"node": node_id, "at": now} for node_id in sorted(here)])
    return changes


def _journal(tx: Transaction, name: str, node_id: str, event: str, now: UtcSeconds) -> int:
    return tx.next_revision(
        tenant=SYSTEM_TENANT,
        kind="node",
        object_id=node_id,
        payload={"event": event, "name": name},
        at=now,
    )


def _node_columns(node: Node) -> dict[str, Any]:
    return {
        "id": node.id,
        "name": node.name,
        "pool_id": node.pool,
        "price_class": node.price_class.value,
        "rack": node.rack,
        "zone": node.zone,
        "health": node.health.value,
        "simulated": node.simulated,
        "present": True,
        "cpu_milli": node.capacity.cpu_milli,
        "memory_mib": node.capacity.memory_mib,
        "links": codec.text(node.links),
    }


def _gpu_columns(node: Node) -> list[dict[str, Any]]:
    return [
        {
            "id": gpu.id,
            "node_id": node.id,
            "pool_id": node.pool,
            "price_class": node.price_class.value,
            "position": gpu.index,
            "model": gpu.model,
            "memory_mib": gpu.memory_mib,
            "health": gpu.health.value,
            "present": True,
        }
        for gpu in node.gpus
    ]


def _differs(row: Mapping[Any, Any] | None, columns: Mapping[str, Any]) -> bool:
    return row is None or any(row[name] != value for name, value in columns.items())


def _write_node(
    tx: Transaction,
    columns: Mapping[str, Any],
    old: Mapping[Any, Any] | None,
    *,
    revision: int,
    now: UtcSeconds,
) -> None:
    if old is not None:
        values = {name: value for name, value in columns.items() if name != "id"}
        versions = {"version": old["version"] + 1, "revision": revision}
        tx.connection.execute(_NODE_ROW, {"node": columns["id"], **values, **versions})
        return
    tx.connection.execute(
        insert(nodes),
        {
            **columns,
            "tenant_id": SYSTEM_TENANT,
            "cordoned": False,
            "cpu_milli_used": 0,
            "memory_mib_used": 0,
            "seen_at": now,
            "version": 1,
            "revision": revision,
        },
    )


def _write_gpus(
    tx: Transaction,
    changed: Sequence[Mapping[str, Any]],
    rows: Mapping[Any, Mapping[Any, Any]],
    *,
    revision: int,
) -> None:
    added = [gpu for gpu in changed if gpu["id"] not in rows]
    if added:
        fresh = {
            "tenant_id": SYSTEM_TENANT,
            "cordoned": False,
            "leaves": _LEAVES,
            "version": 1,
            "revision": revision,
        }
        tx.connection.execute(insert(gpus), [{**gpu, **fresh} for gpu in added])
    for gpu in changed:
        if gpu["id"] in rows:
            values = {name: value for name, value in gpu.items() if name != "id"}
            versions = {"version": rows[gpu["id"]]["version"] + 1, "revision": revision}
            tx.connection.execute(_GPU_ROW, {"gpu": gpu["id"], **values, **versions})


def _lose_gpus(
    tx: Transaction,
    lost: Sequence[str],
    rows: Mapping[Any, Mapping[Any, Any]],
    *,
    revision: int,
) -> None:
    for gpu_id in lost:
        versions = {"version": rows[gpu_id]["version"] + 1, "revision": revision}
        tx.connection.execute(_GPU_ROW, {"gpu": gpu_id, "present": False, **versions})


def _add_pools(tx: Transaction, found: Sequence[Node], now: UtcSeconds) -> None:
    known = set(tx.connection.execute(select(pools.c.id)).scalars())
    for node in found:
        if node.pool not in known:
            known.add(node.pool)
            tx.connection.execute(
                insert(pools),
                {
                    "id": node.pool,
                    "tenant_id": SYSTEM_TENANT,
                    "price_class": node.price_class.value,
                    "created_at": now,
                },
            )


def _free_names(
    tx: Transaction, found: Sequence[Node], rows: Mapping[Any, Mapping[Any, Any]]
) -> None:
    """A machine that comes back under a new id takes its name from the row that had it."""
    wanted = {node.name: node.id for node in found}
    for row in rows.values():
        if wanted.get(row["name"], row["id"]) != row["id"]:
            tx.connection.execute(
                _NODE_ROW, {"node": row["id"], "name": f"{row['name'][:60]}~{row['id'][:60]}"}
            )
