"""People who submit, cancel, hold and cordon, and remember what they were told.

Their memory is the independent history that invariants compare the store with: `ok` happened,
`refused` did not, and after `unknown` (no answer, or one that says so) it may have.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, TypeVar

import orjson

from scheduler import service
from scheduler.errors import HaversackError, NotFoundError, StorageError
from scheduler.failpoints import FailpointError
from scheduler.jobspec import API_VERSION, KIND, parse_job_json
from scheduler.model.access import Actor, Role
from scheduler.model.job import JobSpec
from scheduler.model.quantity import (
    DEFAULT_TENANT,
    SYSTEM_TENANT,
    GpuId,
    JobId,
    NodeId,
    PrincipalId,
    TenantId,
)
from scheduler.model.view import SubmitResult
from scheduler.service import moves
from scheduler.simulator.faults.chance import Fault
from scheduler.simulator.faults.daemon import KilledError, SimulatedDaemon, Surroundings
from scheduler.simulator.faults.store import OTHER_TENANT
from scheduler.store.transaction import Transaction

T = TypeVar("T")

WAITING_JOBS_MAX = 6
LIMITS = service.Limits(waiting_jobs_max=WAITING_JOBS_MAX, idempotency_keep_s=1e9)


class Told(StrEnum):
    """What a user knows of a request."""

    OK = "ok"
    REFUSED = "refused"
    UNKNOWN = "unknown"


@dataclass(slots=True)
class Submission:
    """One job that a user wants, however often it is sent.

    Attributes:
        name: of the job; no two submissions share one.
        key: its idempotency key.
        jobs: ids that answers named.
        sent: times it was sent and not refused.
    """

    name: str
    tenant: TenantId
    key: str
    spec: JobSpec
    document: str
    jobs: set[JobId] = field(default_factory=set)
    sent: int = 0


@dataclass(slots=True)
class Memory:
    """All that the users know.

    Attributes:
        submissions: by name.
        sent: requests by (action, object).
        told: their answers by (action, object, what was told).
        cancelled: jobs whose cancel was answered with ok.
        held: jobs whose hold was answered with ok, and nobody tried to let go since.
        trespasses: answers that a stranger should never have had.
        changes: rises with every change of anything here.
        touched: objects of answers since the invariants were last checked.
    """

    submissions: dict[str, Submission] = field(default_factory=dict)
    sent: Counter[tuple[str, str]] = field(default_factory=Counter)
    told: Counter[tuple[str, str, Told]] = field(default_factory=Counter)
    cancelled: set[JobId] = field(default_factory=set)
    held: set[JobId] = field(default_factory=set)
    trespasses: list[str] = field(default_factory=list)
    changes: int = 0
    touched: set[str] = field(default_factory=set)

    def send(self, action: str, target: str) -> None:
        """Count one request."""
        self.changes += 1
        self.sent[action, target] += 1

    def note(self, action: str, target: str, told: Told) -> None:
        """Count one answer."""
        self.changes += 1
        self.touched.add(target)
        self.told[action, target, told] += 1

    def at_least(self, action: str, target: str) -> int:
        """How often it certainly happened."""
        return self.told[action, target, Told.OK]

    def at_most(self, action: str, target: str) -> int:
        """How often it may have happened: all but what was refused."""
        return self.sent[action, target] - self.told[action, target, Told.REFUSED]

    def known_jobs(self) -> list[tuple[JobId, TenantId]]:
        """Jobs that users have heard of, oldest first."""
        return [
            (job, submission.tenant)
            for submission in self.submissions.values()
            for job in sorted(submission.jobs)
        ]


def actor(tenant: TenantId) -> Actor:
    """The user of a tenant; of the system's, the operator."""
    role = Role.OPERATOR if tenant == SYSTEM_TENANT else Role.USER
    return Actor(PrincipalId(f"p-{tenant}"), f"user of {tenant}", tenant, role, tenant)


