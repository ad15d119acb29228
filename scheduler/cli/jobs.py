"""Commands about jobs: submit, jobs, describe, logs, cancel, hold, release, requeue, explain."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand
from typing_extensions import override

from scheduler.cli import follow, job_file
from scheduler.cli.context import Session, session_of
from scheduler.cli.exits import ExitCode, report
from scheduler.cli.job_views import description, explanation, job_columns
from scheduler.cli.render import (
    Format,
    JsonOption,
    OutputOption,
    chosen,
    hint,
    show_line,
    show_list,
    show_one,
    table,
)
from scheduler.errors import (
    HaversackError,
    InvalidRequestError,
    NotFoundError,
    UnreachableError,
)
from scheduler.model.lifecycle import JobState

if TYPE_CHECKING:
    from api.client import Client
    from api.schemas import JobOut, SubmittedOut

_JOB_ID = re.compile(r"j-[0-9a-z]{16}")
_WATCH_PAUSE_S = 2.0

JobArgument = Annotated[
    str, typer.Argument(metavar="JOB", help="Id, or name (the newest so named).")
]
JobsArgument = Annotated[
    list[str], typer.Argument(metavar="JOB...", help="Ids or names; several at once.")
]


class SubmitCommand(TyperCommand):
    """Lets `--wait` stand alone, or carry a value: `--wait=attempt`."""

    @override
    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # Typer's own Click is private
        """Give a bare `--wait` its value."""
        spelled = ["--wait=job" if argument == "--wait" else argument for argument in args]
        return super().parse_args(ctx, spelled)


def find_job(client: Client, text: str) -> str:
    """The id of the job that `text` names: an id, or a name, of which the newest counts.

    Raises:
        NotFoundError: no job is so named.
    """
    if _JOB_ID.fullmatch(text):
        return text
    found = client.jobs(name=text, sort="-submitted_at", limit=2)["items"]
    if not found:
        raise NotFoundError(
            f"no job is named {text!r}", hint="list them with `haversack jobs --all`"
        )
    newest = found[0]
    if len(found) > 1:
        hint(f"several jobs are named {text}: taking the newest, {newest['id']}")
    return newest["id"]


def submit(
    context: typer.Context,
    file: Annotated[
        str,
        typer.Option("--file", "-f", metavar="FILE", help="Job file (YAML or JSON), - for stdin."),
    ],
    *,
    wait: Annotated[
        str | None,
        typer.Option(
            metavar="[=attempt]",
            help="Wait for the job's end (=attempt: of its next attempt) and mirror it.",
        ),
    ] = None,
    timeout: Annotated[
        float | None, typer.Option(min=0, metavar="S", help="Stop waiting after S seconds.")
    ] = None,
    idempotency_key: Annotated[
        str | None, typer.Option(metavar="K", help="Submitting again with K makes no second job.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check only; store nothing.")] = False,
    output: OutputOption = Format.TABLE,
    as_json: JsonOption = False,
) -> None:
    """Submit a job file; prints the job's id."""
    if wait not in (None, "job", "attempt"):
        raise typer.BadParameter("--wait takes no value, or =attempt")
    if wait is None and timeout is not None:
        raise typer.BadParameter("--timeout needs --wait")
    if dry_run and wait is not None:
        raise typer.BadParameter("--dry-run stores nothing: there is nothing to wait for")
    form = chosen(output, as_json=as_json)
    session = session_of(context)
    raw = job_file.read(file)
    with _naming(file):
        document = job_file.document(file, raw)
    with session.connect() as client:
        with _naming(file):
            made = job_file.send(client, document, raw, idempotency_key, dry_run=dry_run)
        if dry_run:
            hint(f"{made['name']} would be accepted; nothing was stored")
            if form in (Format.JSON, Format.YAML, Format.JSONL):
                show_one(made, form, lambda job: str(job["id"]))
            return
        again = " before, with this idempotency key" if made["replayed"] else ""
        hint(f"{made['name']} submitted{again}: {made['state']} in queue {made['queue']}")
        if wait is None:
            show_one(made, form, lambda job: str(job["id"]))
            hint(f"next: haversack logs -f {made['id']}; haversack explain {made['id']}")
            return
        raise typer.Exit(_wait(session, client, made, wait, timeout, form))


