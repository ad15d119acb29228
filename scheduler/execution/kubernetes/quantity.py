"""Kubernetes quantities (`100m`, `1Gi`, `1e3`, `1.5`), exactly.

The grammar and the roundings are those of `k8s.io/apimachinery/pkg/api/resource`:

* `m` is a thousandth and `M` a million, `k` is a thousand and `K` is an error, `Ki` is 1024;
* `1E` is 10**18, while `1E3`, with digits after it, is an exponent: one thousand;
* what is finer than 10**-9 is rounded away from zero, so that a wish never becomes nothing;
* what is larger than 2**63 - 1 counts as that.

Amounts are held in whole billionths (`nanos`), so that sums are exact and rounding happens once,
after the sum, as in kube-scheduler. A need is rounded up and an offer down, for the model counts in
coarser units and must never promise what is not there: a node with 1.5 MiB offers 1, and a pod that
wants 1.5 takes 2. At most a MiB for each pod is lost that way. CPU is the exception: Kubernetes
itself counts both sides in thousandths rounded up, and the kubelet admits by that.
"""

from __future__ import annotations

import re
from functools import lru_cache

NANO = 10**9
LARGEST = 2**63 - 1
_MIB = 2**20 * NANO
_MILLI = 10**6
_LONGEST = 64
"""Characters; the longest sensible one has about 30."""
_DIGITS_MAX = 40
"""A power of ten beyond this many digits is past either limit, whatever it multiplies."""
_PATTERN = re.compile(
    r"(?P<sign>[+-]?)(?P<whole>[0-9]*)(?:\.(?P<part>[0-9]*))?"
    r"(?:[eE](?P<exponent>[+-]?[0-9]+)|(?P<suffix>[numkMGTPE]|[KMGTPE]i))?"
)
_DECIMAL = {"n": -9, "u": -6, "m": -3, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
_BINARY = {"Ki": 10, "Mi": 20, "Gi": 30, "Ti": 40, "Pi": 50, "Ei": 60}


class QuantityError(ValueError):
    """The value is no quantity."""


def nanos(value: object) -> int:
    """A quantity in billionths of its unit; absent is none.

    Args:
        value: as it stands in an object: text, or a JSON number.

    Raises:
        QuantityError: it is neither, or does not follow the grammar.
    """
    if isinstance(value, str):
        return _parsed(value)
    if value is None:
        return 0
    if isinstance(value, int | float) and not isinstance(value, bool):
        return _parsed(repr(value))
    raise QuantityError(f"a quantity is text or a number, not {type(value).__name__}")


@lru_cache(maxsize=8192)  # a cluster's pods repeat a few hundred texts
def _parsed(written: str) -> int:
    found = _PATTERN.fullmatch(written) if len(written) <= _LONGEST else None
    digits = (found["whole"] + (found["part"] or "")) if found else ""
    if found is None or not digits:
        raise QuantityError(f"{written[:_LONGEST]!r} is no quantity such as 500m, 1.5 or 2Gi")
    suffix = found["suffix"] or ""
    ten = _DECIMAL.get(suffix, 0) + int(found["exponent"] or 0) - len(found["part"] or "") + 9
    size = _scaled(int(digits) << _BINARY.get(suffix, 0), ten)
    size = min(size, LARGEST * NANO)
    return -size if found["sign"] == "-" else size


def _scaled(number: int, ten: int) -> int:
    """`number * 10**ten`, rounded up. Bounded: nobody makes us compute 10**999999999."""
    if not number:
        return 0
    power: int = 10 ** min(abs(ten), _LONGEST + _DIGITS_MAX)
    return number * power if ten >= 0 else -(-number // power)


def milli(amount: int) -> int:
    """Thousandths, rounded up."""
    return -(-amount // _MILLI)


def needed(amount: int) -> int:
    """Whole units, rounded up."""
    return -(-amount // NANO)


def offered(amount: int) -> int:
    """Whole units, rounded down."""
    return amount // NANO


def mib_needed(amount: int) -> int:
    """Bytes as MiB, rounded up."""
    return -(-amount // _MIB)


def mib_offered(amount: int) -> int:
    """Bytes as MiB, rounded down."""
    return amount // _MIB
