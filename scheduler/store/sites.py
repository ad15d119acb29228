"""What a commit looks at again of labels, taints and further resources of the nodes of a plan.

A decision goes by a snapshot, and nodes change meanwhile: somebody taints one, or a pod that is
none of ours takes the last host port. Labels and taints are cheap to compare each time. What is
held of further resources is not summed up anywhere, so it is added up for those nodes alone that
changed after the decision was made: on all others nothing can have been taken since.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, TypeAlias

from sqlalchemy import Row, bindparam, exists, select

from scheduler.model.plan import TaskPlacement
from scheduler.model.site import implied_capacity, resource_label
from scheduler.store import codec
from scheduler.store.attempts import LIVE
from scheduler.store.tables import allocations, attempts
from scheduler.store.transaction import Transaction

AnyRow: TypeAlias = Row[*tuple[Any, ...]]

_CHUNK = 500
_NOTHING = "[]"
_ON_NODES = select(attempts.c.placement).where(
    LIVE,
    exists().where(
        allocations.c.attempt_id == attempts.c.id,
        allocations.c.node_id.in_(bindparam("node_ids", expanding=True)),
    ),
)


def keeps_off(job: AnyRow, node: AnyRow) -> str:
    """Why the job's tasks may not sit on the node, by its labels and taints; "" if they may."""
    if not job.site and node.taints == _NOTHING:
        return ""
    site = codec.site(job.site)
    if not site.selects(node.name, _labels(node.labels)):
        return f"node {node.name} is no longer one that the job selects"
    taint = site.untolerated(codec.taints(node.taints))
    return "" if taint is None else f"node {node.name} now has the taint {taint.text}"


@lru_cache(maxsize=16_384)
def _labels(document: str) -> Mapping[str, str]:
    return dict(codec.labels(document))


def held_extras(tx: Transaction, node_ids: Sequence[str]) -> dict[str, Counter[str]]:
    """What live attempts hold of further resources on each of these nodes, by name.

    Cost: a statement for each `_CHUNK` of nodes, of O(live attempts); each attempt that is on one
    of them is read.
    """
    held: dict[str, Counter[str]] = {node_id: Counter() for node_id in node_ids}
    for start in range(0, len(node_ids), _CHUNK):
        chunk = frozenset(node_ids[start : start + _CHUNK])
        for document in tx.connection.execute(_ON_NODES, {"node_ids": sorted(chunk)}).scalars():
            for task in codec.placement_tasks(document):
                if task.node_id in chunk:
                    held[task.node_id].update(dict(task.extras))
    return held


def missing_extra(node: AnyRow, tasks: Sequence[TaskPlacement], held: Mapping[str, int]) -> str:
    """A further resource of which the node lacks what these tasks take besides `held`, or ""."""
    offered = dict(codec.extras(node.extras))
    wanted: Counter[str] = Counter()
    for task in tasks:
        wanted.update(dict(task.extras))
    for name, amount in wanted.items():
        if amount + held.get(name, 0) > offered.get(name, implied_capacity(name)):
            return resource_label(name)
    return ""
