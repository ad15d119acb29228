"""The command-line reference, written from the application itself so that it cannot go stale."""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from typing import Any

import typer
from typer.main import get_command

from scheduler.cli.exits import MEANINGS

_HEAD = """\
# Command line

Written by `make docs` from the commands themselves; a test keeps the two equal.

Data goes to stdout, progress and hints to stderr. Every command that reads takes
`-o table|wide|json|yaml|jsonl|name`, and `--json` for `-o json`. Listings in JSON and YAML are
`{kind, items}`; single objects are what the API answers, field by field. Colours are off when
stdout is no terminal or `NO_COLOR` is set; live progress is off when stderr is no terminal or `CI`
is set. A JOB is an id, or a name, of which the newest job counts.

## Which daemon, which token

Each is looked for in this order:

- address: `--server`, `HAVERSACK_SERVER`, `endpoint.json` of the data directory,
  `http://127.0.0.1:8470`;
- token: `--token-file`, `HAVERSACK_TOKEN`, `token` of the data directory;
- data directory: `HAVERSACK_DATA`, else the nearest `.haversack` from the current folder upward.

Token files must have mode 0600. The token of the data directory is sent only to the daemon that
runs there, or to a loopback address.
"""


_KUBECTL_HEAD = """\
# kubectl haversack

Written by `make docs` from the commands themselves; a test keeps the two equal.

The executable `kubectl-haversack` lies beside `haversack`; where it is on the PATH, kubectl runs
it as `kubectl haversack`. It speaks to Haversack's own API, not to that of Kubernetes, and
`--server` is Haversack's address. Address, token and data directory are found as
[`haversack` finds them](cli.md#which-daemon-which-token).

A namespace of Kubernetes is a tenant of Haversack. The namespace is that of `-n`, else that of the
current context in the kubeconfig (`KUBECONFIG`, `~/.kube/config`), else `default`. A job is named
by its name, of which the newest job counts, or by its id, in whatever namespace; `job/NAME` and
what `-o name` prints will do as well.

Data goes to stdout, all else to stderr. The exit status is 0, or 1 if anything went wrong;
`logs -f` ends with 0 however the job ends. Lists in JSON and YAML are `{kind, items}`; single
objects are what the API answers, field by field. There are no labels on jobs, hence no `-l`;
`--field-selector` selects.
"""


def kubectl_markdown(application: typer.Typer) -> str:
    """The whole page of `kubectl haversack`."""
    return f"{_KUBECTL_HEAD}\n{_body(get_command(application), 'kubectl haversack')}"


def markdown(application: typer.Typer) -> str:
    """The whole page of `haversack`."""
    lines = [_HEAD, "## Exit codes\n", "| Code | Meaning |", "| --- | --- |"]
    lines += [f"| {code.value} | {meaning} |" for code, meaning in MEANINGS.items()]
    return "\n".join([*lines, "", _body(get_command(application), "haversack")])


def _body(root: Any, program: str) -> str:
    """Options and commands of a program."""
    lines = ["## Global options", "", *_options(root)]
    commands = sorted(_commands(root, program))
    lines += ["", "## Commands", "", "| Command | What it does |", "| --- | --- |"]
    lines += [
        f"| [`{name}`](#{name.replace(' ', '-')}) | {_first(command.help)} |"
        for name, command in commands
    ]
    for name, command in commands:
        lines += ["", f"## {name}", "", _text(command.help), "", f"`{_usage(name, command)}`"]
        options = list(_options(command))
        lines += ["", *options] if options else []
        if command.epilog:
            lines += ["", "```sh", *command.epilog.strip().splitlines(), "```"]
    return "\n".join(lines) + "\n"


def _commands(group: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _commands(command, f"{prefix} {name}")
        elif not command.hidden:
            yield f"{prefix} {name}", command


def _usage(name: str, command: Any) -> str:
    words = [name]
    words += [
        param.metavar if param.required else f"[{param.metavar}]"
        for param in command.params
        if param.param_type_name == "argument"
    ]
    words += [
        f"{param.opts[0]} {_metavar(param)}"
        for param in command.params
        if param.param_type_name == "option" and param.required
    ]
    return " ".join([*words, "[OPTIONS]"])


def _options(command: Any) -> Iterator[str]:
    shown = [
        param
        for param in command.params
        if param.param_type_name == "option" and param.name not in ("help", "install_completion")
    ]
    arguments = [param for param in command.params if param.param_type_name == "argument"]
    for param in arguments:
        yield f"- `{param.metavar}`: {_text(param.help)}"
    for param in shown:
        if param.name == "show_completion":
            continue
        names = ", ".join(f"`{name}`" for name in param.opts)
        value = "" if param.is_flag else f" `{_metavar(param)}`"
        default = (
            "" if param.default in (None, False, "", ()) or param.required else _default(param)
        )
        yield f"- {names}{value}: {_text(param.help)}{default}"


def _metavar(param: Any) -> str:
    if param.metavar:
        return str(param.metavar)
    if isinstance(param.default, Enum):
        return "|".join(str(choice.value) for choice in type(param.default))
    return str(param.name).upper()


def _default(param: Any) -> str:
    return f" Default `{getattr(param.default, 'value', param.default)}`."


def _first(help_text: str | None) -> str:
    """The first paragraph alone."""
    return _text((help_text or "").split("\n\n")[0])


def _text(help_text: str | None) -> str:
    text = " ".join((help_text or "").split())
    return text if not text or text.endswith((".", "?")) else f"{text}."
