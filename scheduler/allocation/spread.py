"""How the workers of one gang spread over nodes: on as few as possible, and on which."""

from __future__ import annotations

import numpy as np

from scheduler.model.columns import Floats, Ints

Spread = list[tuple[int, int]]
"""(row, workers) pairs."""


def fewest_rows(fits: Ints, score: Floats, workers: int) -> Spread | None:
    """`workers` workers on as few rows as possible, by row; None when they do not fit.

    Rows that hold most are filled first; among equals, and for the remainder among all rows that
    hold it, the lowest score is taken. Filling the largest first uses the fewest rows possible.
    Cost: O(rows) for each distinct count that is used up.
    """
    if int(fits.sum()) < workers:
        return None
    left = fits
    chosen: Spread = []
    missing = workers
    while True:
        enough = np.flatnonzero(left >= missing)
        if enough.size:
            chosen.append((int(enough[np.argmin(score[enough])]), missing))
            return sorted(chosen)
        most = int(left.max())
        rows = np.flatnonzero(left == most)
        rows = rows[np.argsort(score[rows], kind="stable")[: missing // most]]
        chosen += [(row, most) for row in rows.tolist()]
        missing -= most * rows.size
        if not missing:
            return sorted(chosen)
        if left is fits:
            left = fits.copy()
        left[rows] = 0
