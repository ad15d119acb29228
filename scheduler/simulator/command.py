"""The command `haversack simulate`: options to a study, a study to tables and files.

Only this module's signature is read when `haversack` starts; what simulates is imported by the
command itself.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from scheduler.errors import InvalidRequestError

if TYPE_CHECKING:
    from scheduler.simulator.outages import Outages
    from scheduler.simulator.study import Request, Study, Watcher
    from scheduler.simulator.workload import Workload


class FormatOption(StrEnum):
    """Workload formats."""

    CSV = "csv"
    OPENB = "openb"
    PHILLY = "philly"
    HELIOS = "helios"
    ACME = "acme"
    SWF = "swf"
    HAVERSACK = "haversack"


class FamilyOption(StrEnum):
    """Generated workloads."""

    PHILLY_LIKE = "philly-like"
    GANG_HEAVY = "gang-heavy"


_FROM, _HOW, _OUT = "What arrives, and where", "How it is run", "What is written"


_WorkloadOption = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Workload file.", rich_help_panel=_FROM)
]
_FormOption = Annotated[
    FormatOption, typer.Option("--format", help="Its format.", rich_help_panel=_FROM)
]
_ColumnsOption = Annotated[
    str,
    typer.Option(
        metavar="OURS=THEIRS,...",
        help="Columns of a CSV file that have other names, for example submit_s=arrival_s.",
        rich_help_panel=_FROM,
    ),
]
_GenerateOption = Annotated[
    FamilyOption | None,
    typer.Option(help="Make a workload up: philly-like or gang-heavy.", rich_help_panel=_FROM),
]
_JobsOption = Annotated[int, typer.Option(help="Generated: how many jobs.", rich_help_panel=_FROM)]
_LoadOption = Annotated[
    float,
    typer.Option(help="Generated: work offered over what the GPUs can do.", rich_help_panel=_FROM),
]
_TenantsOption = Annotated[
    int, typer.Option(help="Generated: how many tenants.", rich_help_panel=_FROM)
]
_NodesOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="The cluster: openb's node list (CSV) or ours (YAML, JSON).",
        rich_help_panel=_FROM,
    ),
]
_ClusterOption = Annotated[
    str, typer.Option(help="The cluster, for example 16x8:H100.", rich_help_panel=_FROM)
]
_PolicyOption = Annotated[
    str,
    typer.Option(
        metavar="NAME,...",
        help="Policies to compare; ratios are to the first.",
        rich_help_panel=_HOW,
    ),
]
_SeedOption = Annotated[
    int, typer.Option(min=0, help="Seed of everything random.", rich_help_panel=_HOW)
]
_WindowSOption = Annotated[
    str,
    typer.Option(
        metavar="START:END",
        help="Window of gpu_utilization_window; default: after one day, to the last arrival.",
        rich_help_panel=_HOW,
    ),
]
_RestartCostSOption = Annotated[
    float,
    typer.Option(
        min=0, help="Seconds an attempt after the first needs to start.", rich_help_panel=_HOW
    ),
]
_CheckpointEverySOption = Annotated[
    float,
    typer.Option(
        min=0,
        help="Work since the last checkpoint is lost when a node fails; 0 loses none.",
        rich_help_panel=_HOW,
    ),
]
_FailuresSOption = Annotated[
    str,
    typer.Option(
        metavar="MTBF[:MTTR]",
        help="Nodes fail: mean seconds between failures, and to repair (default 3600).",
        rich_help_panel=_HOW,
    ),
]
_ArriveOption = Annotated[
    float,
    typer.Option(help="openb: GPUs asked for over GPUs in the cluster.", rich_help_panel=_HOW),
]
_BatchOption = Annotated[
    int, typer.Option(min=1, help="openb: pods to a decision.", rich_help_panel=_HOW)
]
_WeightsOption = Annotated[
    str,
    typer.Option(
        metavar="TENANT=WEIGHT,...",
        help="Weights of tenants in the fair share; 1 for the others.",
        rich_help_panel=_HOW,
    ),
]
_JsonOutOption = Annotated[
    str,
    typer.Option(
        "--json",
        metavar="OUT",
        help="Write the figures as JSON; - for stdout instead of the table.",
        rich_help_panel=_OUT,
    ),
]
_HtmlOutOption = Annotated[
    Path | None,
    typer.Option(
        "--html",
        metavar="OUT",
        help="Write a page with plots; it needs nothing from outside.",
        rich_help_panel=_OUT,
    ),
]
_SaveOption = Annotated[
    Path | None,
    typer.Option(
        metavar="OUT",
        help="Write the workload as it is run, for --format haversack.",
        rich_help_panel=_OUT,
    ),
]
_TimingOption = Annotated[
    bool,
    typer.Option(
        "--timing/--no-timing",
        help="Whether the JSON holds wall times; without, equal runs give equal files.",
        rich_help_panel=_OUT,
    ),
]
_QuietOption = Annotated[
    bool, typer.Option("--quiet", "-q", help="No progress on stderr.", rich_help_panel=_OUT)
]


def simulate(
    *,
    workload: _WorkloadOption = None,
    form: _FormOption = FormatOption.CSV,
    columns: _ColumnsOption = "",
    generate: _GenerateOption = None,
    jobs: _JobsOption = 1_000,
    load: _LoadOption = 0.9,
    tenants: _TenantsOption = 8,
    nodes: _NodesOption = None,
    cluster: _ClusterOption = "",
    policy: _PolicyOption = "fifo",
    seed: _SeedOption = 0,
    window_s: _WindowSOption = "",
    restart_cost_s: _RestartCostSOption = 0.0,
    checkpoint_every_s: _CheckpointEverySOption = 0.0,
    failures_s: _FailuresSOption = "",
    arrive: _ArriveOption = 1.3,
    batch: _BatchOption = 1,
    weights: _WeightsOption = "",
    json_out: _JsonOutOption = "",
    html_out: _HtmlOutOption = None,
    save: _SaveOption = None,
    timing: _TimingOption = True,
    quiet: _QuietOption = False,
) -> None:
    """Run a recorded or generated workload through the scheduler, without a cluster or a daemon.

    The cycle that decides is the daemon's own. docs/guide/simulate.md shows how to use it.
    """
    from scheduler.simulator import study  # noqa: PLC0415 - lazy by design
    from scheduler.simulator.career import Overheads  # noqa: PLC0415 - lazy by design
    from scheduler.simulator.generate import Family, Recipe  # noqa: PLC0415 - lazy by design

    if (workload is None) == (generate is None):
        raise InvalidRequestError(
            "say what to run: either --workload FILE or --generate FAMILY",
            hint="for example --generate philly-like --cluster 8x8:H100 --policy fifo",
        )
    for out in (Path(json_out) if json_out not in ("", "-") else None, html_out, save):
        _check_folder(out)
    request = study.Request(
        path=workload,
        form=form.value,
        columns=_pairs("--columns", columns),
        recipe=Recipe(Family(generate or Family.PHILLY_LIKE), jobs, load, tenants, seed=seed),
        nodes=nodes,
        cluster=cluster,
        policies=_policies(policy),
        seed=seed,
        window=_window(window_s),
        arrive=_positive("--arrive", arrive),
        batch=batch,
        overheads=Overheads(restart_cost_s, checkpoint_every_s),
        outages=_outages(failures_s),
        weights={
            name: _positive("--weights", _number("--weights", value))
            for name, value in _pairs("--weights", weights).items()
        },
    )
    _run(request, json_out=json_out, html_out=html_out, save=save, timing=timing, quiet=quiet)


def _run(
    request: Request,
    *,
    json_out: str,
    html_out: Path | None,
    save: Path | None,
    timing: bool,
    quiet: bool,
) -> None:
    from scheduler.simulator import report, study  # noqa: PLC0415 - lazy by design
    from scheduler.simulator.html import page  # noqa: PLC0415 - lazy by design
    from scheduler.simulator.importers import haversack  # noqa: PLC0415 - lazy by design

    nodes = study.nodes_of(request)
    workload = study.workload_of(request, nodes)
    _tell_skipped(workload)
    if save is not None:
        haversack.write(workload, save)
    with _progress(quiet=quiet) as watch:
        found = study.run_study(request, nodes, workload, watch)
    text = report.as_json(found, timing=timing)
    if json_out == "-":
        sys.stdout.write(text)
    else:
        _print_table(found)
        if json_out:
            _write(Path(json_out), text)
    if html_out is not None:
        _write(html_out, page(found))


def _tell_skipped(workload: Workload) -> None:
    for part in workload.skipped:
        typer.echo(f"{part.records} records left out: {part.reason}", err=True)


def _print_table(study: Study) -> None:
    import os  # noqa: PLC0415 - with rich: only when a table is printed

    from rich.console import Console  # noqa: PLC0415 - see above

    from scheduler.simulator.report import table  # noqa: PLC0415 - lazy by design

    coloured = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    # As wide as it needs, like every listing of ours.
    console = Console(file=sys.stdout, width=10_000, force_terminal=coloured, no_color=not coloured)
    with console.capture() as captured:
        console.print(table(study))
    for line in captured.get().splitlines():
        sys.stdout.write(line.rstrip() + "\n")


@contextmanager
def _progress(*, quiet: bool) -> Iterator[Watcher | None]:
    """A bar for each policy on a terminal's stderr; a line for each where stderr is a file."""
    if quiet:
        yield None
        return
    from rich.console import Console  # noqa: PLC0415 - only when progress is shown
    from rich.progress import (  # noqa: PLC0415 - see above
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TaskID,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    bars: dict[str, TaskID] = {}
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    ) as shown:

        def watch(policy: str, done: int, total: int) -> None:
            if policy not in bars:
                bars[policy] = shown.add_task(policy, total=total)
            shown.update(bars[policy], completed=done)

        yield watch


