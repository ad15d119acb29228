"""What the hosts offer, written into the store: nodes and GPUs come, change and go.

A row is never deleted: a node or GPU that is gone is only no longer `present`, and what runs on it
keeps its allocations until it is proved dead (I6). Operators own `cordoned`; hosts own the rest.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from sqlalchemy import Column, Row, Select, bindparam, insert, select, update

from scheduler.model.node import Node
from scheduler.model.quantity import SYSTEM_TENANT, NodeId, UtcSeconds
from scheduler.store import codec
from scheduler.store.tables import gpus, nodes, pools
from scheduler.store.transaction import Transaction

AnyRow: TypeAlias = Row[*tuple[Any, ...]]

_CHUNK = 500
_NODE = (
    "id",
    "name",
    "pool_id",
    "price_class",
    "rack",
    "zone",
    "health",
    "simulated",
    "present",
    "cpu_milli",
    "memory_mib",
    "links",
    "labels",
    "taints",
    "extras",
)
"""Columns that hosts own, in the order of `_node_values`."""
_GPU = (
    "id",
    "node_id",
    "pool_id",
    "price_class",
    "position",
    "model",
    "memory_mib",
    "health",
    "external",
    "present",
)
"""Columns that hosts own, in the order of `_gpu_values`."""
_NODES = select(*(nodes.c[name] for name in _NODE), nodes.c.version)
_GPUS = select(*(gpus.c[name] for name in _GPU), gpus.c.version)
_PRESENT = select(nodes.c.name, nodes.c.id).where(nodes.c.present.is_(True)).order_by(nodes.c.id)
_NODE_ROW = update(nodes).where(nodes.c.id == bindparam("node"))
_GPU_ROW = update(gpus).where(gpus.c.id == bindparam("gpu"))
_SEEN = update(nodes).where(nodes.c.id == bindparam("node")).values(seen_at=bindparam("at"))
_LEAVES = 1  # GPUs are not shared yet


def sync_nodes(tx: Transaction, found: Sequence[Node], *, now: UtcSeconds) -> int:
    """Make the store's nodes those of `found`; all others are no longer present.

    Args:
        tx: a write transaction.
        found: every node of the cluster as last seen.
        now: when it was seen.

    Returns:
        How many nodes changed, appeared or left.

    Cost: one statement more than `sync_changes`.
    """
    here = {node.id for node in found}
    gone = [node_id for node_id in present_ids(tx).values() if node_id not in here]
    return sync_changes(tx, found, gone, now=now)


def present_ids(tx: Transaction) -> dict[str, NodeId]:
    """The nodes that are present, by name."""
    return {row.name: NodeId(row.id) for row in tx.connection.execute(_PRESENT)}


def sync_changes(
    tx: Transaction, changed: Sequence[Node], gone: Sequence[NodeId], *, now: UtcSeconds
) -> int:
    """Write nodes that may have changed and nodes that have left; the others stay as they are.

    A node's revision and version move only when something about it or its GPUs changed.

    Args:
        tx: a write transaction.
        changed: nodes as last seen, each once.
        gone: nodes that are no longer there; one that is in `changed` too is there.
        now: when this was seen.

    Returns:
        How many nodes changed, appeared or left.

    Cost: six statements when nothing changed, at most six more for the changes, and some for each
    `_CHUNK` of nodes and of GPUs.
    """
    here = {node.id for node in changed}
    node_rows = _by_id(tx, _NODES, nodes.c.id, [*here, *gone])
    gpu_rows = _by_id(tx, _GPUS, gpus.c.node_id, [*here, *gone])
    everywhere = {gpu.id for node in changed for gpu in node.gpus}
    gpu_rows |= _by_id(tx, _GPUS, gpus.c.id, everywhere - gpu_rows.keys())
    gpus_of: dict[str, set[str]] = {}
    for row in gpu_rows.values():
        if row.present:
            gpus_of.setdefault(row.node_id, set()).add(row.id)
    _add_pools(tx, changed, now)
    _free_names(tx, changed)
    writes = _Writes()
    for node in changed:
        old = node_rows.get(node.id)
        new_gpus = [gpu for gpu in _gpu_values(node) if _differs(gpu_rows.get(gpu[0]), gpu)]
        lost_gpus = gpus_of.get(node.id, set()) - {gpu.id for gpu in node.gpus}
        values = _node_values(node)
        if _differs(old, values) or new_gpus or lost_gpus:
            revision = _journal(tx, node.name, node.id, "present", now)
            writes.node(dict(zip(_NODE, values, strict=True)), old, revision, now)
            for gpu in new_gpus:
                columns = dict(zip(_GPU, gpu, strict=True))
                writes.gpu(columns, gpu_rows.get(gpu[0]), revision)
            # One that moved to another of the nodes is not lost.
            writes.lose(sorted(lost_gpus - everywhere), gpu_rows, revision)
    for node_id in dict.fromkeys(gone):
        left = node_rows.get(node_id)
        if left is not None and left.present and node_id not in here:
            revision = _journal(tx, left.name, node_id, "gone", now)
            versions = _versions(left, revision)
            writes.nodes_gone.append({"node": node_id, "present": False, **versions})
            writes.lose(sorted(gpus_of.get(node_id, set()) - everywhere), gpu_rows, revision)
    writes.carry_out(tx)
    if here:
        tx.connection.execute(_SEEN, [{"node": node_id, "at": now} for node_id in sorted(here)])
    return writes.changes


@dataclass(frozen=True, slots=True)
class _Writes:
    """Rows to write, by what is done with them; each list is one statement."""

    nodes_new: list[dict[str, Any]] = field(default_factory=list)
    nodes_changed: list[dict[str, Any]] = field(default_factory=list)
    nodes_gone: list[dict[str, Any]] = field(default_factory=list)
    gpus_new: list[dict[str, Any]] = field(default_factory=list)
    gpus_changed: list[dict[str, Any]] = field(default_factory=list)
    gpus_lost: list[dict[str, Any]] = field(default_factory=list)

    @property
    def changes(self) -> int:
        """Nodes that changed, appeared or left."""
        return len(self.nodes_new) + len(self.nodes_changed) + len(self.nodes_gone)

    def node(
        self, columns: Mapping[str, Any], old: AnyRow | None, revision: int, now: UtcSeconds
    ) -> None:
        """Write a node over its old row, or a new one."""
        if old is not None:
            self.nodes_changed.append(_over(columns, "node") | _versions(old, revision))
            return
        self.nodes_new.append(
            {
                **columns,
                "tenant_id": SYSTEM_TENANT,
                "cordoned": False,
                "cpu_milli_used": 0,
                "memory_mib_used": 0,
                "seen_at": now,
                "version": 1,
                "revision": revision,
            }
        )

    def gpu(self, columns: Mapping[str, Any], old: AnyRow | None, revision: int) -> None:
        """Write a GPU over its old row, or a new one."""
        if old is not None:
            self.gpus_changed.append(_over(columns, "gpu") | _versions(old, revision))
            return
        self.gpus_new.append(
            {
                **columns,
                "tenant_id": SYSTEM_TENANT,
                "cordoned": False,
                "leaves": _LEAVES,
                "version": 1,
                "revision": revision,
            }
        )

    def lose(self, lost: Iterable[str], rows: Mapping[str, AnyRow], revision: int) -> None:
        """Note that GPUs are no longer there."""
        for gpu_id in lost:
            versions = _versions(rows[gpu_id], revision)
            self.gpus_lost.append({"gpu": gpu_id, "present": False, **versions})

    def carry_out(self, tx: Transaction) -> None:
        """Write all of it, nodes before the GPUs that refer to them."""
        for statement, rows in (
            (insert(nodes), self.nodes_new),
            (_NODE_ROW, self.nodes_changed),
            (_NODE_ROW, self.nodes_gone),
            (insert(gpus), self.gpus_new),
            (_GPU_ROW, self.gpus_changed),
            (_GPU_ROW, self.gpus_lost),
        ):
            if rows:
                tx.connection.execute(statement, rows)


def _by_id(
    tx: Transaction, statement: Select[Any], column: Column[str], wanted: Iterable[str]
) -> dict[str, AnyRow]:
    """Rows of a statement, by the id they begin with, where a column is one of `wanted`."""
    keys = sorted(set(wanted))
    found: dict[str, AnyRow] = {}
    for start in range(0, len(keys), _CHUNK):
        some = statement.where(column.in_(keys[start : start + _CHUNK]))
        found |= {row[0]: row for row in tx.connection.execute(some).all()}
    return found


def _over(columns: Mapping[str, Any], key: str) -> dict[str, Any]:
    """What an UPDATE of the row wants: its id under the name that the WHERE has for it."""
    return {(key if name == "id" else name): value for name, value in columns.items()}


def _versions(old: AnyRow, revision: int) -> dict[str, int]:
    return {"version": old.version + 1, "revision": revision}


def _journal(tx: Transaction, name: str, node_id: str, event: str, now: UtcSeconds) -> int:
    return tx.next_revision(
        tenant=SYSTEM_TENANT,
        kind="node",
        object_id=node_id,
        payload={"event": event, "name": name},
        at=now,
    )


def _node_values(node: Node) -> tuple[object, ...]:
    return (
        node.id,
        node.name,
        node.pool,
        node.price_class.value,
        node.rack,
        node.zone,
        node.health.value,
        node.simulated,
        True,
        node.capacity.cpu_milli,
        node.capacity.memory_mib,
        codec.text(node.links),
        codec.text(node.labels),
        codec.text(node.taints),
        codec.text(node.extras),
    )


def _gpu_values(node: Node) -> list[tuple[Any, ...]]:
    pool, price_class = node.pool, node.price_class.value
    return [
        (
            gpu.id,
            node.id,
            pool,
            price_class,
            gpu.index,
            gpu.model,
            gpu.memory_mib,
            gpu.health.value,
            gpu.external,
            True,
        )
        for gpu in node.gpus
    ]


def _differs(row: AnyRow | None, values: tuple[object, ...]) -> bool:
    """Whether a row, which has one column more, holds other values than these."""
    return row is None or tuple(row)[:-1] != values


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


def _free_names(tx: Transaction, found: Sequence[Node]) -> None:
    """A machine that comes back under a new id takes its name from the row that had it."""
    wanted = {node.name: node.id for node in found}
    taken = [
        {"node": row.id, "name": f"{row.name[:60]}~{row.id[:60]}"}
        for row in _by_id(tx, _NODES, nodes.c.name, wanted).values()
        if wanted[row.name] != row.id
    ]
    if taken:
        tx.connection.execute(_NODE_ROW, taken)
