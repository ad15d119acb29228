"""A proven bound for decisions that go down the line: the fractional knapsack of each resource."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from scheduler.model.job import JobShape
from scheduler.model.ports import OrderedJob
from scheduler.model.snapshot import LiveAttempt, Snapshot

Amounts = tuple[int, int, int]
"""GPU thousandths, milli-CPU, MiB."""


def bound_of(
    snapshot: Snapshot, ordered: Sequence[OrderedJob], leaving: Sequence[LiveAttempt] = ()
) -> float:
    """No plan for `snapshot` starts jobs worth more than this.

    Each resource on its own, summed over all nodes and split at will, would hold no more; the
    scarcest counts.

    Args:
        snapshot: what was decided on.
        ordered: the waiting jobs with their values.
        leaving: attempts whose place the plan may use as well.

    Cost: O(jobs + classes log classes).
    """
    classes: Counter[tuple[JobShape, float]] = Counter()
    shapes: dict[str, JobShape] = {}
    by_class: Counter[tuple[str, float]] = Counter()
    for entry in ordered:
        shapes.setdefault(entry.job.class_key, entry.job.shape)
        by_class[entry.job.class_key, entry.value] += 1
    for (class_key, value), jobs in by_class.items():
        classes[shapes[class_key], value] += jobs
    items = [(value, jobs, _needs(shape)) for (shape, value), jobs in classes.items()]
    everything = sum(value * jobs for value, jobs, _ in items)
    return min(
        [
            everything,
            *(_filled(items, of, amount) for of, amount in enumerate(_room(snapshot, leaving))),
        ]
    )


def _needs(shape: JobShape) -> Amounts:
    return (shape.gpu_milli_total, shape.total.cpu_milli, shape.total.memory_mib)


def _room(snapshot: Snapshot, leaving: Sequence[LiveAttempt]) -> Amounts:
    free = snapshot.columns.free
    tasks = [task for attempt in leaving for task in attempt.tasks]
    return (
        int(free.gpu.sum()) + sum(len(task.gpu_ids) * task.gpu_milli for task in tasks),
        int(free.cpu.sum()) + sum(task.cpu_milli for task in tasks),
        int(free.memory.sum()) + sum(task.memory_mib for task in tasks),
    )


def _filled(items: Sequence[tuple[float, int, Amounts]], of: int, amount: int) -> float:
    """The most value that fits `amount` of resource `of`, the densest first, the last in part."""
    worth = sum(value * jobs for value, jobs, needs in items if not needs[of])
    left = float(amount)
    drawing = [(value / needs[of], needs[of] * jobs) for value, jobs, needs in items if needs[of]]
    for density, need in sorted(drawing, reverse=True):
        part = min(left, need)
        worth += density * part
        left -= part
        if left <= 0:
            break
    return worth
