"""Which namespace a command is about: the one it names, else the one kubectl is set to."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from scheduler.cli.kubectl.refusals import UsageError

DEFAULT: Final = "default"


def current(environ: Mapping[str, str]) -> str:
    """The namespace of the kubeconfig's current context, as kubectl finds it; else `default`.

    Of the files in KUBECONFIG the first that names a context, and the first that describes it,
    count; without KUBECONFIG it is `.kube/config` in HOME. Files that are not there do not matter.

    Raises:
        UsageError: a file cannot be read as a kubeconfig.
    """
    files = list(map(_kubeconfig, _paths(environ)))
    chosen = next((text for file in files if (text := file.get("current-context"))), "")
    for file in files:
        for entry in _dicts(file.get("contexts")):
            if entry.get("name") == chosen:
                context = entry.get("context")
                named = context.get("namespace") if isinstance(context, dict) else None
                return named if isinstance(named, str) and named else DEFAULT
    return DEFAULT


def _paths(environ: Mapping[str, str]) -> list[Path]:
    if named := environ.get("KUBECONFIG"):
        return [Path(path) for path in named.split(os.pathsep) if path]
    home = environ.get("HOME")
    return [Path(home) / ".kube" / "config"] if home else []


def _kubeconfig(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeError) as error:
        raise UsageError(f"the kubeconfig {path} cannot be read: {error}") from error
    import yaml  # noqa: PLC0415 - only who has a kubeconfig need wait for it

    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError(f"the kubeconfig {path} is not YAML: {error}") from error
    return found if isinstance(found, dict) else {}


def _dicts(found: object) -> Iterator[dict[str, Any]]:
    return (each for each in (found if isinstance(found, list) else []) if isinstance(each, dict))
