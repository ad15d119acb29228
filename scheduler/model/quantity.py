"""Quantities with their units in the name, and the resource vector they form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NewType

UtcSeconds = NewType("UtcSeconds", float)
"""An instant: seconds since the Unix epoch, UTC. Code that decides gets it as an argument."""

TenantId = NewType("TenantId", str)
QueueName = NewType("QueueName", str)
PoolName = NewType("PoolName", str)
PrincipalId = NewType("PrincipalId", str)
JobId = NewType("JobId", str)
AttemptId = NewType("AttemptId", str)
NodeId = NewType("NodeId", str)
GpuId = NewType("GpuId", str)
IntentId = NewType("IntentId", str)
DecisionId = NewType("DecisionId", str)

SYSTEM_TENANT = TenantId("system")
"""Owner of what belongs to no tenant: nodes, pools, decisions. Its principals run the cluster."""
DEFAULT_TENANT = TenantId("default")
DEFAULT_QUEUE = QueueName("default")
DEFAULT_POOL = PoolName("default")
WHOLE_GPU_MILLI = 1000
"""Thousandths of a GPU; shares of a GPU are counted in them."""


@dataclass(frozen=True, slots=True)
class Resources:
    """An amount of each resource a node offers.

    Attributes:
        gpus: whole GPUs.
        cpu_milli: thousandths of a CPU core.
        memory_mib: host memory in MiB.
    """

    gpus: int = 0
    cpu_milli: int = 0
    memory_mib: int = 0

    def __add__(self, other: Resources) -> Resources:
        return Resources(
            self.gpus + other.gpus,
            self.cpu_milli + other.cpu_milli,
            self.memory_mib + other.memory_mib,
        )

    def __sub__(self, other: Resources) -> Resources:
        return Resources(
            self.gpus - other.gpus,
            self.cpu_milli - other.cpu_milli,
            self.memory_mib - other.memory_mib,
        )

    def __mul__(self, times: int) -> Resources:
        return Resources(self.gpus * times, self.cpu_milli * times, self.memory_mib * times)

    def times_in(self, free: Resources) -> int:
        """How many copies of this fit in `free`, resource by resource; at most 2**31."""
        counts = [
            available // need
            for need, available in (
                (self.gpus, free.gpus),
                (self.cpu_milli, free.cpu_milli),
                (self.memory_mib, free.memory_mib),
            )
            if need > 0
        ]
        return max(0, min(counts, default=2**31))
