"""`logs`: pieces, tails, ranks, following to the explicit end."""

from __future__ import annotations

import httpx
import pytest
from support.fake_daemon import JOB_ID, FakeDaemon, attempt, detail, items, job, ndjson, ok

LOGS = f"jobs/{JOB_ID}/logs"


def stored(*texts: str) -> FakeDaemon:
    """A daemon that holds one log per rank and hands it out four bytes at a time."""

    def piece(rank: int, offset: int, limit: int) -> dict[str, object]:
        data = texts[rank][offset : offset + limit]
        end = offset + len(data)
        return {
            "rank": rank,
            "attempt": 1,
            "offset": offset,
            "next_offset": end,
            "end": end == len(texts[rank]),
            "data": data,
        }

    def answer(request: httpx.Request) -> httpx.Response:
        params = request.url.params
        if params["rank"] == "all":
            return ok({"attempt": 1, "chunks": [piece(rank, 0, 1) for rank in range(len(texts))]})
        return ok(piece(int(params["rank"]), int(params["offset"]), 4))

    running = detail("RUNNING", attempt())
    return FakeDaemon().on("GET", f"jobs/{JOB_ID}", ok(running)).on("GET", LOGS, answer)


def following(*records: dict[str, object]) -> FakeDaemon:
    daemon = FakeDaemon().on("GET", f"jobs/{JOB_ID}", ok(detail("RUNNING", attempt())))
    return daemon.on("GET", LOGS, ndjson(*records))


def chunk(rank: int, data: str, offset: int = 0) -> dict[str, object]:
    return {
        "rank": rank,
        "attempt": 1,
        "offset": offset,
        "next_offset": offset + len(data),
        "end": False,
        "data": data,
    }


END = {"end": True, "state": "SUCCEEDED", "exit_code": 0, "end_cause": "completed", "message": ""}


def test_the_whole_log_is_put_together_from_its_pieces() -> None:
    result = stored("step 1\nstep 2\nlast").run("logs", JOB_ID)
    assert (result.exit_code, result.stdout) == (0, "step 1\nstep 2\nlast")


@pytest.mark.parametrize(
    ("tail", "shown"), [("0", ""), ("1", "c\n"), ("2", "bb\nc\n"), ("9", "a\nbb\nc\n")]
)
def test_tail_keeps_the_last_lines(tail: str, shown: str) -> None:
    assert stored("a\nbb\nc\n").run("logs", JOB_ID, "--tail", tail).stdout == shown


def test_tail_counts_an_unfinished_last_line() -> None:
    assert stored("a\nbb\nc").run("logs", JOB_ID, "--tail", "2").stdout == "bb\nc"


def test_all_ranks_are_prefixed_whole_lines() -> None:
    result = stored("a\nb", "long line\n").run("logs", JOB_ID, "--rank", "all")
    assert result.stdout == "[0] a\n[0] b\n[1] long line\n"


def test_a_job_that_has_not_started_has_a_hint_and_no_log() -> None:
    daemon = FakeDaemon().on("GET", f"jobs/{JOB_ID}", ok(detail("PENDING")))
    result = daemon.run("logs", JOB_ID)
    assert (result.exit_code, result.stdout) == (0, "")
    assert "has not started yet" in result.stderr


@pytest.mark.parametrize(("state", "code"), [("SUCCEEDED", 0), ("FAILED", 100), ("CANCELLED", 102)])
def test_following_ends_with_the_final_state_and_mirrors_it(state: str, code: int) -> None:
    daemon = following(
        chunk(0, "hel"), chunk(0, "lo\n", 3), {**END, "state": state, "message": "why"}
    )
    result = daemon.run("logs", "-f", JOB_ID)
    assert result.stdout == "hello\n"
    assert f"end of log: ddp-hello ({JOB_ID}) {state}, exit code 0: why" in result.stderr
    assert result.exit_code == code


def test_following_all_ranks_joins_lines_across_pieces() -> None:
    daemon = following(
        chunk(0, "he"), chunk(1, "one\n"), chunk(0, "llo\nrest", 2), {"attempt": 2},
        chunk(0, "again\n"), END,
    )  # fmt: skip
    result = daemon.run("logs", "-f", JOB_ID, "--rank", "all")
    assert result.stdout == "[1] one\n[0] hello\n[0] rest\n[0] again\n"
    assert "attempt 2 goes on" in result.stderr


def test_tail_and_follow_go_on_where_the_tail_ended() -> None:
    daemon = stored("a\nbb\nc\n")
    answer = daemon.answers["GET", f"/api/v1/{LOGS}"][0]
    assert callable(answer)

    def either(request: httpx.Request) -> httpx.Response:
        follows = request.url.params.get("follow")
        return ndjson(chunk(0, "d\n", 7), END) if follows else answer(request)

    result = daemon.on("GET", LOGS, either).run("logs", "-f", JOB_ID, "--tail", "1")
    assert result.stdout == "c\nd\n"
    assert daemon.requests[-1].url.params["offsets"] == "0:7"


def test_ctrl_c_detaches() -> None:
    def interrupted(_: httpx.Request) -> httpx.Response:
        raise KeyboardInterrupt

    daemon = following().on("GET", LOGS, interrupted)
    result = daemon.run("logs", "-f", JOB_ID)
    assert result.exit_code == 101
    assert "detached: ddp-hello" in result.stderr


@pytest.mark.parametrize(
    "arguments", [("--rank", "x"), ("--rank", "all", "-f", "--tail", "3"), ("--tail", "-1")]
)
def test_wrong_usage_is_2(arguments: tuple[str, ...]) -> None:
    assert FakeDaemon().run("logs", JOB_ID, *arguments).exit_code == 2


def test_a_name_takes_the_newest_and_says_so() -> None:
    daemon = stored("hello").on("GET", "jobs", items(job(), job(id="j-0000000000000000")))
    result = daemon.run("logs", "ddp-hello")
    assert result.stdout == "hello"
    assert f"taking the newest, {JOB_ID}" in result.stderr
    assert daemon.requests[0].url.params["name"] == "ddp-hello"
    assert daemon.requests[0].url.params["sort"] == "-submitted_at"


def test_an_unknown_name_is_3() -> None:
    result = FakeDaemon().on("GET", "jobs", items()).run("logs", "nobody")
    assert result.exit_code == 3
    assert "no job is named 'nobody'" in result.stderr
