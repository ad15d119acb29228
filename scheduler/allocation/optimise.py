"""Better plans than greedy, step by step: linear program, rounding on real nodes, exact model.

Each step yields a candidate that is at least as good as the one before, with a proven bound that is
no looser. A step is taken only while it can still win something: as soon as the proven gap is
small enough, it is over, and where nothing has to wait it does not begin.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from scheduler.allocation.dive import dive
from scheduler.allocation.evictions import Options, Victim, options_of
from scheduler.allocation.exact import deal, point_of, whole_point
from scheduler.allocation.figures import Figures, figures_of, trimmed
from scheduler.allocation.follow import Goal, RoomPacker, fill, follow, goal_of
from scheduler.allocation.gangs import Gang
from scheduler.allocation.greedy import best_greedy, by_density, grown
from scheduler.allocation.groups import groups_of
from scheduler.allocation.highs import Limits
from scheduler.allocation.knapsack import (
    Knapsack,
    Relaxed,
    build,
    refresh,
    relax,
    weak_dual_bound,
)
from scheduler.allocation.outline import Outline, Scene, outline_of
from scheduler.allocation.room import Loads, Room
from scheduler.allocation.shelves import Shelves, dealt, shelvable
from scheduler.allocation.site_classes import sites_of
from scheduler.allocation.worth import Packing, Worth
from scheduler.model.columns import Floats
from scheduler.model.job import Topology
from scheduler.model.plan import relative_gap
from scheduler.model.ports import Effort
from scheduler.model.snapshot import LiveAttempt, Snapshot
from scheduler.model.terms import EXTRA_WORTH

BETTER = 1e-9
"""Relative improvement below which two objectives are the same."""
CLAIM_TOLERANCE = 1e-6
"""How far below a known value a solver's bound may be by rounding."""
REUSES_MAX = 50
"""Decisions after which a live model is built anew, so that it does not drag dead buckets along."""
SHELVES_GANGS = 300
"""So many gangs are packed by counts; fewer are worth a look at every node's score."""
DIVE_STEPS_MAX = 24
WISHES = frozenset({Topology.PREFER_SAME_RACK, Topology.PREFER_SAME_NVLINK})
"""Topologies that counts do not see."""


@dataclass(slots=True, eq=False)
class Memory:
    """What one decision leaves to the next: the live model, and the prices that it ended with.

    It belongs to whoever decides again and again, and is handed in; without it every decision
    starts cold. With it a plan may differ from a cold one, never in what is proven about it.
    """

    knapsack: Knapsack | None = None
    prices: Floats | None = None
    uses: int = 0


@dataclass(frozen=True, slots=True)
class Candidate:
    """A packing and what is proven about it.

    Attributes:
        packing: loads by index into the gangs; some may be free only when `evicted` are gone.
        evicted: running attempts to stop.
        value: the objective: what the packing is worth, less what evictions cost.
        bound: proven upper bound of the objective over all plans.
        stage: which step found the packing.
        columns: of the largest model so far.
        nodes: branch-and-bound nodes explored.
        proved: whether the bound comes from an exact model.
    """

    packing: Packing
    evicted: tuple[Victim, ...]
    value: float
    bound: float
    stage: str
    columns: int = 0
    nodes: int = 0
    proved: bool = False
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Task:
    """What a decision packs.

    Attributes:
        snapshot: the cluster.
        gangs: who waits, in queue order.
        rooms: makes a fresh room of what is free.
        worth: the objective.
        victims: running attempts that may be stopped.
        standing: what the running jobs are worth together that a decision may stop.
        most: how many gangs may start; None for all.
        outrank: whether a victim yields to jobs of higher priority only.
        leaving: attempts that were told to end, whose places `rooms` counts as free.
    """

    snapshot: Snapshot
    gangs: Sequence[Gang]
    rooms: Callable[[], Room]
    worth: Worth
    victims: tuple[Victim, ...] = ()
    standing: float = 0.0
    most: int | None = None
    outrank: bool = False
    leaving: tuple[LiveAttempt, ...] = ()

    def may_stop(self, gang: Gang, victim: Victim) -> bool:
        """Whether the victim may be stopped to let the gang in."""
        job = gang.job
        return job.evicts and (not self.outrank or victim.attempt.job.priority < job.priority)

    @cached_property
    def anybody_for_anybody(self) -> bool:
        """Whether each gang may take the place of each victim: models know no pairs."""
        return not self.outrank and all(gang.job.evicts for gang in self.gangs)

    @cached_property
    def by_density(self) -> list[int]:
        """Indexes of the gangs, the best value for its share of what is free first."""
        return by_density(self.gangs, self.snapshot.columns.free)

    @cached_property
    def by_counts(self) -> bool:
        """Whether there is much to place, and counts of GPUs say all that matters."""
        classes = {gang.job.class_key: gang for gang in self.gangs}
        table = self.snapshot.columns.table
        return len(self.gangs) >= SHELVES_GANGS and all(
            gang.workers_max == gang.workers
            and not gang.one_rack
            and shelvable(table, gang.worker)
            and gang.shape.topology not in WISHES
            for gang in classes.values()
        )


