"""Which nodes a task may sit on: labels, taints, and the demands and tolerations that meet them.

The words and the rules are those of Kubernetes (`NodeSelector`, `Taint`, `Toleration` of API group
core/v1), and hold on a single machine as well, whose nodes have no labels and no taints.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

NODE_NAME_FIELD = "metadata.name"


class Effect(StrEnum):
    """What a taint does to a task that does not tolerate it."""

    NO_SCHEDULE = "NoSchedule"
    PREFER_NO_SCHEDULE = "PreferNoSchedule"
    NO_EXECUTE = "NoExecute"

    @property
    def keeps_off(self) -> bool:
        """Whether new tasks may not come; the other effect is a wish."""
        return self is not Effect.PREFER_NO_SCHEDULE


@dataclass(frozen=True, slots=True, order=True)
class Taint:
    """A mark of a node that keeps tasks off."""

    key: str
    value: str
    effect: Effect

    @property
    def text(self) -> str:
        """As people write it: `gpu=true:NoSchedule`."""
        return (
            f"{self.key}={self.value}:{self.effect}" if self.value else f"{self.key}:{self.effect}"
        )


class TolerationOperator(StrEnum):
    """How a toleration looks at a taint's value."""

    EQUAL = "Equal"
    EXISTS = "Exists"


@dataclass(frozen=True, slots=True, order=True)
class Toleration:
    """Lets a task onto nodes with certain taints.

    Attributes:
        key: the taint's key; "" with EXISTS tolerates every taint.
        operator: whether the value must be equal or is not looked at.
        value: compared under EQUAL.
        effect: the effect tolerated; "" for all.
    """

    key: str = ""
    operator: TolerationOperator = TolerationOperator.EQUAL
    value: str = ""
    effect: str = ""

    def covers(self, taint: Taint) -> bool:
        """Whether the task may ignore the taint."""
        if self.effect and self.effect != taint.effect:
            return False
        if self.key and self.key != taint.key:
            return False
        if self.operator is TolerationOperator.EXISTS:
            return True
        return bool(self.key) and self.value == taint.value


class Operator(StrEnum):
    """How a requirement looks at a label."""

    IN = "In"
    NOT_IN = "NotIn"
    EXISTS = "Exists"
    DOES_NOT_EXIST = "DoesNotExist"
    GREATER = "Gt"
    LESS = "Lt"


_NUMBER = re.compile(r"[+-]?0*(0|[1-9][0-9]{0,18})")


def whole_number(written: str) -> int | None:
    """The number, as kube-scheduler reads it (Go's `ParseInt` of base 10 and 64 bits); or None.

    Python's `int` would take `1_0`, ` 1` and digits of other scripts as well.
    """
    if _NUMBER.fullmatch(written) is None:
        return None
    number = int(written)
    return number if -(2**63) <= number < 2**63 else None


@dataclass(frozen=True, slots=True, order=True)
class Requirement:
    """A demand on one label, or on a field of the node.

    A node without the label meets NOT_IN and DOES_NOT_EXIST, and nothing else. GREATER and LESS
    compare whole numbers; what is no number meets neither.
    """

    key: str
    operator: Operator
    values: tuple[str, ...] = ()

    def met_by(self, labels: Mapping[str, str]) -> bool:
        """Whether a node with these labels will do."""
        found = labels.get(self.key)
        match self.operator:
            case Operator.IN:
                return found is not None and found in self.values
            case Operator.NOT_IN:
                return found is None or found not in self.values
            case Operator.EXISTS:
                return found is not None
            case Operator.DOES_NOT_EXIST:
                return found is None
            case Operator.GREATER | Operator.LESS:
                return found is not None and self._compares(found)

    def _compares(self, found: str) -> bool:
        have, limit = whole_number(found), whole_number(next(iter(self.values), ""))
        if have is None or limit is None:
            return False
        return have > limit if self.operator is Operator.GREATER else have < limit


