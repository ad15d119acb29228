"""The demo: a daemon on this box, one real torch.distributed job, and the decision behind it.

Runs the same commands a person would type, and prints each. Leaves nothing running, also when it
fails or is interrupted: it cancels its job and stops its daemon. Leaves nothing on disk, unless it
fails: then it says where the logs are. `demo.py FILE` runs another job file.
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
STOP_S = 60.0
OVER = ("SUCCEEDED", "FAILED", "CANCELLED")
INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""


def say(text: str) -> None:
    """One line of the demo's own voice."""
    sys.stdout.write(f"\n== {text}\n")
    sys.stdout.flush()


def environment(data: Path) -> dict[str, str]:
    """Ours, without settings meant for other daemons; tasks find this installation's `python`."""
    own = {name: text for name, text in os.environ.items() if not name.startswith("HAVERSACK_")}
    path = os.pathsep.join((str(HAVERSACK.parent), os.environ.get("PATH", os.defpath)))
    return {**own, "HAVERSACK_DATA": str(data), "PATH": path}


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
        env=environment(data),
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
        [HAVERSACK, "logs", "-f", "--rank", "all", job], env=environment(data), check=False
    )
    if done.returncode != 0:
        raise SystemExit(f"demo: the job did not succeed (exit {done.returncode})")


def end_jobs(data: Path) -> None:
    """Cancel what is not over and wait for it: jobs outlive their daemon.

    Raises:
        SystemExit: the daemon does not answer, so a job may be running.
        TimeoutExpired: a job did not end in time.
    """
    jobs = json.loads(haversack("jobs", "-o", "json", data=data, quiet=True))["items"]
    for job in [job["id"] for job in jobs if job["state"] not in OVER]:
        haversack("cancel", job, data=data)
        subprocess.run(  # noqa: S603 - our own console script, fixed arguments
            [HAVERSACK, "logs", "-f", "--tail", "0", job],  # returns when the job is over
            env=environment(data),
            stdout=subprocess.DEVNULL,
            check=False,
            timeout=STOP_S,
        )


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
            env=environment(data),
            start_new_session=True,
        )
    deadline = time.monotonic() + START_S
    while not (data / "endpoint.json").exists():
        if daemon.poll() is not None or time.monotonic() > deadline:
            daemon.kill()
            raise SystemExit("demo: the daemon did not start; see daemon.log")
        time.sleep(0.05)
    return daemon


def nodes(data: Path) -> list[dict[str, object]]:
    """What the daemon offers."""
    listing = json.loads(haversack("nodes", "-o", "json", data=data, quiet=True))
    return list(listing["items"])


def job_file(source: Path, data: Path) -> Path:
    """The job file to submit: the example gets GPUs if this host has one for each of its tasks."""
    if source != EXAMPLE:
        return source
    document = yaml.safe_load(source.read_text())
    document["spec"]["workdir"] = str(source.parent)
    if (
        max((int(str(node["gpus"])) for node in nodes(data)), default=0)
        >= document["spec"]["tasks"]
    ):
        document["spec"]["task"]["gpus"] = 1
    path = data.parent / source.name
    path.write_text(yaml.safe_dump(document))
    return path


def show_decision(job: str, data: Path) -> None:
    """Print what was decided for the job: value, bound, gap, where each task ran and why."""
    attempt = json.loads(haversack("describe", job, "-o", "json", data=data))["attempts"][-1]
    decision = json.loads(haversack("decisions", attempt["decision_id"], "-o", "json", data=data))
    name_of = {node["id"]: node["name"] for node in nodes(data)}
    sys.stdout.write(
        f"decision {decision['id']}: value {decision['value']:.4g}, proven bound"
        f" {decision['bound']:.4g}, gap {100 * decision['gap']:.2f} %\n"
    )
    for task in attempt["tasks"]:
        gpus = ", ".join(task["gpu_ids"]) or "CPU only"
        sys.stdout.write(
            f"  task {task['task_index']} ran on {name_of[task['node_id']]} ({gpus})\n"
        )
    sys.stdout.write(f"  why: {attempt['why']}\n")


def run(source: Path, work: Path) -> None:
    """Start a daemon in `work`, run the job of `source` to its end, show its decision, stop.

    Raises:
        SystemExit: a step failed; the job was cancelled and the daemon stopped.
    """
    data = work / "data"
    data.mkdir(mode=0o700)
    say("Start the daemon: API, scheduler and local execution on embedded SQLite")
    daemon = start(data)
    try:
        try:
            say("Submit a torch.distributed job of two ranks")
            path = str(job_file(source, data))
            job = haversack("submit", "-f", path, "-o", "name", data=data).strip()
            sys.stdout.write(f"{job}\n")
            say("Follow its log")
            follow(job, data)
        finally:
            end_jobs(data)
        say("What was decided, and how good it provably is")
        show_decision(job, data)
    finally:
        daemon.send_signal(signal.SIGTERM)
        try:
            daemon.wait(STOP_S)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()


def main() -> int:
    """Run the demo.

    Returns:
        0 when the job ran and all ranks agreed.
    """
    source = Path(sys.argv[1]).resolve() if sys.argv[1:] else EXAMPLE
    work = Path(tempfile.mkdtemp(prefix="haversack-demo-"))
    finished = False
    try:
        run(source, work)
        finished = True
    except KeyboardInterrupt:
        say("Interrupted; the job was cancelled and the daemon has stopped")
        return INTERRUPTED
    finally:
        if finished:
            shutil.rmtree(work)
        else:
            sys.stdout.write(f"demo: logs are kept in {work}\n")
    say("Done; the daemon has stopped and nothing is left running")
    return 0


if __name__ == "__main__":
    sys.exit(main())
