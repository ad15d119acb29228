"""What placements cost and where the limits lie: the terms of the objective besides job values."""

from __future__ import annotations

from dataclasses import dataclass, field

from scheduler.model.node import PriceClass
from scheduler.model.quantity import PoolName, TenantId

EXTRA_WORTH = 0.5
"""What one more worker of an elastic gang is worth, as a share of one it cannot do without."""


@dataclass(frozen=True, slots=True)
class Weights:
    """How much each quality of a placement counts when several places hold a job.

    Terms are in GPUs: with a weight of 1, the term counts like that many GPUs lost. They choose
    between places; whether a job starts at all is a matter of values and costs. ADR-0006 has the
    measurements behind the defaults.

    Attributes:
        fragmentation: expected loss of room for the typical mix of shapes (FGD, USENIX ATC'23).
        tightness: prefer nodes with few free GPUs (best fit); the term is the free share of the
            largest node.
        balance: keep CPU and memory beside the GPUs that stay free; the term is the GPU share that
            a node can no longer feed.
        topology: prefer nodes where a worker of several GPUs gets them from one NVLink domain; the
            term is 1 elsewhere.
        spread: the opposite of tightness: prefer nodes with many free GPUs.
        price: prefer cheap nodes; the term is the price of the GPUs over that of the dearest.
    """

    fragmentation: float = 1.0
    tightness: float = 0.0
    balance: float = 0.2
    topology: float = 0.2
    spread: float = 0.0
    price: float = 0.1


@dataclass(frozen=True, slots=True)
class Quota:
    """What a tenant may hold.

    Attributes:
        nominal_milli: GPU thousandths that are its own.
        borrow_milli: how much more it may hold of what its cohort leaves unused.
        cohort: tenants of one cohort lend to each other; "" is a cohort of its own.
    """

    tenant: TenantId
    nominal_milli: int
    borrow_milli: int = 0
    cohort: str = ""


@dataclass(frozen=True, slots=True)
class Headroom:
    """Free blocks to keep for work that is expected.

    Attributes:
        pool: where; None for any pool.
        gpus: size of one block, all on one node.
        blocks: how many stay free.
        value: what keeping one block free is worth; None makes it a hard limit.
    """

    pool: PoolName | None
    gpus: int
    blocks: int
    value: float | None = None


@dataclass(frozen=True, slots=True)
class Price:
    """Price of one GPU for one hour, capital or rent plus electricity at today's tariff."""

    price_class: PriceClass
    per_gpu_hour: float
    pool: PoolName | None = None


@dataclass(frozen=True, slots=True)
class EvictionCost:
    """What stopping a running job costs the objective.

    Attributes:
        keep_bonus: share of the victim's own value that is lost on top of it (hysteresis).
        restart_s: seconds of its GPUs that a restart wastes.
        value_per_gpu_s: objective units of one wasted GPU second.
        evictions_max: how many jobs one plan stops at most.
        min_run_s: a job that started less than this ago is left alone.
    """

    keep_bonus: float = 0.2
    restart_s: float = 0.0
    value_per_gpu_s: float = 0.0
    evictions_max: int = 1_000
    min_run_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Terms:
    """All of them; the default has no limit and no cost.

    Attributes:
        price_weight: objective units of one unit of price; 0 leaves price to the tie-breaks.
    """

    weights: Weights = field(default_factory=Weights)
    quotas: tuple[Quota, ...] = ()
    headroom: tuple[Headroom, ...] = ()
    prices: tuple[Price, ...] = ()
    price_weight: float = 0.0
    eviction: EvictionCost = field(default_factory=EvictionCost)
