"""The reference pages say what the code does."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scheduler.jobspec import job_schema, parse_job_yaml

REFERENCE = Path(__file__).parents[3] / "docs" / "reference"


def generated() -> dict[str, str]:
    spec = importlib.util.spec_from_file_location("generate", REFERENCE / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    pages: Callable[[], dict[str, str]] = module.pages
    return pages()


@pytest.mark.parametrize("name", ["cli.md", "kubectl.md", "job.schema.json"])
def test_generated_pages_are_current(name: str) -> None:
    assert (REFERENCE / name).read_text() == generated()[name], "run `make docs`"


def test_the_example_of_the_job_file_page_is_a_job() -> None:
    (example,) = re.findall(
        r"```yaml\n(.*?)```", (REFERENCE / "job-file.md").read_text(), re.DOTALL
    )
    spec, _ = parse_job_yaml(example)
    assert (spec.name, spec.tasks_min, spec.checkpoint.grace_s) == ("ddp-hello", 2, 60.0)


def test_every_field_of_the_schema_is_on_the_job_file_page() -> None:
    page = (REFERENCE / "job-file.md").read_text()
    definitions: dict[str, Any] = job_schema()["$defs"]  # type: ignore[assignment]
    prefixes = {
        "Spec": "spec.", "Task": "spec.task.", "Retry": "spec.retry.",
        "Checkpoint": "spec.checkpoint.",
    }  # fmt: skip
    nested = {"task", "retry", "checkpoint"}
    for model, prefix in prefixes.items():
        for field in definitions[model]["properties"]:
            if model != "Spec" or field not in nested:
                assert f"`{prefix}{field}" in page, f"{prefix}{field}"