def _check_folder(out: Path | None) -> None:
    """Refuse before the long run what could not be written after it.

    Raises:
        InvalidRequestError: there is no such folder.
    """
    if out is not None and not out.absolute().parent.is_dir():
        raise InvalidRequestError(f"{out}: there is no folder {out.absolute().parent}")


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InvalidRequestError(f"{path}: cannot be written: {error}") from error


def _policies(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not names:
        raise InvalidRequestError("--policy names no policy")
    return names


def _pairs(option: str, text: str) -> Mapping[str, str]:
    found: dict[str, str] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not (name and equals and value):
            raise InvalidRequestError(f"{option}: {part!r} is not NAME=VALUE")
        found[name] = value
    return found


def _window(text: str) -> tuple[float, float] | None:
    if not text:
        return None
    start, colon, end = text.partition(":")
    window = (_number("--window-s", start), _number("--window-s", end)) if colon else (0.0, 0.0)
    if not 0 <= window[0] < window[1]:
        raise InvalidRequestError(
            f"--window-s {text!r} is not START:END in seconds from the first arrival",
            hint="for example --window-s 86400:604800",
        )
    return window


def _outages(text: str) -> Outages | None:
    from scheduler.simulator.outages import Outages  # noqa: PLC0415 - lazy by design

    if not text:
        return None
    mtbf, _, mttr = text.partition(":")
    numbers = [_number("--failures-s", part) for part in (mtbf, mttr or "3600")]
    return Outages(*(_positive("--failures-s", number) for number in numbers))


def _number(option: str, text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise InvalidRequestError(f"{option}: {text!r} is not a number") from error


def _positive(option: str, value: float) -> float:
    if not 0 < value < float("inf"):
        raise InvalidRequestError(f"{option}: {value:g} must be above 0")
    return value
