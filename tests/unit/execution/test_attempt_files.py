from __future__ import annotations

import os
from pathlib import Path

import pytest
from support.execution import attempt

from scheduler.execution.local import process
from scheduler.execution.local.files import (
    AttemptFolder,
    Reserved,
    highest_epoch,
    live_attempts,
    valid_attempt_id,
    write_atomic,
    write_exclusive,
)
from scheduler.execution.local.orders import GangOrder


@pytest.fixture
def folder(tmp_path: Path) -> AttemptFolder:
    one = AttemptFolder(str(tmp_path), attempt())
    one.create()
    return one


def names(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.iterdir())


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a-",
        "../../etc",
        "a-000000000000000",
        "a-00000000000000000",
        "a-000000000000000/",
        "j-0000000000000001",
        "a-000000000000000A",
        "a-0000000000000001\n",
        "a-0000000000000001/..",
    ],
)
def test_only_ids_become_paths(text: str) -> None:
    assert not valid_attempt_id(text)
    with pytest.raises(ValueError, match="not an attempt id"):
        AttemptFolder("/nowhere", text)


def test_a_claim_is_taken_once(folder: AttemptFolder) -> None:
    assert folder.claim() is None
    own = process.identity_of(os.getpid())
    assert folder.claim_for(own)
    assert not folder.claim_for(own)
    assert not folder.forbid("too late")
    claim = folder.claim()
    assert claim is not None
    assert claim.launcher is not None
    assert claim.launcher.alive()
    assert names(Path(folder.path)) == ["claim"]


def test_a_tombstone_stands_for_ever(folder: AttemptFolder) -> None:
    assert folder.forbid("cancelled")
    assert not folder.claim_for(process.identity_of(os.getpid()))
    claim = folder.claim()
    assert claim is not None
    assert (claim.launcher, claim.message) == (None, "cancelled")


def test_records_are_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "record"
    write_atomic(str(path), b"one")
    write_atomic(str(path), b"two")
    assert path.read_bytes() == b"two"
    assert not write_exclusive(str(path), b"three")
    assert path.read_bytes() == b"two"
    assert names(tmp_path) == ["record"]
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_failed_write_leaves_the_old_record(tmp_path: Path) -> None:
    folder = tmp_path / "record"
    folder.mkdir()
    with pytest.raises(OSError, match="record"):
        write_atomic(str(folder), b"x")
    assert names(tmp_path) == ["record"]


def test_records_are_not_read_through_links(folder: AttemptFolder, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("{}")
    Path(folder.file("exit.json")).symlink_to(secret)
    with pytest.raises(OSError, match="symbolic"):
        folder.read("exit.json")
    assert folder.read("stop.json") is None


def test_what_is_no_record_is_refused(folder: AttemptFolder) -> None:
    for text in ("", "[]", "{", "null"):
        Path(folder.file("claim")).write_text(text)
        with pytest.raises(ValueError, match=r".*"):
            folder.claim()
    Path(folder.file("claim")).write_text('{"pid": "1"}')
    with pytest.raises(ValueError, match="names no process"):
        folder.claim()
    with pytest.raises(ValueError, match="not a launch order"):
        GangOrder.from_record({"ranks": [], "attempt_id": "a"})


def test_a_reserved_file_is_published_whole(tmp_path: Path) -> None:
    reserved = Reserved(str(tmp_path / "exit.json"), 10_000)
    (taken,) = tmp_path.iterdir()
    assert taken.stat().st_blocks * 512 >= 10_000
    reserved.publish(b"short")
    assert (tmp_path / "exit.json").read_bytes() == b"short"
    unused = Reserved(str(tmp_path / "other"), 10_000)
    unused.discard()
    assert names(tmp_path) == ["exit.json"]


def test_the_epoch_only_rises(tmp_path: Path) -> None:
    assert [highest_epoch(str(tmp_path), seen) for seen in (3, 1, 7, 0, 7)] == [3, 3, 7, 7, 7]


def test_live_marks_come_and_go(folder: AttemptFolder, tmp_path: Path) -> None:
    (tmp_path / "live" / "stranger").touch()
    assert live_attempts(str(tmp_path)) == [attempt()]
    folder.forget()
    folder.forget()
    assert live_attempts(str(tmp_path)) == []
    assert live_attempts(str(tmp_path / "absent")) == []


def test_only_logs_count_as_logs(folder: AttemptFolder) -> None:
    for name in ("rank-10.log", "rank-2.log", "rank-02.log", "rank-x.log", "rank-1.log.gz"):
        Path(folder.file(name)).touch()
    assert folder.logged_ranks() == [2, 10]
    assert AttemptFolder(folder.data_dir, attempt(2)).logged_ranks() == []


def test_a_process_is_more_than_its_pid() -> None:
    own = process.identity_of(os.getpid())
    assert own.alive()
    assert not process.Identity(own.pid, own.start_ticks + 1, own.boot_id).alive()
    assert not process.Identity(own.pid, own.start_ticks, "another boot").alive()
    assert not process.send(process.Identity(own.pid, own.start_ticks + 1, own.boot_id), 9)
    with pytest.raises(ProcessLookupError):
        process.identity_of(2**22 + 1)
