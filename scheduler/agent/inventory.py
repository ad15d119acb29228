"""What this host offers: its processors and memory, and its GPUs as NVML tells them now.

Only reads. A GPU is UNHEALTHY on proof, UNKNOWN when it cannot be offered whole (MIG), HEALTHY
otherwise; a query that this driver or GPU does not support proves nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import structlog

from scheduler.agent import host
from scheduler.agent.links import Port, link_matrices, read_port
from scheduler.agent.nvml import Device, NvmlError, NvmlLibrary, Pynvml, optional
from scheduler.ids import node_id
from scheduler.model.gpu_names import short_model
from scheduler.model.node import NO_LINKS, Gpu, Health, Links, Node
from scheduler.model.ports import Inventory
from scheduler.model.quantity import GpuId, Resources
from scheduler.virtual import VirtualInventory

log = structlog.get_logger(__name__)

_BYTES_PER_MIB = 1_048_576


@dataclass(frozen=True, slots=True)
class Finding:
    """Something an operator should know about a GPU or about NVML.

    Attributes:
        gpu_id: the GPU, or "" for the host as a whole.
        text: one sentence.
    """

    gpu_id: str
    text: str


@dataclass(frozen=True, slots=True)
class Survey:
    """One look at the host: its node, and what was odd."""

    node: Node
    findings: tuple[Finding, ...] = ()


@dataclass(frozen=True, slots=True)
class _Seen:
    """One GPU as read; `port` is None when it cannot be asked for its links."""

    gpu: Gpu
    port: Port | None
    notes: tuple[str, ...] = ()


class CpuInventory:
    """This host without any GPU."""

    def __init__(self, findings: tuple[Finding, ...] = ()) -> None:
        self._findings = findings

    def survey(self) -> Survey:
        """One look at processors and memory; microseconds."""
        return Survey(_host_node((), NO_LINKS), self._findings)

    def nodes(self) -> Sequence[Node]:
        """This host as one node."""
        return (self.survey().node,)


class NvmlInventory:
    """This host with its NVIDIA GPUs.

    A GPU that was seen once and then falls off the bus stays in the inventory as UNHEALTHY as
    long as the driver still counts it. One that is lost before it was ever seen has no readable
    id; it is left out, with a finding.

    Args:
        library: an open NVML.
    """

    def __init__(self, library: NvmlLibrary) -> None:
        self._library = library
        self._last: dict[int, Gpu] = {}
        self._count_before = 0

    def survey(self) -> Survey:
        """One look at the host; some milliseconds per GPU."""
        try:
            count = self._count()
        except NvmlError as error:
            return self._blind(error)
        if count != self._count_before:
            # GPUs came or went and NVML's indexes may have moved: what was remembered by index
            # may now name another GPU.
            self._last.clear()
            self._count_before = count
        seen: list[_Seen] = []
        findings: list[Finding] = []
        for nvml_index in range(count):
            one = self._gpu(nvml_index, position=len(seen))
            if isinstance(one, Finding):
                findings.append(one)
                continue
            self._last[nvml_index] = replace(one.gpu, health=Health.HEALTHY)
            findings.extend(Finding(one.gpu.id, note) for note in one.notes)
            seen.append(one)
        gpus = tuple(one.gpu for one in seen)
        links = link_matrices(self._library, [one.port for one in seen])
        return Survey(_host_node(gpus, links), tuple(findings))

    def nodes(self) -> Sequence[Node]:
        """This host as one node."""
        return (self.survey().node,)

    def _count(self) -> int:
        try:
            return self._library.device_count()
        except NvmlError:
            # The driver may have been reloaded under us; a new connection tells.
            with suppress(NvmlError):  # the old connection may be beyond closing
                self._library.close()
            self._library.open()
            return self._library.device_count()

    def _blind(self, error: NvmlError) -> Survey:
        """The driver went away: every GPU known so far is unhealthy, none is dropped."""
        gpus = tuple(
            replace(gpu, index=position, health=Health.UNHEALTHY)
            for position, gpu in enumerate(self._last.values())
        )
        finding = Finding("", f"NVML cannot count this host's GPUs: {error}")
        return Survey(_host_node(gpus, Links.uniform(len(gpus), 0, 0.0)), (finding,))

    def _gpu(self, nvml_index: int, position: int) -> _Seen | Finding:
        try:
            device = self._library.device(nvml_index)
            gpu = Gpu(
                id=GpuId(self._library.uuid(device)),
                index=position,
                model=short_model(self._library.name(device)),
                memory_mib=self._library.memory_bytes(device) // _BYTES_PER_MIB,
            )
        except NvmlError as error:
            known = self._last.get(nvml_index)
            if known is None:
                return Finding("", f"GPU {nvml_index} cannot be read and is left out: {error}")
            return _ill(replace(known, index=position), error)
        try:
            port = read_port(self._library, device)
            health, notes = _health(self._library, device)
        except NvmlError as error:
            return _ill(gpu, error)
        return _Seen(replace(gpu, health=health), port, notes)


class HostInventory:
    """This host: with its GPUs if NVML opens, CPU-only if not. Decided once, when built.

    New findings are logged once, not at every look.

    Args:
        library: NVML; pynvml's unless a test brings its own.
    """

    def __init__(self, library: NvmlLibrary | None = None) -> None:
        library = library if library is not None else Pynvml()
        self._told: frozenset[Finding] = frozenset()
        self._inventory: CpuInventory | NvmlInventory
        try:
            library.open()
        except NvmlError as error:
            text = f"NVML does not open, so no GPU is offered: {error}"
            findings = () if error.no_driver else (Finding("", text),)
            self._inventory = CpuInventory(findings)
        else:
            self._inventory = NvmlInventory(library)

    def survey(self) -> Survey:
        """One look at the host; some milliseconds per GPU."""
        return self._inventory.survey()

    def nodes(self) -> Sequence[Node]:
        """This host as one node."""
        survey = self.survey()
        for finding in survey.findings:
            if finding not in self._told:
                log.warning("inventory finding", gpu=finding.gpu_id, finding=finding.text)
        self._told = frozenset(survey.findings)
        return (survey.node,)


def local_inventory(virtual: str = "") -> Inventory:
    """What the daemon on this host offers.

    Args:
        virtual: simulated GPUs instead of this host's, for example `16x8:H100`.

    Raises:
        ConfigurationError: `virtual` is malformed.
    """
    return VirtualInventory(virtual) if virtual else HostInventory()


def _ill(gpu: Gpu, error: NvmlError) -> _Seen:
    return _Seen(replace(gpu, health=Health.UNHEALTHY), None, (f"NVML cannot read it: {error}",))


def _host_node(gpus: tuple[Gpu, ...], links: Links) -> Node:
    return Node(
        id=node_id(host.host_identity()),
        name=host.host_name(),
        capacity=Resources(
            gpus=len(gpus), cpu_milli=host.cpu_milli(), memory_mib=host.memory_mib()
        ),
        gpus=gpus,
        links=links,
    )


def _health(library: NvmlLibrary, device: Device) -> tuple[Health, tuple[str, ...]]:
    """The GPU's health and why, worst first found.

    Raises:
        NvmlError: the GPU answered that it is broken.
    """
    ills = []
    action = optional(library.recovery_action, device)
    if action:
        ills.append(f"the driver asks for recovery action {action} (reset, reboot or drain)")
    rows = optional(library.remapped_rows, device)
    if rows is not None and rows.failed:
        ills.append("a memory row could not be remapped")
    if optional(library.retired_pages_pending, device):
        ills.append("memory pages wait for a reset to be retired")
    fabric = optional(library.fabric, device)
    if fabric is not None and not fabric.usable:
        # CUDA itself refuses to start on such a GPU (CUDA_ERROR_SYSTEM_NOT_READY).
        ills.append(
            f"not registered with the NVLink fabric (state {fabric.state}, status "
            f"{fabric.status}); is the Fabric Manager running?"
        )
    if ills:
        return Health.UNHEALTHY, tuple(ills)
    if optional(library.mig_enabled, device):
        return Health.UNKNOWN, ("MIG is enabled: it is not offered as a whole GPU",)
    if rows is not None and rows.pending:
        return Health.HEALTHY, ("a memory row is remapped at the next reset",)
    return Health.HEALTHY, ()
