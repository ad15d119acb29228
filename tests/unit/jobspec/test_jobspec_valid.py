"""Good job files: defaults, translation to the model, the canonical document."""

from __future__ import annotations

import json

import pytest

from scheduler.jobspec import parse_job_json, parse_job_yaml
from scheduler.model.job import CheckpointSpec, LauncherKind, RetrySpec, Topology

HEAD = "apiVersion: haversack.dev/v1alpha1\nkind: Job\nmetadata: {name: ddp-hello}\n"
SMALL = HEAD + "spec: {task: {command: [python, train.py]}}\n"

FULL = (
    HEAD
    + """\
spec:
  queue: research
  priority: 70
  tasks: {min: 2, max: 2}
  task:
    gpus: 4
    gpu_models: [H200, A100]
    cpus: 1.5
    memory_mib: 16384
    command: [python, "-c", "print('a\\nb')"]
    env: {ZED: "1", ALPHA: two}
    image: registry.example:5000/team/train@sha256:0a1b
  launcher: torch
  topology: prefer-same-rack
  max_runtime_s: 3600
  preemptible: false
  retry: {max: 2, backoff_s: 5}
  checkpoint: {signal: SIGUSR1, grace_s: 60}
  pool: default
  workdir: /srv/data
  class: batch
  type: training
"""
)


def test_defaults_are_those_of_the_reference() -> None:
    spec, document = parse_job_yaml(SMALL)
    assert (spec.name, spec.queue, spec.priority) == ("ddp-hello", "default", 50)
    assert (spec.tasks_min, spec.tasks_max) == (1, 1)
    assert (spec.task.gpus, spec.task.cpu_milli, spec.task.memory_mib) == (0, 1000, 512)
    assert (spec.launcher, spec.topology, spec.preemptible) == (
        LauncherKind.TORCH,
        Topology.ANY,
        True,
    )
    assert spec.retry == RetrySpec(0, 30.0)
    assert spec.checkpoint == CheckpointSpec("SIGTERM", 30.0)
    assert spec.max_runtime_s is None
    assert json.loads(document)["spec"] == {"task": {"command": ["python", "train.py"]}}


def test_every_supported_field_reaches_the_model() -> None:
    spec, _ = parse_job_yaml(FULL)
    assert spec.task.image == "registry.example:5000/team/train@sha256:0a1b"
    assert spec.task.gpu_models == ("H200", "A100")
    assert spec.task.cpu_milli == 1500
    assert spec.task.command == ("python", "-c", "print('a\nb')")
    assert spec.task.env == (("ALPHA", "two"), ("ZED", "1"))
    assert spec.task.workdir == "/srv/data"
    assert spec.task.processes == 4
    assert (spec.tasks_min, spec.tasks_max) == (2, 2)
    assert spec.topology is Topology.PREFER_SAME_RACK
    assert (spec.max_runtime_s, spec.preemptible, spec.pool) == (3600.0, False, "default")
    assert spec.retry == RetrySpec(2, 5.0)
    assert spec.checkpoint == CheckpointSpec("SIGUSR1", 60.0)


def test_yaml_json_and_the_canonical_document_mean_the_same_job() -> None:
    spec, document = parse_job_yaml(FULL)
    assert parse_job_json(document) == (spec, document)
    assert parse_job_json(document.encode()) == (spec, document)
    assert parse_job_yaml(document) == (spec, document)


def test_the_canonical_document_does_not_depend_on_spacing_or_key_order() -> None:
    shuffled = (
        '{"spec": {"task": {"command": ["python", "train.py"]}},\n "kind": "Job",'
        ' "metadata": {"name": "ddp-hello"}, "apiVersion": "haversack.dev/v1alpha1"}'
    )
    assert parse_job_json(shuffled) == parse_job_yaml(SMALL)


@pytest.mark.parametrize(
    ("spec", "processes"),
    [
        ("{task: {command: [python, t.py]}}", 1),
        ("{task: {gpus: 3, command: [python, t.py]}}", 3),
        ("{processes_per_task: 2, task: {command: [python, t.py]}}", 2),
        ("{launcher: none, task: {gpus: 3, command: [sh, t.sh]}}", 1),
        ("{task: {gpus: 3, command: [/opt/bin/torchrun, t.py]}}", 1),
        ("{task: {gpus: 3, command: [python3, -m, torch.distributed.run, t.py]}}", 1),
        ("{task: {gpus: 3, command: [python3, -u, -m, mine, t.py]}}", 3),
    ],
)
def test_processes_follow_the_gpus_unless_torchrun_starts_them(spec: str, processes: int) -> None:
    assert parse_job_yaml(HEAD + f"spec: {spec}")[0].task.processes == processes


def test_a_byte_order_mark_is_no_obstacle() -> None:
    assert parse_job_yaml("\ufeff" + SMALL) == parse_job_yaml(b"\xef\xbb\xbf" + SMALL.encode())


def test_words_that_yaml_takes_for_dates_stay_text() -> None:
    spec, _ = parse_job_yaml(HEAD + "spec: {task: {command: [echo, 2026-01-02, a=b]}}")
    assert spec.task.command == ("echo", "2026-01-02", "a=b")
