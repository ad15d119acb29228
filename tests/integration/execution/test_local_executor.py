from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
from support.execution import (
    attempt,
    launch_order,
    launcher_of,
    local_executor,
    log_of,
    stop_order,
    wait_for,
    wait_until,
)

from scheduler.execution.local import launcher, process
from scheduler.execution.local.executor import LocalExecutor
from scheduler.execution.local.files import AttemptFolder, highest_epoch
from scheduler.execution.local.orders import GangOrder, RankOrder
from scheduler.model.execution import Outcome, Phase, RankExit
from scheduler.model.job import LauncherKind
from scheduler.model.lifecycle import EndCause
from scheduler.model.quantity import AttemptId

RUNNING = frozenset({Phase.RUNNING})


def printed(data_dir: Path, rank: int, attempt_id: AttemptId) -> bool:
    return "\n" in log_of(data_dir, rank, attempt_id)


def test_a_gang_runs_to_its_end(executor: LocalExecutor, data_dir: Path) -> None:
    assert executor.observe(attempt()).phase is Phase.UNCLAIMED
    order = launch_order("sh", "-c", "echo out; echo err >&2; test ! -t 0", tasks=3)
    assert executor.launch(order).outcome is Outcome.DONE
    seen = wait_for(executor, attempt())
    assert seen.phase is Phase.EXITED
    assert seen.cause is EndCause.COMPLETED
    assert seen.ranks == tuple(RankExit(rank, 0, None) for rank in range(3))
    assert seen.first_failure is None
    assert seen.started_at is not None
    assert seen.ended_at is not None
    assert seen.ended_at >= seen.started_at
    assert [log_of(data_dir, rank) for rank in range(3)] == ["out\nerr\n"] * 3


def test_one_failing_rank_ends_the_gang(executor: LocalExecutor) -> None:
    script = 'test "$HAVERSACK_TASK_INDEX" = 1 && exit 7; exec sleep 600'
    executor.launch(launch_order("sh", "-c", script, tasks=3))
    seen = wait_for(executor, attempt())
    assert seen.cause is EndCause.USER
    assert seen.first_failure == RankExit(1, 7, None)
    assert "rank 1 exited with code 7" in seen.message
    assert {rank.signal for rank in seen.ranks if rank.rank != 1} == {signal.SIGTERM}


def test_a_rank_killed_by_a_signal_is_the_users_failure(executor: LocalExecutor) -> None:
    executor.launch(launch_order("sh", "-c", "kill -SEGV $$"))
    seen = wait_for(executor, attempt())
    assert seen.cause is EndCause.USER
    assert seen.first_failure == RankExit(0, None, signal.SIGSEGV)
    assert "SIGSEGV" in seen.message


def test_a_command_that_is_not_there_is_told_clearly(
    executor: LocalExecutor, data_dir: Path
) -> None:
    assert executor.launch(launch_order("no-such-program", tasks=2)).outcome is Outcome.DONE
    seen = wait_for(executor, attempt())
    assert seen.cause is EndCause.USER
    assert seen.started_at is None
    assert "command not found: no-such-program" in seen.message
    assert "command not found" in log_of(data_dir)


def test_a_gang_that_cannot_start_whole_does_not_start(
    executor: LocalExecutor, data_dir: Path
) -> None:
    folder = AttemptFolder(str(data_dir), attempt())
    folder.create()
    env = {"PATH": os.environ["PATH"], process.MARKER: attempt()}
    programs = ("sleep", "sleep", "no-such-program", "sleep")
    order = GangOrder(
        attempt_id=attempt(),
        epoch=1,
        ranks=[RankOrder(rank, [name, "600"], env) for rank, name in enumerate(programs)],
        workdir=None,
        stop_signal="SIGTERM",
        grace_s=600.0,
        max_runtime_s=None,
        log_bytes_max=4096,
        open_files_max=64,
        master_port=False,
    )
    folder.write("order.json", order.to_record())
    command = [sys.executable, "-I", "-S", str(launcher.__file__), folder.data_dir, attempt()]
    subprocess.run(command, capture_output=True, check=True, timeout=60)
    seen = executor.observe(attempt())
    assert seen.cause is EndCause.USER
    assert seen.started_at is None
    assert [rank.rank for rank in seen.ranks] == [0, 1]
    assert "no-such-program" in seen.message
    assert process.marked(attempt()) == []


