"""`submit`, `cancel` and `logs`: what changes jobs, and what they print."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import Annotated, Final

import typer

from scheduler.cli import follow, job_file
from scheduler.cli.kubectl.call import call_of
from scheduler.cli.kubectl.naming import GROUP, named, the_job
from scheduler.cli.kubectl.refusals import (
    FAILED,
    InvalidFileError,
    UsageError,
    not_found,
    refusal,
)
from scheduler.cli.render import Format, hint, show_one
from scheduler.cli.text import clean
from scheduler.errors import (
    HaversackError,
    InvalidRequestError,
    NotFoundError,
    UnreachableError,
)


class DryRun(StrEnum):
    """Whether anything is kept."""

    NONE = "none"
    SERVER = "server"


class SubmitOutput(StrEnum):
    """How a submitted job is told; a sentence when nothing is said."""

    JSON = "json"
    YAML = "yaml"
    NAME = "name"


SUBMIT_EXAMPLES: Final = """\
# Submit a job
kubectl haversack submit -f job.yaml

# Have the daemon check a job and keep nothing
kubectl haversack submit -f job.yaml --dry-run=server

# Submit a job from stdin and follow what it prints
kubectl haversack logs -f $(kubectl haversack submit -f - -o name < job.yaml)
"""
CANCEL_EXAMPLES: Final = """\
# Cancel a job
kubectl haversack cancel llama

# Cancel all that wait in the current namespace
kubectl haversack get jobs --field-selector state=PENDING -o name | xargs kubectl haversack cancel
"""
LOGS_EXAMPLES: Final = """\
# Print what rank 0 of the job's last attempt has printed
kubectl haversack logs llama

# Follow all ranks, each line with its rank before it, until the job is over
kubectl haversack logs -f llama --rank all
"""


def submit(
    context: typer.Context,
    files: Annotated[
        list[str] | None,
        typer.Option(
            "--filename", "-f", metavar="FILE", help="Job file (YAML or JSON), - for stdin."
        ),
    ] = None,
    *,
    dry_run: Annotated[
        DryRun, typer.Option(metavar="MODE", help="none, or server: check only, keep nothing.")
    ] = DryRun.NONE,
    output: Annotated[
        SubmitOutput | None,
        typer.Option(
            "--output", "-o", metavar="FORMAT", help="Output format. One of: (json, yaml, name)."
        ),
    ] = None,
    idempotency_key: Annotated[
        str | None,
        typer.Option(metavar="KEY", help="Submitting again with it makes no second job."),
    ] = None,
) -> None:
    """Submit jobs from files.

    A job is accepted once it is safely stored; one that could never run on this cluster is refused,
    naming what is short.
    """
    if not files:
        raise UsageError("must specify -f: the file of the job, or - for stdin")
    if idempotency_key is not None and len(files) > 1:
        raise UsageError("one --idempotency-key makes one job: give one -f with it")
    checked = dry_run is DryRun.SERVER
    call = call_of(context)
    ready = []
    for file in files:
        raw = job_file.read(file)
        with _about(file, InvalidFileError, "validating"):
            ready.append((file, raw, job_file.document(file, raw)))
    with call.connect_for_writing() as client:
        for file, raw, document in ready:
            with _about(file, InvalidRequestError, "when creating"), _in(call.namespace):
                job = job_file.send(client, document, raw, idempotency_key, dry_run=checked)
            if output in (SubmitOutput.JSON, SubmitOutput.YAML):
                show_one(job, Format(output.value), str)
            elif output is SubmitOutput.NAME:
                typer.echo(f"job.{GROUP}/{job['name'] if checked else job['id']}")
            else:
                done = "unchanged" if job["replayed"] else "created"
                more = " (server dry run)" if checked else f" ({job['id']})"
                typer.echo(f"job.{GROUP}/{clean(job['name'])} {done}{more}")


@contextmanager
def _about(file: str, kind: type[InvalidRequestError], what: str) -> Iterator[None]:
    """Names the file whose job is not valid, as kubectl does."""
    try:
        yield
    except InvalidRequestError as error:
        name = "stdin" if file == "-" else file
        raise kind(
            f'error {what} "{name}": {error}', problems=error.problems, hint=error.hint
        ) from error


@contextmanager
def _in(namespace: str) -> Iterator[None]:
    """Says which namespace it is that is not there."""
    try:
        yield
    except NotFoundError as error:
        told = "it is no tenant of Haversack that you may act for; another one: -n"
        raise not_found("namespaces", namespace, hint=told) from error


def cancel(
    context: typer.Context,
    jobs: Annotated[
        list[str], typer.Argument(metavar="JOB...", help="Names or ids; job/NAME as well.")
    ],
) -> None:
    """Cancel jobs.

    One that waits never starts; one that runs is asked to stop, and killed after its grace time.
    """
    call = call_of(context)
    failed = False
    with call.connect() as client:
        for each in named(jobs, ("job",)):
            try:
                job = client.cancel(the_job(client, each.name, call.namespace)["id"])
            except UnreachableError:
                raise
            except HaversackError as error:
                typer.echo(refusal(error), err=True)
                failed = True
            else:
                done = "cancelled" if job["state"] == "CANCELLED" else "is being cancelled"
                typer.echo(f"job.{GROUP}/{clean(job['name'])} {done}")
    if failed:
        raise typer.Exit(FAILED)


def logs(
    context: typer.Context,
    job: Annotated[str, typer.Argument(metavar="JOB", help="Name or id; job/NAME as well.")],
    *,
    following: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on until the job is over.")
    ] = False,
    tail: Annotated[
        int, typer.Option(min=-1, metavar="N", help="Lines to print at most, the last; -1 for all.")
    ] = -1,
    rank: Annotated[str, typer.Option(metavar="N|all", help="Which rank, or all of them.")] = "0",
    attempt: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Attempt number; the last if absent.")
    ] = None,
) -> None:
    """Print what a job prints."""
    if rank != "all" and not rank.isdecimal():
        raise UsageError("--rank takes a number, or all")
    number = None if rank == "all" else int(rank)
    if following and tail >= 0 and number is None:
        raise UsageError("--tail with -f needs one --rank")
    (wanted,) = named([job], ("job",))
    call = call_of(context)
    with call.connect() as client:
        found = client.job(the_job(client, wanted.name, call.namespace)["id"])
        offset = 0
        if not following or tail >= 0:
            if not found["attempts"]:
                hint(f"it has not started yet; why: kubectl haversack explain {found['id']}")
            else:
                offset = follow.print_logs(
                    client,
                    found["id"],
                    rank=number,
                    tail=None if tail < 0 else tail,
                    attempt=attempt or found["attempts"][-1]["number"],
                )
        if following:
            follow.follow(
                client,
                found,
                rank="all" if number is None else number,
                offset=offset,
                attempt=attempt,
            )
