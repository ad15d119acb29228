"""Who got how much: tenants against their max-min share, jobs against an even split.

The reference is the max-min fair share, found by water-filling over what each tenant's unfinished
jobs ask for at each instant (Bertsekas and Gallager, Data Networks, 6.5). The finish ratio of a job
is that of Themis (Mahajan et al., NSDI'20) as Shockwave (Zheng et al., NSDI'23) computes it: its
completion time over its run time stretched by the mean contention while it was there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from scheduler.simulator.arrays import Arrays, Floats

UNFAIR_ABOVE = 1.05
"""A finish ratio above it counts as unfair (Shockwave's threshold)."""
_CHUNK_CELLS = 1_000_000


@dataclass(frozen=True, slots=True)
class TenantShare:
    """One tenant's part of a run.

    Attributes:
        tenant: its name.
        jobs: how many it submitted.
        gpu_hours: GPU time its jobs held.
        entitled_gpu_hours: GPU time of its max-min share.
        wait_s_mean: of its completed jobs; None without one.
        deviation: mean over time of |GPUs held - share|, over the cluster's GPUs.
    """

    tenant: str
    jobs: int
    gpu_hours: float
    entitled_gpu_hours: float
    wait_s_mean: float | None
    deviation: float


@dataclass(frozen=True, slots=True)
class Fairness:
    """How evenly a run served its tenants and jobs; None where nothing was served.

    Attributes:
        tenants: sorted by name.
        jain_index: of GPU time held over GPU time entitled to, across tenants; 1 is even.
        share_deviation_max: the largest `deviation` of a tenant.
        finish_ratio_worst: the largest finish ratio of a completed job.
        finish_ratio_unfair: share of completed jobs with a ratio above 1.05.
    """

    tenants: tuple[TenantShare, ...]
    jain_index: float | None
    share_deviation_max: float | None
    finish_ratio_worst: float | None
    finish_ratio_unfair: float | None


def fairness_of(
    arrays: Arrays, total_gpus: float, weights: Mapping[str, float] | None = None
) -> Fairness:
    """Fairness of a run. O(events * tenants) for events = 2 (jobs + attempts), by chunks.

    Args:
        arrays: the run.
        total_gpus: of the cluster.
        weights: of tenants in the max-min share, above 0; 1 for one not named.
    """
    weight = np.array([(weights or {}).get(tenant, 1.0) for tenant in arrays.tenants])
    held, share, off = _over_time(arrays, total_gpus, weight)
    span = arrays.last_s - arrays.first_s
    deviation = off / (total_gpus * span) if span > 0 else np.zeros_like(off)
    worst, unfair = _finish_ratios(arrays, total_gpus)
    entitled = share > 0
    return Fairness(
        tenants=tuple(
            _tenant(arrays, place, held[place], share[place], float(deviation[place]))
            for place in range(len(arrays.tenants))
        ),
        jain_index=jain(held[entitled] / share[entitled]) if entitled.any() else None,
        share_deviation_max=float(deviation.max()) if span > 0 else None,
        finish_ratio_worst=worst,
        finish_ratio_unfair=unfair,
    )


def jain(amounts: Floats) -> float:
    """Jain's index of `amounts`, shape (n,): 1 when all are equal, 1/n when one has all."""
    squares = float((amounts * amounts).sum())
    return float(amounts.sum()) ** 2 / (amounts.size * squares) if squares else 1.0


def max_min_shares(demand: Floats, capacity: float, weight: Floats) -> Floats:
    """Weighted max-min fair shares by water-filling, row by row. O(rows * n log n).

    Args:
        demand: shape (rows, n), at least 0.
        capacity: what each row divides.
        weight: shape (n,), above 0.

    Returns:
        Shape (rows, n): nobody above the demand, the rest level by weight, `capacity` used up if
        the demand does.
    """
    order = np.argsort(demand / weight, axis=1, kind="stable")
    asked = np.take_along_axis(demand, order, axis=1)
    heavy = weight[order]
    poorer = np.cumsum(asked, axis=1) - asked
    richer_weight = weight.sum() - (np.cumsum(heavy, axis=1) - heavy)
    level = (capacity - poorer) / richer_weight
    unmet = asked > level * heavy
    first = np.argmax(unmet, axis=1)
    rows = np.arange(len(demand))
    water = np.where(unmet.any(axis=1), level[rows, first], np.inf)[:, np.newaxis]
    with np.errstate(invalid="ignore"):
        return np.minimum(demand, water * weight)


def _tenant(arrays: Arrays, place: int, held: float, share: float, deviation: float) -> TenantShare:
    own = arrays.tenant == place
    done = own & arrays.completed
    waits = (arrays.end - arrays.submit - arrays.duration)[done]
    return TenantShare(
        tenant=arrays.tenants[place],
        jobs=int(own.sum()),
        gpu_hours=float(held) / 3600,
        entitled_gpu_hours=float(share) / 3600,
        wait_s_mean=float(waits.mean()) if waits.size else None,
        deviation=deviation,
    )


def _over_time(arrays: Arrays, total_gpus: float, weight: Floats) -> tuple[Floats, Floats, Floats]:
    """GPU seconds held, entitled to, and their distance at each instant; shape (tenants,) each."""
    tenants = len(arrays.tenants)
    run_tenant = arrays.tenant[arrays.run_job]
    left = np.where(arrays.completed, arrays.end, max(arrays.last_s, arrays.first_s))
    times = np.concatenate((arrays.submit, left, arrays.run_start, arrays.run_end))
    who = np.concatenate((arrays.tenant, arrays.tenant, tenants + run_tenant, tenants + run_tenant))
    change = np.concatenate((arrays.gpus, -arrays.gpus, arrays.run_gpus, -arrays.run_gpus))
    order = np.argsort(times, kind="stable")
    times, who, change = times[order], who[order], change[order]
    steps = np.diff(times, append=times[-1:])
    now = np.zeros(2 * tenants)
    held, share, off = np.zeros(tenants), np.zeros(tenants), np.zeros(tenants)
    chunk = max(16, _CHUNK_CELLS // max(1, tenants))
    for begin in range(0, len(times), chunk):
        part = slice(begin, begin + chunk)
        rows = len(times[part])
        level = np.zeros((rows, 2 * tenants))
        level[np.arange(rows), who[part]] = change[part]
        level = now + np.cumsum(level, axis=0)
        now = level[-1]
        demand, used = np.maximum(level[:, :tenants], 0.0), level[:, tenants:]
        fair = max_min_shares(demand, total_gpus, weight)
        # No BLAS: the order of its sums may depend on the machine's load.
        lasts = steps[part, np.newaxis]
        held += (lasts * used).sum(axis=0)
        share += (lasts * fair).sum(axis=0)
        off += (lasts * np.abs(used - fair)).sum(axis=0)
    return held, share, off


def _finish_ratios(arrays: Arrays, total_gpus: float) -> tuple[float | None, float | None]:
    """(worst, share above the threshold) of the finish ratios of completed jobs."""
    done = arrays.completed & (arrays.duration > 0)
    if not done.any():
        return None, None
    ends = np.where(arrays.completed, arrays.end, arrays.last_s)
    times = np.concatenate((arrays.submit, ends))
    order = np.argsort(times, kind="stable")
    times = times[order]
    asked = np.cumsum(np.concatenate((arrays.gpus, -arrays.gpus))[order])
    crowd = np.maximum(1.0, asked / total_gpus)
    area = np.concatenate(([0.0], np.cumsum(crowd[:-1] * np.diff(times))))
    stretched = np.interp(ends[done], times, area) - np.interp(arrays.submit[done], times, area)
    taken = arrays.end[done] - arrays.submit[done]
    contention = np.divide(stretched, taken, out=np.ones_like(taken), where=taken > 0)
    ratio = taken / (arrays.duration[done] * np.maximum(1.0, contention))
    return float(ratio.max()), float((ratio > UNFAIR_ABOVE).mean())
