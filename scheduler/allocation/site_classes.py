"""Nodes that no demand tells apart, by pool, labels and taints.

Nearly every node of a real cluster has labels of its own, its host name to begin with, but hardly
anybody asks for them. So nodes are told apart by who may use them, not by what they say.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from scheduler.model.columns import Ints, NodeTable
from scheduler.model.job import Worker
from scheduler.model.site import ANYWHERE, Site

SITES_MAX = 62
"""Sites that tell nodes apart: the bits of a code. Of any more the nodes of a class may differ."""


def sites_of(table: NodeTable, kinds: Iterable[Worker]) -> tuple[Site, ...]:
    """The sites of these workers that may tell nodes apart, in order, no more than `SITES_MAX`.

    None where all of them are anywhere and no node has a taint.
    """
    sites = tuple(dict.fromkeys(kind.site for kind in kinds))
    if not table.siting.tainted and all(site == ANYWHERE for site in sites):
        return ()
    return sites[:SITES_MAX]


def site_classes(table: NodeTable, sites: Sequence[Site]) -> Ints:
    """(N,) a code for each class of nodes: of one pool, and alike to all these sites.

    Without sites that is the pool. Cost: O(N log N + sites * N).
    """
    if not sites:
        return table.pool
    may_use = np.zeros(len(table.nodes), dtype=np.int64)
    for bit, site in enumerate(sites):
        right = table.siting.selected(site) & table.siting.tolerated(site)
        may_use |= right.astype(np.int64) << bit
    columns = np.stack([table.pool, may_use], axis=1)
    _, codes = np.unique(columns, axis=0, return_inverse=True)
    found: Ints = codes.reshape(-1).astype(np.int64)
    return found
