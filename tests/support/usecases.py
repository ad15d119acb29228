"""An open store with a clock and ids, and short words for what use-case tests do all the time."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Concatenate, ParamSpec, TypeVar

from sqlalchemy import Row, select
from support.builders import job_spec, placement, task_placement
from support.clock import ManualClock
from support.ids import SequentialIds
from support.store import document

from scheduler import service
from scheduler.model.access import Actor, Role
from scheduler.model.execution import RankExit
from scheduler.model.job import JobSpec
from scheduler.model.lifecycle import EndCause, JobEvent, JobState
from scheduler.model.node import Node
from scheduler.model.plan import Plan, Waiting
from scheduler.model.ports import CommitReport, DecisionMeta
from scheduler.model.quantity import (
    DEFAULT_TENANT,
    SYSTEM_TENANT,
    JobId,
    PrincipalId,
    TenantId,
    UtcSeconds,
)
from scheduler.model.view import JobView
from scheduler.store import attempts, lease
from scheduler.store.database import Database
from scheduler.store.inventory import sync_nodes
from scheduler.store.plans import commit_plan
from scheduler.store.tables import audit
from scheduler.store.transaction import Transaction
from scheduler.store.transitions import apply_event

T = TypeVar("T")
P = ParamSpec("P")

LIMITS = service.Limits(waiting_jobs_max=1_000, idempotency_keep_s=3_600.0)
RED = TenantId("red")
BLUE = TenantId("blue")


def actor(
    tenant: TenantId = DEFAULT_TENANT,
    role: Role = Role.USER,
    *,
    name: str = "ann",
    acts_for: TenantId | None = None,
    read_only: bool = False,
) -> Actor:
    if acts_for is None:
        acts_for = DEFAULT_TENANT if tenant == SYSTEM_TENANT else tenant
    return Actor(PrincipalId(f"p-{tenant}-{name}"), name, tenant, role, acts_for, read_only)


ROOT = actor(SYSTEM_TENANT, Role.ADMIN, name="root")
USER = actor()


@dataclass
class Office:
    """The use cases over one database.

    Attributes:
        epoch: leader epoch of the plans it commits; taken at the first one.
    """

    database: Database
    clock: ManualClock
    ids: SequentialIds = field(default_factory=SequentialIds)
    epoch: int = 0

    @property
    def now(self) -> UtcSeconds:
        return self.clock.now()

    def write(self, command: Callable[[Transaction], T]) -> T:
        return self.database.write_sync(command)

    def read(self, query: Callable[[Transaction], T]) -> T:
        return self.database.read_sync(query)

    def do(
        self, use_case: Callable[Concatenate[Transaction, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """One use case in a write transaction."""
        return self.write(lambda tx: use_case(tx, *args, **kwargs))

    def ask(
        self, use_case: Callable[Concatenate[Transaction, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """One use case in a read transaction."""
        return self.read(lambda tx: use_case(tx, *args, **kwargs))

    def nodes(self, *nodes: Node) -> None:
        self.write(lambda tx: sync_nodes(tx, nodes, now=self.now))

    def tenant(self, name: TenantId) -> None:
        self.write(lambda tx: service.create_tenant(tx, ROOT, name, now=self.now, ids=self.ids))

    def submit(
        self,
        who: Actor = USER,
        spec: JobSpec | None = None,
        *,
        key: str | None = None,
        limits: service.Limits = LIMITS,
    ) -> JobView:
        """A job that was accepted or replayed, one second after whatever came before."""
        self.clock.advance(1.0)
        wanted = job_spec() if spec is None else spec
        return self.write(
            lambda tx: service.submit(
                tx,
                who,
                wanted,
                document(wanted),
                idempotency_key=key,
                now=self.now,
                ids=self.ids,
                limits=limits,
            )
        ).job

    def job(self, job_id: JobId, who: Actor = ROOT) -> JobView:
        return self.read(lambda tx: service.get_job(tx, who, job_id))

    def place(
        self,
        job_id: JobId,
        on: Node,
        gpus: Iterable[int] = (0,),
        *,
        waiting: tuple[Waiting, ...] = (),
    ) -> CommitReport:
        """Commit a plan that places the job's only task on these GPUs of a node."""
        return self.commit(
            Plan(
                snapshot_revision=1,
                placements=(placement(job_id, task_placement(on, gpus)),),
                waiting=waiting,
                value=1.0,
                bound=2.0,
            )
        )

    def commit(self, plan: Plan) -> CommitReport:
        if self.epoch == 0:
            self.epoch = self.write(lambda tx: lease.acquire(tx, "test", 1e9, self.now))
        return self.write(
            lambda tx: commit_plan(
                tx,
                plan,
                epoch=self.epoch,
                decision=DecisionMeta("priority-age", 1.5),
                now=self.now,
                ids=self.ids,
            )
        )

    def events(self, job_id: JobId, *events: JobEvent) -> None:
        """What the execution side reports, without an executor."""

        def command(tx: Transaction) -> None:
            for event in events:
                apply_event(tx, job_id, event, now=self.now)

        self.write(command)

    def end(
        self,
        job_id: JobId,
        event: JobEvent,
        cause: EndCause,
        rank: RankExit | None = None,
        *,
        message: str = "",
    ) -> None:
        """End the live attempt by proof of death, as the execution side does."""
        end = attempts.End(cause, self.now, rank, message)

        def command(tx: Transaction) -> None:
            live = attempts.live_attempt(tx, job_id)
            assert live is not None
            apply_event(tx, job_id, event, now=self.now, changes=end.job_columns)
            attempts.close_attempt(tx, live.id, end, now=self.now)

        self.write(command)

    def bring_to(
        self, job_id: JobId, state: JobState, on: Node, gpus: Iterable[int] = (0,)
    ) -> None:
        """Lead a PENDING job to any other state the way the daemon would."""
        if state is JobState.PENDING:
            return
        if state in (JobState.HELD, JobState.QUARANTINED):
            aside = JobEvent.HOLD if state is JobState.HELD else JobEvent.QUARANTINE
            self.events(job_id, aside)
            return
        self.place(job_id, on, gpus)
        path = {
            JobState.ASSIGNED: (),
            JobState.LAUNCHING: (JobEvent.CLAIM,),
            JobState.RUNNING: (JobEvent.CLAIM, JobEvent.START),
            JobState.SUSPECT: (JobEvent.CLAIM, JobEvent.START, JobEvent.SILENCE),
        }
        if state in path:
            self.events(job_id, *path[state])
            return
        self.events(job_id, JobEvent.CLAIM, JobEvent.START)
        self._finish(job_id, state)

    def _finish(self, job_id: JobId, state: JobState) -> None:
        """From RUNNING to a state on the way out, or to the end."""
        if state is JobState.SUCCEEDED:
            self.end(job_id, JobEvent.EXIT_OK, EndCause.COMPLETED, RankExit(0, 0, None))
        elif state is JobState.FAILED:
            self.end(job_id, JobEvent.EXIT_FAILED, EndCause.USER, RankExit(0, 3, None))
        elif state is JobState.LOST:
            self.events(job_id, JobEvent.SILENCE, JobEvent.PROVE_DEATH)
        elif state is JobState.STOPPING:
            self.write(
                lambda tx: attempts.stop_job(
                    tx,
                    job_id,
                    JobEvent.TIME_OUT,
                    cause=EndCause.TIMED_OUT,
                    now=self.now,
                    ids=self.ids,
                )
            )
        else:
            assert state is JobState.CANCELLED
            self.write(lambda tx: service.cancel(tx, ROOT, job_id, now=self.now, ids=self.ids))
            self.end(job_id, JobEvent.STOPPED_CANCELLED, EndCause.CANCELLED)

    def audited(self) -> list[Row[Any]]:
        """Every audit row, oldest first."""
        return self.read(lambda tx: list(tx.connection.execute(select(audit).order_by(audit.c.id))))