def test_a_missing_working_directory_is_told_clearly(
    executor: LocalExecutor, tmp_path: Path
) -> None:
    executor.launch(launch_order("true", workdir=str(tmp_path / "absent")))
    seen = wait_for(executor, attempt())
    assert seen.cause is EndCause.USER
    assert "cannot enter the working directory" in seen.message


def test_stop_is_a_signal_first(executor: LocalExecutor, data_dir: Path) -> None:
    script = 'trap "echo saving; exit 0" TERM; echo ready; while :; do sleep 0.01; done'
    executor.launch(launch_order("sh", "-c", script))
    wait_until(lambda: "ready" in log_of(data_dir), "the trap is set")
    assert executor.stop(stop_order()).outcome is Outcome.DONE
    seen = wait_for(executor, attempt())
    assert seen.phase is Phase.EXITED
    assert seen.cause is EndCause.CANCELLED
    assert log_of(data_dir).endswith("saving\n")


def test_who_ignores_the_signal_is_killed_after_the_grace(
    executor: LocalExecutor, data_dir: Path
) -> None:
    executor.launch(launch_order("sh", "-c", 'trap "" TERM; echo ready; sleep 600', grace_s=600))
    wait_until(lambda: "ready" in log_of(data_dir), "the signal is ignored")
    executor.stop(stop_order(cause=EndCause.PREEMPTED, grace_s=0.05))
    seen = wait_for(executor, attempt())
    assert seen.cause is EndCause.PREEMPTED
    assert seen.ranks == (RankExit(0, None, signal.SIGKILL),)
    assert process.marked(attempt()) == []


def test_a_second_stop_shortens_the_grace_and_keeps_the_cause(
    executor: LocalExecutor, data_dir: Path
) -> None:
    executor.launch(launch_order("sh", "-c", 'trap "" TERM; echo ready; sleep 600'))
    wait_until(lambda: "ready" in log_of(data_dir), "the signal is ignored")
    executor.stop(stop_order(cause=EndCause.PREEMPTED, grace_s=600))
    executor.stop(stop_order(cause=EndCause.CANCELLED, grace_s=0))
    assert wait_for(executor, attempt()).cause is EndCause.PREEMPTED


def test_what_a_rank_leaves_behind_ends_with_it(executor: LocalExecutor, data_dir: Path) -> None:
    # Detached, in a session of its own, deaf, and with the attempt's mark washed off.
    orphan = "setsid env -i sh -c 'trap \"\" TERM HUP; echo $$; exec sleep 600' &"
    executor.launch(launch_order("sh", "-c", f"{orphan} sleep 0.2; exit 0"))
    seen = wait_for(executor, attempt())
    assert seen.cause is EndCause.COMPLETED
    assert process.stat(int(log_of(data_dir))) is None


def test_a_time_limit_ends_the_gang(executor: LocalExecutor) -> None:
    executor.launch(launch_order("sleep", "600", tasks=2, max_runtime_s=0.05))
    seen = wait_for(executor, attempt())
    assert seen.cause is EndCause.TIMED_OUT
    assert "max_runtime_s = 0.05" in seen.message


def test_a_flood_fills_the_log_to_its_cap_only(data_dir: Path) -> None:
    executor = local_executor(data_dir, log_bytes_max=5000)
    try:
        # One line without an end, and more than the pipe holds: the job must not block.
        executor.launch(launch_order("sh", "-c", "head -c 3000000 /dev/zero | tr '\\0' x"))
        seen = wait_for(executor, attempt())
    finally:
        executor.close()
    assert seen.cause is EndCause.COMPLETED
    text = log_of(data_dir)
    assert text[:5000] == "x" * 5000
    assert text[5000:] == ("\n[haversack] log cap of 5000 bytes reached; later output is dropped\n")
    record = json.loads((data_dir / "attempts" / attempt() / "exit.json").read_text())
    assert record["ranks"][0]["dropped_bytes"] == 3_000_000 - 5000


