"""`haversack simulate` from its arguments to what it prints and writes, on the real cycle."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

import scheduler.main  # noqa: F401 - adds the command to the CLI's
from scheduler.cli.main import app
from scheduler.simulator.command import FamilyOption, FormatOption
from scheduler.simulator.generate import Family
from scheduler.simulator.importers import READERS

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
SMALL = ("--generate", "philly-like", "--jobs", "60", "--cluster", "2x8:H100", "--seed", "5")
POLICIES = ("--policy", "fifo,priority-age")
CSV = "job_id,submit_s,gpus,duration_s\na,0,8,100\nb,10,8,100\nc,20,1,0\n"


def simulate(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["simulate", *map(str, arguments)])


def written(folder: Path, text: str) -> Path:
    path = folder / "load.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_options_name_what_there_is() -> None:
    assert [str(name) for name in FormatOption] == list(READERS)
    assert [str(name) for name in FamilyOption] == [str(name) for name in Family]


def test_a_file_is_run_and_reported(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    done = simulate(
        *("--workload", written(tmp_path, CSV), "--cluster", "1x8:H100", "--policy", "fifo"),
        *("--json", out),
    )
    assert done.exit_code == 0, done.output
    rows = {line.split()[0]: line.split()[1:] for line in done.stdout.splitlines()}
    assert rows["METRIC"] == ["BOUND", "FIFO"]
    assert rows["makespan_s"] == ["3.3", "min", "3.3", "min"]
    assert "1 records left out: no run time" in done.stderr
    metrics = json.loads(out.read_text())["runs"][0]["metrics"]
    assert (metrics["jobs"], metrics["completed"], metrics["makespan_s"]) == (2, 2, 200.0)
    assert (metrics["wait_s_mean"], metrics["jct_s_mean"]) == (45.0, 145.0)
    assert metrics["gpu_utilization"] == 1.0


def test_a_job_that_never_fits_is_unplaced_and_in_no_bound(tmp_path: Path) -> None:
    huge = written(tmp_path, f"{CSV}huge,0,64,100000\n")
    done = simulate("--workload", huge, "--cluster", "1x8:H100", "--json", "-", "-q")
    found = json.loads(done.stdout)
    metrics = found["runs"][0]["metrics"]
    assert (metrics["unplaced"], metrics["completed"]) == (1, 2)
    assert found["bounds"]["makespan_s_bound"] == metrics["makespan_s"] == 200.0


def test_equal_seeds_give_equal_files_whatever_the_hash_seed(tmp_path: Path) -> None:
    files = [tmp_path / "first.json", tmp_path / "second.json"]
    command = "from scheduler.main import run; run()"
    for hash_seed, out in enumerate(files):
        subprocess.run(
            [
                *(sys.executable, "-c", command, "simulate", *SMALL, "--policy", "fifo,las"),
                *("--failures-s", "30000", "--no-timing", "--json", str(out)),
            ],
            env={**os.environ, "PYTHONHASHSEED": str(hash_seed)},
            capture_output=True,
            timeout=120,
            check=True,
        )
    assert files[0].read_bytes() == files[1].read_bytes()


def test_wall_times_are_apart_from_everything_else(tmp_path: Path) -> None:
    with_timing = json.loads(simulate(*SMALL, *POLICIES, "--json", "-", "-q").stdout)
    assert set(with_timing.pop("timing")) == {"fifo", "priority-age"}
    without = simulate(*SMALL, *POLICIES, "--json", "-", "-q", "--no-timing")
    assert with_timing == json.loads(without.stdout)


def test_a_saved_workload_runs_the_same(tmp_path: Path) -> None:
    kept = tmp_path / "kept.jsonl"
    out = tmp_path / "out.json"
    saved = simulate(*SMALL, "--save", kept, "--json", "-", "--quiet")
    again = simulate(
        *("--workload", kept, "--format", "haversack", "--cluster", "2x8:H100", "--seed", "5"),
        *("--json", out),
    )
    assert (saved.exit_code, again.exit_code) == (0, 0), again.output
    assert saved.stderr == ""
    assert json.loads(saved.stdout)["runs"] == json.loads(out.read_text())["runs"]


def test_failures_and_restart_cost_reach_the_engine(tmp_path: Path) -> None:
    calm = json.loads(simulate(*SMALL, "--json", "-", "-q").stdout)
    rough = simulate(
        *(*SMALL, "--failures-s", "20000:600", "--restart-cost-s", "60", "--json", "-", "-q"),
        *("--checkpoint-every-s", "300"),
    )
    found = json.loads(rough.stdout)
    assert found["options"] == {
        "restart_cost_s": 60.0,
        "mtbf_s": 20000.0,
        "mttr_s": 600.0,
        "checkpoint_every_s": 300.0,
    }
    worse, better = found["runs"][0]["metrics"], calm["runs"][0]["metrics"]
    assert worse["restarts"] > 0 == better["restarts"]
    assert worse["lost_gpu_hours"] > 0 == better["lost_gpu_hours"]
    assert worse["gpu_utilization"] < better["gpu_utilization"]


def test_openb_runs_the_fgd_protocol(tmp_path: Path) -> None:
    pods = "name,cpu_milli,memory_mib,num_gpu,gpu_milli\n"
    pods += "".join(f"p{n},1000,1024,1,1000\n" for n in range(10))
    nodes = tmp_path / "nodes.csv"
    nodes.write_text(
        "sn,cpu_milli,memory_mib,gpu,model\nn0,64000,262144,4,T4\nn1,64000,262144,4,T4\n",
        encoding="utf-8",
    )
    done = simulate(
        *("--workload", written(tmp_path, pods), "--format", "openb", "--nodes", nodes),
        *("--arrive", "1.5", "--seed", "42", "--json", "-", "-q"),
    )
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    metrics = found["runs"][0]["metrics"]
    assert (metrics["jobs"], metrics["unplaced"]) == (12, 4)
    assert metrics["gpu_allocation_ratio"] == metrics["gpu_allocation_ratio_at_100"] == 1.0
    assert found["runs"][0]["served_by_size"] == [{"gpus": "1", "arrived": 12, "served": 8}]


@pytest.mark.parametrize(
    ("arguments", "code", "complaint"),
    [
        ((), 2, "either --workload FILE or --generate FAMILY"),
        (("--generate", "philly-like"), 2, "either --nodes FILE or --cluster"),
        (("--workload", "absent.csv", "--cluster", "1x8:H100"), 3, "absent.csv: there is no such"),
        (("--generate", "philly-like", "--cluster", "8"), 2, "is not <nodes>x<gpus per node>"),
        ((*SMALL, "--policy", "fifi"), 2, "no policy is called 'fifi'"),
        ((*SMALL, "--policy", ","), 2, "--policy names no policy"),
        ((*SMALL, "--window-s", "5"), 2, "is not START:END"),
        ((*SMALL, "--window-s", "9:5"), 2, "is not START:END"),
        ((*SMALL, "--failures-s", "often"), 2, "--failures-s: 'often' is not a number"),
        ((*SMALL, "--failures-s", "0"), 2, "--failures-s: 0 must be above 0"),
        ((*SMALL, "--weights", "red"), 2, "'red' is not NAME=VALUE"),
        ((*SMALL, "--html", "absent/x.html"), 2, "there is no folder"),
        ((*SMALL, "--load", "0"), 2, "--load 0.0 is impossible"),
        ((*SMALL, "--batch", "0"), 2, "--batch"),
    ],
)
def test_wrong_usage_is_said_before_anything_runs(
    arguments: tuple[str, ...], code: int, complaint: str
) -> None:
    done = simulate(*arguments)
    assert done.exit_code == code, done.output
    assert complaint in done.stderr
    assert done.stdout == ""


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt install chromium")
def test_the_page_opens_from_disk_without_a_complaint(tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    assert simulate(*SMALL, *POLICIES, "--html", out).exit_code == 0
    assert CHROMIUM is not None
    done = subprocess.run(
        [
            *(CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"),
            *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
            *(f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr"),
            *("--virtual-time-budget=2000", "--dump-dom", out.as_uri()),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert [line for line in done.stderr.splitlines() if "CONSOLE" in line] == []
    # The legend and at least the four plots of a timed run.
    assert done.stdout.count("<svg") >= 7
    assert "Fairness by tenant" in done.stdout
