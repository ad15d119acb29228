"""Public formats as published become jobs; what cannot is counted or refused with its place."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from support.traces import trace

from scheduler.errors import HaversackError, InvalidRequestError, NotFoundError
from scheduler.model.job import Topology
from scheduler.model.quantity import TenantId
from scheduler.simulator.importers import READERS, Reading, haversack, openb
from scheduler.simulator.workload import Arrivals, SimJob, Skipped, Workload

CSV = "job_id,submit_s,gpus,duration_s\n"
SWF_TAIL = "-1 -1 {asked} {limit} -1 1 3 7 2 1 1 -1 -1"


def read(
    folder: Path, form: str, text: str, columns: dict[str, str] | None = None, node_gpus: int = 8
) -> Workload:
    path = folder / "load.txt"
    path.write_text(text, encoding="utf-8")
    return READERS[form](path, Reading(columns=columns or {}, node_gpus=node_gpus))


def test_csv_takes_every_column_it_knows(tmp_path: Path) -> None:
    header = (
        "job_id,submit_s,gpus,duration_s,tenant,model,priority,gpu_models,cpu_milli,memory_mib,"
        "limit_s\n"
    )
    rows = "b,30,16,60.5,red,bert,70,H200|A100,4000,512,90\na,20,0.25,5,,,,,,,\n"
    assert read(tmp_path, "csv", header + rows).jobs == (
        SimJob(id="a", submit_s=0.0, duration_s=5.0, gpu_milli=250),
        SimJob(
            id="b",
            submit_s=10.0,
            duration_s=60.5,
            tasks=2,
            gpus_per_task=8,
            cpu_milli=4000,
            memory_mib=512,
            limit_s=90.0,
            tenant=TenantId("red"),
            name="bert",
            priority=70,
            gpu_models=("H200", "A100"),
        ),
    )


def test_csv_columns_may_have_other_names(tmp_path: Path) -> None:
    text = "job_id,arrival,gpus,duration_s\na,0,1,5\n"
    assert len(read(tmp_path, "csv", text, {"submit_s": "arrival"}).jobs) == 1


def test_records_that_make_no_job_are_counted(tmp_path: Path) -> None:
    found = read(tmp_path, "csv", CSV + "a,0,1,5\nb,1,1,0\nc,2,0,5\nd,3,1,0\n")
    assert [job.id for job in found.jobs] == ["a"]
    assert found.skipped == (
        Skipped("asks for no GPU, CPU or memory", 1),
        Skipped("no run time", 2),
    )


def test_a_packed_file_is_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "load.csv.gz"
    path.write_bytes(gzip.compress(f"{CSV}a,0,1,5\n".encode()))
    found = READERS["csv"](path, Reading())
    assert found.name == "load"
    assert len(found.jobs) == 1


@pytest.mark.parametrize(
    ("form", "text", "complaint"),
    [
        ("csv", "", "line 1: no column 'job_id'; there are none"),
        ("csv", "job_id,submit,gpus,duration_s\n", "line 1: no column 'submit_s'; there are job"),
        ("csv", f"{CSV}a,zero,1,5\n", "line 2, column 'submit_s': 'zero' is not a number"),
        ("csv", f"{CSV}a,nan,1,5\n", "line 2, column 'submit_s': 'nan' is not a number"),
        ("csv", f"{CSV}a,0,1.5,5\n", "line 2, column 'gpus': '1.5' is not whole"),
        ("csv", f"{CSV}a,0,-1,5\n", "line 2, column 'gpus': '-1' is below 0"),
        ("csv", f"{CSV}a,0,1\n", "line 2, column 4: 3 cells under a header of 4"),
        ("csv", f"{CSV}a,0,1,5,6\n", "line 2, column 5: 5 cells under a header of 4"),
        ("csv", f"{CSV},0,1,5\n", "line 2, column 'job_id': is empty"),
        ("csv", f"{CSV}a,0,1,5\na,1,1,5\n", "line 3: a second job 'a'"),
        ("csv", CSV, "there is no job to run"),
        ("csv", f"{CSV}a,0,1,0\n", "there is no job to run (1 left out: no run time)"),
        ("swf", "1 2 3\n", "line 1, column 4: 3 numbers; SWF has 18"),
        ("philly", "{", "line 1, column 2: not JSON"),
        ("philly", "{}", "not a JSON array"),
        ("philly", "[3]", "record 1: not an object"),
        ("haversack", "", "line 1, field"),
        ("haversack", '{"kind": "Job"}', "line 1, field 'kind'"),
        (
            "haversack",
            '{"kind": "Workload", "version": 1, "name": "n"}\n{"id": "a", "submit_s": 0}\n',
            "line 2, field 'duration_s'",
        ),
    ],
)
def test_bad_input_is_refused_with_its_place(
    tmp_path: Path, form: str, text: str, complaint: str
) -> None:
    with pytest.raises(InvalidRequestError) as raised:
        read(tmp_path, form, text)
    assert str(raised.value).startswith(str(tmp_path / "load.txt"))
    assert complaint in str(raised.value)


def test_a_missing_column_is_suggested(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError) as raised:
        read(tmp_path, "csv", "job_id,submit,gpus,duration_s\n")
    assert raised.value.hint == (
        "did you mean 'submit'? say which column it is: --columns submit_s=NAME"
    )


@pytest.mark.parametrize("form", READERS)
def test_an_absent_or_binary_file_is_an_error(tmp_path: Path, form: str) -> None:
    with pytest.raises(NotFoundError, match="no such file"):
        READERS[form](tmp_path / "absent", Reading())
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(HaversackError, match="not UTF-8"):
        READERS[form](tmp_path / "binary", Reading())


def test_openb_pods(tmp_path: Path) -> None:
    header = "name,cpu_milli,memory_mib,num_gpu,gpu_milli,gpu_spec,qos\n"
    rows = (
        "whole,12000,16384,1,1000,,LS\n"
        "part,6000,12288,1,460,V100M16|V100M32,LS\n"
        "cpu,8000,30517,0,0,,BE\n"
        "eight,96000,1000,8,1000,,BE\n"
        "parts,1000,1000,2,500,,BE\n"
    )
    found = read(tmp_path, "openb", header + rows)
    assert found.arrivals is Arrivals.REPLAY
    assert [(job.gpus_per_task, job.gpu_milli) for job in found.jobs] == [
        *((1, 0), (0, 460), (0, 0), (8, 0))
    ]
    assert found.jobs[1].gpu_models == ("V100M16", "V100M32")
    assert [job.submit_s for job in found.jobs] == [0.0, 1.0, 2.0, 3.0]
    assert found.skipped == (Skipped("asks for parts of several GPUs", 1),)


def test_resampling_reaches_the_load_and_repeats() -> None:
    pods = tuple(
        SimJob(id=f"p{n}", submit_s=float(n), duration_s=0.0, gpu_milli=100 + n, cpu_milli=1)
        for n in range(50)
    )
    load = Workload("pods", pods, Arrivals.REPLAY)
    more = openb.resampled(load, 10_000, 1.3, seed=42)
    assert 13_000 - 149 <= sum(job.total_milli for job in more.jobs) <= 13_000
    assert more == openb.resampled(load, 10_000, 1.3, seed=42)
    assert more != openb.resampled(load, 10_000, 1.3, seed=43)
    assert {job.id.partition("+")[0] for job in more.jobs} == {job.id for job in pods}
    assert len({job.id for job in more.jobs}) == len(more.jobs)
    fewer = openb.resampled(load, 1_000, 1.3, seed=42)
    assert sum(job.total_milli for job in fewer.jobs) <= 1_300
    assert {job.id for job in fewer.jobs} < {job.id for job in pods}


def test_philly_jobs(tmp_path: Path) -> None:
    detail = [{"ip": "m1", "gpus": ["gpu0", "gpu1"]}, {"ip": "m2", "gpus": ["gpu0"]}]
    attempts = [
        {"start_time": "2017-10-09 00:01:00", "end_time": "2017-10-09 00:02:00", "detail": detail},
        {"start_time": "2017-10-09 00:05:00", "end_time": "2017-10-09 00:06:30", "detail": []},
    ]
    log = [
        {
            "status": "Pass",
            "vc": "v1",
            "jobid": "application_1",
            "attempts": attempts,
            "submitted_time": "2017-10-09 00:00:30",
            "user": "u1",
        },
        {"vc": "v1", "jobid": "j2", "attempts": [], "submitted_time": "2017-10-09 00:00:00"},
        {"vc": "v1", "jobid": "j3", "attempts": [], "submitted_time": None},
    ]
    found = read(tmp_path, "philly", json.dumps(log))
    assert found.jobs == (
        SimJob(
            id="application_1",
            submit_s=0.0,
            duration_s=150.0,
            gpus_per_task=3,
            tenant=TenantId("v1"),
            name="u1",
        ),
    )
    assert found.skipped == (Skipped("never ran", 1), Skipped("no submission time", 1))


def test_helios_jobs(tmp_path: Path) -> None:
    text = (
        "job_id,user,vc,gpu_num,cpu_num,node_num,state,submit_time,start_time,end_time,duration,"
        "queue\n"
        "1425511,uX,vcJ,1,1,1,COMPLETED,2020-06-09 18:41:01,2020-06-09 18:41:01,2020-06-10"
        " 04:55:09,36848,0\n"
        "1425512,uV,vcb,16,64,4,FAILED,2020-06-09 18:41:27,2020-06-09 18:41:27,2020-06-09"
        " 18:45:36,249,0\n"
    )
    first, second = read(tmp_path, "helios", text).jobs
    assert (first.tasks, first.gpus_per_task, first.cpu_milli) == (1, 1, 1000)
    assert (first.tenant, first.duration_s) == ("vcJ", 36848.0)
    assert (second.tasks, second.gpus_per_task, second.cpu_milli) == (4, 4, 16_000)
    assert second.submit_s == 26.0


def test_acme_jobs(tmp_path: Path) -> None:
    text = (
        "job_id,user,node_num,gpu_num,cpu_num,mem_per_pod_GB,shared_mem_per_pod,type,state,"
        "submit_time,start_time,end_time,fail_time,stop_time,duration,queue,gpu_time\n"
        "dlc1,uf794,8,64,960,1000,100.0,Other,FAILED,2023-05-17 11:00:58+00:00,2023-05-17"
        " 11:01:08+00:00,2023-05-17 11:01:16+00:00,2023-05-17 11:01:16+00:00,,18,10.0,1152.0\n"
        "dlc2,uf794,1,8,96,100,1.0,Other,CANCELLED,2023-05-17 12:00:58+00:00,,,,,18,10.0,1152.0\n"
    )
    found = read(tmp_path, "acme", text)
    (job,) = found.jobs
    assert (job.tasks, job.gpus_per_task, job.cpu_milli) == (8, 8, 120_000)
    assert (job.duration_s, job.memory_mib, job.name) == (8.0, 1_024_000, "Other")
    assert found.skipped == (Skipped("never ran", 1),)


def test_swf_jobs(tmp_path: Path) -> None:
    lines = [
        "; Computer: a machine",
        f"1 100 5 60 16 {SWF_TAIL.format(asked=12, limit=90)}",
        f"2 130 5 60 16 {SWF_TAIL.format(asked=-1, limit=-1)}",
        f"3 140 5 -1 16 {SWF_TAIL.format(asked=4, limit=-1)}",
        f"4 150 5 60 -1 {SWF_TAIL.format(asked=-1, limit=-1)}",
    ]
    found = read(tmp_path, "swf", "\n".join(lines) + "\n")
    first, second = found.jobs
    assert (first.tasks, first.gpus_per_task, first.limit_s) == (2, 6, 90.0)
    assert (first.tenant, first.name) == ("group-7", "2")
    assert (second.tasks, second.gpus_per_task, second.limit_s) == (2, 8, None)
    assert second.submit_s == 30.0
    assert found.skipped == (Skipped("asks for no processors", 1), Skipped("no run time", 1))


def test_our_format_takes_job_files(tmp_path: Path) -> None:
    job = {
        "apiVersion": "haversack.dev/v1alpha1",
        "kind": "Job",
        "metadata": {"name": "ddp"},
        "spec": {
            "tasks": 2,
            "topology": "same-rack",
            "max_runtime_s": 90.0,
            "task": {"gpus": 4, "cpus": 2.5, "memory_mib": 100, "command": ["true"]},
        },
    }
    head = {"kind": "Workload", "version": 1, "name": "mine"}
    line = {"id": "a", "submit_s": 0, "duration_s": 60, "tenant": "red", "job": job}
    found = read(tmp_path, "haversack", f"{json.dumps(head)}\n{json.dumps(line)}\n")
    assert found.jobs == (
        SimJob(
            id="a",
            submit_s=0.0,
            duration_s=60.0,
            tasks=2,
            gpus_per_task=4,
            cpu_milli=2500,
            memory_mib=100,
            limit_s=90.0,
            tenant=TenantId("red"),
            name="ddp",
            topology=Topology.SAME_RACK,
        ),
    )
    job["spec"] = {"task": {"gpus": "4", "command": ["true"]}}
    with pytest.raises(InvalidRequestError, match=r"line 2, column 'job.spec.task.gpus': must be"):
        read(tmp_path, "haversack", f"{json.dumps(head)}\n{json.dumps(line)}\n")
    both = json.dumps({**line, "tasks": 2})
    with pytest.raises(InvalidRequestError, match="column 'tasks': beside 'job'"):
        read(tmp_path, "haversack", f"{json.dumps(head)}\n{both}\n")


def test_what_is_written_reads_back_equal(tmp_path: Path) -> None:
    load = Workload(
        "mixed",
        (
            SimJob(id="a", submit_s=0.0, duration_s=1.5, gpu_milli=460, cpu_milli=100),
            SimJob(
                id="b",
                submit_s=0.1,
                duration_s=1e-3,
                tasks=3,
                gpus_per_task=2,
                limit_s=9.0,
                tenant=TenantId("red"),
                gpu_models=("H200", "A100"),
                topology=Topology.SAME_NVLINK,
                preemptible=False,
            ),
        ),
        skipped=(Skipped("no run time", 4),),
    )
    path = tmp_path / "kept.jsonl"
    haversack.write(load, path)
    assert READERS["haversack"](path, Reading()) == load
    with pytest.raises(InvalidRequestError, match="cannot be written"):
        haversack.write(load, tmp_path / "absent" / "kept.jsonl")


@pytest.mark.parametrize(
    ("form", "name", "columns", "jobs", "gpus"),
    [
        ("csv", "philly_week/philly_2017-10-09_week.csv", {}, 12_751, 14_118.0),
        ("csv", "muri/trace3.csv", {}, 992, 9_346.0),
        ("csv", "muri/testbed400.csv", {}, 400, 3_766.0),
        (
            *("csv", "shockwave/jobs_120_100.csv"),
            *({"submit_s": "arrival_s", "model": "job_type"}, 120, 164.0),
        ),
        ("openb", "openb/openb_pod_list_default.csv", {}, 8_152, 6_086.8),
        ("openb", "openb/openb_pod_list_multigpu20.csv", {}, 8_324, 7_086.8),
    ],
)
def test_public_files_read_as_they_are(
    tmp_path: Path, form: str, name: str, columns: dict[str, str], jobs: int, gpus: float
) -> None:
    found = READERS[form](trace(name), Reading(columns=columns))
    assert (len(found.jobs), found.gpus, found.skipped) == (jobs, gpus, ())
    haversack.write(found, tmp_path / "kept.jsonl")
    assert READERS["haversack"](tmp_path / "kept.jsonl", Reading()) == found