def test_launching_again_starts_nothing(executor: LocalExecutor, tmp_path: Path) -> None:
    witness = tmp_path / "witness"
    order = launch_order("sh", "-c", f"echo started >> {witness}; sleep 0.1")
    with ThreadPoolExecutor(6) as threads:
        receipts = list(threads.map(executor.launch, [order] * 6))
    assert {receipt.outcome for receipt in receipts} == {Outcome.DONE}
    wait_for(executor, attempt())
    assert executor.launch(order).outcome is Outcome.DONE
    assert witness.read_text() == "started\n"


def test_stopped_before_its_launch_it_never_starts(executor: LocalExecutor, tmp_path: Path) -> None:
    witness = tmp_path / "witness"
    assert executor.stop(stop_order()).outcome is Outcome.DONE
    assert executor.observe(attempt()).phase is Phase.ABSENT
    receipt = executor.launch(launch_order("touch", str(witness)))
    assert receipt.outcome is Outcome.REFUSED
    assert "stopped before it started" in receipt.message
    # A launcher that comes late, with its order already written, finds the tombstone.
    order = launch_order("touch", str(witness), attempt_id=attempt(2))
    executor.launch(order)
    wait_for(executor, attempt(2))
    witness.unlink()
    folder = AttemptFolder(executor._data_dir, attempt(3))
    folder.create()
    record = AttemptFolder(executor._data_dir, attempt(2)).read("order.json")
    assert record is not None
    folder.write("order.json", {**record, "attempt_id": attempt(3)})
    executor.stop(stop_order(attempt(3)))
    command = [sys.executable, "-I", "-S", str(launcher.__file__), folder.data_dir, attempt(3)]
    late = subprocess.run(command, capture_output=True, text=True, check=True)
    assert late.stdout == "taken\n"
    assert not witness.exists()


def test_an_older_leader_is_not_obeyed(executor: LocalExecutor, data_dir: Path) -> None:
    executor.launch(launch_order("sleep", "600", epoch=5))
    wait_for(executor, attempt(), RUNNING)
    assert executor.stop(stop_order(epoch=4)).outcome is Outcome.REFUSED
    late = launch_order("true", attempt_id=attempt(2), epoch=4)
    receipt = executor.launch(late)
    assert receipt.outcome is Outcome.REFUSED
    assert "epoch 4 is over" in receipt.message
    assert executor.observe(attempt(2)).phase is Phase.ABSENT
    # What runs already runs, whoever asks: REFUSED would free GPUs that are in use.
    assert executor.launch(launch_order("sleep", "600", epoch=4)).outcome is Outcome.DONE
    assert highest_epoch(str(data_dir), 0) == 5
    executor.stop(stop_order(epoch=6))
    assert wait_for(executor, attempt()).cause is EndCause.CANCELLED


def test_a_signal_from_elsewhere_is_no_fault_of_the_job(
    executor: LocalExecutor, data_dir: Path
) -> None:
    executor.launch(launch_order("sleep", "600"))
    wait_for(executor, attempt(), RUNNING)
    os.kill(launcher_of(data_dir).pid, signal.SIGTERM)
    assert wait_for(executor, attempt()).cause is EndCause.INFRASTRUCTURE


def test_after_a_reboot_nothing_is_left(executor: LocalExecutor, data_dir: Path) -> None:
    folder = AttemptFolder(str(data_dir), attempt())
    folder.create()
    folder.claim_for(process.Identity(os.getpid(), 1, "another-boot"))
    seen = executor.observe(attempt())
    assert seen.phase is Phase.VANISHED
    assert "rebooted" in seen.message


def test_a_recycled_pid_is_not_the_launcher(executor: LocalExecutor, data_dir: Path) -> None:
    folder = AttemptFolder(str(data_dir), attempt())
    folder.create()
    own = process.identity_of(os.getpid())
    folder.claim_for(process.Identity(own.pid, own.start_ticks - 1, own.boot_id))
    assert executor.stop(stop_order()).outcome is Outcome.DONE
    assert executor.observe(attempt()).phase is Phase.VANISHED


def test_damaged_records_free_nothing(executor: LocalExecutor, data_dir: Path) -> None:
    executor.launch(launch_order("true"))
    wait_for(executor, attempt())
    (data_dir / "attempts" / attempt() / "exit.json").write_text('{"cause": "comp')
    assert executor.observe(attempt()).phase is Phase.UNKNOWN


