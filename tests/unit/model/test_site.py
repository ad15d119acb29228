from __future__ import annotations

import pytest

from scheduler.model.site import (
    ANYWHERE,
    NODE_NAME_FIELD,
    Effect,
    Operator,
    Requirement,
    Site,
    Taint,
    Term,
    Toleration,
    TolerationOperator,
    implied_capacity,
    port_amounts,
    resource_label,
    scaled,
    unit_size,
    whole_number,
)

LABELS = {"gpu": "a100", "cores": "64", "empty": ""}


@pytest.mark.parametrize(
    ("key", "operator", "values", "met"),
    [
        ("gpu", Operator.IN, ("h100", "a100"), True),
        ("gpu", Operator.IN, ("h100",), False),
        ("gpu", Operator.IN, (), False),
        ("none", Operator.IN, ("a100",), False),
        ("empty", Operator.IN, ("",), True),
        ("gpu", Operator.NOT_IN, ("a100",), False),
        ("gpu", Operator.NOT_IN, ("h100",), True),
        ("none", Operator.NOT_IN, ("a100",), True),
        ("gpu", Operator.EXISTS, (), True),
        ("none", Operator.EXISTS, (), False),
        ("gpu", Operator.DOES_NOT_EXIST, (), False),
        ("none", Operator.DOES_NOT_EXIST, (), True),
        ("cores", Operator.GREATER, ("63",), True),
        ("cores", Operator.GREATER, ("64",), False),
        ("cores", Operator.LESS, ("65",), True),
        ("cores", Operator.LESS, ("64",), False),
        ("gpu", Operator.GREATER, ("1",), False),
        ("gpu", Operator.LESS, ("1",), False),
        ("cores", Operator.GREATER, ("many",), False),
        ("cores", Operator.LESS, (), False),
        ("none", Operator.LESS, ("9",), False),
        ("cores", Operator.GREATER, ("6_3",), False),
    ],
)
def test_operators(key: str, operator: Operator, values: tuple[str, ...], met: bool) -> None:  # noqa: FBT001
    assert Requirement(key, operator, values).met_by(LABELS) is met


@pytest.mark.parametrize(
    ("written", "number"),
    [
        ("0", 0),
        ("-0", 0),
        ("+1", 1),
        ("-17", -17),
        ("007", 7),
        ("0" * 60 + "7", 7),
        ("9223372036854775807", 2**63 - 1),
        ("9223372036854775808", None),
        ("-9223372036854775808", -(2**63)),
        ("-9223372036854775809", None),
        ("10000000000000000000000", None),
        ("", None),
        ("+", None),
        ("--1", None),
        ("1_0", None),
        (" 1", None),
        ("1\n", None),
        ("1.0", None),
        ("0x1", None),
        ("\u0661", None),
        ("\u00b2", None),
    ],
)
def test_numbers_are_those_of_go(written: str, number: int | None) -> None:
    assert whole_number(written) == number


def test_a_term_asks_for_all_of_its_requirements_and_none_is_met_by_nobody() -> None:
    gpu = Requirement("gpu", Operator.EXISTS)
    named = Requirement(NODE_NAME_FIELD, Operator.IN, ("n1",))
    assert Term((gpu,), (named,)).met_by("n1", LABELS)
    assert not Term((gpu,), (named,)).met_by("n2", LABELS)
    assert not Term((gpu,), (named,)).met_by("n1", {})
    assert not Term().met_by("n1", LABELS)


def test_terms_are_alternatives_beside_selector_and_name() -> None:
    terms = (
        Term((Requirement("gpu", Operator.IN, ("h100",)),)),
        Term((Requirement("cores", Operator.GREATER, ("32",)),)),
    )
    assert Site(terms=terms).selects("n", LABELS)
    assert not Site(terms=terms[:1]).selects("n", LABELS)
    assert not Site(terms=()).selects("n", LABELS)
    assert Site(selector=(("gpu", "a100"),), terms=terms, node_name="n").selects("n", LABELS)
    assert not Site(selector=(("gpu", "t4"),), terms=terms).selects("n", LABELS)
    assert not Site(node_name="other").selects("n", LABELS)
    assert ANYWHERE.selects("n", {})
    assert not ANYWHERE.demands
    assert Site(terms=()).demands


