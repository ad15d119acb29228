from __future__ import annotations

from pathlib import Path

import yaml

from scheduler.execution.kubernetes.labels import SCHEDULER_NAME
from scheduler.execution.kubernetes.owners import owner_of

EXAMPLE = Path(__file__).parents[4] / "docs" / "guide" / "examples" / "gang.yaml"


def test_the_example_of_the_guide_is_a_gang_of_pods_that_name_us() -> None:
    job = yaml.safe_load(EXAMPLE.read_text())
    assert job["spec"]["template"]["spec"]["schedulerName"] == SCHEDULER_NAME
    job["metadata"] |= {"namespace": "team", "uid": "u"}  # as the API server completes it
    owner = owner_of(job)
    assert owner is not None
    assert owner.size == job["spec"]["completions"] == 4
