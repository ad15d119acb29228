"""`get`: one or many jobs, queues, GPUs or nodes, as a table or for programs."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated, Final

import typer

from scheduler.cli.kubectl.call import Call, call_of
from scheduler.cli.kubectl.naming import named, type_of
from scheduler.cli.kubectl.refusals import UsageError
from scheduler.cli.kubectl.resources import (
    RESOURCES,
    Found,
    Query,
    Resource,
    table_columns,
)
from scheduler.cli.kubectl.tables import Table
from scheduler.cli.kubectl.watching import changes
from scheduler.cli.render import Format, Record, hint, show_list, show_one
from scheduler.cli.text import clean

_LIMIT: Final = 500


class Output(StrEnum):
    """How an answer is written; a table when nothing is said."""

    JSON = "json"
    YAML = "yaml"
    NAME = "name"
    WIDE = "wide"


OutputOption = Annotated[
    Output | None,
    typer.Option(
        "--output", "-o", metavar="FORMAT", help="Output format. One of: (json, yaml, name, wide)."
    ),
]
_STRUCTURED: Final = {Output.JSON: Format.JSON, Output.YAML: Format.YAML}

EXAMPLES: Final = """\
# List the jobs of the current namespace, newest first
kubectl haversack get jobs

# List the jobs that wait, in all namespaces
kubectl haversack get jobs -A --field-selector state=PENDING

# Show one job as the API tells it
kubectl haversack get job llama -n research -o yaml

# List nodes with everything that is known of them, and go on with what changes
kubectl haversack get nodes -o wide -w
"""


def get(
    context: typer.Context,
    what: Annotated[
        list[str] | None,
        typer.Argument(metavar="TYPE [NAME...]", help="jobs, queue, gpus or nodes; or TYPE/NAME."),
    ] = None,
    *,
    all_namespaces: Annotated[
        bool, typer.Option("--all-namespaces", "-A", help="List what all namespaces have.")
    ] = False,
    output: OutputOption = None,
    no_headers: Annotated[
        bool, typer.Option("--no-headers", help="Do not print the names of the columns.")
    ] = False,
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="After listing, print what changes.")
    ] = False,
    field_selector: Annotated[
        str,
        typer.Option(
            metavar="SELECTOR",
            help="Fields to select by, comma between them: jobs know state, queue and name, gpus"
            " know node (e.g. state=PENDING,queue=default).",
        ),
    ] = "",
    limit: Annotated[
        int, typer.Option(min=0, metavar="N", help="At most so many jobs, the newest; 0 for all.")
    ] = _LIMIT,
) -> None:
    """Display one or many jobs, queues, GPUs or nodes.

    Prints a table of the most important fields. Jobs and queues belong to namespaces: those of the
    current one are shown unless -n or -A says otherwise.
    """
    call = call_of(context)
    resource, names = _asked(what or [])
    if names and all_namespaces:
        raise UsageError("what is named cannot be looked for in all namespaces")
    query = Query(
        namespace=None if all_namespaces or not resource.namespaced else call.namespace,
        names=names,
        fields=_fields(field_selector, resource),
        limit=limit,
    )
    printer = _Printer(call, resource, query, output, headers=not no_headers)
    with call.connect() as client:
        if not watch:
            printer.everything(resource.ask(client, query))
            return
        try:
            for changed in changes(
                client,
                resource,
                lambda: resource.ask(client, query).records,
                sleep=call.session.sleep,
            ):
                printer.each(changed)
        except KeyboardInterrupt:
            return


def _asked(words: Sequence[str]) -> tuple[Resource, tuple[str, ...]]:
    if not words:
        raise UsageError(
            "You must specify the type of resource to get: jobs, queue, gpus or nodes."
        )
    resource = RESOURCES.get(type_of(words[0].partition("/")[0]) or "")
    if resource is None:
        raise UsageError(f'the server doesn\'t have a resource type "{words[0]}"')
    if len(words) == 1 and "/" not in words[0]:
        return resource, ()
    return resource, tuple(each.name for each in named(words, (resource.singular,)))


def _fields(selector: str, resource: Resource) -> dict[str, str]:
    """What a selector such as `state=PENDING,queue=default` asks for."""
    found: dict[str, str] = {}
    for part in filter(None, selector.split(",")):
        name, equals, value = (piece.strip() for piece in part.replace("==", "=").partition("="))
        if not equals or not value or name.endswith("!"):
            raise UsageError(f"a field is selected by FIELD=VALUE, not by {part!r}")
        if name not in resource.fields:
            known = ", ".join(resource.fields) or "none"
            raise UsageError(f"{resource.plural} cannot be selected by {name!r}; known: {known}")
        found[name] = value
    return found


class _Printer:
    """Writes answers as the command line wants them."""

    def __init__(
        self, call: Call, resource: Resource, query: Query, output: Output | None, *, headers: bool
    ) -> None:
        self._resource, self._query, self._output = resource, query, output
        columns = table_columns(
            resource,
            call.session.clock.now,
            wide=output is Output.WIDE,
            with_namespace=query.namespace is None,
        )
        self._table = Table(columns, headers=headers)

    def everything(self, found: Found) -> None:
        """The whole answer."""
        records = found.records
        form = _STRUCTURED.get(self._output) if self._output else None
        if form is not None and len(self._query.names) == 1:
            show_one(records[0], form, str)
        elif form is not None:
            show_list(records, (), form, kind=self._resource.kind)
        elif records:
            self._lines(records)
        else:
            where = f" in {self._query.namespace} namespace" if self._query.namespace else ""
            hint(f"No resources found{where}.")
        if found.more:
            hint(f"the newest {self._query.limit} are shown; --limit 0 shows all")

    def each(self, records: Sequence[Record]) -> None:
        """Some of a watch."""
        form = _STRUCTURED.get(self._output) if self._output else None
        if form is None:
            self._lines(records)
            return
        for record in records:
            if form is Format.YAML:
                typer.echo("---")
            show_one(record, form, str)

    def _lines(self, records: Sequence[Record]) -> None:
        if self._output is Output.NAME:
            for record in records:
                typer.echo(clean(self._resource.full_name(record)))
        elif records:
            for line in self._table.lines(records):
                typer.echo(line)