BUSY = Taint("busy", "yes", Effect.NO_SCHEDULE)


@pytest.mark.parametrize(
    ("toleration", "covers"),
    [
        (Toleration("busy", TolerationOperator.EQUAL, "yes"), True),
        (Toleration("busy", TolerationOperator.EQUAL, "no"), False),
        (Toleration("busy", TolerationOperator.EXISTS), True),
        (Toleration("other", TolerationOperator.EXISTS), False),
        (Toleration("", TolerationOperator.EXISTS), True),
        (Toleration("", TolerationOperator.EQUAL, "yes"), False),
        (Toleration("busy", TolerationOperator.EXISTS, effect=Effect.NO_SCHEDULE), True),
        (Toleration("busy", TolerationOperator.EXISTS, effect=Effect.NO_EXECUTE), False),
        (Toleration("", TolerationOperator.EXISTS, effect=Effect.NO_SCHEDULE), True),
    ],
)
def test_tolerations(toleration: Toleration, covers: bool) -> None:  # noqa: FBT001
    assert toleration.covers(BUSY) is covers
    assert (Site(tolerations=(toleration,)).untolerated((BUSY,)) is None) is covers


def test_a_wish_keeps_nobody_off_and_the_first_other_taint_is_named() -> None:
    wish = Taint("wish", "", Effect.PREFER_NO_SCHEDULE)
    gone = Taint("gone", "", Effect.NO_EXECUTE)
    assert ANYWHERE.untolerated((wish,)) is None
    assert ANYWHERE.untolerated((wish, gone, BUSY)) == gone
    assert (BUSY.text, gone.text) == ("busy=yes:NoSchedule", "gone:NoExecute")


def together(*tasks: tuple[tuple[str, int], ...]) -> bool:
    """Whether tasks of these ports may share a node."""
    taken: dict[str, int] = {}
    for amounts in tasks:
        for name, amount in amounts:
            taken[name] = taken.get(name, 0) + amount
    return all(amount <= implied_capacity(name) for name, amount in taken.items())


def test_ports_collide_where_addresses_meet() -> None:
    every, one, two = (
        port_amounts("TCP", 80),
        port_amounts("TCP", 80, "10.0.0.1"),
        port_amounts("TCP", 80, "10.0.0.2"),
    )
    assert together(every)
    assert together(one, two)
    assert together(every, port_amounts("UDP", 80), port_amounts("TCP", 81))
    assert not together(every, every)
    assert not together(every, one)
    assert not together(one, one)
    assert port_amounts("TCP", 80, "0.0.0.0") == every


def test_only_ipv4_has_an_address_that_means_all() -> None:
    """As in kube-scheduler, which compares addresses as they are written."""
    every_v6, one = port_amounts("TCP", 80, "::"), port_amounts("TCP", 80, "10.0.0.1")
    assert together(every_v6, one)
    assert not together(every_v6, every_v6)
    assert not together(every_v6, port_amounts("TCP", 80))


def test_resources_as_people_say_them() -> None:
    (port,) = port_amounts("TCP", 80)
    _, of_address = port_amounts("TCP", 80, "fd00::1")
    assert resource_label(port[0]) == "host port 80/TCP"
    assert resource_label(of_address[0]) == "host port 80/TCP of fd00::1"
    assert resource_label("rdma/hca") == "rdma/hca"
    assert [unit_size(name) for name in (port[0], of_address[0], "pods")] == [1_000, 1, 1]
    assert scaled((("pods", 1), port), 3) == (("pods", 3), (port[0], 3_000))
