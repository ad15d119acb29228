"""What the cluster offers: nodes, their GPUs, and the links between them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache

from scheduler.model.quantity import DEFAULT_POOL, GpuId, NodeId, PoolName, Resources
from scheduler.model.site import Amounts, Taint


class Health(StrEnum):
    """Health of a node or a GPU as last proved."""

    HEALTHY = "healthy"
    UNHEALTHY = "unhealthy"
    UNKNOWN = "unknown"


class PriceClass(StrEnum):
    """How a node is paid for."""

    RESERVED = "reserved"
    ON_DEMAND = "on-demand"
    SPOT = "spot"


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU.

    Attributes:
        id: the NVML UUID, or `SIM-<node>-<index>` for a simulated GPU.
        index: position in the node, row of its link matrix.
        model: short model name, for example `H200`.
        memory_mib: device memory in MiB.
        external: somebody uses it whom we did not start, so nobody of ours may.
    """

    id: GpuId
    index: int
    model: str
    memory_mib: int
    health: Health = Health.HEALTHY
    cordoned: bool = False
    external: bool = False

    @property
    def schedulable(self) -> bool:
        """Whether new work may be placed on it."""
        return self.health is Health.HEALTHY and not self.cordoned and not self.external


@dataclass(frozen=True, slots=True)
class Links:
    """How a node's GPUs reach each other. Both matrices are (n_gpus, n_gpus), symmetric.

    Attributes:
        nvlinks: number of bonded NVLinks of each pair (0 = none); through a switch, the
            smaller of the two GPUs' active links.
        bandwidth_gbps: one-way GB/s (10**9 bytes per second) of each pair; 0 on the diagonal.
    """

    nvlinks: tuple[tuple[int, ...], ...]
    bandwidth_gbps: tuple[tuple[float, ...], ...]

    @classmethod
    def uniform(cls, n_gpus: int, nvlinks: int, gbps: float) -> Links:
        """Links of a box where every pair is alike, as behind NVSwitch; both matrices (n, n)."""
        box = range(n_gpus)
        return cls(
            nvlinks=tuple(tuple(0 if a == b else nvlinks for b in box) for a in box),
            bandwidth_gbps=tuple(tuple(0.0 if a == b else gbps for b in box) for a in box),
        )

    def domains(self) -> tuple[frozenset[int], ...]:
        """GPU indexes grouped into NVLink domains: connected components over pairs with a link.

        O(n**2). A GPU without any NVLink is a domain of its own.
        """
        left = set(range(len(self.nvlinks)))
        found: list[frozenset[int]] = []
        while left:
            frontier = [min(left)]
            domain: set[int] = set()
            while frontier:
                gpu = frontier.pop()
                if gpu in domain:
                    continue
                domain.add(gpu)
                frontier.extend(
                    peer for peer, links in enumerate(self.nvlinks[gpu]) if links and peer in left
                )
            left -= domain
            found.append(frozenset(domain))
        return tuple(found)


NO_LINKS = Links(nvlinks=(), bandwidth_gbps=())


@lru_cache(maxsize=65_536)
def shared_label(key: str, value: str) -> tuple[str, str]:
    """The one pair of these two strings: 5,000 nodes have 70 labels each, most of them alike."""
    return key, value


@dataclass(frozen=True, slots=True)
class Node:
    """One machine, real or simulated.

    Attributes:
        capacity: what jobs may use in total; `gpus` equals `len(self.gpus)`.
        gpus: in index order.
        links: link matrices over `gpus`.
        rack: rack label, or "" when unknown (an unknown rack is shared with nobody).
        simulated: True for virtual nodes: tasks placed here get no real GPU.
        labels: what tasks' sites select by, sorted by key.
        taints: what keeps tasks off that do not tolerate it.
        extras: what jobs may use of further resources, sorted by name; of one that it does not
            name it has `implied_capacity`.
    """

    id: NodeId
    name: str
    capacity: Resources
    gpus: tuple[Gpu, ...] = ()
    links: Links = NO_LINKS
    pool: PoolName = DEFAULT_POOL
    price_class: PriceClass = PriceClass.RESERVED
    rack: str = ""
    zone: str = ""
    health: Health = Health.HEALTHY
    cordoned: bool = False
    simulated: bool = False
    labels: tuple[tuple[str, str], ...] = ()
    taints: tuple[Taint, ...] = ()
    extras: Amounts = ()

    @property
    def schedulable(self) -> bool:
        """Whether new work may be placed here."""
        return self.health is Health.HEALTHY and not self.cordoned
