"""Does the simulator tell the truth? Baselines against published tables and reference runs.

- Philly week (Microsoft, 2017-10-09..15) on 80 and 58 nodes of 8 GPUs, best-fit consolidation,
  exact durations, no restart cost: mean wait against an independent simulator, within 5 % or one
  minute, whichever is more. EASY's limits are the durations.
- Muri trace 3 (SIGCOMM'22) on 8 nodes of 8 GPUs, ideal SRTF: mean JCT against the published one,
  which has a restart overhead at every event, so ours must lie within -8..0 % of it.

The placement part, openb, is `bench_openb.py`. Needs HAVERSACK_TRACES; exits 1 when a figure is off.
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from policies.registry import profile_named
from scheduler.model.node import Node
from scheduler.simulator.cluster import parse_cluster
from scheduler.simulator.engine import simulate
from scheduler.simulator.importers import plain_csv
from scheduler.simulator.importers.records import Reading
from scheduler.simulator.metrics import Metrics, metrics_of
from scheduler.simulator.workload import Workload

PHILLY = "philly_week/philly_2017-10-09_week.csv"
MURI = "muri/trace3.csv"
MURI_PUBLISHED = "muri/published_sim.csv"
DAY_S = 86_400.0
