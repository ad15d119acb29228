"""The published JSON Schema is the one the code enforces."""

from __future__ import annotations

import json
from pathlib import Path

from scheduler.jobspec import job_schema

PUBLISHED = Path(__file__).parents[3] / "docs" / "reference" / "job.schema.json"


def test_the_published_schema_is_current() -> None:
    assert json.loads(PUBLISHED.read_text()) == json.loads(json.dumps(job_schema())), (
        "run `python -m scheduler.jobspec > docs/reference/job.schema.json`"
    )


def test_every_field_is_described() -> None:
    schema = job_schema()
    definitions = schema["$defs"]
    assert isinstance(definitions, dict)
    for name, definition in {**definitions, "JobDocument": schema}.items():
        assert definition["additionalProperties"] is False, name
        for field, content in definition["properties"].items():
            assert "description" in content or "$ref" in content, f"{name}.{field}"
