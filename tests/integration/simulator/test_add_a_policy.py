"""docs/contributing/add-a-policy.md, followed to the letter in a copy of the project."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs/contributing/add-a-policy.md"
BLOCK = re.compile(r"```(python|console)\n(.*?)```", re.DOTALL)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The packages, and nothing installed."""
    for package in ("scheduler", "api", "policies"):
        shutil.copytree(
            ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__")
        )
    return tmp_path


def test_a_policy_takes_one_file_and_one_registry_line(copy: Path) -> None:
    policy, imported, line, command, test = (
        found[1] for found in BLOCK.findall(PAGE.read_text(encoding="utf-8"))
    )
    before = set((copy / "policies").iterdir())
    (copy / "policies/largest_first.py").write_text(policy, encoding="utf-8")
    _register(copy / "policies/registry.py", imported, line)
    assert len(set((copy / "policies").iterdir()) - before) == 1

    program, *arguments = shlex.split(command)
    assert program == "haversack"
    told = _run(copy, "-c", "from scheduler.main import run; run()", *arguments, "--quiet")
    assert "LARGEST-FIRST" in told
    assert "wait_s_mean" in told

    (copy / "test_largest_first.py").write_text(test, encoding="utf-8")
    passed = _run(copy, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_largest_first.py")
    assert "1 passed" in passed


def _register(registry: Path, imported: str, line: str) -> None:
    text = registry.read_text(encoding="utf-8")
    text = text.replace("from policies.least_attained", f"{imported}from policies.least_attained")
    head, end, rest = text.partition("\n}\n")
    assert end, "PROFILES is written as one dictionary"
    registry.write_text(f"{head}\n{line.rstrip()}{end}{rest}", encoding="utf-8")


def _run(folder: Path, *arguments: str) -> str:
    environment = {
        **os.environ,
        "PYTHONPATH": f"{folder}{os.pathsep}{ROOT / 'tests'}",
        "COLUMNS": "200",
    }
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout
