"""Limits that a plan must keep besides capacity: tenants' quotas and hard headroom.

Both are trivial while the snapshot's terms name none, which is the common case.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from scheduler.model.columns import Free, Ints
from scheduler.model.quantity import TenantId
from scheduler.model.snapshot import Snapshot
from scheduler.model.terms import Headroom, Quota


class Quotas:
    """What tenants may still take: nominal plus what they borrow of their cohort.

    A cohort as a whole never holds more than its members' nominal amounts together, except where
    it did so before: then nobody of it may take more. Tenants without a quota are not limited.
    """

    def __init__(self, snapshot: Snapshot) -> None:
        quotas = snapshot.terms.quotas
        self._quota: Mapping[TenantId, Quota] = {quota.tenant: quota for quota in quotas}
        self._cohort_cap: dict[str, int] = {}
        self._cohort_used: dict[str, int] = {}
        self._used: dict[TenantId, int] = dict.fromkeys(self._quota, 0)
        if not quotas:
            return
        for quota in quotas:
            cohort = _cohort(quota)
            self._cohort_cap[cohort] = self._cohort_cap.get(cohort, 0) + quota.nominal_milli
            self._cohort_used[cohort] = 0
        for tenant, milli in snapshot.held_milli.items():
            self.take(tenant, milli)

    def __bool__(self) -> bool:
        return bool(self._quota)

    def left(self, tenant: TenantId) -> int | None:
        """GPU thousandths that the tenant may still take, or None without a limit."""
        quota = self._quota.get(tenant)
        if quota is None:
            return None
        own = quota.nominal_milli + quota.borrow_milli - self._used[tenant]
        cohort = _cohort(quota)
        return max(0, min(own, self._cohort_cap[cohort] - self._cohort_used[cohort]))

    def admits(self, tenant: TenantId, milli: int) -> bool:
        """Whether `tenant` may take so many GPU thousandths more; none at all is never denied."""
        if not self._quota or not milli:
            return True
        left = self.left(tenant)
        return left is None or milli <= left

    def take(self, tenant: TenantId, milli: int) -> None:
        """Count `milli` as held by `tenant`; a negative amount comes back."""
        quota = self._quota.get(tenant)
        if quota is not None:
            self._used[tenant] += milli
            self._cohort_used[_cohort(quota)] += milli


def _cohort(quota: Quota) -> str:
    """A tenant without a cohort lends to nobody."""
    return quota.cohort or f"\0{quota.tenant}"


class Reserves:
    """Blocks of free GPUs that new work must leave alone (`Headroom` without a value).

    Where fewer blocks are free than asked for, those must stay.
    """

    def __init__(self, snapshot: Snapshot) -> None:
        free = snapshot.columns.free
        pools = {str(name): code for code, name in enumerate(free.table.pools)}
        self._hard: list[tuple[Headroom, Ints, int]] = []
        for headroom in snapshot.terms.headroom:
            if headroom.value is not None or headroom.gpus <= 0:
                continue
            if headroom.pool is None:
                rows = np.arange(len(free.table.nodes))
            else:
                rows = np.flatnonzero(free.table.pool == pools.get(str(headroom.pool), -1))
            keep = min(headroom.blocks, blocks(free, rows, headroom.gpus))
            self._hard.append((headroom, rows, keep))

    def __bool__(self) -> bool:
        return bool(self._hard)

    def kept(self, free: Free) -> bool:
        """Whether every reserve is whole in `free`. O(nodes * models) for each."""
        return all(blocks(free, rows, each.gpus) >= keep for each, rows, keep in self._hard)

    def spare(self, free: Free) -> Ints:
        """(M, N) whole GPUs by model and node that can go without breaking any block."""
        spare = free.whole.copy()
        for headroom, rows, keep in self._hard:
            if keep:
                spare[:, rows] = np.minimum(spare[:, rows], free.whole[:, rows] % headroom.gpus)
        return spare


def blocks(free: Free, rows: Ints, gpus: int) -> int:
    """Disjoint sets of `gpus` entirely free GPUs, each of one model on one of the rows."""
    return int((free.whole[:, rows] // gpus).sum())
