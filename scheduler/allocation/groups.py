"""The packing problem with everything alike taken together: its size does not grow with the nodes.

Jobs become *kinds* of workers and *buckets* of gangs; nodes become *groups* that no kind tells
apart. What a group holds is counted in *dimensions*, each of which a worker draws on wherever in
the group it sits, so that every packing of real nodes satisfies one row for each:

- slots of s GPUs, the sum over nodes of floor(free / s); a worker with g GPUs takes floor(g / s) of
  them. For sizes 1, 2, 4, 8 these rows are nearly all there is to know of a packing. A node's free
  GPUs are first cut to those that the least CPU and memory a GPU asks for could go with;
- shares of r thousandths of one GPU, counted GPU by GPU in the same way;
- CPU and memory.

With `each_node` every node is a group of its own, and the rows are the node's own capacities.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np

from scheduler.allocation.gangs import Gang
from scheduler.allocation.site_classes import site_classes
from scheduler.allocation.worth import gpu_prices
from scheduler.model.columns import NO_GPU, Bools, Floats, Free, Ints, NodeTable
from scheduler.model.counting import anywhere, in_pool
from scheduler.model.job import Worker
from scheduler.model.quantity import WHOLE_GPU_MILLI, TenantId
from scheduler.model.site import Site
from scheduler.model.terms import Terms

SIZES_MAX = 8
"""How many slot sizes, and how many sizes of shares, get a row of their own."""
UNBOUNDED = 2**31
"""Workers that fit a node when they need nothing."""
CORE = 1_000
GIB = 1_024
"""CPU and memory are counted in these, so that coefficients stay within 1e-3..1e5."""


@dataclass(frozen=True, slots=True, eq=False)
class Places:
    """Nodes with what is free on them, or would be if some of their jobs were gone; n of them.

    Attributes:
        row: (n,) row in the node table; a row may come several times.
        gpu: (n, G) free thousandths of each GPU.
        whole: (M, n) entirely free GPUs by model.
        cpu, memory: (n,) free milli-CPU and MiB.
        extras: (n,) what is free of further resources, by name; of others all that nodes have.
    """

    row: Ints
    gpu: Ints
    whole: Ints
    cpu: Ints
    memory: Ints
    extras: Mapping[str, Ints] = field(default_factory=dict)

    @classmethod
    def of(cls, free: Free, rows: Ints) -> Places:
        """These rows as they are."""
        return cls(
            rows,
            free.gpu[rows],
            free.whole[:, rows],
            free.cpu[rows],
            free.memory[rows],
            {name: amounts[rows] for name, amounts in free.extras.items()},
        )


@dataclass(frozen=True, slots=True)
class Dimensions:
    """What capacity is counted in: slots, shares, CPU, memory, and slots to reserve; D in all.

    Attributes:
        slots: GPU counts, ascending.
        shares: thousandths of one GPU, ascending; 1 stands for the plain sum.
        reserve: GPU counts of slots that need neither CPU nor memory: blocks to keep free.
        cpu_each, memory_each: the least that any worker asks for each of its GPUs.
    """

    slots: tuple[int, ...]
    shares: tuple[int, ...]
    reserve: tuple[int, ...]
    cpu_each: Fraction
    memory_each: Fraction

    @property
    def rows(self) -> int:
        """How many of the dimensions every group has a row for: all but `reserve`."""
        return len(self.slots) + len(self.shares) + 2

    @classmethod
    def of(cls, kinds: Sequence[Worker], blocks: Sequence[int] = ()) -> Dimensions:
        """The dimensions that tell these kinds apart, and blocks of these sizes to keep free."""
        whole = [kind for kind in kinds if kind.needs.gpus]
        shares = [kind.gpu_milli for kind in kinds if kind.gpu_milli]
        slots = _commonest([1, *(kind.needs.gpus for kind in whole)]) if whole else ()
        return cls(
            slots,
            _commonest([1, *shares]) if shares else (),
            tuple(sorted({size for size in (*slots, *blocks) if size <= max(blocks)}))
            if blocks
            else (),
            min((Fraction(k.needs.cpu_milli, k.needs.gpus) for k in whole), default=Fraction(0)),
            min((Fraction(k.needs.memory_mib, k.needs.gpus) for k in whole), default=Fraction(0)),
        )

    def drawn(self, worker: Worker) -> list[float]:
        """(D,) what one worker draws."""
        gpus, share = worker.needs.gpus, worker.gpu_milli
        return [
            *(gpus // size for size in self.slots),
            *(
                gpus * (WHOLE_GPU_MILLI // size) + worker.parts * (share // size)
                for size in self.shares
            ),
            worker.needs.cpu_milli / CORE,
            worker.needs.memory_mib / GIB,
            *(gpus // size for size in self.reserve),
        ]

    def held(self, places: Places) -> Floats:
        """(n, D) what each place holds. O(n * (D + GPUs of a node * shares))."""
        usable = np.full(places.row.size, UNBOUNDED, dtype=np.int64)
        for free, each in ((places.cpu, self.cpu_each), (places.memory, self.memory_each)):
            if each:
                np.minimum(usable, free * each.denominator // each.numerator, out=usable)
        found = np.empty((places.row.size, self.rows + len(self.reserve)))
        for column, size in enumerate(self.slots):
            slots = (places.whole // size).sum(axis=0)
            found[:, column] = np.minimum(slots, usable // size)
        for column, size in enumerate(self.shares, len(self.slots)):
            found[:, column] = (places.gpu // size).sum(axis=1)
        found[:, self.rows - 2] = places.cpu / CORE
        found[:, self.rows - 1] = places.memory / GIB
        for column, size in enumerate(self.reserve, self.rows):
            found[:, column] = (places.whole // size).sum(axis=0)
        return found


def _commonest(sizes: Iterable[int]) -> tuple[int, ...]:
    """The most frequent sizes, ascending; the smallest always, for it bounds the sum."""
    counted: dict[int, int] = {}
    for size in sizes:
        counted[size] = counted.get(size, 0) + 1
    if not counted:
        return ()
    least = min(counted)
    ranked = sorted(counted, key=lambda size: (size != least, -counted[size], size))
    return tuple(sorted(ranked[:SIZES_MAX]))


@dataclass(slots=True)
class Fits:
    """How many workers of each kind some places hold, each kind alone.

    What kinds have in common (a size, an amount of CPU) is worked out once.
    """

    table: NodeTable
    places: Places
    _known: dict[tuple[object, ...], Ints] = field(default_factory=dict)

    def of(self, worker: Worker) -> Ints:
        """(n,) how many fit each place, of those that the worker may use. O(n)."""
        count = self.counted(worker)
        if anywhere(self.table, worker):
            return count
        return np.where(allowed(self.table, worker)[self.places.row], count, 0)

    def counted(self, worker: Worker) -> Ints:
        """(n,) how many fit each place by what is free there, whoever may use it. O(n)."""
        count = self._gpus(worker)
        needs = worker.needs
        for name, free, each in (
            ("cpu", self.places.cpu, needs.cpu_milli),
            ("memory", self.places.memory, needs.memory_mib),
        ):
            if each:
                key = (name, each)
                if key not in self._known:
                    self._known[key] = free // each
                count = np.minimum(count, self._known[key])
        for name, amount in worker.extras:
            if amount:
                count = np.minimum(count, self._extra(name) // amount)
        return count

    def _extra(self, name: str) -> Ints:
        """(n,) what is free of a further resource."""
        found = self.places.extras.get(name)
        return self.table.capacity_of(name)[self.places.row] if found is None else found

    def _gpus(self, worker: Worker) -> Ints:
        key = (
            worker.needs.gpus,
            worker.gpu_milli,
            worker.parts,
            worker.gpu_models,
            worker.one_domain,
        )
        if key not in self._known:
            self._known[key] = self._gpu_count(worker)
        return self._known[key]

    def _gpu_count(self, worker: Worker) -> Ints:
        places, each = self.places, worker.needs.gpus
        if worker.gpu_milli:
            shares = places.gpu // worker.gpu_milli
            if worker.gpu_models:
                right = np.isin(self.table.gpu_model[places.row], self._codes(worker))
                shares = np.where(right, shares, 0)
            count: Ints = shares.sum(axis=1) // worker.parts
            return count
        if not each:
            return np.full(places.row.size, UNBOUNDED, dtype=np.int64)
        if worker.one_domain:
            return self._in_domains(worker)
        total = np.zeros(places.row.size, dtype=np.int64)
        for code in self._codes(worker):
            total += places.whole[code] // each
        return total

    def _in_domains(self, worker: Worker) -> Ints:
        """As `_gpus`, each worker inside one NVLink domain."""
        domain = self.table.gpu_domain[self.places.row]
        model = self.table.gpu_model[self.places.row]
        entire = self.places.gpu == WHOLE_GPU_MILLI
        total = np.zeros(self.places.row.size, dtype=np.int64)
        for number in range(int(domain.max(initial=NO_GPU)) + 1):
            for code in self._codes(worker):
                inside = entire & (domain == number) & (model == code)
                total += inside.sum(axis=1) // worker.needs.gpus
        return total

    def _codes(self, worker: Worker) -> list[int]:
        """Codes of the GPU models that the worker accepts."""
        names = self.table.models
        return [code for code, name in enumerate(names) if accepts(worker, name)]


def accepts(worker: Worker, model: str) -> bool:
    """Whether the worker may use GPUs of this model."""
    return not worker.gpu_models or model in worker.gpu_models


def allowed(table: NodeTable, worker: Worker) -> Bools:
    """(N,) nodes that new workers of this kind may use, by state, pool and site."""
    return table.open if anywhere(table, worker) else table.open & in_pool(table, worker)


@dataclass(frozen=True, slots=True)
class Bucket:
    """Gangs that differ in worth only.

    Attributes:
        kind: number of their worker kind.
        workers, workers_max: as in `Gang`.
        one_rack: as in `Gang`.
        tenant: whose quota they draw on; None where no quota limits it.
        gangs: indexes into the gangs, most valuable first; no more than could start at once.
    """

    kind: int
    workers: int
    workers_max: int
    one_rack: bool
    tenant: TenantId | None
    gangs: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Groups:
    """Classes of nodes; G of them.

    Attributes:
        key: what a group is known by from one decision to the next.
        of_row: (N,) group of each node; -1 for nodes that can take no work.
        rack: (G,) rack code; -1 where a group spans racks.
        price: (G,) what the objective pays for one GPU there.
    """

    key: tuple[tuple[int, ...], ...]
    of_row: Ints
    rack: Ints
    price: Floats

    def sums(self, values: Floats, rows: Ints) -> Floats:
        """(G, ...) the sum over `rows` of (len(rows), ...) values, by group."""
        total = np.zeros((len(self.key), *values.shape[1:]))
        np.add.at(total, self.of_row[rows], values)
        return total

    @property
    def row_price(self) -> Floats:
        """(N,) what the objective pays for one GPU of each node; 0 for nodes in no group."""
        found: Floats = np.append(self.price, 0.0)[self.of_row]
        return found


def groups_of(
    table: NodeTable,
    terms: Terms,
    sites: Sequence[Site],
    *,
    racks: bool,
    each_node: bool,
) -> Groups:
    """Nodes alike in GPU models, pool, price and (with `racks`) rack form one group.

    And they are alike to all `sites`. O(N log N + sites * N).
    """
    rows = np.flatnonzero(table.open)
    price = gpu_prices(table, terms)
    if each_node:
        of_row = np.full(len(table.nodes), -1, dtype=np.int64)
        of_row[rows] = np.arange(rows.size)
        return Groups(tuple((int(row),) for row in rows), of_row, table.rack[rows], price[rows])
    model = np.where(table.model == NO_GPU, _mixed(table), table.model)
    parts = [model, site_classes(table, sites)]
    if terms.price_weight and terms.prices:
        parts.append(table.price)
    if racks:
        parts.append(table.rack)
    columns = np.stack(parts, axis=1)[rows]
    keys, first, inverse = np.unique(columns, axis=0, return_index=True, return_inverse=True)
    of_row = np.full(len(table.nodes), -1, dtype=np.int64)
    of_row[rows] = inverse.reshape(-1)
    rack = table.rack[rows][first] if racks else np.full(len(keys), -1, dtype=np.int64)
    return Groups(tuple(tuple(key) for key in keys.tolist()), of_row, rack, price[rows][first])


def _mixed(table: NodeTable) -> Ints:
    """(N,) a code for nodes without GPUs, another for those with several models."""
    has_gpus = (table.gpu_model != NO_GPU).any(axis=1)
    return np.where(has_gpus, len(table.models), NO_GPU)


def kinds_and_buckets(
    gangs: Sequence[Gang], limited: frozenset[TenantId]
) -> tuple[tuple[Worker, ...], list[Bucket]]:
    """Worker kinds, and all gangs by bucket, most valuable first.

    Args:
        gangs: in queue order.
        limited: tenants that have a quota.

    Returns:
        both in order of first appearance. O(gangs log gangs).
    """
    kinds: dict[Worker, int] = {}
    numbers: dict[tuple[int, int, int, bool, TenantId | None], int] = {}
    of_class: dict[str, int] = {}
    bucket_of = np.empty(len(gangs), dtype=np.int64)
    for index, gang in enumerate(gangs):
        bucket = of_class.get(gang.job.class_key)
        if bucket is None:
            kind = kinds.setdefault(gang.worker, len(kinds))
            tenant = gang.job.tenant if gang.job.tenant in limited else None
            key = (kind, gang.workers, gang.workers_max, gang.one_rack, tenant)
            bucket = of_class[gang.job.class_key] = numbers.setdefault(key, len(numbers))
        bucket_of[index] = bucket
    value = np.array([gang.value for gang in gangs])
    order = np.lexsort((np.arange(len(gangs)), -value, bucket_of))
    ends = np.searchsorted(bucket_of[order], np.arange(len(numbers) + 1))
    sequence = order.tolist()
    buckets = [
        Bucket(*key, gangs=tuple(sequence[ends[number] : ends[number + 1]]))
        for key, number in numbers.items()
    ]
    return tuple(kinds), buckets
