"""The types that `get` lists: how each is asked for, and what its columns show."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Final, TypeAlias

from scheduler.cli.kubectl import tables
from scheduler.cli.kubectl.ages import age
from scheduler.cli.kubectl.naming import GROUP, the_job
from scheduler.cli.kubectl.refusals import not_found
from scheduler.cli.render import Column, Record
from scheduler.errors import NotFoundError
from scheduler.model.quantity import UtcSeconds

if TYPE_CHECKING:
    from api.client import Client


Now: TypeAlias = Callable[[], UtcSeconds]


@dataclass(frozen=True, slots=True)
class Query:
    """What of a type is wanted.

    Attributes:
        namespace: only of this one; None for all.
        names: only these; empty for all.
        fields: what `--field-selector` asks for, by field.
        limit: at most so many; 0 for all.
    """

    namespace: str | None
    names: tuple[str, ...] = ()
    fields: Mapping[str, str] = field(default_factory=dict)
    limit: int = 0


@dataclass(frozen=True, slots=True)
class Found:
    """The answer to a query; `more`: it holds only the first `limit` ones."""

    records: Sequence[Record]
    more: bool = False


@dataclass(frozen=True, slots=True)
class Resource:
    """One type.

    Attributes:
        kind: as YAML and JSON name a list of it: `JobList`.
        key: the field that names one of them for good.
        namespaced: whether they belong to namespaces.
        fields: what `--field-selector` knows.
        columns: of its table; ages are counted to when a row is made.
        pulse: a field whose change alone is no news.
    """

    singular: str
    kind: str
    key: str
    namespaced: bool
    ask: Callable[[Client, Query], Found]
    columns: Callable[[Now], tuple[Column, ...]]
    fields: tuple[str, ...] = ()
    pulse: str = ""

    @property
    def plural(self) -> str:
        """For example `jobs.haversack.dev`."""
        return f"{self.singular}s.{GROUP}"

    def full_name(self, record: Record) -> str:
        """What `-o name` prints: `job.haversack.dev/j-...`."""
        return f"{self.singular}.{GROUP}/{record[self.key]}"


# -- how they are asked for -----------------------------------------------------------------------


def _jobs(client: Client, query: Query) -> Found:
    if query.names:
        namespace = query.namespace or ""
        return Found([the_job(client, name, namespace) for name in query.names])
    wanted = client.all_jobs(
        states=tuple(query.fields.get("state", "").split()),
        queue=query.fields.get("queue"),
        name=query.fields.get("name"),
        tenant=query.namespace,
    )
    if not query.limit:
        return Found(list(wanted))
    found = list(islice(wanted, query.limit + 1))
    return Found(found[: query.limit], more=len(found) > query.limit)


def _queues(client: Client, query: Query) -> Found:
    everywhere = client.queues()
    here = [one for one in everywhere if query.namespace in (None, one["tenant"])]
    return Found(_chosen(here, query.names, "queue", ("name",)))


def _nodes(client: Client, query: Query) -> Found:
    if not query.names:
        return Found(client.nodes())
    found = []
    for name in query.names:
        try:
            found.append(client.node(name))
        except NotFoundError as error:
            raise not_found(f"nodes.{GROUP}", name) from error
    return Found(found)


def _gpus(client: Client, query: Query) -> Found:
    node = query.fields.get("node")
    here = [gpu for gpu in client.gpus() if node in (None, gpu["node_name"])]
    return Found(_chosen(here, query.names, "gpu", ("id",)))


def _chosen(
    records: Sequence[Record], names: Sequence[str], singular: str, keys: Sequence[str]
) -> list[Record]:
    if not names:
        return list(records)
    found = []
    for name in names:
        so_named = [each for each in records if name in [each[key] for key in keys]]
        if not so_named:
            raise not_found(f"{singular}s.{GROUP}", name)
        found += so_named
    return found


# -- what their columns show ----------------------------------------------------------------------


def _job_columns(now: Now) -> tuple[Column, ...]:
    return (
        Column("NAME", tables.field("name")),
        Column("ID", tables.field("id")),
        Column("STATUS", tables.field("state")),
        Column("QUEUE", tables.field("queue")),
        Column("TASKS", tables.field("tasks")),
        Column("GPUS", tables.field("gpus")),
        Column("AGE", lambda job: age(job["submitted_at"], now())),
        Column("PRIORITY", tables.field("priority"), wide=True),
        Column("ORIGIN", tables.field("origin"), wide=True),
        Column("TOPOLOGY", tables.field("topology"), wide=True),
        Column("ATTEMPTS", tables.field("attempt_count"), wide=True),
        Column("EXIT-CODE", tables.field("exit_code"), wide=True),
        Column("MESSAGE", tables.field("message"), wide=True),
    )


def _queue_columns(_now: Now) -> tuple[Column, ...]:
    return (
        Column("NAME", tables.field("name")),
        Column("PENDING", tables.field("waiting")),
        Column("RUNNING", tables.field("running")),
        Column("HELD", tables.field("held")),
        Column("WEIGHT", lambda queue: f"{queue['weight']:g}", wide=True),
    )


def _node_columns(now: Now) -> tuple[Column, ...]:
    return (
        Column("NAME", tables.field("name")),
        Column("STATUS", standing),
        Column("GPUS", lambda node: f"{node['gpus_used']}/{node['gpus']}"),
        Column("MODEL", tables.joined("gpu_models")),
        Column("POOL", tables.field("pool")),
        Column("SEEN", lambda node: age(node["seen_at"], now())),
        Column("CPU", lambda node: share(node, "cpu_milli", 1000), wide=True),
        Column("MEMORY(GI)", lambda node: share(node, "memory_mib", 1024), wide=True),
        Column("RACK", tables.field("rack"), wide=True),
        Column("ZONE", tables.field("zone"), wide=True),
        Column("PRICE", tables.field("price_class"), wide=True),
        Column("ID", tables.field("id"), wide=True),
    )


def _gpu_columns(_now: Now) -> tuple[Column, ...]:
    return (
        Column("NAME", tables.field("id")),
        Column("NODE", tables.field("node_name")),
        Column("INDEX", tables.field("index")),
        Column("STATUS", standing),
        Column("MODEL", tables.field("model")),
        Column("JOB", holder),
        Column("MEMORY(GI)", lambda gpu: f"{gpu['memory_mib'] / 1024:.0f}", wide=True),
        Column("JOB-ID", tables.field("job_id"), wide=True),
    )


def standing(record: Record) -> str:
    """How a node or a GPU is, as kubectl writes it of nodes: `healthy,SchedulingDisabled`."""
    words = [str(record["health"])]
    words += ["SchedulingDisabled"] if record["cordoned"] else []
    words += ["simulated"] if record["simulated"] else []
    return ",".join(words)


def holder(gpu: Record) -> str:
    """The job that has a GPU, as far as the reader may know it."""
    return str(gpu["job_name"] or ("<another tenant's>" if gpu["in_use"] else tables.NONE))


def share(node: Record, resource: str, unit: int) -> str:
    """How much of a resource is used, of how much: `3.5/64`."""
    used, all_of_it = (node[key] / unit for key in (f"{resource}_used", resource))
    return f"{round(used, 1):g}/{round(all_of_it, 1):g}"


RESOURCES: Final[Mapping[str, Resource]] = {
    each.singular: each
    for each in (
        Resource(
            "job", "JobList", "id", namespaced=True, ask=_jobs, columns=_job_columns,
            fields=("state", "queue", "name"),
        ),
        Resource(
            "queue", "QueueList", "name", namespaced=True, ask=_queues, columns=_queue_columns
        ),
        Resource(
            "gpu", "GpuList", "id", namespaced=False, ask=_gpus, columns=_gpu_columns,
            fields=("node",),
        ),
        Resource(
            "node", "NodeList", "name", namespaced=False, ask=_nodes, columns=_node_columns,
            pulse="seen_at",
        ),
    )
}  # fmt: skip
"""By the name that `naming.type_of` gives."""


def table_columns(
    resource: Resource, now: Now, *, wide: bool, with_namespace: bool
) -> tuple[Column, ...]:
    """The columns to print; the namespace goes first where several may show."""
    shown = tuple(column for column in resource.columns(now) if wide or not column.wide)
    if with_namespace and resource.namespaced:
        return (Column("NAMESPACE", tables.field("tenant")), *shown)
    return shown