@dataclass(frozen=True, slots=True)
class Packed:
    """A packing, and who must leave for it."""

    packing: dict[int, Loads]
    evicted: tuple[Victim, ...] = ()


def improve(
    task: Task, incumbent: Packing, effort: Effort, seed: int, memory: Memory | None = None
) -> Iterator[Candidate]:
    """Yield ever better candidates, the first no worse than the incumbent; see the module.

    Args:
        task: what to pack.
        incumbent: a packing without evictions.
        effort: deterministic limits.
        seed: the solver's.
        memory: of the decision before; changed.
    """
    limits = Limits(effort.milp_nodes_max, effort.gap_target, seed, effort.lp_iterations_max)
    options = options_of(task.snapshot.columns, task.victims)
    scene = Scene.of(task.snapshot, task.gangs, options)
    value = task.worth.total(task.gangs, incumbent)
    best = Candidate(incumbent, (), value, everything(scene), "greedy" if incumbent else "empty")
    if done(task, best, effort):
        yield best
        return
    outline = outline_of(scene, options)
    knapsack, figures = _model(outline, scene, memory or Memory())
    best = replace(best, columns=knapsack.outline.columns)
    if memory is not None and memory.prices is not None:
        best = _bounded(best, weak_dual_bound(knapsack, memory.prices))
        if done(task, best, effort):
            yield best
            return
    relaxed = relax(knapsack, limits)
    if memory is not None:
        memory.prices = relaxed.prices
    best = _bounded(replace(best, notes=relaxed.notes), relaxed.bound)
    if not done(task, best, effort):
        best = _followed(task, knapsack, figures, relaxed, best, limits)
    yield best
    if not done(task, best, effort):
        yield from _exact(task, scene, options, best, effort, limits)


def done(task: Task, candidate: Candidate, effort: Effort) -> bool:
    """Whether the proven gap is small enough, measured on all that will run."""
    gap = relative_gap(candidate.value, candidate.bound, task.standing)
    return gap <= effort.gap_target


def everything(scene: Scene) -> float:
    """The bound that needs no model: all gangs that could start at all start, in full size."""
    return float(
        sum(
            scene.gangs[gang].value * grown_worth(scene.gangs[gang])
            for bucket in scene.buckets
            for gang in bucket.gangs
        )
    )


def grown_worth(gang: Gang) -> float:
    """What a gang's value is multiplied with in its largest size."""
    return 1.0 + EXTRA_WORTH * (gang.workers_max - gang.workers) / gang.workers


def _model(outline: Outline, scene: Scene, memory: Memory) -> tuple[Knapsack, Figures]:
    """The live model with this decision's figures, or a new one."""
    known = memory.knapsack
    if known is not None and memory.uses < REUSES_MAX and known.outline.covers(outline):
        memory.uses += 1
        figures = figures_of(known.outline, scene)
        refresh(known, figures)
        return known, figures
    figures = figures_of(outline, scene)
    knapsack = build(trimmed(outline, figures), figures)
    memory.knapsack, memory.prices, memory.uses = knapsack, None, 0
    return knapsack, figures


