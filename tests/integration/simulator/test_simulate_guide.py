"""docs/guide/simulate.md: its files are saved, its commands run as they stand, its names exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from support.tree import ROOT
from typer.testing import CliRunner

import scheduler.main  # noqa: F401 - adds the command to the CLI's
from scheduler.cli.main import app
from scheduler.simulator.importers import READERS
from scheduler.simulator.report import FIGURES

GUIDE = (ROOT / "docs/guide/simulate.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^    (haversack .+)$", GUIDE, re.MULTILINE)
FILES = re.findall(r"as `([\w.]+)`:\n\n```\w+\n(.*?)```", GUIDE, re.DOTALL)

# Stand-ins for the public files that a reader downloads first: same columns, a few records.
PODS = "name,cpu_milli,memory_mib,num_gpu,gpu_milli\n" + "".join(
    f"pod-{n},4000,8192,1,{250 * (n % 4 + 1)}\n" for n in range(12)
)
NODES = "sn,cpu_milli,memory_mib,gpu,model\nnode-0,64000,262144,4,T4\nnode-1,64000,262144,2,P100\n"


def test_every_command_of_the_guide_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "openb_pod_list_default.csv").write_text(PODS, encoding="utf-8")
    (tmp_path / "openb_node_list_gpu_node.csv").write_text(NODES, encoding="utf-8")
    for name, text in FILES:
        (tmp_path / name).write_text(text, encoding="utf-8")
    assert [name for name, _ in FILES] == ["load.csv", "other.csv", "nodes.yaml"]
    assert len(COMMANDS) >= 7
    for command in COMMANDS:
        done = CliRunner().invoke(app, shlex.split(command)[1:])
        assert done.exit_code == 0, f"{command}\n{done.output}"
        assert done.stdout.startswith("METRIC"), command
    assert (tmp_path / "report.html").is_file()


def test_the_guide_names_every_figure_and_format() -> None:
    names = [figure.name for figure in FIGURES] + list(READERS) + ["gpu_utilization_bound"]
    assert [name for name in names if f"`{name}`" not in GUIDE] == []
