"""NVML behind a small typed door: the only importer of pynvml, read-only by construction.

Only queries are wrapped: no call here changes a GPU's mode, clocks, MIG layout or state. Every
NVML error becomes `NvmlError`, so that nobody else needs to know the library.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NewType, ParamSpec, Protocol, TypeVar

import pynvml

P = ParamSpec("P")
T = TypeVar("T")

Device = NewType("Device", object)
"""An opaque NVML device handle; valid until `close`."""

LINKS_MAX = int(pynvml.NVML_NVLINK_MAX_LINKS)
"""How many NVLinks a GPU can have at most; queries beyond a GPU's own number are refused."""

P2P_READ = 0
"""Index of the READ capability. pynvml's own constant is the tuple `(0,)`, a stray comma there."""

_RECOVERY_ACTION_FIELD = int(pynvml.NVML_FI_DEV_GET_GPU_RECOVERY_ACTION)

# A GPU that answers with one of these is broken, whatever was asked. All other codes only say
# that this driver, GPU or user cannot have that one answer.
_ILLNESS = frozenset(
    int(code)
    for code in (
        pynvml.NVML_ERROR_INSUFFICIENT_POWER,
        pynvml.NVML_ERROR_IRQ_ISSUE,
        pynvml.NVML_ERROR_CORRUPTED_INFOROM,
        pynvml.NVML_ERROR_GPU_IS_LOST,
        pynvml.NVML_ERROR_RESET_REQUIRED,
    )
)
_ABSENT = frozenset(
    {int(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND), int(pynvml.NVML_ERROR_DRIVER_NOT_LOADED)}
)


class NvmlError(Exception):
    """NVML refused a query.

    Attributes:
        code: the NVML return code.
    """

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code

    @property
    def illness(self) -> bool:
        """Whether the code says that the GPU itself is broken."""
        return self.code in _ILLNESS

    @property
    def no_driver(self) -> bool:
        """Whether this host simply has no NVIDIA driver."""
        return self.code in _ABSENT


@dataclass(frozen=True, slots=True)
class RemappedRows:
    """Row remapping of a GPU's memory.

    Attributes:
        pending: a remap waits for the next reset; the GPU works meanwhile.
        failed: a remap failed: the spare rows are used up.
    """

    pending: bool
    failed: bool


@dataclass(frozen=True, slots=True)
class Fabric:
    """Registration of a GPU with its NVLink switch fabric.

    Attributes:
        state: 0 not supported, 1 not started, 2 in progress, 3 completed.
        status: NVML return code of the registration, meaningful when completed.
    """

    state: int
    status: int

    @property
    def usable(self) -> bool:
        """Whether the GPU has no fabric to wait for, or is registered with it."""
        not_supported, completed = 0, 3
        return self.state == not_supported or (self.state == completed and self.status == 0)


class NvmlLibrary(Protocol):
    """The NVML queries the inventory needs. Each raises `NvmlError`; each takes about 0.1-2 ms."""

    def open(self) -> None:
        """Load the library and connect to the driver."""
        ...

    def close(self) -> None:
        """Let go of the driver; handles become invalid."""
        ...

    def device_count(self) -> int:
        """GPUs the driver knows, lost ones included."""
        ...

    def device(self, index: int) -> Device:
        """The handle of a GPU by NVML index (PCI bus order)."""
        ...

    def uuid(self, device: Device) -> str:
        """For example `GPU-83132acf-5859-b06d-43f4-60d17f7d6ac9`."""
        ...

    def name(self, device: Device) -> str:
        """Product name, for example `NVIDIA H200`."""
        ...

    def memory_bytes(self, device: Device) -> int:
        """Total device memory, as nvidia-smi's `memory.total`."""
        ...

    def bus_id(self, device: Device) -> str:
        """PCI bus id, upper case."""
        ...

    def mig_enabled(self, device: Device) -> bool:
        """Whether the GPU is, or after the next reset will be, split into MIG instances."""
        ...

    def retired_pages_pending(self, device: Device) -> bool:
        """Whether memory pages wait for a reset to be retired (GPUs before Ampere)."""
        ...

    def remapped_rows(self, device: Device) -> RemappedRows:
        """Row remapping state (Ampere and later)."""
        ...

    def recovery_action(self, device: Device) -> int:
        """What the driver wants done to the GPU: 0 nothing, else reset, reboot, drain."""
        ...

    def fabric(self, device: Device) -> Fabric:
        """Registration with the NVLink switch fabric (Hopper and later)."""
        ...

    def link_active(self, device: Device, link: int) -> bool:
        """Whether an NVLink is up."""
        ...

    def link_version(self, device: Device, link: int) -> int:
        """An `NVML_NVLINK_VERSION_*` number: 6 is NVLink 4.0, not 6."""
        ...

    def link_remote_kind(self, device: Device, link: int) -> int:
        """What is at the other end: 0 GPU, 1 CPU, 2 switch."""
        ...

    def link_remote_bus_id(self, device: Device, link: int) -> str:
        """PCI bus id of the other end, upper case; virtual machines hide a switch's."""
        ...

    def common_ancestor(self, first: Device, second: Device) -> int:
        """PCIe relation: 0, 10 one switch, 20 switches, 30 host bridge, 40 NUMA node, 50 system."""
        ...

    def p2p_status(self, first: Device, second: Device, capability: int) -> int:
        """0 when the pair has the peer-to-peer capability, else why not."""
        ...