@contextmanager
def _naming(file: str) -> Iterator[None]:
    """Tells the problems of a job file with the file's name before their lines."""
    try:
        yield
    except InvalidRequestError as error:
        raise typer.Exit(report(error, source="" if file == "-" else file)) from error


def _wait(
    session: Session,
    client: Client,
    made: SubmittedOut,
    wait: str,
    timeout_s: float | None,
    form: Format,
) -> ExitCode:
    if form is Format.TABLE:
        show_one(made, form, lambda job: str(job["id"]))
    code, seen = follow.wait(
        session, client, made, attempt_only=wait == "attempt", timeout_s=timeout_s
    )
    if seen is not None and code is not ExitCode.JOB_STILL_RUNNING:
        follow.tell_end(seen)
    if form is not Format.TABLE:
        show_one(seen or made, form, lambda job: str(job["id"]))
    return code


def jobs(
    context: typer.Context,
    *,
    state: Annotated[
        list[JobState] | None,
        typer.Option(
            "--state",
            metavar="STATE",
            case_sensitive=False,
            help=f"Only this: {', '.join(JobState)}; may be repeated.",
        ),
    ] = None,
    queue: Annotated[str | None, typer.Option(help="Only of this queue.")] = None,
    name: Annotated[str | None, typer.Option(help="Only so named.")] = None,
    sort: Annotated[
        str,
        typer.Option(
            metavar="KEY", help="submitted_at, priority or name; with - in front, the other way."
        ),
    ] = "-submitted_at",
    limit: Annotated[int, typer.Option(min=1, max=500, help="At most this many.")] = 50,
    everything: Annotated[bool, typer.Option("--all", help="Every job, however many.")] = False,
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Redraw; changes as JSON lines when piped.")
    ] = False,
    output: OutputOption = Format.TABLE,
    as_json: JsonOption = False,
) -> None:
    """List jobs, newest first."""
    form = chosen(output, as_json=as_json)
    session = session_of(context)
    states = [one.value for one in state or ()]
    with session.connect() as client:

        def load() -> tuple[list[JobOut], bool]:
            if everything:
                return list(
                    client.all_jobs(states=states, queue=queue, name=name, sort=sort)
                ), False
            page = client.jobs(states=states, queue=queue, name=name, sort=sort, limit=limit)
            return page["items"], page["next_cursor"] is not None

        if watch:
            _watch(session, load, form)
            return
        found, more = load()
        show_list(found, job_columns(session.clock.now()), form, kind="JobList")
        if not found:
            hint("no jobs" + (" like that" if states or queue or name else " yet"))
        elif more:
            hint(f"the first {limit}; all with --all, more with --limit")


def _watch(session: Session, load: Callable[[], tuple[list[JobOut], bool]], form: Format) -> None:
    """Redraw the table every two seconds on a terminal; else write each changed job as JSON."""
    try:
        if not sys.stdout.isatty():
            for job in _changes(session, load):
                show_line(job)
            return
        from rich.console import Console  # noqa: PLC0415 - only a terminal needs it
        from rich.live import Live  # noqa: PLC0415 - see above
        from rich.text import Text  # noqa: PLC0415 - see above

        with Live(console=Console(), auto_refresh=False, screen=True) as live:
            while True:
                columns = [
                    column
                    for column in job_columns(session.clock.now())
                    if form is Format.WIDE or not column.wide
                ]
                # Cut at the right edge: a redrawn screen cannot run on.
                drawn = Text.from_ansi(table(load()[0], columns), no_wrap=True, overflow="ellipsis")
                live.update(drawn, refresh=True)
                session.sleep(_WATCH_PAUSE_S)
    except KeyboardInterrupt:
        return


def _changes(session: Session, load: Callable[[], tuple[list[JobOut], bool]]) -> Iterator[JobOut]:
    versions: dict[str, int] = {}
    while True:
        for job in load()[0]:
            if versions.get(job["id"]) != job["version"]:
                versions[job["id"]] = job["version"]
                yield job
        session.sleep(_WATCH_PAUSE_S)


