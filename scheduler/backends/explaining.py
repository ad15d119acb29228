"""Tells pods what decisions say of them: which wait, for what, and what would help."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Set as AbstractSet

import structlog

from scheduler.errors import HaversackError
from scheduler.execution.kubernetes.cluster import Cluster
from scheduler.execution.kubernetes.follower import Follower
from scheduler.execution.kubernetes.pods import Pod
from scheduler.execution.kubernetes.telling import Teller
from scheduler.model.quantity import JobId
from scheduler.store.database import Database
from scheduler.store.decisions import newest_revision, why_outside_waits
from scheduler.store.outside import set_aside
from scheduler.store.transaction import Transaction

log = structlog.get_logger(__name__)

_LOOK_EVERY_S = 0.2
_AGAIN_LOOKS = 50
"""Even where nothing was decided, each so many looks: a report may have failed, a job been held."""


class Explainer:
    """Hands the reasons of the latest decision to the teller.

    Args:
        database: where reasons are.
        cluster: where pods are.
        follower: knows which job a pod belongs to.
        teller: writes reasons onto pods.
    """

    def __init__(
        self, database: Database, cluster: Cluster, follower: Follower, teller: Teller
    ) -> None:
        self._database = database
        self._cluster = cluster
        self._follower = follower
        self._teller = teller

    async def run(self) -> None:
        """Explain until cancelled; no fault of the store ends it."""
        told, idle = (-1, -1), 0
        while True:
            await asyncio.sleep(_LOOK_EVERY_S)
            try:
                news = await self._database.read(newest_revision), self._follower.taken_in
                idle = 0 if news != told else idle + 1
                if idle % _AGAIN_LOOKS == 0:
                    await self._explain()
                    told = news
            except HaversackError as error:
                log.warning("pods are not told why they wait", why=str(error))

    async def _explain(self) -> None:
        """Raises HaversackError. O(pods that wait)."""
        waiting: defaultdict[JobId, list[Pod]] = defaultdict(list)
        for pod in self._cluster.waiting():
            job_id = self._follower.job_of(str(pod.ref))
            if job_id is not None:
                waiting[job_id].append(pod)
        if waiting:
            why = await self._database.read(lambda tx: _why(tx, waiting.keys()))
            self._teller.wait_for(
                (pod, told) for job_id, told in why.items() for pod in waiting.get(job_id, ())
            )


def _why(tx: Transaction, waiting: AbstractSet[JobId]) -> dict[JobId, str]:
    """Why these jobs wait, as far as anybody has said."""
    decided = why_outside_waits(tx)
    return decided | set_aside(tx, waiting - decided.keys())
