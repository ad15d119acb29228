"""`doctor` and `version`: is everything between this terminal and the daemon in order?"""

from __future__ import annotations

import ctypes
import shutil
import stat
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from email.utils import parsedate_to_datetime
from enum import StrEnum
from importlib.metadata import version as installed_version
from typing import TYPE_CHECKING, Annotated

import typer

from scheduler.cli.context import Session, Target, session_of
from scheduler.cli.exits import ExitCode, exit_code
from scheduler.cli.render import (
    Column,
    Format,
    JsonOption,
    OutputOption,
    chosen,
    hint,
    pick,
    show_list,
    show_one,
)
from scheduler.errors import HaversackError

if TYPE_CHECKING:
    from api.schemas import ReadyOut

MINOR_SKEW_MAX = 2
CLOCK_SKEW_MAX_S = 30.0
FREE_BYTES_MIN = 1 << 30
_SAFEGUARDS = "it works; docs/operations/index.md says what each safeguard is for"


class Grade(StrEnum):
    """How a check came out."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Check:
    """One check's result; `hint` says what to do when it is not `ok`."""

    check: str
    grade: Grade
    detail: str
    hint: str = ""
    code: ExitCode = ExitCode.OK


def doctor(
    context: typer.Context, output: OutputOption = Format.TABLE, *, as_json: JsonOption = False
) -> None:
    """Check server, token, data directory, versions and clocks; say how to mend what is wrong."""
    session = session_of(context)
    checks = list(_checks(session))
    records = [{key: str(value) for key, value in asdict(check).items()} for check in checks]
    columns = (
        Column("CHECK", pick("check")),
        Column("RESULT", pick("grade")),
        Column("DETAIL", pick("detail")),
    )
    show_list(records, columns, chosen(output, as_json=as_json), kind="CheckList", name="check")
    for check in checks:
        if check.grade is not Grade.OK and check.hint:
            hint(f"{check.check}: {check.hint}")
    failed = [check for check in checks if check.grade is Grade.FAILED]
    if failed:
        raise typer.Exit(failed[0].code or ExitCode.ERROR)


def _checks(session: Session) -> Iterator[Check]:
    try:
        target = session.target()
        session.trusted()
    except HaversackError as error:
        yield _failed("settings", error)
        return
    yield Check("address", Grade.OK, f"{target.address} (from {target.address_from})")
    yield _token_check(target)
    yield from _data_dir_checks(target)
    yield _nvml_check()
    yield from _server_checks(session, target)


def _failed(name: str, error: HaversackError) -> Check:
    return Check(name, Grade.FAILED, str(error), error.hint, exit_code(error))


def _token_check(target: Target) -> Check:
    if target.token:
        return Check("token", Grade.OK, f"from {target.token_from}")
    return Check(
        "token",
        Grade.FAILED,
        "none found",
        "set HAVERSACK_TOKEN, give --token-file, or run where .haversack lies",
        ExitCode.AUTH,
    )


def _data_dir_checks(target: Target) -> Iterator[Check]:
    if target.data_dir is None:
        yield Check("data directory", Grade.OK, "none here: talking to a daemon elsewhere")
        return
    try:
        mode = stat.S_IMODE(target.data_dir.stat().st_mode)
        free = shutil.disk_usage(target.data_dir).free
    except OSError as error:
        yield Check("data directory", Grade.FAILED, str(error), "check its path and its owner")
        return
    shown = f"{target.data_dir}, mode {mode:04o}, {free / 2**30:.1f} GiB free"
    if mode & 0o077:
        yield Check("data directory", Grade.FAILED, shown, f"chmod 700 {target.data_dir}")
    elif free < FREE_BYTES_MIN:
        yield Check("data directory", Grade.WARNING, shown, "make room: a full disk stops writes")
    else:
        yield Check("data directory", Grade.OK, shown)


def _nvml_check() -> Check:
    # The driver's library alone: what it reports is the daemon's business.
    try:
        ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return Check(
            "NVML",
            Grade.WARNING,
            "no NVIDIA driver library on this box",
            "a daemon here offers CPUs only; `haversack up --virtual 4x8:H100` offers simulated"
            " GPUs to try things out",
        )
    return Check("NVML", Grade.OK, "the NVIDIA driver library loads on this box")