def describe(
    context: typer.Context,
    job: JobArgument,
    output: OutputOption = Format.TABLE,
    *,
    as_json: JsonOption = False,
) -> None:
    """Show one job: what it asks for, its attempts, where they ran, and its history."""
    session = session_of(context)
    with session.connect() as client:
        job_id = find_job(client, job)
        found = {**client.job(job_id), "history": client.history(job_id)}
        names = follow.NodeNames(client)
        show_one(
            found,
            chosen(output, as_json=as_json),
            lambda record: description(record, session.clock.now(), names),
        )


def logs(
    context: typer.Context,
    job: JobArgument,
    *,
    following: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on until the job is over; mirror its end.")
    ] = False,
    rank: Annotated[str, typer.Option(metavar="N|all", help="One rank, or all of them.")] = "0",
    tail: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="Only the last N lines.")
    ] = None,
    attempt: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Attempt number; the last if absent.")
    ] = None,
) -> None:
    """Print a job's log: rank 0 of its last attempt unless told otherwise."""
    if rank != "all" and not rank.isdecimal():
        raise typer.BadParameter("--rank takes a number, or all")
    number = None if rank == "all" else int(rank)
    if following and tail is not None and number is None:
        raise typer.BadParameter("--tail with -f needs one --rank")
    session = session_of(context)
    with session.connect() as client:
        found = client.job(find_job(client, job))
        offset = 0
        if not following or tail is not None:
            if not found["attempts"]:
                hint(f"{found['name']} has not started yet: haversack explain {found['id']}")
            else:
                offset = follow.print_logs(
                    client,
                    found["id"],
                    rank=number,
                    tail=tail,
                    # Named, so that all pieces come from one attempt even if the next one starts.
                    attempt=attempt or found["attempts"][-1]["number"],
                )
        if following:
            code = follow.follow(
                client,
                found,
                rank="all" if number is None else number,
                offset=offset,
                attempt=attempt,
            )
            raise typer.Exit(code)


def cancel(context: typer.Context, job: JobsArgument) -> None:
    """Cancel jobs, wherever they stand; a running one is asked to stop, then killed."""
    _each(context, job, lambda client, job_id: client.cancel(job_id))


def hold(context: typer.Context, job: JobsArgument) -> None:
    """Keep waiting jobs from starting until they are released."""
    _each(context, job, lambda client, job_id: client.hold(job_id))


def release(context: typer.Context, job: JobsArgument) -> None:
    """Let held or quarantined jobs wait for their turn again."""
    _each(context, job, lambda client, job_id: client.release(job_id))


def requeue(context: typer.Context, job: JobsArgument) -> None:
    """Send jobs back to the queue."""
    _each(context, job, lambda client, job_id: client.requeue(job_id))


def _each(
    context: typer.Context, named: Sequence[str], act: Callable[[Client, str], JobOut]
) -> None:
    """Act on every job, tell each that failed, and end with the first failure's code."""
    failed = ExitCode.OK
    with session_of(context).connect() as client:
        for text in named:
            try:
                job = act(client, find_job(client, text))
            except UnreachableError:
                raise
            except HaversackError as error:
                code = report(error, source=text)
                failed = failed or code
            else:
                typer.echo(f"{job['id']} {job['state']}")
    if failed:
        raise typer.Exit(failed)


def explain(
    context: typer.Context,
    job: JobArgument,
    output: OutputOption = Format.TABLE,
    *,
    as_json: JsonOption = False,
) -> None:
    """Say why a job stands where it stands: every reason, with numbers."""
    session = session_of(context)
    with session.connect() as client:
        found = client.explain(find_job(client, job))
    show_one(
        found,
        chosen(output, as_json=as_json),
        lambda record: explanation(record, session.clock.now()),
        name="job_id",
    )


def register(app: typer.Typer) -> None:
    """Add these commands to `app`."""
    panel = "Jobs"
    app.command(cls=SubmitCommand, rich_help_panel=panel)(submit)
    for command in (jobs, describe, logs, explain, cancel, hold, release, requeue):
        app.command(rich_help_panel=panel)(command)
