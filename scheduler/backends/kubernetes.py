"""A Kubernetes cluster: gangs of pods that name us as their scheduler are decided on and bound."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace

import structlog

from scheduler.backends.backend import Surroundings
from scheduler.backends.explaining import Explainer
from scheduler.bootstrap import live_profile
from scheduler.errors import ConfigurationError, FencedError, HaversackError
from scheduler.execution.kubernetes.access import Access, load_access
from scheduler.execution.kubernetes.avoiding import Avoided
from scheduler.execution.kubernetes.binder import Binder
from scheduler.execution.kubernetes.budgets import PATH, Budget, Budgets, Shield, budget_of
from scheduler.execution.kubernetes.cluster import Cluster, NodeSink, PodSink
from scheduler.execution.kubernetes.conditions import Conditions
from scheduler.execution.kubernetes.events import Events
from scheduler.execution.kubernetes.evict import Evictor
from scheduler.execution.kubernetes.executor import KubernetesExecutor
from scheduler.execution.kubernetes.fence import (
    KEEP_EVERY_S,
    LEASE_SEEN_S,
    PROOF_LONGEST_S,
    Fence,
)
from scheduler.execution.kubernetes.follower import Follower
from scheduler.execution.kubernetes.gathering import ClusterGatherer
from scheduler.execution.kubernetes.launching import Launching
from scheduler.execution.kubernetes.lookup import Lookup
from scheduler.execution.kubernetes.nodes import KubeNode, node_of
from scheduler.execution.kubernetes.pinning import Pinner
from scheduler.execution.kubernetes.pod_logs import PodLogs
from scheduler.execution.kubernetes.pods import Pod, pod_of
from scheduler.execution.kubernetes.reader import Pace, Reader
from scheduler.execution.kubernetes.role import RoleLabel
from scheduler.execution.kubernetes.runtime import PodRuntime
from scheduler.execution.kubernetes.server import ApiServer, Lane, Limits, RejectedError
from scheduler.execution.kubernetes.telling import Teller
from scheduler.execution.kubernetes.upkeep import Upkeep
from scheduler.execution.kubernetes.verdicts import Verdicts
from scheduler.model.lifecycle import JobState
from scheduler.model.ports import Preemption
from scheduler.model.quantity import AttemptId
from scheduler.settings import KubernetesSettings
from scheduler.store.execution import expected, launched_members
from scheduler.store.lease import require
from scheduler.store.outside import SqlOutsideStore

log = structlog.get_logger(__name__)

_ORDERS_PER_BIND = 16
_STALE_S = 120.0
"""A reader that has heard nothing for so long is in trouble: bookmarks come each minute."""


@dataclass(frozen=True, slots=True)
class Kubernetes:
    """Makes the backend of a cluster.

    Attributes:
        tied_to_host: False: whatever runs, runs on the cluster's nodes.
    """

    settings: KubernetesSettings
    tied_to_host: bool = False

    def highest_epoch(self) -> int:
        """The epoch in the cluster's Lease.

        Raises:
            ConfigurationError: the kubeconfig cannot be used.
            HaversackError: the API server does not answer, or refuses to tell.
        """
        access = load_access(self.settings.kubeconfig)
        return asyncio.run(self._read_epoch(access))

    async def _read_epoch(self, access: Access) -> int:
        async with ApiServer(access) as server:
            return await Fence(server, holder="", namespace=self.settings.namespace).read_epoch()

    def make(self, given: Surroundings) -> KubernetesBackend:
        """The backend; the cluster is asked only when it begins."""
        return KubernetesBackend(given, load_access(self.settings.kubeconfig))


class KubernetesBackend:
    """Reads the cluster into the store, and carries decisions out on it.

    Attributes:
        runtime: takes every job that can become pods.
        launches_max: gangs whose binding may be under way, or wait for its turn.
    """

    def __init__(self, given: Surroundings, access: Access) -> None:
        self.runtime = PodRuntime(given.settings.kubernetes.image)
        # Requests are bounded where they are made. Orders may wait there in numbers, so that one
        # transaction claims many.
        self.launches_max = _ORDERS_PER_BIND * given.settings.kubernetes.binds_in_flight_max
        self._given = given
        self._settings = given.settings.kubernetes
        self._server = ApiServer(access, _limits(self._settings.binds_in_flight_max))
        self._unfenced = ""
        self._fence: Fence | None = None
        self._role = RoleLabel(self._server, self._settings.namespace, self._settings.pod_name)
        self._stack = AsyncExitStack()
        self._readers: dict[str, Reader[KubeNode] | Reader[Pod] | Reader[Budget]] = {}
        self._shield: Shield | None = None
        self._executor: KubernetesExecutor | None = None
        self._follower: Follower | None = None
        self._upkeep: Upkeep | None = None
        self._logs: PodLogs | None = None
        self._reading: list[asyncio.Task[None]] = []

    @property
    def executor(self) -> KubernetesExecutor:
        """Binds and deletes pods."""
        assert self._executor is not None, "begin() comes first"
        return self._executor

    @property
    def logs(self) -> PodLogs:
        """Reads what pods print."""
        assert self._logs is not None, "begin() comes first"
        return self._logs

    async def begin(self) -> None:
        """Publish our epoch, read the cluster, and write what there is into the store.

        Raises:
            ConfigurationError: the cluster does not fence stale leaders and the settings require
                it, or its API server lets us read nothing.
            FencedError: another leader has taken over.
            HaversackError: the API server or the store does not answer.
        """
        given = self._given
        await self._stack.enter_async_context(self._server)
        holder = socket.gethostname()
        fence = Fence(self._server, holder=holder, namespace=self._settings.namespace)
        self._fence = fence if await self._raise_fence(fence) else None
        self._cluster = cluster = Cluster(
            told=self._news, job_namespace=self._settings.job_namespace
        )
        store = SqlOutsideStore(given.database, given.epoch, given.ids)
        self._make_parts(cluster, store, holder, self._fence)
        await self._resume(store)
        self._read_all(cluster, store)
        await self._first_picture()
        assert self._follower is not None, "made above"
        await self._follower.begin()
        if self._shield is not None:
            await self._shield.look()  # before anybody is stopped

    def _make_parts(
        self, cluster: Cluster, store: SqlOutsideStore, holder: str, fence: Fence | None
    ) -> None:
        """What acts on the picture."""
        given, settings, server = self._given, self._settings, self._server
        evictor, avoided = Evictor(server, given.clock), Avoided(given.clock)
        binder = Binder(server, evictor, fence=fence, in_flight=settings.binds_in_flight_max)
        self._teller = Teller(
            Conditions(server, given.clock), Events(server, given.clock, holder), cluster.pod
        )
        pinner = Pinner(server, binder, evictor, told=self._teller.pinned)
        follower = self._follower = Follower(
            cluster,
            store,
            ClusterGatherer(cluster, Lookup(server), avoided),
            given.clock,
            report=self._teller.gather,
        )
        self._explainer = Explainer(given.database, cluster, follower, self._teller)
        launching = Launching(
            server,
            cluster,
            evictor,
            namespace=settings.job_namespace,
            image=settings.image,
            leads=binder.leads,
        )
        executor = self._executor = KubernetesExecutor(
            cluster,
            binder,
            pinner,
            evictor,
            launching,
            given.clock,
            synced=self._synced,
            launched=self._launched,
            at_once=self._settings.binds_in_flight_max,
        )
        self._logs = PodLogs(asyncio.get_running_loop(), server, cluster)
        self._upkeep = Upkeep(
            binder,
            cluster,
            evictor,
            given.clock,
            epoch=given.epoch,
            keep_s=settings.keep_pods_s,
            start_s=settings.start_s,
            given_up=executor.give_up,
        )
        self._verdicts = Verdicts(
            cluster,
            pinner,
            avoided,
            given.clock,
            epoch=given.epoch,
            limit_s=settings.pin_s,
            given_up=executor.give_up,
            reform=follower.reform,
        )

    async def _launched(
        self, attempt_ids: Sequence[AttemptId]
    ) -> Mapping[AttemptId, frozenset[str]]:
        """Their members, as far as the store has launched them."""
        return await self._given.database.read(lambda tx: launched_members(tx, attempt_ids))

    async def _resume(self, store: SqlOutsideStore) -> None:
        """Take over what earlier leaders launched, or decided on."""
        gangs = (await store.open_gangs()).values()
        members = {gang.job_id: gang.members for gang in gangs}
        for attempt in await self._given.database.read(expected):
            self.executor.resume(
                attempt.attempt_id,
                members.get(attempt.job_id, ()),
                whole=attempt.state == JobState.RUNNING,
                job_id=attempt.job_id,
            )

    def _read_all(self, cluster: Cluster, store: SqlOutsideStore) -> None:
        """Begin to read what the cluster shows."""
        given = self._given
        pace = Pace(relist_s=self._settings.relist_s, silence_s=self._settings.silence_s)
        nodes = Reader(self._server, "/api/v1/nodes", node_of, NodeSink(cluster), pace=pace)
        pods = Reader(self._server, "/api/v1/pods", pod_of, PodSink(cluster), pace=pace)
        self._read("nodes", nodes)
        self._read("pods", pods)
        if live_profile(given.settings.queue).preemption is not Preemption.NONE:
            budgets = Budgets()
            self._read("budgets", Reader(self._server, PATH, budget_of, budgets, pace=pace))
            self._shield = Shield(cluster, budgets, store, given.clock)

    def _read(self, name: str, reader: Reader[KubeNode] | Reader[Pod] | Reader[Budget]) -> None:
        self._readers[name] = reader
        self._reading.append(asyncio.create_task(reader.run(), name=f"read {name}"))

    def _news(self) -> None:
        if self._follower is not None:
            self._follower.wake()
        if self._upkeep is not None:
            self._upkeep.wake()

    async def _raise_fence(self, fence: Fence) -> bool:
        """Publish our epoch; whether the API server now refuses all others."""
        epoch = self._given.epoch
        try:
            missing = await fence.ensure()
            await fence.publish(epoch)
            # What could not be made will not come into force.
            proof = await fence.prove(epoch, longest_s=LEASE_SEEN_S if missing else PROOF_LONGEST_S)
        except RejectedError as error:
            self._unfenced = f"epoch {epoch} cannot be published: {error}"
        else:
            self._unfenced = "" if proof.holds else "; ".join((proof.why, *missing))
        if not self._unfenced:
            return True
        log.warning("a stale leader would not be refused by the cluster", why=self._unfenced)
        replicated = self._given.database.dialect == "postgresql"
        if self._settings.fence == "required" or replicated:
            raise ConfigurationError(
                f"the cluster would not turn a stale leader away: {self._unfenced}",
                hint="apply deploy/kubernetes/base, which holds the policy and the rights it needs;"
                " a single daemon on SQLite may run without it (HAVERSACK_KUBERNETES__FENCE)",
            )
        return False

    async def _first_picture(self) -> None:
        try:
            async with asyncio.timeout(self._settings.sync_s):
                for reader in self._readers.values():
                    await reader.synced.wait()
        except TimeoutError as error:
            told = "; ".join(
                f"{name}: {reader.trouble or 'still reading'}"
                for name, reader in self._readers.items()
                if not reader.synced.is_set()
            )
            raise ConfigurationError(
                f"the cluster was not read within {self._settings.sync_s:g} s: {told}",
                hint="check the address and our rights (`kubectl auth can-i list pods -A`), or"
                " raise HAVERSACK_KUBERNETES__SYNC_S",
            ) from error

    def _synced(self) -> bool:
        return bool(self._readers) and all(each.synced.is_set() for each in self._readers.values())

    async def follow(self) -> None:
        """Follow the cluster until cancelled; what is stored wakes the conductor by its commit."""
        assert self._follower is not None, "begin() comes first"
        assert self._upkeep is not None, "begin() comes first"
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._follower.run())
                group.create_task(self._upkeep.run())
                group.create_task(self._teller.run())
                group.create_task(self._verdicts.run())
                group.create_task(self._explainer.run())
                group.create_task(self._mind_readers())
                if self._shield is not None:
                    group.create_task(self._shield.run())
                if self._fence is not None:
                    group.create_task(self._keep_fence(self._fence))
                if self._settings.pod_name:
                    group.create_task(self._role.keep(self._lead))
        except* FencedError as errors:
            raise FencedError(str(errors.exceptions[0])) from errors

    async def _keep_fence(self, fence: Fence) -> None:
        """Keep the Lease at our epoch. Raises FencedError when another leader has taken over."""
        while True:
            await asyncio.sleep(KEEP_EVERY_S)
            try:
                published = await fence.keep(self._given.epoch, self._lead)
            except FencedError:
                raise
            except HaversackError as error:
                self._unfenced = f"epoch {self._given.epoch} cannot be kept in its Lease: {error}"
                log.warning("a stale leader might not be refused", why=self._unfenced)
            else:
                self._unfenced = ""
                if published:
                    log.warning("the epoch was gone from its Lease, and was published again")

    async def _lead(self) -> None:
        """Raises FencedError unless we do."""
        await self._given.database.write(lambda tx: require(tx, self._given.epoch))

    async def _mind_readers(self) -> None:
        """A reader never ends by itself; if one does, that is a fault of ours, told loudly."""
        done, _ = await asyncio.wait(self._reading, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
            raise RuntimeError(f"{task.get_name()} ended by itself")

    def troubles(self) -> Mapping[str, str]:
        """The readers', the fence's and the follower's."""
        told = {
            f"cluster {name}": reader.trouble
            or (f"silent for {reader.age_s:.0f} s" if reader.age_s > _STALE_S else "")
            for name, reader in self._readers.items()
        }
        return {**told, "cluster": "" if self._follower is None else self._follower.trouble}

    def pod_waits(self, namespace: str, name: str) -> str:
        """Why a pod waits outside every job, as its condition says it."""
        return "" if self._follower is None else self._follower.pod_waits(namespace, name)

    def warnings(self) -> Mapping[str, str]:
        """A fence or a label that is missing."""
        return {"fence": self._unfenced, "role label": self._role.trouble}

    async def close(self) -> None:
        """Give up what is under way, and close the connections. Pods go on."""
        if self._executor is not None:
            self._executor.close()
        if self._logs is not None:
            await self._logs.close()
        for task in self._reading:
            task.cancel()
        await asyncio.gather(*self._reading, return_exceptions=True)
        await self._stack.aclose()


def _limits(binds: int) -> Limits:
    """The usual ones, with so many requests to bind at once."""
    usual = Limits()
    bind = replace(usual.lanes[Lane.BIND], in_flight=binds)
    return replace(usual, lanes={**usual.lanes, Lane.BIND: bind})
