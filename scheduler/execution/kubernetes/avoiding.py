"""Remembers where kube-scheduler refused pods, so that the next ones are not pinned there again."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from scheduler.clock import Clock
from scheduler.execution.kubernetes.marks import pin_of
from scheduler.execution.kubernetes.members import membership
from scheduler.execution.kubernetes.pods import Pod
from scheduler.model.site import NODE_NAME_FIELD, Operator, Requirement, Site, Term

AVOID_S: Final = 300.0
"""A node on which a pod was refused is not tried again for so long by those made in its place."""


@dataclass(slots=True)
class Avoided:
    """Nodes on which kube-scheduler has refused pods of a maker.

    Attributes:
        clock: for how long.
    """

    clock: Clock
    _until_s: dict[tuple[str, str], float] = field(default_factory=dict)

    def remember(self, pod: Pod) -> None:
        """It was refused where it is pinned."""
        self._until_s[_maker(pod), pin_of(pod)] = self.clock.monotonic_s() + AVOID_S

    def nodes(self, pods: Iterable[Pod]) -> tuple[str, ...]:
        """Where pods made by the makers of these need not be tried now, sorted."""
        if not self._until_s:
            return ()
        makers, now_s = set(map(_maker, pods)), self.clock.monotonic_s()
        found = {
            node
            for (maker, node), until_s in self._until_s.items()
            if maker in makers and now_s < until_s
        }
        return tuple(sorted(found))

    def lapsed(self, among: Iterable[Pod]) -> tuple[Pod, ...]:
        """Of these pods, those to which a node is open again since this was last asked."""
        now_s = self.clock.monotonic_s()
        over = [key for key, until_s in self._until_s.items() if until_s <= now_s]
        for key in over:
            del self._until_s[key]
        makers = {maker for maker, _ in over}
        return tuple(pod for pod in among if _maker(pod) in makers) if makers else ()


def _maker(pod: Pod) -> str:
    """What makes such a pod again: its controller, or whoever uses the name of its group."""
    return pod.owner.uid if pod.owner is not None else membership(pod).group


def off(site: Site, nodes: Sequence[str]) -> Site:
    """The site without some nodes."""
    if not nodes:
        return site
    elsewhere = tuple(Requirement(NODE_NAME_FIELD, Operator.NOT_IN, (node,)) for node in nodes)
    if site.terms is None:
        return replace(site, terms=(Term(fields=elsewhere),))
    narrowed = (
        replace(term, fields=(*term.fields, *elsewhere)) if term.labels or term.fields else term
        for term in site.terms
    )
    return replace(site, terms=tuple(sorted(narrowed)))