def optional(query: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | None:
    """The answer, or None where this driver, GPU or user cannot have it.

    Raises:
        NvmlError: the GPU answered that it is broken.
    """
    try:
        return query(*args, **kwargs)
    except NvmlError as error:
        if error.illness:
            raise
        return None


def _text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


class Pynvml:
    """`NvmlLibrary` over pynvml.

    Attributes:
        _api: the pynvml module, or an object with its functions that replays a recording.
    """

    def __init__(self, api: Any = pynvml) -> None:
        self._api = api

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except pynvml.NVMLError as error:
            raise NvmlError(int(error.value), str(error)) from error

    def open(self) -> None:
        """See `NvmlLibrary`."""
        with self._translated():
            self._api.nvmlInit()

    def close(self) -> None:
        """See `NvmlLibrary`."""
        with self._translated():
            self._api.nvmlShutdown()

    def device_count(self) -> int:
        """See `NvmlLibrary`."""
        with self._translated():
            return int(self._api.nvmlDeviceGetCount())

    def device(self, index: int) -> Device:
        """See `NvmlLibrary`."""
        with self._translated():
            return Device(self._api.nvmlDeviceGetHandleByIndex(index))

    def uuid(self, device: Device) -> str:
        """See `NvmlLibrary`."""
        with self._translated():
            return _text(self._api.nvmlDeviceGetUUID(device))

    def name(self, device: Device) -> str:
        """See `NvmlLibrary`."""
        with self._translated():
            return _text(self._api.nvmlDeviceGetName(device))

    def memory_bytes(self, device: Device) -> int:
        """See `NvmlLibrary`."""
        with self._translated():
            return int(self._api.nvmlDeviceGetMemoryInfo(device).total)

    def bus_id(self, device: Device) -> str:
        """See `NvmlLibrary`."""
        with self._translated():
            return _text(self._api.nvmlDeviceGetPciInfo(device).busId).upper()

    def mig_enabled(self, device: Device) -> bool:
        """See `NvmlLibrary`."""
        with self._translated():
            return any(int(mode) for mode in self._api.nvmlDeviceGetMigMode(device))

    def retired_pages_pending(self, device: Device) -> bool:
        """See `NvmlLibrary`."""
        with self._translated():
            return bool(self._api.nvmlDeviceGetRetiredPagesPendingStatus(device))

    def remapped_rows(self, device: Device) -> RemappedRows:
        """See `NvmlLibrary`."""
        with self._translated():
            _, _, pending, failed = self._api.nvmlDeviceGetRemappedRows(device)
        return RemappedRows(pending=bool(pending), failed=bool(failed))

    def recovery_action(self, device: Device) -> int:
        """See `NvmlLibrary`."""
        with self._translated():
            (field,) = self._api.nvmlDeviceGetFieldValues(device, [_RECOVERY_ACTION_FIELD])
            if field.nvmlReturn:
                raise pynvml.NVMLError(field.nvmlReturn)
        return int(field.value.uiVal)

    def fabric(self, device: Device) -> Fabric:
        """See `NvmlLibrary`."""
        # Version 2 of the structure: the first that carries the state, known to every driver
        # that has the call.
        info = pynvml.c_nvmlGpuFabricInfo_v2_t()
        with self._translated():
            self._api.nvmlDeviceGetGpuFabricInfoV(device, pynvml.byref(info))
        return Fabric(state=int(info.state), status=int(info.status))

    def link_active(self, device: Device, link: int) -> bool:
        """See `NvmlLibrary`."""
        with self._translated():
            return bool(self._api.nvmlDeviceGetNvLinkState(device, link))

    def link_version(self, device: Device, link: int) -> int:
        """See `NvmlLibrary`."""
        with self._translated():
            return int(self._api.nvmlDeviceGetNvLinkVersion(device, link))

    def link_remote_kind(self, device: Device, link: int) -> int:
        """See `NvmlLibrary`."""
        with self._translated():
            return int(self._api.nvmlDeviceGetNvLinkRemoteDeviceType(device, link))

    def link_remote_bus_id(self, device: Device, link: int) -> str:
        """See `NvmlLibrary`."""
        with self._translated():
            return _text(self._api.nvmlDeviceGetNvLinkRemotePciInfo(device, link).busId).upper()

    def common_ancestor(self, first: Device, second: Device) -> int:
        """See `NvmlLibrary`."""
        with self._translated():
            return int(self._api.nvmlDeviceGetTopologyCommonAncestor(first, second))

    def p2p_status(self, first: Device, second: Device, capability: int) -> int:
        """See `NvmlLibrary`."""
        with self._translated():
            return int(self._api.nvmlDeviceGetP2PStatus(first, second, capability))
