"""Nodes, GPUs and queues: what there is, and taking parts of it out of service."""

from __future__ import annotations

from scheduler.errors import NotFoundError
from scheduler.model.access import Actor, Permission
from scheduler.model.quantity import SYSTEM_TENANT, GpuId, UtcSeconds
from scheduler.model.view import GpuView, NodeView, QueueView
from scheduler.service import access
from scheduler.store import cluster
from scheduler.store.transaction import Transaction


def list_nodes(tx: Transaction, actor: Actor) -> tuple[NodeView, ...]:
    """Every node that is present or still in use, by name.

    Raises:
        ForbiddenError: the role does not grant it.
    """
    access.require(actor, Permission.CLUSTER_READ)
    return cluster.node_list(tx)


def get_node(tx: Transaction, actor: Actor, node_id_or_name: str) -> NodeView:
    """One node, by id or name.

    Raises:
        ForbiddenError: the role does not grant it.
        NotFoundError: no such node.
    """
    access.require(actor, Permission.CLUSTER_READ)
    found = cluster.node(tx, node_id_or_name)
    if found is None:
        raise NotFoundError(f"no node {node_id_or_name!r}", hint="`haversack nodes` lists them")
    return found


def cordon_node(
    tx: Transaction,
    actor: Actor,
    node_id: str,
    *,
    cordoned: bool,
    now: UtcSeconds,
    if_match: int | None = None,
) -> NodeView:
    """Keep new work off a node, or allow it again; what runs there goes on. Idempotent.

    Args:
        tx: a write transaction.
        actor: an operator of the system tenant.
        node_id: the node's id or name.
        cordoned: True keeps work off.
        now: the instant.
        if_match: the version the caller has seen, or None for any.

    Raises:
        ForbiddenError, NotFoundError: as `get_node`.
        PreconditionError: the node is at another version.
    """
    access.require_change(actor, Permission.CLUSTER_OPERATE)
    found = get_node(tx, actor, node_id)
    access.check_version(f"node {found.node.name}", found.version, if_match)
    changed = found.node.cordoned is not cordoned
    if changed:
        cluster.set_node_cordon(tx, found, cordoned=cordoned, now=now)
    _audit(tx, actor, "nodes.cordon", found.node.id, now, cordoned=cordoned, changed=changed)
    return get_node(tx, actor, found.node.id)


def list_gpus(tx: Transaction, actor: Actor) -> tuple[GpuView, ...]:
    """Every GPU that is present or still held; foreign holders are not named.

    Raises:
        ForbiddenError: the role does not grant it.
    """
    access.require(actor, Permission.CLUSTER_READ)
    return cluster.gpu_list(tx, actor)


def get_gpu(tx: Transaction, actor: Actor, gpu_id: GpuId) -> GpuView:
    """One GPU.

    Raises:
        ForbiddenError: the role does not grant it.
        NotFoundError: no such GPU.
    """
    access.require(actor, Permission.CLUSTER_READ)
    found = cluster.gpu(tx, actor, gpu_id)
    if found is None:
        raise NotFoundError(f"no GPU {gpu_id!r}", hint="`haversack gpus` lists them")
    return found


def cordon_gpu(
    tx: Transaction,
    actor: Actor,
    gpu_id: GpuId,
    *,
    cordoned: bool,
    now: UtcSeconds,
    if_match: int | None = None,
) -> GpuView:
    """Keep new work off a GPU, or allow it again; what runs there goes on. Idempotent.

    Raises:
        ForbiddenError, NotFoundError: as `get_gpu`.
        PreconditionError: the GPU is at another version than `if_match`.
    """
    access.require_change(actor, Permission.CLUSTER_OPERATE)
    found = get_gpu(tx, actor, gpu_id)
    access.check_version(f"GPU {gpu_id}", found.version, if_match)
    changed = found.cordoned is not cordoned
    if changed:
        cluster.set_gpu_cordon(tx, found, cordoned=cordoned, now=now)
    _audit(tx, actor, "gpus.cordon", gpu_id, now, cordoned=cordoned, changed=changed)
    return get_gpu(tx, actor, gpu_id)


def list_queues(tx: Transaction, actor: Actor) -> tuple[QueueView, ...]:
    """The actor's queues with their counts of waiting, running and held jobs.

    Raises:
        ForbiddenError: the role does not grant it.
    """
    access.require(actor, Permission.JOBS_READ)
    return cluster.queue_list(tx, actor)


def _audit(
    tx: Transaction,
    actor: Actor,
    action: str,
    object_id: str,
    now: UtcSeconds,
    *,
    cordoned: bool,
    changed: bool,
) -> None:
    tx.audit(
        tenant=SYSTEM_TENANT,
        principal=actor.principal,
        action=action,
        object_id=object_id,
        outcome="done" if changed else "already",
        detail={"cordoned": cordoned},
        at=now,
    )
