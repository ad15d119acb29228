"""Hand-made NVMLs: the fake of `NvmlLibrary`, and boxes of known shape."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from scheduler.agent.nvml import Device, Fabric, NvmlError, RemappedRows

INVALID_ARGUMENT, NOT_SUPPORTED, UNINITIALIZED, GPU_IS_LOST = 2, 3, 1, 15
GPU, CPU, SWITCH = 0, 1, 2
_ANCESTOR_NODE, _ANCESTOR_SYSTEM = 40, 50
_SOUND_ROWS = RemappedRows(pending=False, failed=False)
_NO_FABRIC = Fabric(state=0, status=0)


@dataclass
class FakeGpu:
    """One GPU; `links` are (bus id at the other end, kind), `errors` maps a query to a code."""

    uuid: str
    name: str = "NVIDIA H100 80GB HBM3"
    memory_mib: int = 81_559
    socket: int = 0
    links: Sequence[tuple[str, int]] = ()
    link_version: int = 6
    rows: RemappedRows = _SOUND_ROWS
    pages_pending: bool = False
    recovery: int = 0
    fabric: Fabric = _NO_FABRIC
    mig: bool = False
    errors: dict[str, int] = field(default_factory=dict)

    @property
    def bus_id(self) -> str:
        return f"00000000:{self.uuid.encode().hex()}:00.0".upper()


class FakeNvml:
    """An `NvmlLibrary` over `FakeGpu`s."""

    def __init__(self, gpus: Sequence[FakeGpu], open_error: int | None = None) -> None:
        self.gpus = list(gpus)
        self.open_error = open_error
        self.connected = True
        self.p2p_read = 0

    def _gpu(self, device: Device, query: str) -> FakeGpu:
        assert isinstance(device, FakeGpu)
        self._fail(device, query)
        return device

    @staticmethod
    def _fail(gpu: FakeGpu, query: str) -> None:
        if query in gpu.errors:
            code = gpu.errors[query]
            raise NvmlError(code, "GPU is lost" if code == GPU_IS_LOST else f"code {code}")

    def open(self) -> None:
        if self.open_error is not None:
            raise NvmlError(self.open_error, f"code {self.open_error}")
        self.connected = True

    def close(self) -> None:
        if not self.connected:
            raise NvmlError(UNINITIALIZED, "Uninitialized")
        self.connected = False

    def device_count(self) -> int:
        if not self.connected:
            raise NvmlError(UNINITIALIZED, "Uninitialized")
        return len(self.gpus)

    def device(self, index: int) -> Device:
        self._fail(self.gpus[index], "device")
        return Device(self.gpus[index])

    def uuid(self, device: Device) -> str:
        return self._gpu(device, "uuid").uuid

    def name(self, device: Device) -> str:
        return self._gpu(device, "name").name

    def memory_bytes(self, device: Device) -> int:
        return self._gpu(device, "memory_bytes").memory_mib * 1_048_576

    def bus_id(self, device: Device) -> str:
        return self._gpu(device, "bus_id").bus_id

    def mig_enabled(self, device: Device) -> bool:
        return self._gpu(device, "mig_enabled").mig

    def retired_pages_pending(self, device: Device) -> bool:
        return self._gpu(device, "retired_pages_pending").pages_pending

    def remapped_rows(self, device: Device) -> RemappedRows:
        return self._gpu(device, "remapped_rows").rows

    def recovery_action(self, device: Device) -> int:
        return self._gpu(device, "recovery_action").recovery

    def fabric(self, device: Device) -> Fabric:
        return self._gpu(device, "fabric").fabric

    def link_active(self, device: Device, link: int) -> bool:
        if link >= len(self._gpu(device, "link_active").links):
            raise NvmlError(INVALID_ARGUMENT, "Invalid Argument")
        return True

    def link_version(self, device: Device, link: int) -> int:
        return self._gpu(device, "link_version").link_version

    def link_remote_kind(self, device: Device, link: int) -> int:
        return self._gpu(device, "link_remote_kind").links[link][1]

    def link_remote_bus_id(self, device: Device, link: int) -> str:
        return self._gpu(device, "link_remote_bus_id").links[link][0]

    def common_ancestor(self, first: Device, second: Device) -> int:
        same = self._gpu(first, "pair").socket == self._gpu(second, "pair").socket
        return _ANCESTOR_NODE if same else _ANCESTOR_SYSTEM

    def p2p_status(self, first: Device, second: Device, capability: int) -> int:
        assert capability == 0
        return self.p2p_read


def switched(active: Sequence[int], version: int) -> FakeNvml:
    """GPUs `GPU-0`.. behind a hidden switch with so many active links each."""
    return FakeNvml(
        [
            FakeGpu(f"GPU-{n}", links=(("FFFFFFFF:FF:FF.0", SWITCH),) * links, link_version=version)
            for n, links in enumerate(active)
        ]
    )


def dgx1_v100(matrix: Sequence[Sequence[int]]) -> FakeNvml:
    """Eight V100 whose links go straight from GPU to GPU as `matrix` (8, 8) says."""
    gpus = [
        FakeGpu(f"GPU-{n}", name="Tesla V100-SXM2-32GB", socket=n // 4, link_version=2)
        for n in range(len(matrix))
    ]
    for gpu, row in zip(gpus, matrix, strict=True):
        gpu.links = [
            (peer.bus_id, GPU) for peer, count in zip(gpus, row, strict=True) for _ in range(count)
        ]
    return FakeNvml(gpus)
