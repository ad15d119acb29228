"""What choosing GPUs by their links gains, in mean pair bandwidth, on a multi-tenant mix.

First the choice is compared with brute force for every free set and size of a DGX-1 V100; then 300
jobs of 2-5 GPUs share it first in first out, 20 seeds, for three ways of choosing. Other boards
follow for comparison when HAVERSACK_TRACES names the traces. Exits 1 when brute force disagrees,
or the gain on the DGX-1 is below +50 % over random or +20 % over lowest index.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from statistics import fmean

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.clusters import DGX1_V100, links
from support.nvlink_mix import brute_force, choices, play

from scheduler.allocation.topology import best_subset
from scheduler.model.node import Links

OVER_RANDOM_MIN = 0.50
OVER_LOWEST_MIN = 0.20


def disagreements(board: Links) -> tuple[int, int, float]:
    """(questions asked, answers unlike brute force, microseconds per answer once known)."""
    gpus = range(len(board.nvlinks))
    asked = [
        (frozenset(free), size)
        for count in range(1, len(gpus) + 1)
        for free in combinations(gpus, count)
        for size in range(1, count + 1)
    ]
    wrong = sum(
        tuple(sorted(best_subset(board, free, size))) != brute_force(board, free, size)
        for free, size in asked
    )
    started = time.perf_counter()
    for free, size in asked:
        best_subset(board, free, size)
    return len(asked), wrong, (time.perf_counter() - started) / len(asked) * 1e6


def gains(name: str, board: Links, seeds: int) -> tuple[float, float]:
    """Print one board's line; returns the gains over random and over lowest index."""
    found = {
        way: [play(board, choices(seed)[way], seed) for seed in range(seeds)]
        for way in ("random", "lowest-index", "haversack")
    }
    pair = {way: fmean(run[0] for run in runs) for way, runs in found.items()}
    ring = {way: fmean(run[1] for run in runs) for way, runs in found.items()}
    over_random = pair["haversack"] / pair["random"] - 1
    over_lowest = pair["haversack"] / pair["lowest-index"] - 1
    cells = "".join(f"{pair[way]:9.1f} /{ring[way]:6.1f}" for way in pair)
    _say(f"{name:24}{cells}{over_random:+12.1%}{over_lowest:+14.1%}")
    return over_random, over_lowest


def other_boards() -> dict[str, Links]:
    """Boards of the public topology collection, if the traces are here."""
    traces = os.environ.get("HAVERSACK_TRACES", "")
    path = Path(traces) / "nvlink" / "topologies.json"
    if not traces or not path.exists():
        _say("HAVERSACK_TRACES names no topologies: only the DGX-1 V100 is measured")
        return {}
    found = json.loads(path.read_text())
    return {
        name: Links(
            tuple(tuple(row) for row in entry["links"]),
            tuple(tuple(float(cell) for cell in row) for row in entry["bw_GBps"]),
        )
        for name, entry in found.items()
        if name != "dgx1-v100" and "bw_GBps" in entry
    }


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=20)
    seeds = parser.parse_args(arguments).seeds
    board = links(DGX1_V100)
    asked, wrong, micros = disagreements(board)
    _say(f"DGX-1 V100: {asked} questions, {wrong} answers unlike brute force, {micros:.1f} us each")
    _say(f"\nmean pair GB/s / ring bottleneck GB/s, {seeds} seeds of 300 jobs of 2-5 GPUs")
    _say(
        f"{'board':24}{'random':>17}{'lowest-index':>17}{'haversack':>17}"
        f"{'over random':>12}{'over lowest':>14}"
    )
    over_random, over_lowest = gains("dgx1-v100", board, seeds)
    for name, other in other_boards().items():
        gains(name, other, seeds)
    sound = wrong == 0 and over_random >= OVER_RANDOM_MIN and over_lowest >= OVER_LOWEST_MIN
    return 0 if sound else 1


if __name__ == "__main__":
    sys.exit(main())