def _bounded(best: Candidate, bound: float, *, proved: bool = False) -> Candidate:
    """The candidate with a sharper bound, if it can be believed."""
    if bound < best.value - CLAIM_TOLERANCE * max(1.0, abs(best.value)):
        note = f"claimed bound {bound:g} is below a plan worth {best.value:g}"
        return replace(best, notes=(*best.notes, note))
    if bound >= best.bound:
        return best
    return replace(best, bound=max(bound, best.value), proved=proved)


def _better(best: Candidate, stage: str, value: float, packed: Packed) -> Candidate:
    if value <= best.value + BETTER * max(1.0, abs(best.value)):
        return best
    return replace(
        best,
        packing=packed.packing,
        evicted=packed.evicted,
        value=value,
        stage=stage,
        bound=max(best.bound, value),
    )


def _followed(
    task: Task,
    knapsack: Knapsack,
    figures: Figures,
    relaxed: Relaxed,
    best: Candidate,
    limits: Limits,
) -> Candidate:
    """The better of the candidate and what the relaxation leads to."""
    point = dive(knapsack, relaxed, limits, steps_max=DIVE_STEPS_MAX)
    if point is None:
        return best
    goal = goal_of(knapsack.outline, figures, point)
    packed = pack_goal(task, goal, knapsack.outline)
    return _better(best, "lp", value_of(task, packed), packed)


def value_of(task: Task, packed: Packed) -> float:
    """The objective."""
    cost = sum(victim.cost for victim in packed.evicted)
    return task.worth.total(task.gangs, packed.packing) - cost


def pack_goal(task: Task, goal: Goal, outline: Outline) -> Packed:
    """Place a goal on real nodes, fill up, let elastic gangs grow, keep who need not leave."""
    gangs, worth = task.gangs, task.worth
    leaving = _leaving(task, goal)
    order = [*goal.torn, *task.by_density]
    if task.by_counts:
        room = _emptied(task, leaving)
        free, of_row = room.free.copy(), outline.groups.of_row
        shelves, placed = follow(
            lambda: Shelves(
                task.snapshot,
                free,
                of_row,
                outline.groups.price.tolist(),
                [victim.attempt for victim in leaving],
            ),
            gangs,
            goal,
            worth,
        )
        fill(shelves, gangs, placed, order, worth)
        placed = dealt(free, gangs, _most(task, placed))
        if not leaving:
            return Packed(placed)
        for index, loads in placed.items():
            taken = room.take(gangs[index], loads)
            assert taken, "shelves draw only on what the room has"
        return Packed(placed, _kept(task, room, placed, leaving))
    packer, placed = follow(
        lambda: RoomPacker(_emptied(task, leaving), outline.groups.of_row), gangs, goal, worth
    )
    for index in sorted(goal.extra, key=lambda index: (-gangs[index].value, index)):
        if index in placed and goal.extra[index]:
            most = gangs[index].workers + goal.extra[index]
            placed[index] = packer.room.grow(gangs[index], placed[index], most)
    fill(packer, gangs, placed, order, worth)
    for index in order:
        if index in placed and gangs[index].workers_max > gangs[index].workers:
            placed[index] = grown(packer.room, gangs[index], placed[index], worth)
    return _finished(task, packer.room, placed, leaving)


def _finished(
    task: Task, room: Room, placed: dict[int, Loads], leaving: Sequence[Victim]
) -> Packed:
    """What of a packing starts now, and who must leave for it."""
    starts = _most(task, placed)
    for index, loads in placed.items():
        if index not in starts:
            room.give(task.gangs[index], loads)
    return Packed(starts, _kept(task, room, starts, leaving))


def _most(task: Task, placed: dict[int, Loads]) -> dict[int, Loads]:
    """The most valuable gangs of a packing, as many as may start."""
    if task.most is None or len(placed) <= task.most:
        return placed
    worth = {index: task.worth.of(task.gangs[index], loads) for index, loads in placed.items()}
    chosen = sorted(placed, key=lambda index: (-worth[index], index))[: task.most]
    return {index: placed[index] for index in chosen}


def _leaving(task: Task, goal: Goal) -> list[Victim]:
    """Who is to leave, the cheapest for their size first, no more than may."""
    most = task.snapshot.terms.eviction.evictions_max
    return [task.victims[number] for number in goal.evicted][:most]


