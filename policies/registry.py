"""Profiles by name: the only place, next to `scheduler.main` and tests, that names a policy."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from policies.best_fit import BestFit
from policies.fifo import Fifo
from policies.priority_age import PriorityAge
from scheduler.model.ports import Admission, Profile

PROFILES: Mapping[str, Callable[[], Profile]] = {
    "priority-age": lambda: Profile("priority-age", PriorityAge(), BestFit()),
    "fifo": lambda: Profile("fifo", Fifo(), BestFit(), Admission.IN_ORDER),
}


def profile_named(name: str) -> Profile:
    """A fresh profile.

    Raises:
        ValueError: no policy has that name; the message lists those that exist.
    """
    try:
        return PROFILES[name]()
    except KeyError:
        raise ValueError(
            f"no policy is called {name!r}; known: {', '.join(sorted(PROFILES))}"
        ) from None
