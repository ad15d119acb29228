"""Random labels, taints, sites and further resources, for clusters and jobs that use them."""

from __future__ import annotations

import random

from scheduler.model.site import (
    NODE_NAME_FIELD,
    Amounts,
    Effect,
    Operator,
    Requirement,
    Site,
    Taint,
    Term,
    Toleration,
    TolerationOperator,
    port_amounts,
)

VALUES = {
    "kind": ("fast", "slow"),
    "zone": ("a", "b", "c"),
    "cores": ("8", "64", "many"),
}
PORT = port_amounts("TCP", 80)
PORT_OF_ONE = port_amounts("TCP", 80, "10.0.0.1")


def random_labels(rng: random.Random, name: str) -> tuple[tuple[str, str], ...]:
    """The host name, and some of `VALUES`."""
    some = [(key, rng.choice(values)) for key, values in VALUES.items() if rng.random() < 0.7]
    return tuple(sorted([("host", name), *some]))


def random_taints(rng: random.Random) -> tuple[Taint, ...]:
    """None for the larger part."""
    if rng.random() < 0.6:
        return ()
    keys = rng.sample(["busy", "gpu"], rng.choice([1, 2]))
    return tuple(
        sorted(Taint(key, rng.choice(["", "yes"]), rng.choice(list(Effect))) for key in keys)
    )


def random_requirement(rng: random.Random) -> Requirement:
    """Of any operator, also such as nobody meets."""
    key = rng.choice([*VALUES, "host", "none"])
    operator = rng.choice(list(Operator))
    if operator in (Operator.GREATER, Operator.LESS):
        return Requirement(key, operator, (rng.choice(["8", "32", "?"]),))
    if operator in (Operator.EXISTS, Operator.DOES_NOT_EXIST):
        return Requirement(key, operator)
    known = [*VALUES.get(key, ("n0", "n1", "node00", "node03")), "other"]
    return Requirement(key, operator, tuple(sorted(rng.sample(known, rng.choice([1, 2])))))


def random_term(rng: random.Random) -> Term:
    """One or two labels, at times a name, at times nothing."""
    fields: tuple[Requirement, ...] = ()
    if rng.random() < 0.2:
        operator = rng.choice([Operator.IN, Operator.NOT_IN])
        fields = (Requirement(NODE_NAME_FIELD, operator, ("n1", "node01")),)
    return Term(tuple(random_requirement(rng) for _ in range(rng.choice([0, 1, 1, 2]))), fields)


def random_toleration(rng: random.Random) -> Toleration:
    """Of one key or of all, for one effect or all."""
    return Toleration(
        rng.choice(["", "busy", "gpu"]),
        rng.choice(list(TolerationOperator)),
        rng.choice(["", "yes"]),
        rng.choice(["", *Effect]),
    )


def random_site(rng: random.Random) -> Site:
    """Mostly something that some node meets."""
    key = rng.choice(list(VALUES))
    return Site(
        selector=((key, rng.choice(VALUES[key])),) if rng.random() < 0.4 else (),
        terms=(
            tuple(sorted(random_term(rng) for _ in range(rng.choice([0, 1, 1, 2]))))
            if rng.random() < 0.4
            else None
        ),
        tolerations=(
            tuple(sorted(random_toleration(rng) for _ in range(2))) if rng.random() < 0.6 else ()
        ),
        node_name=rng.choice(["n1", "node01"]) if rng.random() < 0.1 else "",
    )


def random_capacity(rng: random.Random) -> Amounts:
    """What a node has of further resources; a port may be taken already."""
    found = {"pods": rng.choice([1, 2, 5])}
    if rng.random() < 0.5:
        found["rdma/hca"] = rng.choice([1, 2])
    if rng.random() < 0.2:
        found[PORT[0][0]] = 0
    return tuple(sorted(found.items()))


def random_extras(rng: random.Random) -> Amounts:
    """What a task takes of further resources."""
    found: dict[str, int] = {}
    if rng.random() < 0.6:
        found["pods"] = 1
    if rng.random() < 0.3:
        found["rdma/hca"] = 1
    if rng.random() < 0.3:
        found |= dict(rng.choice([PORT, PORT_OF_ONE]))
    return tuple(sorted(found.items()))
