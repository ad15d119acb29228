from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.execution.kubernetes import quantity
from scheduler.execution.kubernetes.quantity import LARGEST, NANO, QuantityError, nanos

MIB = 2**20


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("0", 0),
        ("1", NANO),
        ("1n", 1),
        ("1u", 10**3),
        ("100m", 10**8),
        ("1k", 10**12),
        ("1M", 10**15),
        ("1G", 10**18),
        ("1T", 10**21),
        ("1P", 10**24),
        ("1E", 10**27),
        ("1Ki", 1024 * NANO),
        ("1Mi", 2**20 * NANO),
        ("3Gi", 3 * 2**30 * NANO),
        ("1Ti", 2**40 * NANO),
        ("1Pi", 2**50 * NANO),
        ("1Ei", 2**60 * NANO),
        ("1.5", 1_500_000_000),
        (".5", 500_000_000),
        ("5.", 5 * NANO),
        ("+1.5Gi", 1_610_612_736 * NANO),
        ("-1", -NANO),
        ("007", 7 * NANO),
    ],
)
def test_amounts_are_exact(written: str, expected: int) -> None:
    assert nanos(written) == expected


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("1E3", 1000 * NANO),
        ("1e3", 1000 * NANO),
        ("12e-1", 1_200_000_000),
        ("1E+2", 100 * NANO),
        ("1E", 10**18 * NANO),
    ],
)
def test_e_is_an_exponent_only_with_digits_after_it(written: str, expected: int) -> None:
    assert nanos(written) == expected


@pytest.mark.parametrize("written", ["0.1n", "0.0000000001", "1e-999999999", "0.001n"])
def test_what_is_too_fine_rounds_up_and_never_to_nothing(written: str) -> None:
    assert nanos(written) == 1


@pytest.mark.parametrize("written", ["8Ei", "10Ei", "9.3E", "1e999999999999999999", "9" * 40])
def test_what_is_too_large_counts_as_the_largest(written: str) -> None:
    assert nanos(written) == LARGEST * NANO


@pytest.mark.parametrize(
    "written",
    [
        *("", " 1", "1 ", "1K", "1ki", "1mi", "m", ".", "-", "1e", "1e1.5", "0x10", "1,5", "1_0"),
        *("1 Gi", "1GiB", "--1", "nan", "inf", "\u0661", "1" * 65),
    ],
)
def test_what_breaks_the_grammar_is_refused(written: str) -> None:
    with pytest.raises(QuantityError):
        nanos(written)


@pytest.mark.parametrize("value", [True, [], {}, b"1"])
def test_other_types_are_refused(value: object) -> None:
    with pytest.raises(QuantityError):
        nanos(value)


def test_json_numbers_and_absence() -> None:
    assert nanos(None) == 0
    assert nanos(2) == 2 * NANO
    assert nanos(0.5) == NANO // 2
    assert nanos(1e-7) == 100
    assert nanos(1e22) == LARGEST * NANO
    with pytest.raises(QuantityError):
        nanos(float("nan"))


def test_needs_round_up_and_offers_round_down() -> None:
    assert quantity.milli(nanos("100u")) == 1
    assert quantity.milli(nanos("1.0005")) == 1001
    assert quantity.mib_needed(nanos(str(MIB + 1))) == 2
    assert quantity.mib_offered(nanos(str(2 * MIB - 1))) == 1
    assert quantity.mib_needed(nanos("128Mi")) == quantity.mib_offered(nanos("128Mi")) == 128
    assert quantity.mib_needed(nanos("500M")) == 477  # 476.837...
    assert quantity.needed(nanos("1500m")) == 2
    assert quantity.offered(nanos("1500m")) == 1


@given(st.text(max_size=80))
def test_any_text_is_an_amount_or_refused(written: str) -> None:
    try:
        amount = nanos(written)
    except QuantityError:
        return
    assert abs(amount) <= LARGEST * NANO


@given(st.integers(0, 10**9), st.sampled_from(["m", "", "k", "Ki", "Gi"]))
def test_sums_of_parts_are_the_whole(number: int, suffix: str) -> None:
    assert nanos(f"{number}{suffix}") * 2 == nanos(f"{number * 2}{suffix}")
