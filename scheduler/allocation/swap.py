"""Evictions without a model: each gang that finds no room is offered the cheapest place to clear.

In most decisions that may stop running jobs there is little to gain, and it is found by looking:
one waiting job is worth more than one running. This step finds such swaps, and a bound from the
fractional knapsack with running jobs for sale tells whether a linear program could still win.

Who is cleared away but would find another place at once does not lose what it is worth: it moves,
which costs the restart and `MOVE_SHARE`. So free GPUs that are scattered over many nodes come
together for a gang that needs them in one place.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain

import numpy as np

from scheduler.allocation.evictions import Victim
from scheduler.allocation.gangs import Gang, gang_of
from scheduler.allocation.optimise import Packed, Task, grown_worth
from scheduler.allocation.resource_bound import Amounts, held_by, needs_of, resource_bound
from scheduler.allocation.room import Loads, Room
from scheduler.model.job import JobShape
from scheduler.model.ports import OrderedJob
from scheduler.model.quantity import WHOLE_GPU_MILLI, UtcSeconds

_WORTH_IT = 1.0 + 1e-9
MOVE_SHARE = 0.01
"""What moving costs besides the restart, as a share of what the job is worth: nobody moves for
nothing. The bonus for what runs is not due: it keeps equals from taking turns, and here all run."""


@dataclass(frozen=True, slots=True)
class _Offer:
    """What one victim would free on one row, further resources apart, and what that costs."""

    victim: int
    frees: Amounts
    extras: Mapping[str, int]
    cost: float


@dataclass(frozen=True, slots=True)
class _Clearing:
    """Victims to evict for one gang: the rows that makes room on, and the cost."""

    rows: tuple[int, ...]
    victims: frozenset[int]
    cost: float


def swap(task: Task, now: UtcSeconds, at_once: Room | None = None) -> Packed:
    """Gangs by value for their size: into what is free, or into the cheapest place to clear.

    A gang is given a cleared place only if it is worth more than those who leave cost together.
    What began at this very instant is not moved, so that decisions at one instant come to an end.
    Where only lower priorities yield, gangs come in the order of the queue, and nobody moves.

    Args:
        task: what to pack.
        now: the decision's instant.
        at_once: what is free already, where the task counts more than that: gangs that fit there
            need not wait for anybody to leave; changed.

    Cost: as a greedy pass, and O(victims) for each shape that finds no room.
    """
    room = task.rooms()
    offers = _offers(room, task)
    known = _Known()
    most = task.snapshot.terms.eviction.evictions_max
    packing: dict[int, Loads] = {}
    gone: dict[int, Victim] = {}
    hopeless: set[tuple[JobShape, bool, int]] = set()
    for index in range(len(task.gangs)) if task.outrank else task.by_density:
        if task.most is not None and len(packing) >= task.most:
            break
        gang = task.gangs[index]
        loads = None if at_once is None else _at_once(room, at_once, gang)
        loads = room.place(gang) if loads is None else loads
        likes = gang.shape, gang.job.evicts, gang.job.priority if task.outrank else 0
        if loads is None and likes not in hopeless:
            before = room.mark()
            loads, leaving = _best_cleared(room, task, gang, _for(gang, offers), known, now)
            if loads is None or len(gone) + len(leaving) > most:
                room.undo(before)
                hopeless.add(likes)
                continue
            gone |= leaving
            rows = {row for number in leaving for row in task.victims[number].rows}
            for row in rows & offers.keys():
                offers[row] = [offer for offer in offers[row] if offer.victim not in leaving]
            known.changed(rows)
        if loads is not None:
            packing[index] = loads
            known.changed(load.row for load in loads)
    return Packed(packing, tuple(gone[number] for number in sorted(gone)))


def _at_once(room: Room, at_once: Room, gang: Gang) -> Loads | None:
    """The gang where it need not wait, unless somebody before it in line waits for that place."""
    before = at_once.mark()
    loads = at_once.place(gang)
    if loads is None or room.take(gang, loads):
        return loads
    at_once.undo(before)
    return None


def _best_cleared(
    room: Room,
    task: Task,
    gang: Gang,
    offers: Mapping[int, Sequence[_Offer]],
    known: _Known,
    now: UtcSeconds,
) -> tuple[Loads | None, dict[int, Victim]]:
    """The gang where its place costs least: by who would be lost, else by who could move.

    Who is outranked costs next to nothing, so that there is nothing to save by moving.
    """
    if task.outrank:
        clearing = _cheapest(room, gang, _Rows(room, task, gang, offers, known))
        return (None, {}) if clearing is None else _cleared(room, task, gang, clearing, now)
    if not offers:
        return None, {}
    for each in (offers, _if_moved(room, task, offers, now)):
        clearing = _cheapest(room, gang, _Rows(room, task, gang, each))
        if clearing is not None:
            loads, leaving = _cleared(room, task, gang, clearing, now)
            if loads is not None:
                return loads, leaving
    return None, {}


def _for(gang: Gang, offers: dict[int, list[_Offer]]) -> dict[int, list[_Offer]]:
    """Those offers that this gang may take; by priority they are told apart row by row."""
    return offers if gang.job.evicts else {}


_Found = tuple[float, frozenset[int]]
"""The cost of victims whose places hold so many workers, and who they are."""


@dataclass(frozen=True, slots=True, eq=False)
class _Rows:
    """What it takes to clear rows for one gang.

    Attributes:
        known: what is known of them already, where victims cost the same for all gangs alike.
    """

    room: Room
    task: Task
    gang: Gang
    offers: Mapping[int, Sequence[_Offer]]
    known: _Known | None = None

    def clearable(self, workers: int) -> Mapping[int, _Found]:
        """Rows that can be cleared for so many workers, and at whose cost."""
        if self.known is None:
            return self._look(self.offers, workers)
        key = self.gang.shape, self.gang.job.priority, workers
        return self.known.refreshed(key, self.offers, lambda rows: self._look(rows, workers))

    def _look(self, rows: Iterable[int], workers: int) -> dict[int, _Found]:
        gpus = self.room.table.gpu_open.sum(axis=1) * WHOLE_GPU_MILLI
        large = gpus >= self.gang.worker.milli * workers
        usable = self.room.eligible(self.gang.worker) & large
        return {
            row: found
            for row in rows
            if usable[row] and (found := self._chosen(row, workers)) is not None
        }

    def _chosen(self, row: int, workers: int) -> _Found | None:
        offers = self.offers.get(row, ())
        if self.task.outrank:
            victims = self.task.victims
            offers = [o for o in offers if self.task.may_stop(self.gang, victims[o.victim])]
        return _chosen(self.room, self.gang, row, workers, offers)


@dataclass(slots=True, eq=False)
class _Known:
    """What it takes to clear each row, by shape and priority of the gang and number of workers.

    Most rows stay as they are from one gang to the next: without this, each gang that others are
    stopped for would look at all of them anew.
    """

    _clearable: dict[tuple[JobShape, int, int], dict[int, _Found]] = field(default_factory=dict)
    _changed: dict[tuple[JobShape, int, int], set[int]] = field(default_factory=dict)

    def changed(self, rows: Iterable[int]) -> None:
        """These rows hold more or less than before."""
        several = tuple(rows)
        for changed in self._changed.values():
            changed.update(several)

    def refreshed(
        self,
        key: tuple[JobShape, int, int],
        every: Iterable[int],
        look: Callable[[Iterable[int]], dict[int, _Found]],
    ) -> Mapping[int, _Found]:
        """What is known under a key, with rows that changed looked at again."""
        kept = self._clearable.get(key)
        if kept is None:
            kept = self._clearable[key] = look(every)
        else:
            again = self._changed[key]
            for row in again:
                kept.pop(row, None)
            kept.update(look(sorted(again)))
        self._changed[key] = set()
        return kept


def _if_moved(
    room: Room, task: Task, offers: Mapping[int, Sequence[_Offer]], now: UtcSeconds
) -> dict[int, list[_Offer]]:
    """The offers at the cost of moving, for those that would fit on another row as it is."""
    found = {}
    for row, here in offers.items():
        again = []
        for offer in here:
            victim = task.victims[offer.victim]
            fits = room.fits(victim.attempt.job.shape.worker)
            elsewhere = int(fits.sum()) - int(fits[row])
            moves = elsewhere > 0 and victim.attempt.since < now
            again.append(replace(offer, cost=move_cost(task, victim)) if moves else offer)
        again.sort(key=lambda offer: (offer.cost / max(1, offer.frees[0]), offer.victim))
        found[row] = again
    return found


def _cleared(
    room: Room, task: Task, gang: Gang, clearing: _Clearing, now: UtcSeconds
) -> tuple[Loads | None, dict[int, Victim]]:
    """The gang in the cleared place, and who leaves at what cost; None if it is not worth it."""
    before = room.mark()
    for number in sorted(clearing.victims):
        room.release(task.victims[number].attempt)
    among = np.zeros(len(room.table.nodes), dtype=np.bool_)
    among[list(clearing.rows)] = True
    loads = room.place(gang, among=among)
    if loads is not None:
        largest_first = sorted(clearing.victims, key=lambda each: (-task.victims[each].milli, each))
        leaving = {number: _moved(room, task, number, now) for number in largest_first}
        cost = math.fsum(victim.cost for victim in leaving.values())
        if task.worth.of(gang, loads) > cost * _WORTH_IT:
            return loads, leaving
    room.undo(before)
    return None, {}


def _moved(room: Room, task: Task, number: int, now: UtcSeconds) -> Victim:
    """The victim at the cost of moving, if it finds another place now; it is kept for it here."""
    victim = task.victims[number]
    if task.outrank:
        return victim
    gang = gang_of(OrderedJob(victim.attempt.job, 0, 0.0))
    if victim.attempt.since >= now or room.place(gang) is None:
        return victim
    return replace(victim, cost=move_cost(task, victim))


def move_cost(task: Task, victim: Victim) -> float:
    """What a plan pays for a victim that finds another place: the restart, and a share."""
    terms = task.snapshot.terms.eviction
    wasted = victim.milli / WHOLE_GPU_MILLI * terms.restart_s * terms.value_per_gpu_s
    own = (victim.cost - wasted) / (1.0 + terms.keep_bonus)
    return wasted + MOVE_SHARE * own


def _offers(room: Room, task: Task) -> dict[int, list[_Offer]]:
    """What each open row's victims would free, the cheapest for its size first."""
    found: dict[int, list[_Offer]] = {}
    for number, victim in enumerate(task.victims):
        for row in victim.rows:
            if room.table.open[row]:
                node_id = room.table.nodes[row].id
                here = [each for each in victim.attempt.tasks if each.node_id == node_id]
                extras: Counter[str] = Counter()
                for each in here:
                    extras.update(dict(each.extras))
                offer = _Offer(number, held_by(here), extras, victim.cost)
                found.setdefault(row, []).append(offer)
    for offers in found.values():
        offers.sort(key=lambda offer: (offer.cost / max(1, offer.frees[0]), offer.victim))
    return found