def _server_checks(session: Session, target: Target) -> Iterator[Check]:
    from api.client import Client  # noqa: PLC0415 - httpx is slow to import

    with Client(
        target.address,
        target.token,
        transport=session.transport,
        verify=session.trusted(),
    ) as client:
        try:
            server = client.health()["version"]
        except HaversackError as error:
            yield _failed("server", error)
            return
        yield Check("server", Grade.OK, f"answers at {target.address}")
        yield skew(installed_version("haversack"), server)
        yield _clock_check(session, target)
        yield _asked("readiness", lambda: _readiness(client.ready()))
        if target.token:
            yield _asked(
                "authorisation",
                lambda: Check(
                    "authorisation",
                    Grade.OK,
                    f"the token is honoured; queues seen: {len(client.queues())}",
                ),
            )


def _asked(name: str, question: Callable[[], Check]) -> Check:
    try:
        return question()
    except HaversackError as error:
        return _failed(name, error)


def _readiness(told: ReadyOut) -> Check:
    if told["troubles"]:
        shown = _by_part(told["troubles"])
        return Check("readiness", Grade.FAILED, shown, "see the daemon's log", ExitCode.ERROR)
    if told.get("role") == "standby":
        return Check(
            "readiness",
            Grade.WARNING,
            "this replica stands by while another leads",
            "ask the Service, which reaches the leader",
        )
    if warnings := told.get("warnings"):
        return Check("readiness", Grade.WARNING, _by_part(warnings), _SAFEGUARDS)
    return Check("readiness", Grade.OK, "every part of the daemon works")


def _by_part(told: dict[str, str]) -> str:
    return "; ".join(f"{part}: {why}" for part, why in sorted(told.items()))


def _clock_check(session: Session, target: Target) -> Check:
    import httpx  # noqa: PLC0415 - slow to import, and here already

    # The typed client hides headers; this one is for the Date header alone, without the token.
    with httpx.Client(
        transport=session.transport,
        trust_env=False,
        verify=session.trusted(),
    ) as bare:
        try:
            before = session.clock.now()
            date = bare.get(f"{target.address}/healthz").headers.get("date", "")
            ahead_s = parsedate_to_datetime(date).timestamp() - before
        except (httpx.TransportError, ValueError) as error:
            return Check("clocks", Grade.WARNING, f"the server's clock cannot be read: {error}")
    if abs(ahead_s) <= CLOCK_SKEW_MAX_S:
        return Check("clocks", Grade.OK, "server and terminal agree")
    way = "ahead of" if ahead_s > 0 else "behind"
    return Check(
        "clocks",
        Grade.WARNING,
        f"the server is {abs(ahead_s):.0f} s {way} this box",
        "ages and expiry times will look wrong; synchronise both with NTP",
    )


def skew(client: str, server: str) -> Check:
    """Whether the two versions may work together: equal major, at most two minors apart."""
    shown = f"client {client}, server {server}"
    try:
        mine, theirs = _major_minor(client), _major_minor(server)
    except ValueError:
        return Check("versions", Grade.WARNING, f"{shown}: not comparable")
    if mine[0] == theirs[0] and abs(mine[1] - theirs[1]) <= MINOR_SKEW_MAX:
        return Check("versions", Grade.OK, shown)
    older = "client" if mine < theirs else "server"
    return Check(
        "versions",
        Grade.FAILED,
        f"{shown}: too far apart",
        f"upgrade the {older}: it is the older one",
        ExitCode.ERROR,
    )


def _major_minor(text: str) -> tuple[int, int]:
    major, minor = text.split(".")[:2]
    return int(major), int(minor)


def version(
    context: typer.Context,
    *,
    check: Annotated[bool, typer.Option("--check", help="Compare with the server's.")] = False,
    output: OutputOption = Format.TABLE,
    as_json: JsonOption = False,
) -> None:
    """Print the version; with --check, whether client and server fit."""
    mine = installed_version("haversack")
    form = chosen(output, as_json=as_json)
    if not check:
        show_one({"client": mine}, form, lambda found: str(found["client"]), name="client")
        return
    session = session_of(context)
    with session.connect() as client:
        server = client.health()["version"]
    result = skew(mine, server)
    show_one(
        {"client": mine, "server": server, "compatible": result.grade is not Grade.FAILED},
        form,
        lambda found: f"client {found['client']}\nserver {found['server']}",
        name="client",
    )
    if result.grade is Grade.FAILED:
        hint(f"{result.detail}; {result.hint}")
        raise typer.Exit(result.code)


def register(app: typer.Typer) -> None:
    """Add these commands to `app`."""
    panel = "Help"
    app.command(rich_help_panel=panel)(doctor)
    app.command(rich_help_panel=panel)(version)
