"""Submissions with auth, idempotency and sync to disk, under a growing backlog.

Prints sustained requests/s and latencies of 8 native clients (wrk) against a daemon whose cycle is
running on 128 simulated GPUs, next to bare SQLite commits/s on the same disk in the same run.
Exits 1 below 300/s or at p99 >= 50 ms.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.daemon import DaemonProcess, job_document

CLIENTS = 8
RATE_MIN = 300.0
P99_MAX_MS = 50.0
LUA = """
local body = [==[%s]==]
local thread_number = 0
function setup(thread) thread_number = thread_number + 1; thread:set("number", thread_number) end
function init(args) count = 0 end
function request()
  count = count + 1
  wrk.headers["Authorization"] = "Bearer %s"
  wrk.headers["Content-Type"] = "application/json"
  wrk.headers["Idempotency-Key"] = "bench-" .. number .. "-" .. count
  return wrk.format("POST", "/api/v1/jobs", nil, body)
end
bad = 0
function response(status) if status ~= 201 then bad = bad + 1 end end
function done(summary, latency, requests)
  io.write(string.format("p50 %%.2f ms p99 %%.2f ms max %%.2f ms\\n",
    latency:percentile(50) / 1000, latency:percentile(99) / 1000, latency.max / 1000))
  io.write(string.format("requests %%d in %%.3f s errors %%d\\n", summary.requests,
    summary.duration / 1e6, summary.errors.connect + summary.errors.read + summary.errors.write
    + summary.errors.status + summary.errors.timeout))
end
"""


def bare_commits_per_s(folder: Path, seconds: float = 3.0) -> float:
    """One-row SQLite transactions/s with WAL and synchronous FULL on this disk."""
    connection = sqlite3.connect(folder / "bare.db", isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("CREATE TABLE rows (id INTEGER PRIMARY KEY, body TEXT)")
    count, end = 0, time.monotonic() + seconds
    while time.monotonic() < end:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("INSERT INTO rows (body) VALUES (?)", ("x" * 400,))
        connection.execute("COMMIT")
        count += 1
    connection.close()
    return count / seconds


def main() -> int:
    """Run the benchmark; 0 when both thresholds hold."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=60)
    arguments = parser.parse_args()
    wrk = shutil.which("wrk")
    if wrk is None:
        sys.stderr.write("bench_submit: wrk is not installed (apt install wrk)\n")
        return 2
    folder = Path(tempfile.mkdtemp(prefix="haversack-bench-"))
    daemon = DaemonProcess(folder / "data", virtual="16x8:H100")
    daemon.start()
    try:
        document = job_document("bench", ["sleep", "3600"], gpus=8)
        script = folder / "submit.lua"
        script.write_text(LUA % (json.dumps(document), daemon.token))
        bare = bare_commits_per_s(folder)
        done = subprocess.run(
            [wrk, "-t2", f"-c{CLIENTS}", f"-d{arguments.seconds}s", "-s", str(script), daemon.url],
            capture_output=True,
            text=True,
            check=True,
        )
        with daemon.http() as client:
            queue = client.get("/api/v1/queues").json()["items"]
            gap = client.get("/api/v1/decisions?limit=1").json()["items"]
            running = client.get("/api/v1/jobs", params={"state": "RUNNING", "limit": 100}).json()[
                "items"
            ]
            for job in running:
                client.post(f"/api/v1/jobs/{job['id']}:cancel")
            time.sleep(3)
        daemon.stop()
    finally:
        daemon.kill()
    percentiles = re.search(r"p50 (\S+) ms p99 (\S+) ms max (\S+) ms", done.stdout)
    totals = re.search(r"requests (\d+) in (\S+) s errors (\d+)", done.stdout)
    assert percentiles is not None, done.stdout
    assert totals is not None, done.stdout
    rate = int(totals[1]) / float(totals[2])
    p99_ms = float(percentiles[2])
    sys.stdout.write(
        f"submissions        {rate:8.0f} /s for {float(totals[2]):.0f} s, {CLIENTS} clients\n"
        f"latency p50/p99    {float(percentiles[1]):8.2f} / {p99_ms:.2f} ms\n"
        f"failed             {totals[3]}\n"
        f"backlog at the end {sum(q['waiting'] for q in queue)} waiting,"
        f" {len(running)} running; last decision {gap[0]['id'] if gap else 'none'}\n"
        f"bare SQLite        {bare:8.0f} commits/s (one row, WAL, synchronous FULL)\n"
    )
    shutil.rmtree(folder)
    met = rate >= RATE_MIN and p99_ms < P99_MAX_MS and int(totals[3]) == 0
    sys.stdout.write(f"threshold {RATE_MIN:.0f}/s, p99 < {P99_MAX_MS:.0f} ms: {met}\n")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