def test_an_attempt_whose_folder_was_removed_is_still_stopped(
    executor: LocalExecutor, data_dir: Path
) -> None:
    executor.launch(launch_order("sh", "-c", 'trap "" TERM; sleep 600'))
    wait_for(executor, attempt(), RUNNING)
    (data_dir / "attempts" / attempt()).rename(data_dir / "elsewhere")
    assert executor.observe(attempt()).phase is Phase.UNCLAIMED
    assert executor.stop(stop_order()).outcome is Outcome.DONE
    assert process.marked(attempt()) == []
    assert executor.observe(attempt()).phase is Phase.ABSENT


def test_another_daemon_adopts_what_runs(data_dir: Path, tmp_path: Path) -> None:
    first = local_executor(data_dir)
    witness = tmp_path / "witness"
    go_on = tmp_path / "go-on"
    script = f"echo started >> {witness}; while ! test -e {go_on}; do sleep 0.01; done; exit 3"
    order = launch_order("sh", "-c", script)
    first.launch(order)
    wait_for(first, attempt(), RUNNING)
    first.close()

    second = local_executor(data_dir)
    try:
        assert second.known() == [attempt()]
        assert second.observe(attempt()).phase is Phase.RUNNING
        changed: list[AttemptId] = []
        second.watch(attempt(), changed.append)
        assert second.launch(order).outcome is Outcome.DONE
        changed.clear()
        go_on.touch()
        wait_until(lambda: bool(changed), "the end is noticed")
        assert wait_for(second, attempt()).first_failure == RankExit(0, 3, None)
        second.forget(attempt())
        assert second.known() == []
    finally:
        second.close()
    assert witness.read_text() == "started\n"


def test_launchers_leave_no_zombies(executor: LocalExecutor) -> None:
    orders = [launch_order("true", attempt_id=attempt(number)) for number in range(5)]
    for order in orders:
        executor.launch(order)
    for order in orders:
        wait_for(executor, order.attempt_id)

    def children() -> list[str]:
        pids = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
        return [p for p in pids if "launcher.py" in Path(f"/proc/{p}/cmdline").read_text()]

    wait_until(lambda: not executor._notices._pidfds, "every launcher was reaped")
    assert children() == []


def test_a_full_disk_starts_nothing_and_loses_nothing(
    executor: LocalExecutor, data_dir: Path
) -> None:
    # A limit on file size fails writes the way a full disk does, for any user.
    script = (
        "import resource, signal, sys; sys.path.insert(0, sys.argv[1]);"
        "from pathlib import Path;"
        "from support.execution import *;"
        "e = local_executor(Path(sys.argv[2]));"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (64, 64));"
        "r = e.launch(launch_order('true')); print(r.outcome, r.message)"
    )
    tests = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", script, tests, str(data_dir)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "File too large" in done.stdout, done.stderr
    assert executor.observe(attempt()).phase in (Phase.UNCLAIMED, Phase.ABSENT)
    assert process.marked(attempt()) == []


def test_two_gangs_never_share_a_master_port(executor: LocalExecutor, data_dir: Path) -> None:
    # The same wish: the first port to try comes from the last four letters of the id.
    ids = [AttemptId(f"a-{letter}000000000000001") for letter in "klmn"]
    for attempt_id in ids:
        order = launch_order(
            "sh",
            "-c",
            "echo $MASTER_ADDR:$MASTER_PORT:$PET_MASTER_PORT:$RANK/$WORLD_SIZE; exec sleep 600",
            attempt_id=attempt_id,
            tasks=2,
            launcher=LauncherKind.TORCH,
        )
        assert executor.launch(order).outcome is Outcome.DONE
    ports = set()
    for attempt_id in ids:
        for rank in (0, 1):
            wait_until(partial(printed, data_dir, rank, attempt_id), "it prints")
        told = [log_of(data_dir, rank, attempt_id).strip().split(":") for rank in (0, 1)]
        assert told[0][:3] == told[1][:3]
        assert [one[3] for one in told] == ["0/2", "1/2"]
        assert told[0][0] == "127.0.0.1"
        assert told[0][1] == told[0][2]
        assert 20_000 <= int(told[0][1]) < 32_768
        ports.add(told[0][1])
        executor.stop(stop_order(attempt_id, grace_s=0))
    assert len(ports) == len(ids)
    for attempt_id in ids:
        wait_for(executor, attempt_id)


