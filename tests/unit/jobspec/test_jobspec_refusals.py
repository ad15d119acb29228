"""Bad job files: each refusal names the field, the place and what to do."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from scheduler.errors import FieldProblem, InvalidRequestError
from scheduler.jobspec import parse_job_json, parse_job_yaml

HEAD = "apiVersion: haversack.dev/v1alpha1\nkind: Job\nmetadata: {name: x}\n"


def refused(
    text: str | bytes, parse: Callable[[str | bytes], object] = parse_job_yaml
) -> InvalidRequestError:
    with pytest.raises(InvalidRequestError) as caught:
        parse(text)
    return caught.value


def spec_problem(spec: str) -> FieldProblem:
    (problem,) = refused(HEAD + f"spec: {spec}").problems
    return problem


def task_problem(fields: str) -> FieldProblem:
    return spec_problem(f"{{task: {{command: [a], {fields}}}}}")


def test_an_unknown_field_is_named_with_line_column_and_suggestion() -> None:
    problem = refused(HEAD + "spec:\n  task:\n    command: [a]\n    gpuss: 1\n").problems[0]
    assert problem == FieldProblem("spec.task.gpuss", "unknown field", 7, 5, "gpus")


def test_json_problems_carry_positions_too() -> None:
    text = json.dumps(
        {
            "apiVersion": "haversack.dev/v1alpha1",
            "kind": "Job",
            "metadata": {"name": "x"},
            "spec": {"prio": 3, "task": {"command": ["a"]}},
        },
        indent=2,
    )
    (problem,) = refused(text, parse_job_json).problems
    assert (problem.path, problem.line, problem.column) == ("spec.prio", 8, 5)
    assert problem.suggestion == "priority"


def test_all_problems_come_at_once_in_the_order_of_the_file() -> None:
    error = refused(HEAD + "spec:\n  priority: 200\n  tasks: 0\n  quue: a\n  task: {gpus: x}\n")
    assert [problem.path for problem in error.problems] == [
        "spec.priority",
        "spec.tasks",
        "spec.quue",
        "spec.task.command",
        "spec.task.gpus",
    ]
    assert str(error) == "the job file has 5 problems"


def test_the_short_form_is_told_what_to_add() -> None:
    error = refused("queue: default\ntask: {command: [a]}\n")
    assert "apiVersion: haversack.dev/v1alpha1" in error.hint
    assert "kind: Job" in error.hint
    assert "spec:" in error.hint


@pytest.mark.parametrize(
    ("spec", "path"),
    [
        ("{tasks: {min: 1, max: 2}, task: {command: [a]}}", "spec.tasks"),
        ("{task: {command: [a], gpu_milli: 460}}", "spec.task.gpu_milli"),
        ("{task: {command: [a], gpu_memory_mib: 1}}", "spec.task.gpu_memory_mib"),
        ("{class: service, task: {command: [a]}}", "spec.class"),
        ("{type: inference, task: {command: [a]}}", "spec.type"),
        ("{after: [j], task: {command: [a]}}", "spec.after"),
        ("{array: 3, task: {command: [a]}}", "spec.array"),
        ("{deadline: '2026-01-01T00:00:00Z', task: {command: [a]}}", "spec.deadline"),
        ("{not_before: '2026-01-01T00:00:00Z', task: {command: [a]}}", "spec.not_before"),
        ("{volumes: [{name: v}], task: {command: [a]}}", "spec.volumes"),
        ("{secrets: [{name: v}], task: {command: [a]}}", "spec.secrets"),
        ("{checkpoint: {every_s: 5}, task: {command: [a]}}", "spec.checkpoint.every_s"),
    ],
)
def test_what_is_not_built_yet_is_refused_by_name(spec: str, path: str) -> None:
    problem = spec_problem(spec)
    assert problem.path == path
    assert problem.message.startswith("not yet supported")
    assert problem.line == 4


@pytest.mark.parametrize(
    ("fields", "path", "says"),
    [
        ('env: {RANK: "1"}', "spec.task.env.RANK", "set by Haversack"),
        ('env: {HAVERSACK_X: "1"}', "spec.task.env.HAVERSACK_X", "set by Haversack"),
        (
            'env: {CUDA_VISIBLE_DEVICES: "0"}',
            "spec.task.env.CUDA_VISIBLE_DEVICES",
            "spec.task.gpus",
        ),
        ('env: {"A B": "1"}', "spec.task.env.A B", "not an environment name"),
        ('env: {A: "\\e[31m"}', "spec.task.env.A", "\\x1b[31m"),
        ("env: {A: 1}", "spec.task.env.A", "put it in quotes"),
        ("image: a b", "spec.task.image", "not an image"),
        ("gpus: -1", "spec.task.gpus", "greater than or equal to 0"),
        ("gpus: true", "spec.task.gpus", "whole number"),
        ("cpus: 0.0001", "spec.task.cpus", "0.001"),
        ("cpus: 1.0005", "spec.task.cpus", "0.001"),
        ("cpus: .inf", "spec.task.cpus", "finite"),
        ("gpus: 1, gpu_models: [A, A]", "spec.task.gpu_models", "twice"),
        ("gpu_models: [A100]", "spec.task.gpu_models", "spec.task.gpus"),
    ],
)
def test_task_fields_out_of_their_range(fields: str, path: str, says: str) -> None:
    problem = task_problem(fields)
    assert problem.path == path
    assert says in problem.message


@pytest.mark.parametrize(
    ("spec", "path", "says"),
    [
        ("{task: {command: []}}", "spec.task.command", "at least 1"),
        ('{task: {command: [""]}}', "spec.task.command", "must not be empty"),
        ('{task: {command: ["a\\0b"]}}', "spec.task.command[0]", "NUL"),
        ("{task: {command: [sleep, 5]}}", "spec.task.command[1]", "put it in quotes"),
        ("{tasks: 4097, task: {command: [a]}}", "spec.tasks", "4096"),
        ("{tasks: {min: 3, max: 2}, task: {command: [a]}}", "spec.tasks", "min is greater"),
        ("{workdir: data, task: {command: [a]}}", "spec.workdir", "absolute"),
        ("{launcher: none, processes_per_task: 2, task: {command: [a]}}",
         "spec.processes_per_task", "launcher: torch"),
        ("{processes_per_task: 2, task: {command: [torchrun]}}",
         "spec.processes_per_task", "torchrun"),
        ("{topology: same-nod, task: {command: [a]}}", "spec.topology", "same-node"),
        ("{max_runtime_s: 0, task: {command: [a]}}", "spec.max_runtime_s", "greater than 0"),
    ],
)  # fmt: skip
def test_spec_fields_out_of_their_range(spec: str, path: str, says: str) -> None:
    problem = spec_problem(spec)
    assert problem.path == path
    assert says in problem.message


def test_a_command_is_bounded_in_count_and_bytes() -> None:
    many = "[" + ", ".join(["a"] * 257) + "]"
    assert "256" in spec_problem(f"{{task: {{command: {many}}}}}").message
    long = "a" * 131_072
    assert "131072" in spec_problem(f"{{task: {{command: [{long}]}}}}").message


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ('"a\\x07b"', "\\x07"),
        ('"a\\nb"', "control character: a\\nb"),
        ("Upper", "lower-case"),
        ("-a", "lower-case"),
        ("a-", "lower-case"),
        (f"{'a' * 64}", "63"),
        ('""', "must not be empty"),
    ],
)
def test_names_are_dns_like_and_show_what_is_invisible(name: str, says: str) -> None:
    text = HEAD.replace("name: x", f"name: {name}") + "spec: {task: {command: [a]}}"
    (problem,) = refused(text).problems
    assert problem.path == "metadata.name"
    assert says in problem.message
    assert problem.message.isprintable()


@pytest.mark.parametrize(
    ("text", "says", "line"),
    [
        ("a: &x 1\nb: 2", "anchors", 1),
        ("a: 1\nb: *x", "aliases", 2),
        ("a: 1\nb: &y [*y]", "anchors", 2),
        ("a: 1\n---\nb: 2", "one document", 2),
        ("a: 1\nb: 1\na: 2", "first on line 1", 3),
        ("a:\n  <<: {b: 1}", "merge", 2),
        ("a: !!binary aGk=", "tags", 1),
        ("1: a", "must be text", 1),
        ("[a]: b", "must be text", 1),
        ("{a: b", "not YAML", 2),
        ("a: " + "[" * 20 + "]" * 20, "deeper than 20", 1),
        ("", "empty", None),
        ("a: \x01", "control characters", None),
    ],
)
def test_yaml_outside_the_safe_subset(text: str, says: str, line: int | None) -> None:
    (problem,) = refused(text).problems
    assert says in problem.message
    assert problem.line == line


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"a": 1, "a": 2}', "duplicate key"),
        ('{"a": NaN}', "NaN"),
        ('{"a": -Infinity}', "-Infinity"),
        ('{"a": ' + "[" * 20 + "]" * 20 + "}", "deeper than 20"),
        ("[" * 100_000, "deeper than 20"),
        ('{"a": 1' + "0" * 5000 + "}", "acceptable JSON"),
        ('{"a": 18446744073709551616}', "64 bits"),
        ('{"a": "\\ud800"}', "Unicode"),
        ("{'a': 1}", "not JSON"),
        ("", "not JSON"),
    ],
)
def test_json_that_is_refused_before_any_field_is_looked_at(text: str, says: str) -> None:
    (problem,) = refused(text, parse_job_json).problems
    assert says in problem.message


def test_long_json_is_refused_without_the_cost_of_positions() -> None:
    padding = " " * 65_536
    (problem,) = refused('{"a": 1, "a": 2' + padding + "}", parse_job_json).problems
    assert (problem.line, "twice" in problem.message) == (None, True)
    assert refused('{"a": 1' + padding + "}", parse_job_json).problems[0].line is None


def test_size_and_encoding_are_checked_first() -> None:
    assert "at most 262144" in refused("a" * 262_145).problems[0].message
    assert "UTF-8" in refused(b"\xff\xfe").problems[0].message
    assert "UTF-8" in refused("\ud800").problems[0].message
