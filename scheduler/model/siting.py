"""Which nodes sites select and tolerate, for all nodes at once.

A cluster has few different values of most labels and few different sets of taints, so a demand is
judged once a value, by `site`'s own definition, and looked up for every node. What was asked once
is remembered. Where no node has a taint and nobody asks for a label, nothing is ever worked out.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from functools import reduce

import numpy as np
from numpy.typing import NDArray

from scheduler.model.node import Node
from scheduler.model.site import (
    NODE_NAME_FIELD,
    Operator,
    Requirement,
    Site,
    Term,
)

Rows = NDArray[np.bool_]
"""(N,) whether a node will do. Read-only: many ask for the same."""
_Column = tuple[Mapping[str | None, int], NDArray[np.int64]]
"""Values by code, None where the label is missing, and the (N,) codes of the nodes."""
_KEPT = 1_024
"""Answers that are remembered of each sort: kinds of work come all the time, and none says that it
is the last."""


class Siting:
    """The names, labels and taints of N nodes.

    Attributes:
        tainted: whether any node has a taint that keeps tasks off.
        known: answers of whoever combines these with something else, by their own keys.
    """

    __slots__ = (
        "_columns",
        "_dicts",
        "_labels",
        "_names",
        "_selected",
        "_taints",
        "_tolerated",
        "known",
        "tainted",
    )

    def __init__(self, nodes: Sequence[Node], dicts: list[Mapping[str, str]] | None = None) -> None:
        """Take over `nodes`; `dicts` are their labels, if somebody made mappings of them before."""
        self._names = [node.name for node in nodes]
        self._labels = [node.labels for node in nodes]
        self._taints = [node.taints for node in nodes]
        self._dicts = dicts
        self._columns: dict[tuple[str, bool], _Column] = {}
        self._selected: dict[Hashable, Rows] = {}
        self._tolerated: dict[Hashable, Rows] = {}
        self.known: dict[Hashable, Rows] = {}
        self.tainted = any(t.effect.keeps_off for taints in self._taints for t in taints)

    def selected(self, site: Site) -> Rows:
        """(N,) nodes that the site asks for, whatever their taints. O(N) for each new demand."""
        key = (site.selector, site.terms, site.node_name)
        return remembered(self._selected, key, lambda: self._select(site))

    def tolerated(self, site: Site) -> Rows:
        """(N,) nodes without a taint that keeps such tasks off. O(N) for each new toleration."""
        return remembered(self._tolerated, site.tolerations, lambda: self._tolerate(site))

    def after(self, nodes: Sequence[Node], rows: Collection[int]) -> Siting:
        """What holds after these rows of `nodes` changed; itself when that is no matter here."""
        same = all(
            nodes[row].labels == self._labels[row] and nodes[row].taints == self._taints[row]
            for row in rows
        )
        if same:
            return self
        dicts = None if self._dicts is None else list(self._dicts)
        if dicts is not None:
            for row in rows:
                dicts[row] = dict(nodes[row].labels)
        return Siting(nodes, dicts)

    def _select(self, site: Site) -> Rows:
        right: Rows = np.ones(len(self._names), dtype=np.bool_)
        if site.node_name:
            right = self._meets(_is(NODE_NAME_FIELD, site.node_name), of_field=True)
        for key, value in site.selector:
            right = right & self._meets(_is(key, value), of_field=False)
        if site.terms is not None:
            none: Rows = np.zeros_like(right)
            right = right & reduce(np.logical_or, map(self._meets_term, site.terms), none)
        return right

    def _meets_term(self, term: Term) -> Rows:
        if not term.labels and not term.fields:
            return np.zeros(len(self._names), dtype=np.bool_)
        parts = [self._meets(each, of_field=False) for each in term.labels]
        parts += [self._meets(each, of_field=True) for each in term.fields]
        return reduce(np.logical_and, parts)

    def _meets(self, requirement: Requirement, *, of_field: bool) -> Rows:
        """(N,) nodes that meet a demand on one label, or on a field of the node."""
        values, codes = self._column(requirement.key, of_field=of_field)
        met = np.zeros(len(values), dtype=np.bool_)
        if requirement.operator is Operator.IN:  # looked up: there may be as many values as nodes
            met[[values[value] for value in requirement.values if value in values]] = True
        else:
            for value, code in values.items():
                met[code] = requirement.met_by({} if value is None else {requirement.key: value})
        return met[codes]

    def _column(self, key: str, *, of_field: bool) -> _Column:
        column = self._columns.get((key, of_field))
        if column is None:
            column = self._columns[key, of_field] = _coded(self._values(key, of_field=of_field))
        return column

    def _values(self, key: str, *, of_field: bool) -> Sequence[str | None]:
        if of_field:
            return self._names if key == NODE_NAME_FIELD else [None] * len(self._names)
        if self._dicts is None:
            self._dicts = [dict(labels) for labels in self._labels]
        return [labels.get(key) for labels in self._dicts]

    def _tolerate(self, site: Site) -> Rows:
        judged = {taints: site.untolerated(taints) is None for taints in set(self._taints)}
        return np.array([judged[taints] for taints in self._taints], dtype=np.bool_)


def _is(key: str, value: str) -> Requirement:
    return Requirement(key, Operator.IN, (value,))


def _coded(values: Sequence[str | None]) -> _Column:
    codes: dict[str | None, int] = {}
    found = [codes.setdefault(value, len(codes)) for value in values]
    return codes, np.array(found, dtype=np.int64)


def remembered(known: dict[Hashable, Rows], key: Hashable, found: Callable[[], Rows]) -> Rows:
    """The known answer for `key`, else the one found now."""
    rows = known.get(key)
    if rows is None:
        if len(known) >= _KEPT:
            known.clear()
        rows = known[key] = found()
    return rows