def test_a_port_in_use_is_passed_over(executor: LocalExecutor, data_dir: Path) -> None:
    def launch(attempt_id: AttemptId) -> int:
        order = launch_order(
            "sh",
            "-c",
            "echo $MASTER_PORT",
            attempt_id=attempt_id,
            launcher=LauncherKind.TORCH,
        )
        executor.launch(order)
        wait_for(executor, attempt_id)
        return int(log_of(data_dir, 0, attempt_id))

    first = launch(AttemptId("a-k000000000000001"))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", first))
        taken.listen()
        assert launch(AttemptId("a-l000000000000001")) != first
    assert launch(AttemptId("a-m000000000000001")) == first


def test_the_news_of_a_start_arrives(executor: LocalExecutor) -> None:
    heard: list[AttemptId] = []
    order = launch_order("sleep", "600")
    executor._notices.subscribe(attempt(), heard.append)
    executor.launch(order)
    wait_until(lambda: heard == [attempt()], "the launcher tells that the gang runs")
    assert executor.observe(attempt()).phase is Phase.RUNNING


def test_noise_on_the_news_pipe_is_ignored(executor: LocalExecutor, data_dir: Path) -> None:
    heard: list[AttemptId] = []
    executor._notices.subscribe(attempt(), heard.append)
    executor.launch(launch_order("true", attempt_id=attempt(2)))  # starts the listening thread
    with (data_dir / "notify").open("wb", buffering=0) as fifo:
        fifo.write(b"x" * 4000 + b"\n../../etc\n\xff\xfe\n" + attempt().encode() + b"\n")
    wait_until(lambda: heard == [attempt()], "the one good line is heard")


def test_a_rank_is_limited_and_sees_only_what_it_may(
    executor: LocalExecutor, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "s3cret")
    script = (
        "ulimit -c; ulimit -Hn; ls /proc/self/fd | wc -l; grep NoNewPrivs /proc/self/status;"
        " cut -d' ' -f6 /proc/$$/stat; echo $$; pwd; env"
    )
    executor.launch(launch_order("sh", "-c", script))
    wait_for(executor, attempt())
    core, files, open_files, privileges, session, own, folder, *env = log_of(data_dir).splitlines()
    assert (core, files) == ("0", "1024")
    assert int(open_files) == 4  # 0, 1, 2 and the one that lists
    assert privileges.split() == ["NoNewPrivs:", "1"]
    assert session == own
    assert folder == str(data_dir.resolve() / "attempts" / attempt() / "work")
    assert not [line for line in env if "SECRET" in line]


def test_the_launcher_needs_nothing_but_the_standard_library(data_dir: Path) -> None:
    script = (
        "import sys; sys.path.append(sys.argv[1]);"
        "import scheduler.execution.local.launcher;"
        "print(sorted({'typing', 'dataclasses', 'asyncio', 'pydantic', 'structlog', 'subprocess'}"
        " & set(sys.modules)))"
    )
    root = str(Path(launcher.__file__).parents[3])
    command = [sys.executable, "-I", "-S", "-c", script, root]
    told = subprocess.run(command, capture_output=True, text=True, check=True)
    assert told.stdout == "[]\n"


def test_a_launcher_without_an_order_says_so(executor: LocalExecutor, data_dir: Path) -> None:
    AttemptFolder(str(data_dir), attempt()).create()
    command = [sys.executable, "-I", "-S", str(launcher.__file__), str(data_dir), attempt()]
    told = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (told.returncode, told.stdout) == (1, "refused there is no order.json\n")


def test_a_launcher_that_cannot_come_up_is_a_refusal(
    executor: LocalExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    receipt = executor.launch(launch_order("true"))
    assert receipt.outcome is Outcome.REFUSED
    assert "launcher did not start" in receipt.message
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    receipt = executor.launch(launch_order("true", attempt_id=attempt(2)))
    assert receipt.outcome is Outcome.REFUSED
    assert executor.observe(attempt(2)).phase is Phase.ABSENT
