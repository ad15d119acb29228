"""The program `kubectl-haversack`: options that every command takes, commands, errors."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from typer.core import TyperCommand, TyperGroup
from typing_extensions import override

from scheduler.cli.context import Session
from scheduler.cli.kubectl import describe, explain, get, helping, verbs
from scheduler.cli.kubectl.call import Call
from scheduler.cli.kubectl.refusals import FAILED, refusal
from scheduler.errors import HaversackError

_WrongUsage: Final[type[Exception]] = typer.BadParameter.__bases__[0]
"""What Typer raises for a command line it cannot read; its own Click has no public name for it."""


class Verb(TyperCommand):
    """A command that explains itself in kubectl's manner."""

    @override
    def get_help(self, ctx: Any) -> str:  # Typer's own Click is private
        """Its help."""
        return helping.of_command(self)


class Verbs(TyperGroup):
    """The commands. Options of the program may stand behind the command too, as with kubectl."""

    @override
    def get_help(self, ctx: Any) -> str:
        """Help of the program."""
        return helping.of_program(self)

    @override
    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Bring the program's options before the command."""
        params: list[Any] = list(self.params)
        own = [name for param in params if not param.is_flag for name in param.opts]
        return super().parse_args(ctx, in_front(args, own))

    @override
    def main(self, *args: Any, **options: Any) -> Any:
        """Run a command line and end the process: 0, or 1 with the reason on stderr."""
        try:
            code = super().main(*args, **{**options, "standalone_mode": False})
        except HaversackError as error:
            _fail(refusal(error))
        except _WrongUsage as error:
            # Typer knows the words, and the command they are about.
            told = error.format_message()  # type: ignore[attr-defined]
            about = getattr(error, "ctx", None)
            command = helping.PROGRAM if about is None else about.command_path
            _fail(f"error: {told}\nSee '{command} --help' for usage.")
        raise SystemExit(code or 0)


def in_front(args: Iterable[str], own: Sequence[str]) -> list[str]:
    """The command line with the options `own`, which all take a value, and their values first."""
    front: list[str] = []
    rest: list[str] = []
    words = iter(args)
    for word in words:
        if word == "--":
            rest += [word, *words]
        elif word in own:
            front += [word, *([value] if (value := next(words, None)) is not None else [])]
        elif word.partition("=")[0] in own or (word[:2] in own and not word.startswith("--")):
            front.append(word)
        else:
            rest.append(word)
    return front + rest


def _fail(told: str) -> None:
    sys.stderr.write(f"{told}\n")
    raise SystemExit(FAILED)


app = typer.Typer(
    name=helping.PROGRAM,
    cls=Verbs,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def options(
    context: typer.Context,
    *,
    server: Annotated[
        str | None,
        typer.Option(
            "--server",
            "-s",
            metavar="URL",
            help="Haversack's address, not that of the Kubernetes API; or HAVERSACK_SERVER.",
        ),
    ] = None,
    token_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="File with your token, mode 0600; or HAVERSACK_TOKEN."),
    ] = None,
    ca_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="CA certificates to trust; or HAVERSACK_CA_FILE."),
    ] = None,
    namespace: Annotated[
        str,
        typer.Option(
            "--namespace",
            "-n",
            metavar="NAMESPACE",
            help="Namespace, which Haversack calls tenant; else that of kubectl's context.",
        ),
    ] = "",
) -> None:
    """See what the Haversack scheduler decides, and why; submit jobs to it, and cancel them.

    It speaks to Haversack's own API, with the address and token that `haversack` would use.
    """
    session = context.obj if isinstance(context.obj, Session) else Session()
    with_options = session.with_options(server=server, token_file=token_file, ca_file=ca_file)
    context.obj = Call(with_options, namespace)
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


for verb, examples in (
    (get.get, get.EXAMPLES),
    (describe.describe, describe.EXAMPLES),
    (explain.explain, explain.EXAMPLES),
    (verbs.submit, verbs.SUBMIT_EXAMPLES),
    (verbs.cancel, verbs.CANCEL_EXAMPLES),
    (verbs.logs, verbs.LOGS_EXAMPLES),
):
    app.command(cls=Verb, epilog=examples)(verb)


def run() -> None:
    """Entry point of the console script, which kubectl runs as `kubectl haversack`."""
    try:
        app(prog_name=helping.PROGRAM)
    except BrokenPipeError:
        # The reader of our output left (`... | head`): nothing is wrong.
        sys.stderr.close()
        raise SystemExit(0) from None
