"""How this host's GPUs reach each other: NVLinks per pair and a bandwidth for each pair.

Bandwidths are nameplate or published figures, not measurements: they rank pairs, no more.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scheduler.agent.nvml import LINKS_MAX, P2P_READ, Device, NvmlError, NvmlLibrary, optional
from scheduler.model.node import Links

# One-way GB/s of one link by NVML's version number (not the marketing number: 6 is NVLink 4.0).
# Sources: 1.0 DGX-1 P100 20 and 2.x DGX-1 V100 25 (MAPA's tables, msccl-tools); 3.x A100 300 GB/s
# over 12 links; 4.0 H100/H200 450 GB/s over 18; 5.0 B200 900 GB/s over 18 (NVIDIA's product
# pages). nvidia-smi prints the raw signalling rate, 26.562 for NVLink 4.0: line coding included.
_LINK_GBPS = {1: 20.0, 2: 25.0, 3: 25.0, 4: 25.0, 5: 25.0, 6: 25.0, 7: 50.0}
# A version newer than this table is at least as fast as its last entry.
_NEWEST_LINK_GBPS = 50.0

# Without NVLink: NCCL's effective constants, PCIe 3.0 x16 within a socket and the link between
# sockets (NVIDIA/nccl src/graph/topo.h, PCI 12 and SKL QPI 10). Newer PCIe is faster, so these
# are estimates from below; only their order matters to placement.
_PCIE_GBPS = 12.0
_CROSS_SOCKET_GBPS = 10.0
_ANCESTOR_SYSTEM = 50

_REMOTE_GPU = 0
_REMOTE_SWITCH = 2


@dataclass(frozen=True, slots=True)
class Port:
    """One GPU's way out: its place on PCIe and where its active NVLinks go.

    Attributes:
        bus_id: PCI bus id, by which the other ends name this GPU.
        direct: active links by the PCI bus id at their other end.
        switched: active links into a switch.
        link_gbps: one-way GB/s of its slowest active link.
    """

    device: Device
    bus_id: str
    direct: Mapping[str, int]
    switched: int
    link_gbps: float


def read_port(library: NvmlLibrary, device: Device) -> Port:
    """Ask a GPU for its links. O(links) queries.

    Raises:
        NvmlError: the GPU is broken. What is merely not supported counts as no link.
    """
    bus_id = library.bus_id(device)
    direct: Counter[str] = Counter()
    switched = 0
    link_gbps = _NEWEST_LINK_GBPS
    for link in range(LINKS_MAX):
        active = optional(library.link_active, device, link)
        if active is None:
            break  # not supported, or beyond the GPU's last link
        if not active:
            continue
        # Drivers before 450 cannot tell the kind. Taking it for a GPU is safe: if its bus id is
        # none of ours, the link counts for no pair.
        kind = optional(library.link_remote_kind, device, link)
        if kind == _REMOTE_SWITCH:
            switched += 1
        elif kind in (_REMOTE_GPU, None):
            direct[optional(library.link_remote_bus_id, device, link) or ""] += 1
        else:
            continue  # a CPU (POWER9, Grace) is no way to another GPU
        version = optional(library.link_version, device, link)
        link_gbps = min(link_gbps, _LINK_GBPS.get(version or 0, _NEWEST_LINK_GBPS))
    return Port(device, bus_id, direct, switched, link_gbps)


def link_matrices(library: NvmlLibrary, ports: Sequence[Port | None]) -> Links:
    """The link matrices of `ports`, both (n, n); the row of a None (a lost GPU) is zero.

    GPUs whose links end in a switch reach each other with the smaller number of active links:
    that is their total to the fabric, shared over all peers. A pair whose driver denies
    peer-to-peer reads cannot use its NVLinks, so they do not count. O(n**2) queries.
    """
    n = len(ports)
    nvlinks = [[0] * n for _ in range(n)]
    gbps = [[0.0] * n for _ in range(n)]
    for a, b in itertools.combinations(range(n), 2):
        first, second = ports[a], ports[b]
        if first is None or second is None:
            continue
        count = _links_between(first, second)
        if count and not _p2p_denied(library, first.device, second.device):
            nvlinks[a][b] = nvlinks[b][a] = count
            gbps[a][b] = gbps[b][a] = count * min(first.link_gbps, second.link_gbps)
        else:
            gbps[a][b] = gbps[b][a] = _pcie_gbps(library, first.device, second.device)
    return Links(
        nvlinks=tuple(tuple(row) for row in nvlinks),
        bandwidth_gbps=tuple(tuple(row) for row in gbps),
    )


def _links_between(first: Port, second: Port) -> int:
    # Both ends should count the same; while links train they may not.
    direct = min(first.direct.get(second.bus_id, 0), second.direct.get(first.bus_id, 0))
    return direct or min(first.switched, second.switched)


# A GPU that falls ill between its own reading and its pair's says so at the next survey; here
# the pair's answer is merely unknown, and the other pairs must not suffer for it.


def _p2p_denied(library: NvmlLibrary, first: Device, second: Device) -> bool:
    try:
        return library.p2p_status(first, second, P2P_READ) != 0
    except NvmlError:
        return False


def _pcie_gbps(library: NvmlLibrary, first: Device, second: Device) -> float:
    try:
        ancestor = library.common_ancestor(first, second)
    except NvmlError:
        return _CROSS_SOCKET_GBPS
    return _CROSS_SOCKET_GBPS if ancestor >= _ANCESTOR_SYSTEM else _PCIE_GBPS
