"""Fragmentation: the GPU share that the typical mix could not use, by the FGD paper's definition.

Weng et al., "Beware of Fragmentation: Scheduling GPU-Sharing Workloads with Fragmentation Gradient
Descent", USENIX ATC'23, section 3: for a footprint that a node cannot hold, all that is free on its
GPUs is lost; for one that it holds, what is free on GPUs too full for it is lost. F(n) is the
expectation over the mix. CPU work uses no GPU, so to it all is lost.

What is not lost is a sum over GPUs of what is free on each, weighted with the share of footprints
that can use it; and that share depends on two numbers only, the node's free CPU and what is free on
the GPU. So F comes from tables, a few array operations for any number of nodes.
"""

from __future__ import annotations

import numpy as np

from policies.node_states import NodeStates
from policies.typical_mix import Access, TypicalMix
from scheduler.model.columns import Floats, Ints
from scheduler.model.quantity import WHOLE_GPU_MILLI


class Fragmentation:
    """F(n) for one mix.

    Cost: O(A (K + C M)) to build, for A access groups, K footprints, C distinct CPU amounts and M
    distinct parts of a GPU.
    """

    def __init__(self, mix: TypicalMix, access: Access, gpus_max: int) -> None:
        """Build the tables for nodes of up to `gpus_max` GPUs."""
        self._group = access.group if access.admits.shape[0] > 1 else None
        self._share = float(mix.share.sum())
        self._cpus, cpu_at = np.unique(mix.cpu, return_inverse=True)
        self._millis, milli_at = np.unique(mix.gpu_milli[mix.gpus == 1], return_inverse=True)
        groups = access.admits.shape[0]
        shares = access.admits * mix.share
        singles = np.zeros((groups, self._cpus.size + 1, self._millis.size + 1))
        one = mix.gpus == 1
        several = mix.gpus > 1
        sizes = np.zeros((groups, self._cpus.size + 1, gpus_max + 1))
        held = several & (mix.gpus <= gpus_max)
        for group in range(groups):
            np.add.at(singles[group], (cpu_at[one] + 1, milli_at + 1), shares[group, one])
            np.add.at(sizes[group], (cpu_at[held] + 1, mix.gpus[held]), shares[group, held])
        # (A, C+1, M+1) share of footprints of one GPU that need at most the c-th CPU amount and
        # the m-th part of a GPU; and (A, C+1, G+1) the thousandths that footprints of several GPUs
        # use of n entirely free ones. Kept flat, because that is read fastest.
        self._singles = singles.cumsum(axis=1).cumsum(axis=2).ravel()
        whole = np.arange(gpus_max + 1) * WHOLE_GPU_MILLI
        self._sizes = (sizes.cumsum(axis=1).cumsum(axis=2) * whole).ravel()
        self._columns = (self._millis.size + 1, gpus_max + 1)
        self._milli_rank = np.searchsorted(self._millis, np.arange(WHOLE_GPU_MILLI + 1), "right")

    def of(self, states: NodeStates) -> Floats:
        """(R,) F of each state, in thousandths of a GPU. O(R (G + log C))."""
        line = np.searchsorted(self._cpus, states.cpu, side="right")
        if self._group is not None:
            line += self._group[states.row] * (self._cpus.size + 1)
        millis, sizes = self._columns
        at = self._milli_rank.take(states.gpu)
        at += (line * millis)[:, None]
        usable = self._singles.take(at)
        whole: Ints = (states.gpu == WHOLE_GPU_MILLI).sum(axis=1)
        used = np.einsum("ij,ij->i", states.gpu, usable) + self._sizes.take(line * sizes + whole)
        lost: Floats = self._share * states.gpu.sum(axis=1) - used
        return lost
