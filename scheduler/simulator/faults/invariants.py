"""The invariants I1 to I16 of the design, one function each: store against world against users.

Each function yields what is wrong, as sentences. None of them asks the code under test anything but
the hash of an audit row; the table of legal moves is copied when this module is loaded.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import orjson

from scheduler.model.job import JobSpec
from scheduler.model.lifecycle import LIVE, TABLE, TERMINAL, JobEvent, JobState
from scheduler.model.quantity import AttemptId
from scheduler.simulator.faults.books import Attempt, Books, Job, Moved, News
from scheduler.simulator.faults.daemon import FREE_REQUEUES_MAX, SimulatedDaemon
from scheduler.simulator.faults.store import QUEUE_MAX
from scheduler.simulator.faults.users import WAITING_JOBS_MAX, Memory
from scheduler.simulator.faults.world import Run, World
from scheduler.store.codec import launch_order
from scheduler.store.journal import GENESIS, audit_hash

_LEGAL = dict(TABLE)
_REFUSALS_MAX = 12
"""Refusals of one job in a row that races can explain."""
_STARTING = frozenset({"place", "claim", "start", "requeue", "exit-retry", "stopped-preempted"})
_AFTER_CANCEL = frozenset(
    {JobState.STOPPING, JobState.LOST, JobState.CANCELLED, JobState.SUCCEEDED}
)
_PENDING, _QUARANTINED = JobState.PENDING.value, JobState.QUARANTINED.value
_AUDITED = {"cancel": "jobs.cancel", "hold": "jobs.hold", "release": "jobs.release"}


@dataclass(slots=True)
class Tally:
    """What is remembered from check to check.

    Attributes:
        states: state of each job by the fold of its history.
        moves: history rows of each job.
        retries: retries that each job has spent.
        in_a_row: free requeues of each job since it last got anywhere.
        refusals: refusals of each job's placement in a row.
        stopped: jobs that must not start again.
        audits: audit rows by (action, object).
        hash: of the last audit row.
        revision: of the last journal row.
        runs: attempts in the world that were looked at.
    """

    states: dict[str, str] = field(default_factory=dict)
    moves: Counter[str] = field(default_factory=Counter)
    retries: Counter[str] = field(default_factory=Counter)
    in_a_row: Counter[str] = field(default_factory=Counter)
    refusals: Counter[str] = field(default_factory=Counter)
    stopped: set[str] = field(default_factory=set)
    audits: Counter[tuple[str, str]] = field(default_factory=Counter)
    hash: str = GENESIS
    revision: int = 0
    runs: set[AttemptId] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class State:
    """One moment: the books now and before, what was appended since, world and users.

    Attributes:
        started: runs that began since the last check.
        alive: runs with living processes.
    """

    books: Books
    before: Books
    news: News
    world: World
    memory: Memory
    daemons: Sequence[SimulatedDaemon]
    tally: Tally
    alive: Sequence[Run]
    started: Sequence[Run]

    def opened(self) -> Iterator[Attempt]:
        """Attempts that are new in the books."""
        for attempt_id in self.books.attempts.keys() - self.before.attempts.keys():
            yield self.books.attempts[attempt_id]

    def spec(self, job: Job) -> JobSpec:
        """What its user asked for."""
        return self.memory.submissions[job.name].spec


def answers_are_kept(now: State) -> Iterator[str]:
    """I1: what was answered with ok is in the store, and stays there."""
    jobs = now.books.jobs
    for submission in now.memory.submissions.values():
        for job_id in submission.jobs:
            if job_id not in jobs:
                yield f"{job_id} was accepted and is not stored"
    for job_id in now.memory.cancelled:
        job = jobs.get(job_id)
        if job is not None and job.desired != "stop" and job.state not in TERMINAL:
            yield f"{job_id} was cancelled and is {job.state} as if nobody had"
    for job_id in now.memory.held:
        job = jobs.get(job_id)
        if job is not None and job.state != JobState.HELD:
            yield f"{job_id} was held and is {job.state}"


def one_state(now: State) -> Iterator[str]:
    """I2: every accepted job is in exactly one state, that of its gapless history and journal."""
    tally = now.tally
    for moved in now.news.moves:
        job = moved.job_id
        if moved.from_state != tally.states.get(job) or moved.seq != tally.moves[job] + 1:
            yield f"history of {job}: {moved.seq}. {moved.from_state} -> {moved.to_state} follows"
            yield f"{tally.moves[job]}. {tally.states.get(job)}"
        tally.states[job] = moved.to_state
        tally.moves[job] = moved.seq
    for job_id, row in now.books.jobs.items():
        if (row.state, row.history_seq) != (tally.states.get(job_id), tally.moves[job_id]):
            yield f"{job_id} is {row.state}, its history ends with {tally.states.get(job_id)}"
    for job_id in now.before.jobs.keys() - now.books.jobs.keys():
        yield f"{job_id} has disappeared"
    for row_revision in (row.revision for row in now.news.journal):
        if row_revision != tally.revision + 1:
            yield f"the journal jumps from {tally.revision} to {row_revision}"
        tally.revision = row_revision
    if tally.revision != now.books.revision:
        yield f"the journal ends at {tally.revision}, its head says {now.books.revision}"


def one_live_attempt(now: State) -> Iterator[str]:
    """I3: at most one live attempt per job, in the books and in the world."""
    for job_id, job in now.books.jobs.items():
        live = len(now.books.live.get(job_id, ()))
        if live != (JobState(job.state) in LIVE):
            yield f"{job_id} is {job.state} and has {live} live attempts"
    running = Counter(run.order.job_id for run in now.alive)
    for job_id, runs in running.items():
        if runs > 1:
            yield f"{runs} attempts of {job_id} run at once"


def nothing_over_committed(now: State) -> Iterator[str]:
    """I4: each GPU has one holder, sums add up within caps, and only open places are given out."""
    leaves = Counter((row.gpu_id, row.leaf) for row in now.books.held if row.gpu_id)
    yield from (f"{gpu} is held {times} times" for (gpu, _), times in leaves.items() if times > 1)
    users: defaultdict[str, set[str]] = defaultdict(set)
    for run in now.alive:
        for gpu in run.gpus:
            users[gpu].add(run.order.attempt_id)
    for used, by in users.items():
        if len(by) > 1:
            yield f"{sorted(by)} use {used} at once"
    yield from _sums(now.books)
    for attempt in now.opened():
        for row in now.books.held_by.get(attempt.id, ()):
            for place_id in filter(None, (row.node_id, row.gpu_id)):
                before, after = now.before.places.get(place_id), now.books.places[place_id]
                unchanged = before is not None and before.revision == after.revision
                if unchanged and not after.open:
                    yield f"{attempt.id} is placed on {place_id}, which takes no work"


def _sums(books: Books) -> Iterator[str]:
    sums: Counter[tuple[str, str]] = Counter()
    for row in books.held:
        sums[row.node_id, row.resource] += row.amount
    for place in books.places.values():
        for resource, used, cap in (
            ("cpu", place.cpu_milli_used, place.cpu_milli),
            ("memory", place.memory_mib_used, place.memory_mib),
        ):
            held = sums[place.id, resource]
            if used != held or used > cap:
                yield f"{place.id}: {resource} used {used} of {cap}, held {held}"


def effects_have_intents(now: State) -> Iterator[str]:
    """I5: nothing runs without a committed, claimed intent that says exactly this."""
    for run in now.started:
        attempt_id = run.order.attempt_id
        intent = now.books.launches.get(attempt_id)
        if intent is None or intent.state != "claimed":
            yield f"{attempt_id} starts, its intent is {intent.state if intent else 'missing'}"
        elif launch_order(intent.order_json).tasks != run.order.tasks:
            yield f"{attempt_id} starts otherwise than its intent says"
    for attempt_id in now.world.tombstones:
        if attempt_id not in now.books.attempts:
            yield f"{attempt_id} was forbidden and nobody ever planned it"


def freed_on_proof_only(now: State) -> Iterator[str]:
    """I6: what runs holds its place in the books, whoever thinks it dead."""
    for run in now.alive:
        attempt_id = run.order.attempt_id
        attempt = now.books.attempts.get(attempt_id)
        if attempt is None or not attempt.live:
            yield f"{attempt_id} runs and its attempt is over in the books"
            continue
        held = {row.gpu_id for row in now.books.held_by.get(attempt_id, ())}
        if missing := sorted(run.gpus - held):
            yield f"{attempt_id} uses {missing}, which were freed"


def gangs_are_whole(now: State) -> Iterator[str]:
    """I7: a live attempt holds all that its gang needs, any other one nothing."""
    for attempt_id, rows in now.books.held_by.items():
        if not now.books.attempts[attempt_id].live:
            yield f"{attempt_id} is over and holds {len(rows)} allocations"
    for attempts in now.books.live.values():
        for attempt in attempts:
            yield from _whole(attempt, now)


def _whole(attempt: Attempt, now: State) -> Iterator[str]:
    job = now.books.jobs[attempt.job_id]
    tasks: defaultdict[int, Counter[str]] = defaultdict(Counter)
    for row in now.books.held_by.get(attempt.id, ()):
        tasks[row.task_index][row.resource] += row.amount
    if not job.tasks_min <= len(tasks) <= job.tasks_max:
        yield f"{attempt.id} holds {len(tasks)} tasks of a gang of {job.tasks_min}"
    for index, task in tasks.items():
        if (task["cpu"], task["memory"]) != (job.cpu_milli, job.memory_mib):
            yield f"task {index} of {attempt.id} holds {dict(task)}"
        if len(_gpus(attempt, index, now)) != job.gpus_per_task:
            yield f"task {index} of {attempt.id} lacks GPUs: it holds {dict(task)}"


def _gpus(attempt: Attempt, index: int, now: State) -> set[str]:
    rows = now.books.held_by.get(attempt.id, ())
    return {row.gpu_id for row in rows if row.task_index == index and row.gpu_id}


def epochs_rise(now: State) -> Iterator[str]:
    """I8: leader epochs only rise, and only the highest one decides, claims and starts."""
    epoch = now.books.epoch
    if epoch < now.before.epoch:
        yield f"the leader's epoch falls from {now.before.epoch} to {epoch}"
    for attempt in now.opened():
        if attempt.epoch != epoch:
            yield f"{attempt.id} is placed by epoch {attempt.epoch} while {epoch} leads"
    for decision in now.news.decisions:
        if decision.epoch != epoch:
            yield f"epoch {decision.epoch} decides while {epoch} leads"
    led = Counter(daemon.epoch for daemon in now.daemons if daemon.epoch)
    for taken, leaders in led.items():
        if leaders > 1:
            yield f"{leaders} daemons lead under epoch {taken}"
    claimed = {row.attempt_id for row in now.before.intents if row.state == "claimed"}
    for row in now.books.intents:
        if row.state == "claimed" and row.attempt_id not in claimed and row.epoch != epoch:
            yield f"epoch {row.epoch} claims {row.attempt_id} while {epoch} leads"


def moves_are_legal(now: State) -> Iterator[str]:
    """I9: only moves of the table; what is over stays as it is."""
    for moved in now.news.moves:
        if moved.from_state is None:
            continue
        move = _LEGAL.get((JobState(moved.from_state), JobEvent(moved.event)))
        if move is None or move.to != moved.to_state:
            yield f"{moved.job_id}: {moved.from_state} -{moved.event}-> {moved.to_state}"
    for job_id, before in now.before.jobs.items():
        after = now.books.jobs.get(job_id)
        if before.state in TERMINAL and after is not None and before != after:
            yield f"{job_id} was {before.state} and has changed to {after.state}"


def cancelled_never_starts(now: State) -> Iterator[str]:
    """I10: once a cancel is recorded, the job only ever goes out."""
    stopped = now.tally.stopped
    for moved in now.news.moves:
        if moved.job_id in stopped and moved.event in _STARTING:
            yield f"{moved.job_id} was cancelled, now {moved.event}"
    for job in now.books.jobs.values():
        if job.desired == "stop":
            stopped.add(job.id)
        if job.id in stopped and (job.desired != "stop" or job.state not in _AFTER_CANCEL):
            yield f"{job.id} was cancelled and is {job.state}, desired {job.desired}"
    for run in now.started:
        if now.books.jobs[run.order.job_id].state in TERMINAL:
            yield f"{run.order.attempt_id} starts for a job that is over"


def retries_are_bounded(now: State) -> Iterator[str]:
    """I11: retries, free requeues and refusals have bounds, and backoffs are waited out."""
    tally = now.tally
    for moved in now.news.moves:
        _count_retries(moved, tally)
    for job_id, used in tally.retries.items():
        allowed = now.spec(now.books.jobs[job_id]).retry.max_retries
        if used > allowed:
            yield f"{job_id} has used {used} of {allowed} retries"
    for job_id, times in tally.in_a_row.items():
        if times >= FREE_REQUEUES_MAX:
            yield f"{job_id} was requeued {times} times in a row and not quarantined"
    for attempt in now.opened():
        before = now.before.jobs.get(attempt.job_id)
        if before is not None and before.eligible_at > attempt.created_at:
            early_s = before.eligible_at - attempt.created_at
            yield f"{attempt.job_id} is placed {early_s} s too early"
    yield from _refused_again_and_again(now)


def _refused_again_and_again(now: State) -> Iterator[str]:
    tally = now.tally
    for decision in now.news.decisions:
        refused = {each["job_id"] for each in orjson.loads(decision.document)["refused"]}
        for job_id in tally.refusals.keys() - refused:
            del tally.refusals[job_id]
        tally.refusals.update(refused)
    for job_id, times in tally.refusals.items():
        if times > _REFUSALS_MAX:
            yield f"{job_id} was placed and refused {times} times in a row"


def _count_retries(moved: Moved, tally: Tally) -> None:
    """Retries that were paid for, and free requeues since the job last got anywhere."""
    job = moved.job_id
    if moved.event == JobEvent.EXIT_RETRY:
        tally.retries[job] += 1
    from_quarantine = moved.event == JobEvent.REQUEUE and moved.from_state == _QUARANTINED
    if from_quarantine or moved.event in (JobEvent.EXIT_RETRY, JobEvent.RELEASE):
        tally.in_a_row[job] = 0
    elif moved.event == JobEvent.REQUEUE:
        tally.in_a_row[job] += 1


def tenants_apart(now: State) -> Iterator[str]:
    """I12: everything about a job belongs to its tenant, and no stranger gets hold of it."""
    yield from now.memory.trespasses
    jobs = now.books.jobs
    for job in jobs.values():
        if job.tenant_id != now.memory.submissions[job.name].tenant:
            yield f"{job.id} belongs to {job.tenant_id}, who did not submit it"
    owner = {job.id: job.tenant_id for job in jobs.values()}
    found = [
        *((row.job_id, row.tenant_id) for row in now.books.attempts.values()),
        *((row.job_id, row.tenant_id) for row in now.books.intents),
        *((row.job_id, row.tenant_id) for row in now.news.moves),
        *((row.object_id, row.tenant_id) for row in now.news.journal if row.kind == "job"),
        *((run.order.job_id, run.order.tenant) for run in now.started),
    ]
    for job_id, tenant in found:
        if owner.get(job_id) != tenant:
            yield f"something of {job_id} belongs to {tenant}"


def everything_bounded(now: State) -> Iterator[str]:
    """I13: queues and calls under way keep their bounds; who came too many was refused."""
    for daemon in now.daemons:
        if daemon.store.waiting > QUEUE_MAX:
            yield f"{daemon.store.waiting} writes wait in daemon {daemon.number}"
        for name, calls in daemon.calls.items():
            if calls.busy > calls.most:
                yield f"daemon {daemon.number} makes {calls.busy} calls of {name} at once"
    entered = [job for job in now.books.jobs.values() if job.id not in now.before.jobs]
    for tenant in {job.tenant_id for job in entered}:
        # Those that came back to the queue are seen late: count who never left it.
        waiting = [
            job
            for job in now.books.jobs.values()
            if (job.tenant_id, job.state, job.history_seq) == (tenant, _PENDING, 1)
        ]
        if len(waiting) > WAITING_JOBS_MAX:
            yield f"{len(waiting)} jobs of {tenant} wait, {WAITING_JOBS_MAX} are allowed"


def one_key_one_job(now: State) -> Iterator[str]:
    """I15: however often a submission is sent, it makes one job."""
    for name, jobs in Counter(job.name for job in now.books.jobs.values()).items():
        if jobs > 1:
            yield f"{name} was submitted with one key and is stored {jobs} times"
    for submission in now.memory.submissions.values():
        if len(submission.jobs) > 1:
            yield f"{submission.name} was answered with {sorted(submission.jobs)}"


def mutations_are_audited(now: State) -> Iterator[str]:
    """I16: one audit row per mutation, in an unbroken chain."""
    tally, memory = now.tally, now.memory
    for row in now.news.audit:
        tally.audits[row.action, row.object_id] += 1
        columns = {name: getattr(row, name) for name in row._fields if name != "hash"}
        tally.hash = audit_hash(tally.hash, columns)
        if tally.hash != row.hash:
            yield f"the audit chain breaks at {row.action} {row.object_id}"
    if tally.hash != now.books.audit_hash:
        yield "the audit chain does not end at its head"
    touched = {row.object_id for row in now.news.audit} | memory.touched
    for job in now.books.jobs.values():
        if job.id in touched or job.name in touched:
            yield from _counted(now, "jobs.submit", job.id, ("submit",), job.name)
            for verb in ("cancel", "hold", "release", "requeue"):
                yield from _counted(now, f"jobs.{verb}", job.id, (verb,), job.id)
    for place in touched & now.books.places.keys():
        kind = "nodes" if place in now.world.hosts else "gpus"
        yield from _counted(now, f"{kind}.cordon", place, ("cordon", "uncordon"), place)
    memory.touched.clear()
    for moved in now.news.moves:
        action = _AUDITED.get(moved.event)
        if action is not None and not tally.audits[action, moved.job_id]:
            yield f"{moved.job_id}: {moved.event} without an audit row"


def _counted(
    now: State, action: str, target: str, verbs: Sequence[str], sent_as: str
) -> Iterator[str]:
    rows = now.tally.audits[action, target]
    least = sum(now.memory.at_least(verb, sent_as) for verb in verbs)
    most = sum(now.memory.at_most(verb, sent_as) for verb in verbs)
    if not least <= rows <= most:
        yield f"{rows} audit rows of {action} {target}, answered {least}, sent {most}"


Invariant = Callable[[State], Iterator[str]]
INVARIANTS: dict[str, Invariant] = {
    "I1": answers_are_kept,
    "I2": one_state,
    "I3": one_live_attempt,
    "I4": nothing_over_committed,
    "I5": effects_have_intents,
    "I6": freed_on_proof_only,
    "I7": gangs_are_whole,
    "I8": epochs_rise,
    "I9": moves_are_legal,
    "I10": cancelled_never_starts,
    "I11": retries_are_bounded,
    "I12": tenants_apart,
    "I13": everything_bounded,
    "I15": one_key_one_job,
    "I16": mutations_are_audited,
}
"""All that hold at every step. I14, that all jobs settle, is judged when faults have stopped."""
