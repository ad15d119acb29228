"""The simulation: a workload's events in order of time, and the daemon's own cycle after each.

There is no second scheduler here. At each instant everything that happens then is applied to the
ledger, and `run_cycle` runs until one places and evicts nothing. What jobs would do (run, end,
lose progress) is worked out in `execution`; what failed is decided by the seed.
"""

from __future__ import annotations

import heapq
import tempfile
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from scheduler.cycle import CycleContext, CycleReport, CycleState, run_cycle
from scheduler.model.job import WaitingJob
from scheduler.model.node import Node
from scheduler.model.ports import Effort, Preemption, Profile
from scheduler.model.quantity import WHOLE_GPU_MILLI, AttemptId, JobId, NodeId
from scheduler.model.terms import Terms
from scheduler.simulator.clock import SimulatedClock
from scheduler.simulator.cluster import described
from scheduler.simulator.execution import Executions, Overheads
from scheduler.simulator.inline_solver import InlineSolver
from scheduler.simulator.ledger import Ledger
from scheduler.simulator.outages import Outage, Outages, outages_of
from scheduler.simulator.result import Cycle, RunResult
from scheduler.simulator.workload import Arrivals, Workload, gpu_milli

T = TypeVar("T")