class Users:
    """Sends requests to whoever serves, and notes the answers.

    Args:
        around: the simulation.
        serving: daemons that take requests; any of them may be asked.
    """

    def __init__(self, around: Surroundings, serving: Callable[[], list[SimulatedDaemon]]) -> None:
        self.memory = Memory()
        self._around = around
        self._chance = around.chance
        self._serving = serving
        self._requests: set[asyncio.Task[object]] = set()

    @property
    def busy(self) -> bool:
        """Whether a request is under way."""
        return bool(self._requests)

    def start(self, request: Coroutine[Any, Any, object]) -> None:
        """Let a request take its course."""
        task = asyncio.get_running_loop().create_task(request)
        self._requests.add(task)
        task.add_done_callback(self._over)

    def _over(self, task: asyncio.Task[object]) -> None:
        self._requests.discard(task)
        if not task.cancelled():
            task.result()  # what users did not expect goes to the loop's exception handler

    async def submit(self) -> None:
        """Send a new job; send it again when the answer is lost, or just to be sure."""
        chance = self._chance
        submission = self._invent()
        self.memory.submissions[submission.name] = submission
        if chance.strikes(Fault.TWIN_SUBMIT, 0.3, submission.name):
            self.start(self._twin(submission))
        told = await self._send(submission)
        while told is Told.UNKNOWN and chance.happens(0.8):
            await asyncio.sleep(chance.wait_s(2.0))
            told = await self._send(submission)
        race = Fault.CANCEL_RACE
        if submission.jobs and chance.strikes(race, 0.2, submission.name):
            await asyncio.sleep(chance.between(0.0, 1.0))
            await self.move("cancel", min(submission.jobs), submission.tenant)

    async def _twin(self, submission: Submission) -> None:
        await asyncio.sleep(self._chance.wait_s(1.0))
        await self._send(submission)

    async def _send(self, submission: Submission) -> Told:
        around = self._around

        def command(tx: Transaction) -> SubmitResult:
            return service.submit(
                tx,
                actor(submission.tenant),
                submission.spec,
                submission.document,
                idempotency_key=submission.key,
                now=around.clock.now(),
                ids=around.ids,
                limits=LIMITS,
            )

        told, result = await self._ask("submit", submission.name, command, failpoint="submit")
        if told is not Told.REFUSED:
            submission.sent += 1
        if result is not None:
            submission.jobs.add(result.job.id)
            self.memory.changes += 1
        return told

    async def move(self, verb: str, job: JobId, tenant: TenantId) -> None:
        """Cancel, hold, release or requeue a job, as a user of `tenant`."""
        around = self._around
        if verb != "hold":
            self.memory.held.discard(job)
        before = self._others(job)
        told, _ = await self._ask(
            verb,
            job,
            lambda tx: getattr(moves, verb)(
                tx, actor(tenant), job, now=around.clock.now(), ids=around.ids
            ),
            failpoint=verb,
        )
        self.memory.changes += 1
        if told is Told.OK and verb == "cancel":
            self.memory.cancelled.add(job)
        if (
            told is Told.OK
            and verb == "hold"
            and before is not None
            and before == self._others(job)
        ):
            self.memory.held.add(job)

    def _others(self, job: JobId) -> int | None:
        """How many requests were sent that may let a held job go; None while one is under way."""
        memory = self.memory
        verbs = ("cancel", "release", "requeue")
        sent = sum(memory.sent[verb, job] for verb in verbs)
        answered = sum(memory.told[verb, job, told] for verb in verbs for told in Told)
        return sent if sent == answered else None

    async def trespass(self, job: JobId, owner: TenantId) -> None:
        """Try to cancel somebody else's job, and to look at it."""
        stranger = DEFAULT_TENANT if owner != DEFAULT_TENANT else OTHER_TENANT
        around = self._around

        def meddle(tx: Transaction) -> None:
            who = actor(stranger)
            with suppress(NotFoundError):
                service.get_job(tx, who, job)
                self.memory.trespasses.append(f"{stranger} sees {job} of {owner}")
            with suppress(NotFoundError):
                moves.cancel(tx, who, job, now=around.clock.now(), ids=around.ids)
                self.memory.trespasses.append(f"{stranger} cancels {job} of {owner}")

        await self._ask("trespass", job, meddle)

    async def cordon(self, target: str, *, cordoned: bool) -> None:
        """Take a node or GPU out of service, or put it back."""
        around = self._around
        operator = actor(SYSTEM_TENANT)
        verb = "cordon" if cordoned else "uncordon"

        def command(tx: Transaction) -> None:
            now = around.clock.now()
            if NodeId(target) in around.world.hosts:
                service.cordon_node(tx, operator, NodeId(target), cordoned=cordoned, now=now)
            else:
                service.cordon_gpu(tx, operator, GpuId(target), cordoned=cordoned, now=now)

        await self._ask(verb, target, command)

    async def _ask(
        self,
        action: str,
        target: str,
        command: Callable[[Transaction], T],
        *,
        failpoint: str | None = None,
    ) -> tuple[Told, T | None]:
        """Send one request; what was told, and the answer if there was one."""
        serving = self._serving()
        if not serving:
            return Told.REFUSED, None  # connection refused: nothing was sent
        daemon = self._chance.pick(serving)
        self.memory.send(action, target)
        answer: T | None = None
        try:
            answer = await daemon.store.write(command, failpoint=failpoint)
            told, why = Told.OK, ""
        except (KilledError, FailpointError) as error:
            told, why = Told.UNKNOWN, type(error).__name__
        except StorageError as error:
            told = Told.UNKNOWN if "unknown" in str(error) else Told.REFUSED
            why = str(error)
        except HaversackError as error:
            told, why = Told.REFUSED, str(error)
        self.memory.note(action, target, told)
        self._around.step(f"user: {action} {target}: {told} {why}".rstrip())
        return told, answer

    def _invent(self) -> Submission:
        """A job nobody has thought of before."""
        chance = self._chance
        number = len(self.memory.submissions) + 1
        gpus = chance.pick((0, 1, 1, 1, 2))
        codes = chance.pick(("0", "0", "0", "1,0", "1,1,0", "1"))
        spec: dict[str, object] = {
            "queue": "default",
            "priority": chance.count(0, 100),
            "tasks": chance.pick((1, 1, 2, 3)),
            "task": {
                "gpus": gpus,
                "cpus": chance.pick((1, 4, 8)),
                "memory_mib": chance.pick((1024, 65_536)),
                "command": ["work", f"{chance.wait_s(10.0):.3f}", codes],
            },
            "launcher": "none",
            "retry": {"max": chance.count(0, 2), "backoff_s": 1},
            "checkpoint": {"grace_s": chance.count(1, 5)},
            "preemptible": chance.happens(0.8),
        }
        if chance.happens(0.15):
            spec["max_runtime_s"] = 5
        tenant = chance.pick((DEFAULT_TENANT, DEFAULT_TENANT, OTHER_TENANT))
        name = f"job-{number:03d}"
        parsed, document = parse_job_json(
            orjson.dumps(
                {
                    "apiVersion": API_VERSION,
                    "kind": KIND,
                    "metadata": {"name": name},
                    "spec": spec,
                }
            )
        )
        return Submission(name, tenant, f"key-{number:03d}", parsed, document)
