"""Name, identity, processors and memory of the host."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.agent import host


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


@pytest.mark.parametrize(
    ("given_name", "expected"),
    [
        ("GPU-Box_01.example.org", "gpu-box-01.example.org"),
        ("..", "host"),
        ("", "host"),
        ("a" * 70, "a" * 63),
        ("näme", "n-me"),
    ],
)
def test_sanitized(given_name: str, expected: str) -> None:
    assert host.sanitized(given_name) == expected


@given(st.text(max_size=80))
def test_every_name_becomes_a_legal_one(name: str) -> None:
    assert re.fullmatch(r"[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?", host.sanitized(name))


def test_identity_is_the_machine_id_where_there_is_one(tmp_path: Path) -> None:
    assert host.host_identity(tmp_path) == host.host_name()
    _write(tmp_path / "etc/machine-id", "uninitialized\n")
    assert host.host_identity(tmp_path) == host.host_name()
    _write(tmp_path / "etc/machine-id", "0123456789abcdef0123456789abcdef\n")
    assert host.host_identity(tmp_path) == "0123456789abcdef0123456789abcdef"


def test_affinity_counts_and_cgroup_quotas_bind_at_every_level(tmp_path: Path) -> None:
    own = 1000 * len(os.sched_getaffinity(0))
    assert host.cpu_milli(tmp_path) == own
    _write(tmp_path / "proc/self/cgroup", "0::/pods/one\n")
    _write(tmp_path / "sys/fs/cgroup/pods/one/cpu.max", "max 100000\n")
    assert host.cpu_milli(tmp_path) == own
    _write(tmp_path / "sys/fs/cgroup/pods/cpu.max", "50000 100000\n")
    assert host.cpu_milli(tmp_path) == 500
    _write(tmp_path / "sys/fs/cgroup/cpu.max", "25000 100000\n")
    assert host.cpu_milli(tmp_path) == 250


def test_memory_is_the_machines_capped_by_cgroups(tmp_path: Path) -> None:
    _write(tmp_path / "proc/meminfo", "MemTotal:       16384000 kB\nMemFree: 1 kB\n")
    assert host.memory_mib(tmp_path) == 16_000
    _write(tmp_path / "proc/self/cgroup", "12:memory:/old\n0::/\n")
    _write(tmp_path / "sys/fs/cgroup/memory.max", "max\n")
    assert host.memory_mib(tmp_path) == 16_000
    _write(tmp_path / "sys/fs/cgroup/memory.max", f"{2048 * 1_048_576}\n")
    assert host.memory_mib(tmp_path) == 2048


def test_a_meminfo_without_a_total_is_an_error(tmp_path: Path) -> None:
    _write(tmp_path / "proc/meminfo", "MemFree: 1 kB\n")
    with pytest.raises(ValueError, match="MemTotal"):
        host.memory_mib(tmp_path)


def test_this_host_has_something_to_offer() -> None:
    assert host.cpu_milli() > 0
    assert host.memory_mib() > 0
