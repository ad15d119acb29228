"""A pod's container as a process of this machine: what to run, with which environment."""

from __future__ import annotations

import ctypes
import os
import re
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

Json = dict[str, Any]

_LOOPBACK = "127.0.0.1"
_REFERENCE = re.compile(r"\$\$|\$\((\w[\w.-]*)\)")
_KEPT = ("PATH", "LANG", "LD_LIBRARY_PATH", "TMPDIR")
_KEYED_FIELD = re.compile(r"metadata\.(annotations|labels)\['([^']+)'\]")
_UNITS: Mapping[str, int | Fraction] = {
    "": 1,
    "m": Fraction(1, 1000),
    "k": 10**3,
    "M": 10**6,
    "G": 10**9,
    "T": 10**12,
    "Ki": 2**10,
    "Mi": 2**20,
    "Gi": 2**30,
    "Ti": 2**40,
}


class NotRunnableError(Exception):
    """A container that a kubelet could not start either, or that this one does not understand."""


@dataclass(frozen=True, slots=True)
class Launch:
    """What to run.

    Attributes:
        argv: command and arguments.
        env: the whole environment.
        folder: working directory.
    """

    argv: tuple[str, ...]
    env: Mapping[str, str]
    folder: Path


def launch_of(pod: Json, folder: Path, extra: Mapping[str, str]) -> Launch:
    """What a pod's first container runs here.

    There is no image: the command must exist on this machine, and PATH is kept. `workingDir`
    holds where it exists here. There is no cluster DNS either: names below the pod's subdomain,
    `<hostname>.<subdomain>[.<namespace>[.svc[...]]]`, become 127.0.0.1 wherever they occur in
    environment or arguments, as all pods run on this machine. Two gangs therefore need two ports.

    Args:
        pod: as stored.
        folder: the pod's own.
        extra: environment beneath what the pod says.

    Raises:
        NotRunnableError: no command, or an environment from sources that are not supported.
    """
    container = pod["spec"]["containers"][0]
    if not container.get("command"):
        raise NotRunnableError("without an image a container needs a command")
    env = {name: os.environ[name] for name in _KEPT if name in os.environ}
    env |= {"HOME": str(folder), "HOSTNAME": _hostname(pod), **extra}
    if container.get("envFrom"):
        raise NotRunnableError("envFrom is not supported")
    for entry in container.get("env") or ():
        env[entry["name"]] = _local(pod, _value(pod, entry, env))
    words = [*container["command"], *(container.get("args") or ())]
    argv = tuple(_local(pod, _expanded(word, env)) for word in words)
    wanted = container.get("workingDir", "")
    return Launch(argv, env, Path(wanted) if wanted and Path(wanted).is_dir() else folder)


def _hostname(pod: Json) -> str:
    return str(pod["spec"].get("hostname") or pod["metadata"]["name"])


def _value(pod: Json, entry: Json, env: Mapping[str, str]) -> str:
    source = entry.get("valueFrom")
    if not source:
        return _expanded(entry.get("value") or "", env)
    if "fieldRef" in source:
        return _field(pod, source["fieldRef"]["fieldPath"])
    if "resourceFieldRef" in source:
        kind, _, name = source["resourceFieldRef"]["resource"].partition(".")
        resources = pod["spec"]["containers"][0].get("resources") or {}
        amount = (resources.get(kind) or {}).get(name, "0")
        divisor = amount_of(source["resourceFieldRef"].get("divisor") or "1") or 1
        return str(-(-amount_of(amount) // divisor))
    raise NotRunnableError(f"environment {entry['name']} from {sorted(source)} is not supported")


def _field(pod: Json, path: str) -> str:
    """The downward API's fields."""
    keyed = _KEYED_FIELD.fullmatch(path)
    if keyed:
        return str((pod["metadata"].get(keyed[1]) or {}).get(keyed[2], ""))
    if path in ("status.podIP", "status.hostIP"):
        return _LOOPBACK
    at: Any = pod
    for step in path.split("."):
        at = at.get(step) if isinstance(at, dict) else None
    if not isinstance(at, str):
        raise NotRunnableError(f"field {path} is not supported")
    return at


def _expanded(text: str, env: Mapping[str, str]) -> str:
    """`$(NAME)` filled in; an unknown name stays as it is, `$$` is one dollar."""

    def fill(found: re.Match[str]) -> str:
        return "$" if found[0] == "$$" else env.get(found[1], found[0])

    return _REFERENCE.sub(fill, text)


def _local(pod: Json, text: str) -> str:
    subdomain = pod["spec"].get("subdomain")
    if not subdomain:
        return text
    namespace = re.escape(pod["metadata"]["namespace"])
    name = rf"[a-z0-9](?:[a-z0-9-]*[a-z0-9])?\.{re.escape(subdomain)}"
    pattern = rf"(?<![\w.-]){name}(?:\.{namespace}(?:\.svc(?:\.[a-z0-9.]*[a-z0-9])?)?)?(?![\w.-])"
    return re.sub(pattern, _LOOPBACK, text)


def amount_of(text: str) -> Fraction:
    """A quantity as a number; an independent reading of the suffixes that tests use.

    Raises:
        KeyError: another suffix.
    """
    number = text.rstrip("mkMGTi")
    return Fraction(number) * _UNITS[text[len(number) :]]


def requested(pod: Json) -> dict[str, Fraction]:
    """What the containers ask for, and one place among the node's pods."""
    total = {"pods": Fraction(1)}
    for container in pod["spec"]["containers"]:
        for name, amount in ((container.get("resources") or {}).get("requests") or {}).items():
            total[name] = total.get(name, Fraction(0)) + amount_of(amount)
    return total


_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)


def die_with_parent() -> None:
    """Have the kernel end this process when a session that was killed cannot."""
    _libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
