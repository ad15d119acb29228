from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.execution import attempt

from scheduler.execution.local.files import AttemptFolder
from scheduler.execution.local.logs import LocalLogReader
from scheduler.execution.local.master_port import candidates
from scheduler.execution.local.rank_log import CappedLog
from scheduler.model.quantity import AttemptId


@pytest.fixture
def folder(tmp_path: Path) -> AttemptFolder:
    one = AttemptFolder(str(tmp_path), attempt())
    one.create()
    return one


def test_reading_goes_on_where_it_stopped(folder: AttemptFolder, tmp_path: Path) -> None:
    reader = LocalLogReader(tmp_path)
    Path(folder.rank_log(0)).write_bytes(b"abcdefgh")
    first = reader.read(attempt(), 0, 0, 5)
    assert (first.data, first.next_offset, first.end) == (b"abcde", 5, False)
    second = reader.read(attempt(), 0, first.next_offset, 5)
    assert (second.data, second.next_offset, second.end) == (b"fgh", 8, False)
    beyond = reader.read(attempt(), 0, 100, 5)
    assert (beyond.data, beyond.next_offset) == (b"", 100)


@pytest.mark.parametrize("record", ["exit.json", "vanished.json"])
def test_the_end_is_told_only_at_the_end(
    folder: AttemptFolder, tmp_path: Path, record: str
) -> None:
    reader = LocalLogReader(tmp_path)
    Path(folder.rank_log(0)).write_bytes(b"abcdefgh")
    folder.write(record, {})
    assert not reader.read(attempt(), 0, 0, 5).end
    assert reader.read(attempt(), 0, 5, 5).end
    assert reader.read(attempt(), 0, 8, 5).end


def test_what_is_not_there_is_a_lookup_error(folder: AttemptFolder, tmp_path: Path) -> None:
    reader = LocalLogReader(tmp_path)
    assert reader.ranks(attempt()) == []
    assert reader.ranks(AttemptId("../etc")) == []
    for attempt_id, rank in ((attempt(), 0), (attempt(2), 0), ("../../etc", 0), (attempt(), -1)):
        with pytest.raises(LookupError):
            reader.read(AttemptId(attempt_id), rank, 0, 10)
    for offset, limit in ((-1, 10), (0, 0)):
        with pytest.raises(ValueError, match="cannot read"):
            reader.read(attempt(), 0, offset, limit)


def test_a_link_is_not_a_log(folder: AttemptFolder, tmp_path: Path) -> None:
    secret = tmp_path / "token"
    secret.write_text("secret")
    Path(folder.rank_log(0)).symlink_to(secret)
    with pytest.raises(LookupError):
        LocalLogReader(tmp_path).read(attempt(), 0, 0, 10)


@given(st.lists(st.binary(max_size=30), max_size=20), st.integers(1, 100))
def test_a_log_keeps_all_up_to_its_cap_and_counts_the_rest(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[bytes], cap: int
) -> None:
    path = tmp_path_factory.mktemp("log") / "rank-0.log"
    log = CappedLog(str(path), cap)
    for piece in pieces:
        log.write(piece)
    log.close()
    whole = b"".join(pieces)
    kept = path.read_bytes()
    assert kept[:cap] == whole[:cap]
    assert log.dropped_bytes == max(0, len(whole) - cap)
    if len(whole) >= cap:
        assert kept.endswith(
            b"\n[haversack] log cap of %d bytes reached; later output is dropped\n" % cap
        ) or kept.startswith(b"\n[haversack]")
        assert kept.count(b"[haversack]") == 1
    else:
        assert kept == whole


def test_a_full_disk_costs_output_only(tmp_path: Path) -> None:
    path = tmp_path / "rank-0.log"
    log = CappedLog("/dev/full", 1000)
    log.write(b"lost")
    log.write(b"lost too")
    assert log.dropped_bytes == 12
    log.close()
    # Space again: a note stands where output is missing.
    log = CappedLog(str(path), 1000)
    log.write(b"before")
    log._lose(5)
    log.write(b"after")
    log.close()
    assert path.read_text() == (
        "before\n[haversack] 5 bytes were dropped here: the log could not be written\nafter"
    )


def test_master_ports_keep_out_of_the_ephemeral_range() -> None:
    ports = candidates((25_000, 60_999), 0)
    assert (ports[0], ports[-1], len(ports)) == (20_000, 24_999, 5_000)
    turned = candidates((32_768, 60_999), 7)
    assert (turned[0], turned[-1], len(turned)) == (20_007, 20_006, 12_768)
    assert candidates((1_024, 65_535), 5)[0] == 20_005