def _cheapest(room: Room, gang: Gang, rows: _Rows) -> _Clearing | None:
    """The cheapest way to make room: one row for all workers, else one row for each."""
    together = rows.clearable(gang.workers)
    if together:
        row, (cost, victims) = min(together.items(), key=lambda entry: (entry[1][0], entry[0]))
        return _Clearing((row,), victims, cost)
    if gang.workers == 1 or gang.shape.topology.one_node:
        return None
    fits = room.fits(gang.worker)
    free = ((0.0, int(row), frozenset[int]()) for row in np.flatnonzero(fits))
    singly = rows.clearable(1).items()
    cleared = ((cost, row, victims) for row, (cost, victims) in singly if not fits[row])
    best = heapq.nsmallest(gang.workers, chain(free, cleared), key=lambda entry: entry[:2])
    if len(best) < gang.workers:
        return None
    victims = frozenset[int]().union(*(entry[2] for entry in best))
    cost = math.fsum(entry[0] for entry in best)
    return _Clearing(tuple(entry[1] for entry in best), victims, cost)


def _chosen(
    room: Room, gang: Gang, row: int, workers: int, offers: Sequence[_Offer]
) -> tuple[float, frozenset[int]] | None:
    """Victims that free enough of the row for so many workers, none of them needlessly."""
    short = _short(room, gang, row, workers)
    names = [name for name, _ in gang.worker.extras]
    chosen: list[_Offer] = []
    for offer in offers:
        if not any(amount > 0 for amount in short):
            break
        chosen.append(offer)
        frees = _frees(offer, names)
        short = [amount - freed for amount, freed in zip(short, frees, strict=True)]
    if any(amount > 0 for amount in short):
        return None
    for offer in sorted(chosen, key=lambda offer: (-offer.cost, offer.victim)):
        without = [a + freed for a, freed in zip(short, _frees(offer, names), strict=True)]
        if all(amount <= 0 for amount in without):
            chosen.remove(offer)
            short = without
    return math.fsum(offer.cost for offer in chosen), frozenset(o.victim for o in chosen)


