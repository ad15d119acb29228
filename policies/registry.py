"""Profiles by name: the only place, next to `scheduler.main` and tests, that names a policy."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from policies.best_fit import BestFit
from policies.fgd import Fgd
from policies.fifo import Fifo
from policies.least_attained import LeastAttained
from policies.lowest_index import LowestIndex
from policies.placement_score import PlacementScore
from policies.priority_age import PriorityAge
from policies.random_fit import RandomFit
from policies.service_value import ServiceValue
from policies.shortest_first import ShortestFirst, SmallestFirst
from scheduler.model.ports import Admission, Preemption, Profile, QueueOrder, Sees

PROFILES: Mapping[str, Callable[[], Profile]] = {
    # The daemon's default.
    "priority-age": lambda: Profile("priority-age", PriorityAge(), PlacementScore()),
    # The default, but higher priorities take the places of lower ones, as on Kubernetes.
    "priority-preempt": lambda: Profile(
        "priority-preempt", PriorityAge(), PlacementScore(), Admission.SKIP, Preemption.OUTRANK
    ),
    # Ours with preemption: no run times, whoever has had least service first.
    "knapsack": lambda: Profile("knapsack", ServiceValue(), BestFit(), preemption=Preemption.EVICT),
    # Baselines as published schedulers have them: who is next.
    "fifo": lambda: Profile("fifo", Fifo(), BestFit(), Admission.IN_ORDER),
    "fifo-skip": lambda: Profile("fifo-skip", Fifo(), BestFit(), Admission.SKIP),
    "easy": lambda: Profile("easy", Fifo(), BestFit(), Admission.EASY, sees=Sees.LIMITS),
    "las": lambda: _repacking("las", LeastAttained(), Sees.NOTHING),
    "sjf-oracle": lambda: Profile(
        "sjf-oracle", ShortestFirst(), BestFit(), Admission.SKIP, sees=Sees.DURATIONS
    ),
    "srtf-oracle": lambda: _repacking("srtf-oracle", ShortestFirst(), Sees.DURATIONS),
    "srsf-oracle": lambda: _repacking("srsf-oracle", SmallestFirst(), Sees.DURATIONS),
    # Baselines of placement: where, for jobs in order of arrival.
    "best-fit": lambda: Profile("best-fit", Fifo(), BestFit(), Admission.SKIP),
    "fgd": lambda: Profile("fgd", Fifo(), Fgd(), Admission.SKIP),
    "fgd-random-ties": lambda: Profile(
        "fgd-random-ties", Fifo(), Fgd(random_ties=True), Admission.SKIP
    ),
    "lowest-index": lambda: Profile("lowest-index", Fifo(), LowestIndex(), Admission.SKIP),
    "random": lambda: Profile("random", Fifo(), RandomFit(), Admission.SKIP),
    # Our own placement, for jobs in order of arrival.
    "placement": lambda: Profile("placement", Fifo(), PlacementScore(), Admission.SKIP),
}


def _repacking(name: str, order: QueueOrder, sees: Sees) -> Profile:
    return Profile(name, order, BestFit(), Admission.SKIP, Preemption.REPACK, sees)


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
