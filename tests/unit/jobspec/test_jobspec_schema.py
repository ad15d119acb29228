"""The JSON Schema is strict and tells what each field means."""

from __future__ import annotations

from scheduler.jobspec import job_schema


def test_every_field_is_described_and_nothing_else_is_allowed() -> None:
    schema = job_schema()
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    definitions = schema["$defs"]
    assert isinstance(definitions, dict)
    for name, definition in {**definitions, "JobDocument": schema}.items():
        assert definition["additionalProperties"] is False, name
        for field, content in definition["properties"].items():
            assert "description" in content or "$ref" in content, f"{name}.{field}"