def _frees(offer: _Offer, names: Sequence[str]) -> Sequence[int]:
    """What a victim would free, as `_short` counts it."""
    if not names:
        return offer.frees
    return (*offer.frees, *(offer.extras.get(name, 0) for name in names))


def _short(room: Room, gang: Gang, row: int, workers: int) -> list[int]:
    """What the row lacks for so many workers; negative where it has more than enough."""
    worker = gang.worker
    whole = int(room.free.whole[:, row].sum()) * WHOLE_GPU_MILLI
    have = whole if worker.needs.gpus else int(room.free.milli[row])
    return [
        worker.milli * workers - have,
        worker.needs.cpu_milli * workers - int(room.free.cpu[row]),
        worker.needs.memory_mib * workers - int(room.free.memory[row]),
        *(amount * workers - int(room.free.amount_of(name)[row]) for name, amount in worker.extras),
    ]


def swap_bound(task: Task) -> float:
    """No plan is worth more, whoever is evicted for it.

    Running jobs are for sale at their costs. Whoever moves holds as much as before, so moves win
    nothing here; but an elastic job comes back in its smallest size, so what it has beyond that is
    for sale at the cost of moving. Without victims it bounds plans that leave alone what runs.

    Cost: O(n log n) for n gangs and victims.
    """
    of_class: dict[str, tuple[float, Amounts]] = {}
    wanted = []
    for gang in task.gangs:
        known = of_class.get(gang.job.class_key)
        if known is None:
            known = of_class[gang.job.class_key] = grown_worth(gang), needs_of(gang.shape)
        if gang.value > 0:
            wanted.append((gang.value * known[0], 1, known[1]))
    sellers = [seller for victim in task.victims for seller in _sellers(task, victim)]
    sellers += [(0.0, held_by(attempt.tasks)) for attempt in task.leaving]
    return resource_bound(task.snapshot.columns.free, wanted, sellers)


def _sellers(task: Task, victim: Victim) -> Iterator[tuple[float, Amounts]]:
    """What a victim has beyond its smallest size, if anything, and the rest, with their prices."""
    held = held_by(victim.attempt.tasks)
    least = needs_of(victim.attempt.job.shape)
    spare = tuple(max(0, has - needs) for has, needs in zip(held, least, strict=True))
    if not any(spare):
        yield victim.cost, held
        return
    moving = move_cost(task, victim)
    milli, cpu, memory = spare
    yield moving, (milli, cpu, memory)
    yield victim.cost - moving, (held[0] - milli, held[1] - cpu, held[2] - memory)
