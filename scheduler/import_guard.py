"""Our import names are plain words; this refuses to start when another distribution shares them.

`scheduler`, `api` and the rest are ordinary top-level packages (ADR-0001 says why). If another
installed distribution brings a package of the same name, Python silently takes whichever comes
first; a daemon must not run on such luck.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Iterable, Mapping
from pathlib import Path

from scheduler.errors import ConfigurationError

DISTRIBUTION = "haversack"
NAMES = ("scheduler", "api", "policies", "predictors")
"""Every top-level package name that is ours, present in this version or reserved."""


def check() -> None:
    """Refuse to start when one of our package names is not ours. Some 50 ms: reads metadata.

    Raises:
        ConfigurationError: another distribution owns one of our names, or Python would import
            one of them from somewhere else than this installation.
    """
    check_owners(importlib.metadata.packages_distributions())
    check_places((name, _origin(name)) for name in NAMES)


def check_owners(owners: Mapping[str, Iterable[str]]) -> None:
    """Refuse when a distribution other than ours provides one of our names.

    Args:
        owners: distributions by the top-level package they provide.

    Raises:
        ConfigurationError: with the names and their other owners.
    """
    foreign = {
        name: sorted({owner for owner in owners.get(name, ()) if owner.lower() != DISTRIBUTION})
        for name in NAMES
    }
    clashes = [
        f"{name} (also in {', '.join(others)})" for name, others in foreign.items() if others
    ]
    if clashes:
        raise ConfigurationError(
            f"other installed distributions bring packages of our names: {'; '.join(clashes)}",
            hint="install haversack into a virtual environment of its own",
        )


def check_places(origins: Iterable[tuple[str, Path | None]]) -> None:
    """Refuse when a package of ours would be imported from somewhere else.

    Args:
        origins: name and folder of each package; None for one that is not installed.

    Raises:
        ConfigurationError: with the first stray package and its place.
    """
    home = Path(__file__).resolve().parent.parent
    for name, origin in origins:
        if origin is not None and origin.resolve().parent != home:
            raise ConfigurationError(
                f"the package {name!r} would be imported from {origin}, not from {home}",
                hint="unset PYTHONPATH, or start haversack from another folder",
            )


def _origin(name: str) -> Path | None:
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations)))