@dataclass(frozen=True, slots=True, order=True)
class Term:
    """Requirements that must all be met; a term without any is met by no node."""

    labels: tuple[Requirement, ...] = ()
    fields: tuple[Requirement, ...] = ()

    def met_by(self, name: str, labels: Mapping[str, str]) -> bool:
        """Whether the node of this name with these labels will do."""
        if not self.labels and not self.fields:
            return False
        fields = {NODE_NAME_FIELD: name}
        return all(each.met_by(labels) for each in self.labels) and all(
            each.met_by(fields) for each in self.fields
        )


@dataclass(frozen=True, slots=True, order=True)
class Site:
    """Where a task may sit. Equal values mean the same nodes; write sorted tuples.

    Attributes:
        selector: labels that the node must have, sorted by key.
        terms: at least one must be met; None asks for nothing, () is met by no node.
        tolerations: taints that do not matter, sorted.
        node_name: the only node allowed, or "".
    """

    selector: tuple[tuple[str, str], ...] = ()
    terms: tuple[Term, ...] | None = None
    tolerations: tuple[Toleration, ...] = ()
    node_name: str = ""

    @property
    def demands(self) -> bool:
        """Whether it asks for some nodes only, whatever it tolerates."""
        return bool(self.selector or self.node_name) or self.terms is not None

    def selects(self, name: str, labels: Mapping[str, str]) -> bool:
        """Whether the node of this name with these labels is asked for, whatever its taints."""
        if self.node_name and self.node_name != name:
            return False
        if any(labels.get(key) != value for key, value in self.selector):
            return False
        return self.terms is None or any(term.met_by(name, labels) for term in self.terms)

    def untolerated(self, taints: tuple[Taint, ...]) -> Taint | None:
        """The first taint that keeps the task off, or None."""
        for taint in taints:
            if taint.effect.keeps_off and not any(each.covers(taint) for each in self.tolerations):
                return taint
        return None


ANYWHERE = Site()
"""No demand and no toleration: any node without taints."""

Amounts = tuple[tuple[str, int], ...]
"""Amounts of further resources by name, sorted; names as in `Node.extras`."""


def scaled(amounts: Amounts, times: int) -> Amounts:
    """So many times the amounts."""
    return amounts if times == 1 else tuple((name, each * times) for name, each in amounts)


PORT_PREFIX = "port:"
PORT_WHOLE = 1_000
"""A port on every address of a node; see `port_amounts`."""


def port_amounts(protocol: str, port: int, address: str = "") -> Amounts:
    """What a host port takes of its node.

    Two tasks collide on a (protocol, port) if their addresses are equal or either means all. As
    amounts: all addresses take the whole port, one address takes a part of it, and all of itself.

    Args:
        protocol: TCP, UDP or SCTP.
        port: the host's port.
        address: the host address; "" and 0.0.0.0 mean all. All others are compared as they are
            written, `::` too, as kube-scheduler and the kubelet do.
    """
    name = f"{PORT_PREFIX}{protocol}:{port}"
    if address in ("", "0.0.0.0"):  # noqa: S104 - compared, not bound
        return ((name, PORT_WHOLE),)
    return ((name, 1), (f"{name}:{address}", 1))


def resource_label(name: str) -> str:
    """A resource as people say it: `host port 80/TCP`, `rdma/hca`."""
    if not name.startswith(PORT_PREFIX):
        return name
    protocol, port, *address = name.removeprefix(PORT_PREFIX).split(":", 2)
    return f"host port {port}/{protocol}" + "".join(f" of {each}" for each in address)


def unit_size(name: str) -> int:
    """The amount that people count as one of a resource."""
    return max(1, implied_capacity(name))


def implied_capacity(name: str) -> int:
    """How much of a resource every node has that does not name it: ports all, others none."""
    if not name.startswith(PORT_PREFIX):
        return 0
    return PORT_WHOLE if name.count(":") == 2 else 1  # noqa: PLR2004 - "port:TCP:80"
