"""The demo: a daemon on this box, one real torch.distributed job, and the decision behind it.

Runs the same commands a person would type, and prints each. Leaves nothing running and nothing on
disk, unless it fails: then it says where the logs are.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

EXAMPLE = Path(__file__).parent / "examples" / "ddp.yaml"
HAVERSACK = Path(sys.executable).with_name("haversack")
START_S = 60.0
STOP_S = 30.0


def say(text: str) -> None:
    """One line of the demo's own voice."""
    sys.stdout.write(f"\n== {text}\n")
    sys.stdout.flush()


def haversack(*arguments: str, data: Path, quiet: bool = False) -> str:
    """Run one CLI command against the demo's daemon and return its standard output.

    Raises:
        SystemExit: the command failed; its own message has been shown.
    """
    if not quiet:
        sys.stdout.write(f"$ haversack {' '.join(arguments)}\n")
        sys.stdout.flush()
    done = subprocess.run(  # noqa: S603 - our own console script, fixed arguments
        [HAVERSACK, *arguments],
        env={**os.environ, "HAVERSACK_DATA": str(data)},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        sys.stdout.write(done.stdout)
        raise SystemExit(f"demo: `haversack {' '.join(arguments)}` exited {done.returncode}")
    return done.stdout


def follow(job: str, data: Path) -> None:
    """Show the job's log as it grows; returns when the job has ended well.

    Raises:
        SystemExit: the job did not succeed.
    """
    sys.stdout.write(f"$ haversack logs -f --rank all {job}\n")
    sys.stdout.flush()
    done = subprocess.run(  # noqa: S603 - our own console script, fixed arguments
        [HAVERSACK, "logs", "-f", "--rank", "all", job],
        env={**os.environ, "HAVERSACK_DATA": str(data)},
        check=False,
    )
    if done.returncode != 0:
        raise SystemExit(f"demo: the job did not succeed (exit {done.returncode})")


def start(data: Path) -> subprocess.Popen[bytes]:
    """Start the daemon and wait until it is ready.

    Raises:
        SystemExit: it ended, or was not ready in time.
    """
    sys.stdout.write("$ haversack up --port 0\n")
    sys.stdout.flush()
    with (data.parent / "daemon.log").open("wb") as log:
        daemon = subprocess.Popen(  # noqa: S603 - our own console script, fixed arguments
            [HAVERSACK, "up", "--data", str(data), "--port", "0"],
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    deadline = time.monotonic() + START_S
    while not (data / "endpoint.json").exists():
        if daemon.poll() is not None or time.monotonic() > deadline:
            daemon.kill()
            raise SystemExit("demo: the daemon did not start; see daemon.log")
        time.sleep(0.05)
    return daemon


def job_file(data: Path) -> Path:
    """The example, on GPUs if this host has one for each of its two tasks."""
    nodes = json.loads(haversack("nodes", "-o", "json", data=data, quiet=True))
    gpus = max((node["capacity"]["gpus"] for node in nodes["items"]), default=0)
    document = yaml.safe_load(EXAMPLE.read_text())
    document["spec"]["workdir"] = str(EXAMPLE.parent)
    if gpus >= document["spec"]["tasks"]:
        document["spec"]["task"]["gpus"] = 1
    path = data.parent / "ddp.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def show_decision(job: str, data: Path) -> None:
    """Print what was decided for the job: value, bound, gap, where each rank ran and why."""
    described = json.loads(haversack("describe", job, "-o", "json", data=data))
    attempt = described["attempt_list"][-1]
    decision = json.loads(haversack("decisions", attempt["decision_id"], "-o", "json", data=data))
    sys.stdout.write(
        f"decision {decision['id']}: value {decision['value']:.4g}, proven bound"
        f" {decision['bound']:.4g}, gap {100 * decision['gap']:.2f} %\n"
    )
    for task in attempt["tasks"]:
        gpus = ", ".join(task["gpu_ids"]) or "CPU only"
        sys.stdout.write(f"  task {task['task_index']} ran on {task['node_name']} ({gpus})\n")
    sys.stdout.write(f"  why: {attempt['why']}\n")


def main() -> int:
    """Run the demo.

    Returns:
        0 when the job ran and all ranks agreed.
    """
    work = Path(tempfile.mkdtemp(prefix="haversack-demo-"))
    data = work / "data"
    data.mkdir(mode=0o700)
    daemon: subprocess.Popen[bytes] | None = None
    finished = False
    try:
        say("Start the daemon: API, scheduler and local execution on embedded SQLite")
        daemon = start(data)
        say("Submit a torch.distributed job of two ranks")
        job = haversack("submit", "-f", str(job_file(data)), "-o", "name", data=data).strip()
        sys.stdout.write(f"{job}\n")
        say("Follow its log")
        follow(job, data)
        say("What was decided, and how good it provably is")
        show_decision(job, data)
        finished = True
    finally:
        if daemon is not None:
            daemon.send_signal(signal.SIGTERM)
            try:
                daemon.wait(STOP_S)
            except subprocess.TimeoutExpired:
                daemon.kill()
        if finished:
            shutil.rmtree(work)
        else:
            sys.stdout.write(f"demo: logs are kept in {work}\n")
    say("Done; the daemon has stopped and nothing is left running")
    return 0


if __name__ == "__main__":
    sys.exit(main())
