"""Making placements real: who still fits, and the rows that say where it runs.

Writers of all processes queue up at the journal's head, so what a write transaction reads stays
true until it commits. All rows a plan speaks of are therefore read once, its placements are gone
through in Python, and those that fit are written together. The guards in the statements and the
indexes still have the last word: where one objects, nothing of that remains, and the placements are
written one by one, each in its own savepoint, so that each stands or falls alone and whole (I7).

Sites and further resources (`TaskPlacement.extras`) have no guard in SQL. Labels and taints are
compared again here; further resources only on nodes that changed since the plan was made: on all
others the daemon's `check_safety`, on the plan's own snapshot, is what holds for them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from sqlalchemy import Row, bindparam, insert, select, text, update
from sqlalchemy.exc import IntegrityError

from scheduler.errors import ConflictError, InvalidRequestError
from scheduler.ids import IdSource
from scheduler.model.execution import IntentKind, LaunchOrder, LaunchTask
from scheduler.model.lifecycle import JobEvent, JobState
from scheduler.model.node import Health
from scheduler.model.plan import Placement, TaskPlacement
from scheduler.model.quantity import AttemptId, DecisionId, JobId, TenantId, UtcSeconds
from scheduler.store import codec
from scheduler.store.attempts import insert_intents
from scheduler.store.documents import Program, program
from scheduler.store.sites import held_extras, keeps_off, missing_extra
from scheduler.store.tables import allocations, attempts, gpus, jobs, nodes
from scheduler.store.transaction import Transaction
from scheduler.store.transitions import JobMove, Moved, apply_event_to_all

AnyRow: TypeAlias = Row[*tuple[Any, ...]]

_CHUNK = 500
_PROBLEMS = 3
"""Problems of a document that the message of a quarantined job names."""
_INSERT_ATTEMPT = insert(attempts)
_INSERT_ALLOCATION = insert(allocations)
_GRANT = (
    update(nodes)
    .where(
        nodes.c.id == bindparam("node"),
        nodes.c.cpu_milli_used + bindparam("cpu") <= nodes.c.cpu_milli,
        nodes.c.memory_mib_used + bindparam("memory") <= nodes.c.memory_mib,
    )
    .values(
        cpu_milli_used=nodes.c.cpu_milli_used + bindparam("cpu"),
        memory_mib_used=nodes.c.memory_mib_used + bindparam("memory"),
    )
)
_TAKEN = select(allocations.c.gpu_id).where(
    # The words of the partial index: SQLite uses it for no others.
    text("allocations.live"),
    allocations.c.gpu_id.in_(bindparam("gpu_ids", expanding=True)),
)


class _RefusedError(Exception):
    """A placement does not fit any more; the message says what changed."""


class _UnreadableError(Exception):
    """A job has a stored document that this version cannot read; the message says why."""


@dataclass(frozen=True, slots=True)
class Books:
    """What the store says of all that the placements of one plan speak of, and who commits it.

    Attributes:
        jobs, nodes, gpus: rows by id.
        taken: GPUs with a live allocation.
        extras_held: what live attempts hold of further resources, by node and name; of the nodes
            alone that changed after the plan was decided.
    """

    tx: Transaction
    decision_id: DecisionId
    epoch: int
    now: UtcSeconds
    ids: IdSource
    jobs: Mapping[str, AnyRow]
    nodes: Mapping[str, AnyRow]
    gpus: Mapping[str, AnyRow]
    taken: frozenset[str]
    extras_held: Mapping[str, Mapping[str, int]]


@dataclass(frozen=True, slots=True)
class Placed:
    """What became of placements, in the order of the plan.

    Attributes:
        placed: jobs that are ASSIGNED now.
        refused: jobs that are not, and why; one whose document is unreadable is QUARANTINED.
    """

    placed: tuple[JobId, ...]
    refused: tuple[tuple[JobId, str], ...]


def read_books(
    tx: Transaction,
    placements: Sequence[Placement],
    decision_id: DecisionId,
    *,
    epoch: int,
    now: UtcSeconds,
    ids: IdSource,
    since: int = 0,
) -> Books:
    """Read all rows that the placements speak of.

    Args:
        tx: a write transaction.
        placements: those of the plan.
        decision_id: of the plan, for the rows that will be written.
        epoch: likewise.
        now: likewise.
        ids: likewise.
        since: revision that the plan was decided on.

    Cost: four statements for each `_CHUNK` of ids; `held_extras` for nodes that changed `since`.
    """
    tasks = [task for placement in placements for task in placement.tasks]
    gpu_ids = sorted({gpu_id for task in tasks for gpu_id in task.gpu_ids})
    node_rows = _by_id(tx, nodes, (task.node_id for task in tasks))
    asked = {task.node_id for task in tasks if task.extras}
    changed = [key for key in sorted(asked & node_rows.keys()) if node_rows[key].revision > since]
    return Books(
        tx=tx,
        decision_id=decision_id,
        epoch=epoch,
        now=now,
        ids=ids,
        jobs=_by_id(tx, jobs, (placement.job_id for placement in placements)),
        nodes=node_rows,
        gpus=_by_id(tx, gpus, gpu_ids),
        taken=frozenset(
            gpu_id
            for chunk in _chunks(gpu_ids)
            for gpu_id in tx.connection.execute(_TAKEN, {"gpu_ids": chunk}).scalars()
        ),
        extras_held=held_extras(tx, changed),
    )


def _by_id(tx: Transaction, table: Any, wanted: Iterable[str]) -> dict[str, AnyRow]:
    found: dict[str, AnyRow] = {}
    for chunk in _chunks(sorted(set(wanted))):
        statement = select(table).where(table.c.id.in_(chunk))
        found |= {row.id: row for row in tx.connection.execute(statement)}
    return found


def _chunks(keys: Sequence[str]) -> Iterable[Sequence[str]]:
    return (keys[start : start + _CHUNK] for start in range(0, len(keys), _CHUNK))


def place(books: Books, placements: Sequence[Placement]) -> Placed:
    """Write every placement that fits, refuse the others, quarantine what cannot be read.

    Cost: about ten statements, however many placements; as `place_one_by_one` if a guard objects.
    """
    room = _Room(books)
    fitting = [found for found in map(room.take_if_it_fits, placements) if found]
    try:
        with books.tx.savepoint():
            _write(books, fitting)
            _set_aside(books, room.unreadable)
    except _RefusedError:
        return place_one_by_one(books, placements)
    return room.outcome


def place_one_by_one(books: Books, placements: Sequence[Placement]) -> Placed:
    """As `place`, each placement in its own savepoint: what a guard objects to falls alone."""
    room = _Room(books)
    for placement in placements:
        found = room.take_if_it_fits(placement)
        if found is None:
            continue
        try:
            with books.tx.savepoint():
                _write(books, [found])
        except _RefusedError as error:
            room.give_back(found, str(error))
    for job_id, why in room.unreadable.items():
        # One that has changed meanwhile is refused already, and not ours to set aside.
        with suppress(_RefusedError), books.tx.savepoint():
            _set_aside(books, {job_id: why})
    return room.outcome


@dataclass(frozen=True, slots=True)
class _Fitting:
    """A placement that fits, and all that its rows need."""

    placement: Placement
    job: AnyRow
    program: Program
    attempt_id: AttemptId

    @property
    def number(self) -> int:
        """Number of the attempt, from 1."""
        return int(self.job.attempts) + 1


@dataclass(slots=True)
class _Room:
    """What is left while the placements are gone through, and what became of each so far."""

    books: Books
    placed: dict[JobId, None] = field(default_factory=dict)
    refused: list[tuple[JobId, str]] = field(default_factory=list)
    unreadable: dict[JobId, str] = field(default_factory=dict)
    taken: set[str] = field(default_factory=set)
    cpu_milli: Counter[str] = field(default_factory=Counter)
    memory_mib: Counter[str] = field(default_factory=Counter)
    extras: dict[str, Counter[str]] = field(default_factory=dict)

    @property
    def outcome(self) -> Placed:
        """What became of all placements."""
        return Placed(tuple(self.placed), tuple(self.refused))

    def take_if_it_fits(self, placement: Placement) -> _Fitting | None:
        """Take what the placement needs, or note why it is refused."""
        job_id = placement.job_id
        try:
            job = self._waiting(placement)
            self._check_room(placement)
            self._check_sites(job, placement)
            found = _program(job, placement)
        except _RefusedError as error:
            self.refused.append((job_id, str(error)))
        except _UnreadableError as error:
            self.refused.append((job_id, str(error)))
            self.unreadable[job_id] = str(error)
        else:
            self._count(placement, 1)
            self.placed[job_id] = None
            return _Fitting(placement, job, found, AttemptId(self.books.ids.new("a")))
        return None

    def give_back(self, found: _Fitting, why: str) -> None:
        """Refuse after all what was taken."""
        self._count(found.placement, -1)
        del self.placed[found.placement.job_id]
        self.refused.append((found.placement.job_id, why))

    def _count(self, placement: Placement, sign: int) -> None:
        change = self.taken.update if sign > 0 else self.taken.difference_update
        for task in placement.tasks:
            change(task.gpu_ids)
            self.cpu_milli[task.node_id] += sign * task.cpu_milli
            self.memory_mib[task.node_id] += sign * task.memory_mib
            if task.node_id in self.books.extras_held:
                held = self.extras.setdefault(task.node_id, Counter())
                for name, amount in task.extras:
                    held[name] += sign * amount

    def _waiting(self, placement: Placement) -> AnyRow:
        job = self.books.jobs.get(placement.job_id)
        if job is None or job.state != JobState.PENDING or job.desired != "run":
            raise _RefusedError("the job no longer waits")
        if placement.job_id in self.placed:
            raise _RefusedError("the plan places the job twice")
        if placement.job_id in self.unreadable:
            raise _RefusedError("the job no longer waits")
        if job.eligible_at > self.books.now:
            raise _RefusedError("the job may not start yet: it waits out a retry")
        if not job.tasks_min <= len(placement.tasks) <= job.tasks_max:
            raise _RefusedError(f"the gang needs {job.tasks_min} tasks, not {len(placement.tasks)}")
        return job

    def _check_room(self, placement: Placement) -> None:
        gpu_ids: set[str] = set()
        cpu_milli: Counter[str] = Counter()
        memory_mib: Counter[str] = Counter()
        for task in placement.tasks:
            _check_task(self.books, task)
            for gpu_id in task.gpu_ids:
                if gpu_id in gpu_ids or gpu_id in self.taken or gpu_id in self.books.taken:
                    raise _RefusedError("one of its GPUs was taken meanwhile")
                gpu_ids.add(gpu_id)
            cpu_milli[task.node_id] += task.cpu_milli
            memory_mib[task.node_id] += task.memory_mib
        for node_id in cpu_milli:
            node = self.books.nodes[node_id]
            cpu = node.cpu_milli_used + self.cpu_milli[node_id] + cpu_milli[node_id]
            memory = node.memory_mib_used + self.memory_mib[node_id] + memory_mib[node_id]
            if cpu > node.cpu_milli or memory > node.memory_mib:
                raise _RefusedError(f"CPU or memory of node {node.name} was taken meanwhile")

    def _check_sites(self, job: AnyRow, placement: Placement) -> None:
        for node_id in dict.fromkeys(task.node_id for task in placement.tasks):
            node = self.books.nodes[node_id]
            if why := keeps_off(job, node):
                raise _RefusedError(why)
            if node_id in self.books.extras_held:
                here = [task for task in placement.tasks if task.node_id == node_id]
                held = Counter(self.books.extras_held[node_id])
                held.update(self.extras.get(node_id, {}))
                if name := missing_extra(node, here, held):
                    raise _RefusedError(f"{name} of node {node.name} was taken meanwhile")


def _check_task(books: Books, task: TaskPlacement) -> None:
    node = books.nodes.get(task.node_id)
    if node is None or not node.present:
        raise _RefusedError(f"node {task.node_id} has left")
    if node.cordoned or node.health != Health.HEALTHY:
        state = "cordoned" if node.cordoned else node.health
        raise _RefusedError(f"node {node.name} is {state}")
    for gpu_id in task.gpu_ids:
        gpu = books.gpus.get(gpu_id)
        if gpu is None or not gpu.present or gpu.node_id != task.node_id:
            raise _RefusedError(f"GPU {gpu_id} has left node {node.name}")
        if gpu.cordoned or gpu.external or gpu.health != Health.HEALTHY:
            held = "in use by others" if gpu.external else gpu.health
            state = "cordoned" if gpu.cordoned else held
            raise _RefusedError(f"GPU {gpu_id} of node {node.name} is {state}")


def _program(job: AnyRow, placement: Placement) -> Program:
    try:
        found = program(job.document)
    except InvalidRequestError as error:
        wrong = "; ".join(f"{each.path}: {each.message}" for each in error.problems[:_PROBLEMS])
        raise _UnreadableError(
            f"this version cannot read its stored document ({job.api_version}): {wrong or error}"
        ) from error
    if found.members and len(found.members) < len(placement.tasks):
        raise _UnreadableError(
            f"its stored document names members for {len(found.members)}"
            f" of its {len(placement.tasks)} tasks"
        )
    return found


def _write(books: Books, fitting: Sequence[_Fitting]) -> None:
    """All rows of these placements.

    Raises:
        _RefusedError: a guard or an index objected to one of them; the savepoint undoes them all.
    """
    if not fitting:
        return
    tx = books.tx
    moves = [
        JobMove(
            found.job,
            found.attempt_id,
            detail={"decision_id": books.decision_id, "why": found.placement.why},
            changes={"attempts": found.number},
        )
        for found in fitting
    ]
    moved = _move(books, moves, JobEvent.PLACE)
    try:
        tx.connection.execute(
            _INSERT_ATTEMPT,
            [
                _attempt(books, found, move.revision)
                for found, move in zip(fitting, moved, strict=True)
            ],
        )
    except IntegrityError as error:
        raise _RefusedError("another attempt of the job is live") from error
    try:
        tx.connection.execute(
            _INSERT_ALLOCATION, [row for found in fitting for row in _allocations(books, found)]
        )
    except IntegrityError as error:
        raise _RefusedError("one of its GPUs was taken meanwhile") from error
    _grant(books, fitting)
    orders = [(found.job, _launch_order(books, found)) for found in fitting]
    insert_intents(tx, IntentKind.LAUNCH, orders, now=books.now, ids=books.ids)


def _move(books: Books, moves: Sequence[JobMove], event: JobEvent) -> tuple[Moved, ...]:
    try:
        return apply_event_to_all(books.tx, moves, event, now=books.now)
    except ConflictError as error:
        raise _RefusedError("the job changed meanwhile") from error


def _attempt(books: Books, found: _Fitting, revision: int) -> dict[str, object]:
    return {
        "id": found.attempt_id,
        "tenant_id": found.job.tenant_id,
        "job_id": found.job.id,
        "number": found.number,
        "epoch": books.epoch,
        "live": True,
        "decision_id": books.decision_id,
        "placement": codec.text(found.placement.tasks),
        "why": found.placement.why,
        "outside_id": "",
        "created_at": books.now,
        "message": "",
        "revision": revision,
    }


def _allocations(books: Books, found: _Fitting) -> Iterable[dict[str, object]]:
    """What a gang holds: CPU and memory of each task, and every leaf of each of its GPUs."""
    common = {
        "tenant_id": found.job.tenant_id,
        "attempt_id": found.attempt_id,
        "live": True,
        "created_at": books.now,
    }
    for task in found.placement.tasks:
        where = {**common, "node_id": task.node_id, "task_index": task.task_index}
        for resource, amount in (("cpu", task.cpu_milli), ("memory", task.memory_mib)):
            yield {**where, "resource": resource, "amount": amount, "gpu_id": None, "leaf": None}
        for gpu_id in task.gpu_ids:
            for leaf in range(books.gpus[gpu_id].leaves):
                yield {**where, "resource": "gpu", "amount": 1, "gpu_id": gpu_id, "leaf": leaf}


def _grant(books: Books, fitting: Sequence[_Fitting]) -> None:
    """Add what the placements take to the sums of their nodes."""
    cpu: Counter[str] = Counter()
    memory: Counter[str] = Counter()
    for found in fitting:
        for task in found.placement.tasks:
            cpu[task.node_id] += task.cpu_milli
            memory[task.node_id] += task.memory_mib
    sums = [{"node": node, "cpu": cpu[node], "memory": memory[node]} for node in sorted(cpu)]
    if books.tx.connection.execute(_GRANT, sums).rowcount != len(sums):
        names = ", ".join(str(books.nodes[node].name) for node in sorted(cpu))
        raise _RefusedError(f"CPU or memory of node {names} was taken meanwhile")


def _launch_order(books: Books, found: _Fitting) -> LaunchOrder:
    """The order, its tasks by rank: member 0 of a gang from outside becomes task 0."""
    run = found.program
    return LaunchOrder(
        attempt_id=found.attempt_id,
        job_id=found.placement.job_id,
        tenant=TenantId(found.job.tenant_id),
        job_name=found.job.name,
        number=found.number,
        epoch=books.epoch,
        tasks=tuple(
            LaunchTask(
                task_index=task.task_index,
                node_id=task.node_id,
                node_name=books.nodes[task.node_id].name,
                gpu_ids=task.gpu_ids,
                simulated=books.nodes[task.node_id].simulated,
                cpu_milli=task.cpu_milli,
                member=run.members[task.task_index] if run.members else "",
                memory_mib=task.memory_mib,
            )
            for task in sorted(found.placement.tasks, key=lambda task: task.task_index)
        ),
        processes=run.processes,
        command=run.command,
        env=run.env,
        launcher=run.launcher,
        stop_signal=run.checkpoint.signal,
        grace_s=run.checkpoint.grace_s,
        max_runtime_s=run.max_runtime_s,
        workdir=run.workdir,
        image=run.image,
    )


def _set_aside(books: Books, unreadable: Mapping[JobId, str]) -> None:
    """Quarantine the jobs that cannot be read: refused only, they would be planned again at once.

    Raises:
        _RefusedError: one of them changed meanwhile.
    """
    moves = [
        JobMove(books.jobs[job_id], detail={"message": why}, changes={"message": why})
        for job_id, why in unreadable.items()
    ]
    _move(books, moves, JobEvent.QUARANTINE)
