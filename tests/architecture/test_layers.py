"""Imports point down only, pulp and pynvml live in one module each: import-linter's contracts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from support.tree import ROOT


def test_import_contracts_hold() -> None:
    lint_imports = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run(
        [lint_imports, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
