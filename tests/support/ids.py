"""Ids that tests can foretell."""

from __future__ import annotations

import itertools


class SequentialIds:
    """Ids that count up: the same run gives the same ids."""

    def __init__(self) -> None:
        self._counter = itertools.count(1)

    def new(self, prefix: str) -> str:
        """The next id, for example `j-0000000000000001`."""
        return f"{prefix}-{next(self._counter):016d}"
