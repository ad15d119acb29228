from __future__ import annotations

import pytest

from scheduler.cli.kubectl.ages import age, human_duration
from scheduler.model.quantity import UtcSeconds

MINUTE, HOUR, DAY, YEAR = 60, 3_600, 86_400, 365 * 86_400


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (-5, "0s"),
        (0.9, "0s"),
        (119, "119s"),
        (2 * MINUTE, "2m"),
        (5 * MINUTE + 10, "5m10s"),
        (10 * MINUTE + 59, "10m"),
        (3 * HOUR - 1, "179m"),
        (3 * HOUR, "3h"),
        (3 * HOUR + 20 * MINUTE + 59, "3h20m"),
        (8 * HOUR + 59 * MINUTE, "8h"),
        (47 * HOUR + 59 * MINUTE, "47h"),
        (2 * DAY, "2d"),
        (2 * DAY + 3 * HOUR, "2d3h"),
        (8 * DAY + 3 * HOUR, "8d"),
        (2 * YEAR - 1, "729d"),
        (2 * YEAR + 5 * DAY, "2y5d"),
        (8 * YEAR + 5 * DAY, "8y"),
    ],
)
def test_durations_are_told_as_kubectl_tells_them(seconds: float, shown: str) -> None:
    assert human_duration(seconds) == shown


def test_what_never_was_has_no_age() -> None:
    assert age(None, UtcSeconds(1.0)) == "<unknown>"
    assert age("1970-01-01T00:00:10Z", UtcSeconds(100.0)) == "90s"