def _emptied(task: Task, leaving: Sequence[Victim]) -> Room:
    room = task.rooms()
    for victim in leaving:
        room.release(victim.attempt)
    return room


def _kept(task: Task, room: Room, placed: Packing, leaving: Sequence[Victim]) -> tuple[Victim, ...]:
    """Who must really leave: all but those whose place nobody took, nor their quota.

    The dearest may stay first. Where nobody of a quota starts, it is no matter that it is exceeded.
    """
    cohorts = {quota.tenant: quota.cohort or quota.tenant for quota in task.snapshot.terms.quotas}
    growing = {cohorts.get(task.gangs[index].job.tenant) for index in placed}
    must = []
    for victim in sorted(leaving, key=lambda victim: (-victim.cost, victim.attempt.id)):
        tenant, before = victim.attempt.tenant, room.mark()
        admitted = cohorts.get(tenant) not in growing or room.quotas.admits(tenant, victim.milli)
        if not (admitted and room.hold(victim.attempt)):
            must.append(victim)
        elif not room.reserves_kept:
            room.undo(before)
            must.append(victim)
    return tuple(must)


def _exact(
    task: Task,
    scene: Scene,
    options: Options | None,
    best: Candidate,
    effort: Effort,
    limits: Limits,
) -> Iterator[Candidate]:
    """The model with a group for every node, where it is small enough."""
    outline = outline_of(scene, options, each_node=True)
    if outline.columns > effort.columns_max:
        return
    figures = figures_of(outline, scene)
    knapsack = build(trimmed(outline, figures), figures)
    best = replace(best, columns=max(best.columns, outline.columns))
    relaxed = relax(knapsack, limits)
    best = _bounded(replace(best, notes=(*best.notes, *relaxed.notes)), relaxed.bound)
    if done(task, best, effort):
        yield best
        return
    best = _followed(task, knapsack, figures, relaxed, best, limits)
    if done(task, best, effort):
        yield best
        return
    start = point_of(knapsack, figures, task.gangs, best.packing, best.evicted)
    answer = knapsack.program.solve(limits, start)
    point, wrong = whole_point(knapsack, answer)
    notes = (*best.notes, *answer.notes, *([wrong] if wrong else []))
    best = replace(best, nodes=answer.nodes, notes=notes)
    if answer.bound is not None and (options is None or options.complete):
        best = _bounded(best, answer.bound, proved=True)
    if point is not None and knapsack.program.arrays.cost @ point > best.value * (1 + BETTER):
        goal = goal_of(outline, figures, point)
        for packed in (pack_goal(task, goal, outline), _dealt_goal(task, goal, outline)):
            best = _better(best, "milp", value_of(task, packed), packed)
    yield best


def _dealt_goal(task: Task, goal: Goal, outline: Outline) -> Packed:
    """A goal of the exact model, worker by worker where the model has them, then filled up."""
    gangs, worth = task.gangs, task.worth
    leaving = _leaving(task, goal)
    packer = RoomPacker(_emptied(task, leaving), outline.groups.of_row)
    placed = deal(packer.room, gangs, goal, [key[0] for key in outline.groups.key])
    fill(packer, gangs, placed, task.by_density, worth)
    return _finished(task, packer.room, placed, leaving)


def greedy(task: Task) -> dict[int, Loads]:
    """The incumbent, by density: packed by counts where there is much to place, else by scores."""
    few = task.most is not None and task.most < len(task.gangs)
    if few or not task.by_counts:
        return best_greedy(task.rooms, task.gangs, task.worth, most=task.most)
    snapshot = task.snapshot
    free = snapshot.columns.free
    kinds = {gang.job.class_key: gang.worker for gang in task.gangs}.values()
    sites = sites_of(free.table, kinds)
    groups = groups_of(free.table, snapshot.terms, sites, racks=False, each_node=False)
    shelves = Shelves(snapshot, free, groups.of_row, groups.price.tolist())
    placed: dict[int, Loads] = {}
    fill(shelves, task.gangs, placed, task.by_density, task.worth)
    return dealt(free.copy(), task.gangs, placed)
