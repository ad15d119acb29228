"""Disruption budgets: which of the gangs that run must not be stopped for others, for now.

A PodDisruptionBudget (policy/v1) says how many of the pods that it selects may be disrupted now.
kube-scheduler prefers victims that violate none, and takes others if it must. Here a budget is
never violated by a choice of ours: a gang goes as one, so it may go only if the budgets leave room
for all of its pods. Gangs that share a budget share what it allows: the lowest priorities may go
first, and together those that may go violate nothing.
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

import structlog

from scheduler.clock import Clock
from scheduler.errors import FencedError, HaversackError
from scheduler.execution.kubernetes import labels
from scheduler.execution.kubernetes.cluster import Cluster
from scheduler.execution.kubernetes.constraints import selected
from scheduler.execution.kubernetes.pods import Pod
from scheduler.execution.kubernetes.raw import Json, mapping, text, whole
from scheduler.model.outside import ShieldStore
from scheduler.model.quantity import JobId
from scheduler.model.site import Requirement

log = structlog.get_logger(__name__)

PATH: Final = "/apis/policy/v1/poddisruptionbudgets"
LOOK_EVERY_S: Final = 1.0
_CRITICAL: Final = 2_000_000_000
"""Priorities from here on are the system's own (`system-cluster-critical`)."""
_SYSTEM_NAMESPACE: Final = "kube-system"


def critical(pod: Pod) -> bool:
    """Whether it is one of the pods that keep the cluster itself alive: never a victim."""
    return pod.ref.namespace == _SYSTEM_NAMESPACE or pod.priority >= _CRITICAL


@dataclass(frozen=True, slots=True)
class Budget:
    """What a PodDisruptionBudget allows now.

    Attributes:
        requirements: labels of the pods it is about, all of its namespace if there are none.
        allowed: how many of them may be disrupted.
        disrupted: names of pods that are counted as gone already.
    """

    namespace: str
    name: str
    uid: str
    requirements: tuple[Requirement, ...]
    allowed: int
    disrupted: frozenset[str] = frozenset()

    @property
    def key(self) -> str:
        """As readers tell it apart."""
        return f"{self.namespace}/{self.name}/{self.uid}"

    def covers(self, pod: Pod) -> bool:
        """Whether disrupting the pod counts against it."""
        if pod.ref.namespace != self.namespace or pod.ref.name in self.disrupted:
            return False
        found = dict(pod.labels)
        return all(each.met_by(found) for each in self.requirements)


def budget_of(raw: Json) -> Budget | None:
    """What the object says; None if it selects no pod. Total over any input.

    One whose status is of an older spec allows nothing: its controller has yet to count.
    """
    metadata, spec = mapping(raw.get("metadata")), mapping(raw.get("spec"))
    status = mapping(raw.get("status"))
    if not isinstance(spec.get("selector"), dict):
        return None
    counted = whole(status.get("observedGeneration")) >= whole(metadata.get("generation"))
    return Budget(
        namespace=text(metadata.get("namespace")),
        name=text(metadata.get("name")),
        uid=text(metadata.get("uid")),
        requirements=tuple(selected(mapping(spec.get("selector")))),
        allowed=max(0, whole(status.get("disruptionsAllowed"))) if counted else 0,
        disrupted=frozenset(mapping(status.get("disruptedPods"))),
    )


def shielded(pods: Iterable[Pod], budgets: Collection[Budget]) -> dict[JobId, str]:
    """Which jobs must not be stopped for others, and why.

    The lowest priority may go first, of equals the youngest. O(pods * budgets of their namespace).

    Args:
        pods: those that were bound for jobs of ours.
        budgets: all there are.
    """
    near: defaultdict[str, list[Budget]] = defaultdict(list)
    for budget in budgets:
        near[budget.namespace].append(budget)
    jobs: defaultdict[JobId, list[Pod]] = defaultdict(list)
    for pod in pods:
        job_id = pod.annotation(labels.JOB) or pod.label(labels.JOB)
        stands = job_id and not pod.deleting and not pod.phase.terminal
        if stands and pod.ref.namespace in near:
            jobs[JobId(job_id)].append(pod)
    left = {budget.key: budget.allowed for budget in budgets}
    found: dict[JobId, str] = {}
    for job_id in sorted(jobs, key=lambda job_id: _first_to_go(jobs[job_id])):
        taken = Counter(
            budget
            for pod in jobs[job_id]
            for budget in near[pod.ref.namespace]
            if budget.covers(pod)
        )
        short = next((each for each, count in taken.items() if left[each.key] < count), None)
        if short is not None:
            found[job_id] = (
                f"disruption budget {short.namespace}/{short.name} allows {short.allowed} of its"
                f" pods to go, less those of others that may; this gang has {taken[short]}"
            )
            continue
        for budget, count in taken.items():
            left[budget.key] -= count
    return found


def _first_to_go(pods: Collection[Pod]) -> tuple[int, float, str]:
    return (
        max(pod.priority for pod in pods),
        -max(pod.created_at for pod in pods),
        min(pod.ref.uid for pod in pods),
    )


@dataclass(slots=True)
class Budgets:
    """The budgets that the API server shows; a reader's sink."""

    _by_key: dict[str, Budget] = field(default_factory=dict)

    @property
    def all(self) -> tuple[Budget, ...]:
        """As they are now."""
        return tuple(self._by_key.values())

    def replaced(self, objects: Mapping[str, Budget], /) -> None:
        """The first whole picture."""
        self._by_key = dict(objects)

    def changed(self, seen: Budget, /) -> None:
        """New, or different."""
        self._by_key[seen.key] = seen

    def deleted(self, key: str, /) -> None:
        """Gone."""
        self._by_key.pop(key, None)


class Shield:
    """Keeps the store told which gangs budgets protect.

    Args:
        cluster: the pods.
        budgets: the budgets.
        store: where decisions look.
        clock: for the instants of records.
    """

    def __init__(
        self, cluster: Cluster, budgets: Budgets, store: ShieldStore, clock: Clock
    ) -> None:
        self._cluster = cluster
        self._budgets = budgets
        self._store = store
        self._clock = clock
        self._told: frozenset[JobId] | None = None

    async def run(self) -> None:
        """Look again and again, until cancelled.

        Raises:
            FencedError: another leader has taken over.
        """
        while True:
            try:
                await self.look()
            except FencedError:
                raise
            except HaversackError as error:
                log.warning("disruption budgets were not taken in", why=str(error))
            await asyncio.sleep(LOOK_EVERY_S)

    async def look(self) -> None:
        """Take in what budgets say now. Raises what the store raises.

        What an earlier life has told the store is not known: the first look always tells.
        """
        budgets = self._budgets.all
        pods = self._cluster.bound_in({budget.namespace for budget in budgets})
        why = shielded(pods, budgets)
        found = frozenset(why)
        if found == self._told:
            return
        await self._store.shield(found, self._clock.now())
        for job_id in sorted(found - (self._told or frozenset())):
            log.info("a gang is not stopped for others", job=job_id, why=why[job_id])
        self._told = found
