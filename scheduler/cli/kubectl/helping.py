"""Help as kubectl writes it: what it does, examples, options with their defaults, usage."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from inspect import cleandoc
from typing import Any, Final

PROGRAM: Final = "kubectl haversack"


def of_program(group: Any) -> str:
    """Help of the program; `group` is the command that holds all others."""
    width = max(map(len, group.commands)) + 2
    lines = [
        *_paragraphs(group.help),
        "",
        "Available Commands:",
        *(f"  {name:<{width}}{_short(each)}" for name, each in sorted(group.commands.items())),
        "",
        "Options:",
        *_options(group.params),
        "Usage:",
        f"  {PROGRAM} [command] [flags]",
        "",
        f'Use "{PROGRAM} [command] --help" for more information about a given command.',
    ]
    return "\n".join(lines)


def of_command(command: Any) -> str:
    """Help of one command; its examples are its epilog."""
    arguments = [param for param in command.params if param.param_type_name == "argument"]
    lines = [*_paragraphs(command.help)]
    if command.epilog:
        lines += ["", "Examples:"]
        lines += [f"  {line}".rstrip() for line in command.epilog.strip().splitlines()]
    options = list(_options(command.params))
    if options:
        lines += ["", "Options:", *options[:-1]]
    usage = " ".join([PROGRAM, command.name, *(param.metavar for param in arguments)])
    lines += [
        "",
        "Usage:",
        f"  {usage} [options]",
        "",
        f'Use "{PROGRAM} --help" for the options that every command takes.',
    ]
    return "\n".join(lines)


def _paragraphs(text: str | None) -> list[str]:
    return cleandoc(text or "").splitlines()


def _short(command: Any) -> str:
    first, *_ = _paragraphs(command.help)
    return first.rstrip(".")


def _options(params: Iterable[Any]) -> Iterator[str]:
    shown = [
        (max(param.opts, key=len), param)
        for param in params
        if param.param_type_name == "option" and param.name != "help"
    ]
    for long, param in sorted(shown, key=lambda each: each[0]):
        short = "".join(f"{name}, " for name in param.opts if not name.startswith("--"))
        yield f"    {short}{long}={_default(param)}:"
        yield f"        {' '.join((param.help or '').split())}"
        yield ""


def _default(param: Any) -> str:
    value = getattr(param.default, "value", param.default)
    if param.is_flag:
        return str(bool(value)).lower()
    if isinstance(value, int):
        return str(value)
    return f"'{value or ''}'"
