"""Commands about the cluster: queue, nodes, gpus, cordon, uncordon, events, decisions."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from queue import Empty, Queue
from threading import Event, Thread
from typing import TYPE_CHECKING, Annotated

import typer

from scheduler.cli.context import session_of
from scheduler.cli.render import (
    Column,
    Format,
    JsonOption,
    OutputOption,
    Record,
    chosen,
    fields,
    hint,
    pick,
    show_line,
    show_list,
    show_one,
)
from scheduler.cli.text import age, clean
from scheduler.errors import HaversackError

if TYPE_CHECKING:
    from api.schemas import EventOut

QUEUE_COLUMNS = (
    Column("NAME", pick("name")),
    Column("TENANT", pick("tenant")),
    Column("WAITING", pick("waiting")),
    Column("RUNNING", pick("running")),
    Column("HELD", pick("held")),
    Column("WEIGHT", pick("weight"), wide=True),
)


def queue(
    context: typer.Context, output: OutputOption = Format.TABLE, *, as_json: JsonOption = False
) -> None:
    """List queues with their waiting, running and held jobs."""
    with session_of(context).connect() as client:
        found = client.queues()
    show_list(found, QUEUE_COLUMNS, chosen(output, as_json=as_json), kind="QueueList", name="name")


def nodes(
    context: typer.Context, output: OutputOption = Format.TABLE, *, as_json: JsonOption = False
) -> None:
    """List nodes and what is used of them."""
    session = session_of(context)
    with session.connect() as client:
        found = client.nodes()
    now = session.clock.now()
    columns = (
        Column("NAME", pick("name")),
        Column("STATE", _standing),
        Column("POOL", pick("pool")),
        Column("GPUS", lambda node: f"{node['gpus_used']}/{node['gpus']}"),
        Column("MODEL", lambda node: ", ".join(node["gpu_models"]) or "-"),
        Column("CPU", lambda node: _of(node, "cpu_milli", 1000)),
        Column("MEMORY GIB", lambda node: _of(node, "memory_mib", 1024)),
        Column("ID", pick("id"), wide=True),
        Column("RACK", pick("rack"), wide=True),
        Column("ZONE", pick("zone"), wide=True),
        Column("PRICE", pick("price_class"), wide=True),
        Column("SEEN", lambda node: age(node["seen_at"], now)),
    )
    show_list(found, columns, chosen(output, as_json=as_json), kind="NodeList", name="name")


def gpus(
    context: typer.Context, output: OutputOption = Format.TABLE, *, as_json: JsonOption = False
) -> None:
    """List GPUs and who holds them."""
    with session_of(context).connect() as client:
        found = client.gpus()
    columns = (
        Column("NODE", pick("node_name")),
        Column("INDEX", pick("index")),
        Column("MODEL", pick("model")),
        Column("STATE", _standing),
        Column("MEMORY GIB", lambda gpu: f"{gpu['memory_mib'] / 1024:.0f}"),
        Column("ID", pick("id")),
        Column("JOB", _holder),
        Column("JOB ID", pick("job_id"), wide=True),
    )
    show_list(found, columns, chosen(output, as_json=as_json), kind="GpuList")


def _holder(gpu: Record) -> str:
    return str(gpu["job_name"] or ("(another tenant's)" if gpu["in_use"] else "-"))


def _of(node: Record, resource: str, unit: int) -> str:
    used, all_of_it = (node[key] / unit for key in (f"{resource}_used", resource))
    return f"{round(used, 1):g}/{round(all_of_it, 1):g}"


def _standing(record: Record) -> str:
    words = [record["health"]]
    words += ["cordoned"] if record["cordoned"] else []
    words += ["simulated"] if record["simulated"] else []
    return " ".join(words)


NodeArgument = Annotated[
    str | None, typer.Argument(metavar="NODE", help="Name or id of a node.", show_default=False)
]
GpuOption = Annotated[
    str | None, typer.Option("--gpu", metavar="GPU", help="Id of one GPU instead of a node.")
]


def cordon(context: typer.Context, node: NodeArgument = None, gpu: GpuOption = None) -> None:
    """Stop placing new work on a node, or on one GPU; what runs there goes on."""
    _cordon(context, node, gpu, cordoned=True)


def uncordon(context: typer.Context, node: NodeArgument = None, gpu: GpuOption = None) -> None:
    """Allow new work again on a node, or on one GPU."""
    _cordon(context, node, gpu, cordoned=False)


def _cordon(context: typer.Context, node: str | None, gpu: str | None, *, cordoned: bool) -> None:
    if (node is None) == (gpu is None):
        raise typer.BadParameter("name one node, or one GPU with --gpu")
    with session_of(context).connect() as client:
        name: str
        if gpu is not None:
            name = client.cordon_gpu(gpu, cordoned=cordoned)["id"]
        else:
            assert node is not None
            name = client.cordon_node(node, cordoned=cordoned)["name"]
    typer.echo(f"{clean(name)} {'cordoned' if cordoned else 'uncordoned'}")


def events(
    context: typer.Context,
    *,
    since: Annotated[
        int | None, typer.Option(min=0, metavar="REV", help="Start after this revision.")
    ] = None,
    following: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with new ones as they come.")
    ] = False,
    output: OutputOption = Format.TABLE,
    as_json: JsonOption = False,
) -> None:
    """Print committed changes in order; with -f, new ones as they come."""
    form = chosen(output, as_json=as_json)
    if form is Format.YAML:
        raise typer.BadParameter("events come one by one: use -o json, jsonl, name or table")
    session = session_of(context)
    with session.connect() as client:
        try:
            if following:
                _print_events(client.events(since=since), form)
            else:
                # The stream has no end: what it does not bring within a moment is not there yet.
                known = until_idle(lambda: client.events(since=since or 0), session.idle_s)
                _print_events(known, form)
        except KeyboardInterrupt:
            hint("stopped; take up where this ended with --since and the last revision")


def until_idle(stream: Callable[[], Iterable[EventOut]], idle_s: float) -> Iterator[EventOut]:
    """Items of an endless stream until none has come for `idle_s` seconds.

    Raises:
        HaversackError: the stream failed.
    """
    arrived: Queue[EventOut | HaversackError] = Queue(maxsize=1_000)
    stopped = Event()

    def read() -> None:
        try:
            for item in stream():
                arrived.put(item)
                if stopped.is_set():
                    return
        except HaversackError as error:
            arrived.put(error)
        except Exception:
            # Once stopped, the connection is closed under this read: what that raises is no news.
            if not stopped.is_set():
                raise

    # A daemon thread: it may sit in a read that nothing will ever answer.
    Thread(target=read, name="events", daemon=True).start()
    try:
        while True:
            item = arrived.get(timeout=idle_s)
            if isinstance(item, HaversackError):
                raise item
            yield item
    except Empty:
        return
    finally:
        stopped.set()


def _print_events(found: Iterable[EventOut], form: Format) -> None:
    for event in found:
        if form is Format.NAME:
            typer.echo(event["revision"])
        elif form in (Format.TABLE, Format.WIDE):
            payload = clean(json.dumps(event["payload"]))
            typer.echo(
                f"{event['revision']}  {clean(event['at'])}  {clean(event['kind'])}"
                f"  {clean(event['object_id'])}  {payload}"
            )
        else:
            show_line(event)


def decisions(
    context: typer.Context,
    decision: Annotated[
        str | None, typer.Argument(metavar="ID", help="One decision in full.", show_default=False)
    ] = None,
    *,
    limit: Annotated[int, typer.Option(min=1, max=500, help="At most this many.")] = 20,
    output: OutputOption = Format.TABLE,
    as_json: JsonOption = False,
) -> None:
    """List what cycles decided, newest first; with an ID, why and where each task went."""
    form = chosen(output, as_json=as_json)
    session = session_of(context)
    with session.connect() as client:
        if decision is not None:
            show_one(client.decision(decision), form, _decision_text)
            return
        page = client.decisions(limit=limit)
    now = session.clock.now()
    columns = (
        Column("ID", pick("id")),
        Column("PLACED", pick("placed")),
        Column("REFUSED", pick("refused")),
        Column("WAITING CLASSES", pick("waiting_classes")),
        Column("VALUE", lambda one: f"{one['value']:.6g}"),
        Column("BOUND", lambda one: f"{one['bound']:.6g}"),
        Column("GAP", lambda one: f"{one['gap']:.2%}"),
        Column("MS", lambda one: f"{one['duration_ms']:.1f}"),
        Column("POLICY", pick("policy"), wide=True),
        Column("REVISION", pick("snapshot_revision"), wide=True),
        Column("EPOCH", pick("epoch"), wide=True),
        Column("AGE", lambda one: age(one["at"], now)),
    )
    show_list(page["items"], columns, form, kind="DecisionList")
    if page["next_cursor"] is not None:
        hint(f"the newest {limit}; more with --limit")


def _reach(decision: Record) -> str:
    """What the bound speaks of."""
    skipped = decision["document"]["solver"].get("skipped", 0)
    if skipped:
        return f"for the front of the queue; {skipped} jobs further back were not looked at"
    return "nothing better than this exists"


def _decision_text(one: Record) -> str:
    head = fields(
        [
            ("Id", one["id"]),
            ("At", one["at"]),
            ("Value", f"{one['value']:.6g}"),
            ("Bound", f"{one['bound']:.6g} ({_reach(one)})"),
            ("Gap", f"{one['gap']:.3%}"),
            ("Placed", one["placed"]),
            ("Refused", one["refused"]),
            ("Policy", one["policy"]),
            ("Took", f"{one['duration_ms']:.1f} ms"),
            ("Revision", one["snapshot_revision"]),
            ("Epoch", one["epoch"]),
        ]
    )
    # The document's parts belong to the solver: shown as they are, so that none can be missed.
    document = json.dumps(one["document"], indent=2)
    return "\n".join([head, "Document:", *(f"  {clean(line)}" for line in document.splitlines())])


def register(app: typer.Typer) -> None:
    """Add these commands to `app`."""
    for command in (queue, nodes, gpus, cordon, uncordon, events, decisions):
        app.command(rich_help_panel="Cluster")(command)
