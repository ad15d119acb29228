"""The pynvml adapter and the inventory, replaying a recording of two H200 behind an NVSwitch."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest

from scheduler.agent.inventory import HostInventory, NvmlInventory
from scheduler.agent.nvml import NvmlError, Pynvml
from scheduler.model.node import Health


def _fixtures() -> Path:
    """The folder of recorded hosts: HAVERSACK_FIXTURES, or beside HAVERSACK_TRACES."""
    named = os.environ.get("HAVERSACK_FIXTURES")
    traces = os.environ.get("HAVERSACK_TRACES")
    folder = Path(named) if named else Path(traces).parent / "fixtures" if traces else None
    if folder is None or not (folder / "nvml-h200x2").is_dir():
        pytest.skip("SKIPPED: no recorded NVML; set HAVERSACK_FIXTURES or HAVERSACK_TRACES")
    return folder / "nvml-h200x2"


class RecordedPynvml:
    """pynvml's functions, answering from a recording; what was not recorded is not supported."""

    def __init__(self, recording: dict[str, Any]) -> None:
        self._recording = recording

    def __getattr__(self, name: str) -> Any:
        if name.startswith("nvmlDeviceGetNvLink"):
            return lambda gpu, link: self._link(name, gpu, link)
        if name.startswith("nvmlDeviceGet"):
            return lambda gpu, *_: self._answer(gpu.get(name))
        raise AttributeError(name)

    @staticmethod
    def _answer(answer: Any) -> Any:
        if answer is None or (isinstance(answer, dict) and "error" in answer):
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        if isinstance(answer, dict) and "nvml_error" in answer:
            raise pynvml.NVMLError(answer["code"])
        return SimpleNamespace(**answer) if isinstance(answer, dict) else answer

    def _link(self, name: str, gpu: dict[str, Any], link: int) -> Any:
        key = {
            "nvmlDeviceGetNvLinkState": "state",
            "nvmlDeviceGetNvLinkVersion": "version",
            "nvmlDeviceGetNvLinkRemotePciInfo": "remote",
            "nvmlDeviceGetNvLinkRemoteDeviceType": "remote_type",
        }[name]
        return self._answer(gpu["nvlinks"][link].get(key))

    def _pair(self, a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
        wanted = (a["nvmlDeviceGetIndex"], b["nvmlDeviceGetIndex"])
        pairs: list[dict[str, Any]] = self._recording["pairs"]
        return next(pair for pair in pairs if (pair["a"], pair["b"]) == wanted)

    def nvmlInit(self) -> None:  # noqa: N802 - pynvml's name
        """Nothing to open."""

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802 - pynvml's name
        return len(self._recording["gpus"])

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Any:  # noqa: N802 - pynvml's name
        return self._recording["gpus"][index]

    def nvmlDeviceGetTopologyCommonAncestor(self, a: Any, b: Any) -> Any:  # noqa: N802 - pynvml's
        return self._answer(self._pair(a, b)["common_ancestor"])

    def nvmlDeviceGetP2PStatus(self, a: Any, b: Any, index: Any) -> Any:  # noqa: N802 - pynvml's
        # The recording fell into pynvml's trap for READ (a tuple cannot be converted), so its
        # answer is unknown; an index that is not a number would fail on a real driver too.
        assert type(index) is int
        key = ("READ", "WRITE", "NVLINK", "ATOMICS", "PROP")[index]
        return self._answer(self._pair(a, b)[key])


@pytest.fixture
def recording() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((_fixtures() / "nvml.json").read_text(encoding="utf-8"))
    return loaded


def test_two_h200_as_recorded(recording: dict[str, Any]) -> None:
    survey = HostInventory(Pynvml(RecordedPynvml(recording))).survey()
    assert [(gpu.id, gpu.index, gpu.model, gpu.memory_mib) for gpu in survey.node.gpus] == [
        ("GPU-83132acf-5859-b06d-43f4-60d17f7d6ac9", 0, "H200", 143_771),
        ("GPU-e5011c8d-84dd-2c08-67d3-d2fd8745ea87", 1, "H200", 143_771),
    ]
    assert {gpu.health for gpu in survey.node.gpus} == {Health.HEALTHY}
    assert survey.findings == ()
    # nvidia-smi topo -m of the same host says NV18 for the pair.
    assert "NV18" in (_fixtures() / "topo.txt").read_text(encoding="utf-8")
    assert survey.node.links.nvlinks == ((0, 18), (18, 0))
    assert survey.node.links.bandwidth_gbps == ((0.0, 450.0), (450.0, 0.0))
    assert survey.node.capacity.gpus == 2


def test_mig_mode_of_a_recorded_gpu(recording: dict[str, Any]) -> None:
    recording["gpus"][1]["nvmlDeviceGetMigMode"] = [1, 1]
    node = NvmlInventory(Pynvml(RecordedPynvml(recording))).survey().node
    assert [gpu.health for gpu in node.gpus] == [Health.HEALTHY, Health.UNKNOWN]


def test_a_recorded_gpu_that_is_lost(recording: dict[str, Any]) -> None:
    recording["gpus"][0]["nvmlDeviceGetRemappedRows"] = {"nvml_error": "lost", "code": 15}
    node = NvmlInventory(Pynvml(RecordedPynvml(recording))).survey().node
    assert [gpu.health for gpu in node.gpus] == [Health.UNHEALTHY, Health.HEALTHY]


def test_field_values_carry_their_own_return_code() -> None:
    class FieldApi:
        def __init__(self, code: int, action: int) -> None:
            self._field = SimpleNamespace(nvmlReturn=code, value=SimpleNamespace(uiVal=action))

        def nvmlDeviceGetFieldValues(self, *_: object) -> list[SimpleNamespace]:  # noqa: N802
            return [self._field]

    device: Any = object()
    assert Pynvml(FieldApi(0, 4)).recovery_action(device) == 4
    with pytest.raises(NvmlError) as raised:
        Pynvml(FieldApi(3, 4)).recovery_action(device)
    assert raised.value.code == 3
    assert not raised.value.illness


def test_strings_may_come_as_bytes() -> None:
    api = SimpleNamespace(nvmlDeviceGetUUID=lambda _: b"GPU-1", nvmlDeviceGetName=lambda _: "H200")
    device: Any = object()
    assert Pynvml(api).uuid(device) == "GPU-1"
    assert Pynvml(api).name(device) == "H200"
