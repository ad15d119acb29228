"""Whatever comes in, the only way out is a job or InvalidRequestError."""

from __future__ import annotations

import json
from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from scheduler.errors import InvalidRequestError
from scheduler.jobspec import parse_job_json, parse_job_yaml
from scheduler.model.job import JobSpec

Parse = Callable[[str | bytes], tuple[JobSpec, str]]

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(
        ["haversack.dev/v1alpha1", "Job", "a", "torchrun", "service", "\x07", "\ud800"]
    )
)
KEYS = (
    st.text(max_size=8)
    | st.sampled_from(
        ["apiVersion", "kind", "metadata", "spec", "name", "task", "tasks", "command", "env", "min"]
    )
    | st.sampled_from(
        ["max", "gpus", "cpus", "class", "retry", "checkpoint", "gpu_models", "[key]", "<count>"]
    )
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=5)
)
GOOD = {"command": ["python", "train.py"]}


def job_or_refusal(parse: Parse, text: str | bytes) -> None:
    try:
        spec, document = parse(text)
    except InvalidRequestError as error:
        refusal = error
    else:
        assert parse_job_json(document) == (spec, document)
        return
    assert refusal.problems
    for problem in refusal.problems:
        assert problem.message
        assert f"{problem.path}{problem.message}".isprintable()


@given(st.text() | st.binary())
def test_arbitrary_text(text: str | bytes) -> None:
    job_or_refusal(parse_job_json, text)
    job_or_refusal(parse_job_yaml, text)


@given(st.text(alphabet="{}[]:,-&*!|>'\"%@`#?<= \n\t~ab01.\\ux", max_size=60))
def test_text_made_of_yaml_punctuation(text: str) -> None:
    job_or_refusal(parse_job_yaml, text)
    job_or_refusal(parse_job_json, text)


@given(VALUES)
def test_arbitrary_data(data: object) -> None:
    text = json.dumps(data)
    job_or_refusal(parse_job_json, text)
    job_or_refusal(parse_job_yaml, text)


@given(VALUES, VALUES, st.dictionaries(KEYS, VALUES, max_size=3))
def test_almost_a_job(spec: object, field: object, extra: dict[str, object]) -> None:
    base = {"apiVersion": "haversack.dev/v1alpha1", "kind": "Job", "metadata": {"name": "x"}}
    for document in (
        {**base, "spec": spec},
        {**base, "spec": {"task": {**GOOD, **extra}}},
        {**base, "spec": {"task": GOOD, **extra}},
        {**base, "spec": {"task": {**GOOD, "env": field}, "tasks": field}},
    ):
        job_or_refusal(parse_job_json, json.dumps(document))
        job_or_refusal(parse_job_yaml, json.dumps(document))
