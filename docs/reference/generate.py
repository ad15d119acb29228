"""Writes the pages of this folder that come wholly from code; `make docs` runs it."""

from __future__ import annotations

import json
from pathlib import Path

import scheduler.main  # noqa: F401 - adds the commands that run a daemon to the CLI's
from scheduler.cli.kubectl.program import app as kubectl_app
from scheduler.cli.main import app
from scheduler.cli.reference import kubectl_markdown, markdown
from scheduler.jobspec import job_schema

HERE = Path(__file__).parent


def pages() -> dict[str, str]:
    """Text of each generated page by file name."""
    return {
        "cli.md": markdown(app),
        "kubectl.md": kubectl_markdown(kubectl_app),
        "job.schema.json": json.dumps(job_schema(), indent=2) + "\n",
    }


if __name__ == "__main__":
    for name, text in pages().items():
        (HERE / name).write_text(text, encoding="utf-8")
