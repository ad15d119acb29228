import json
from dataclasses import replace

import pytest
from support.builders import job_spec
from support.outside import outside_gang
from support.store import document

from scheduler.errors import InvalidRequestError
from scheduler.model.job import LauncherKind
from scheduler.store import documents


def test_a_gang_keeps_its_members_and_nothing_to_run() -> None:
    gang = outside_gang(tasks=3)
    text = documents.of_gang(gang)
    assert json.loads(text)["kind"] == "PodGang"
    assert documents.members_of(text) == gang.members
    found = documents.program(text)
    assert found == documents.Program(members=gang.members)
    assert (found.launcher, found.command, found.retry.max_retries) == (LauncherKind.NONE, (), 0)


def test_the_class_of_a_priority_is_remembered() -> None:
    gang = replace(outside_gang(), priority_class="urgent")
    assert documents.priority_class_of(documents.of_gang(gang)) == "urgent"
    assert documents.priority_class_of(documents.of_gang(outside_gang())) == ""
    assert [documents.priority_class_of(text) for text in ("{", "[]", '{"spec": 1}')] == [""] * 3


def test_a_job_file_says_how_to_run() -> None:
    spec = job_spec(command=("python", "train.py"), max_retries=2, grace_s=7.0, max_runtime_s=60.0)
    text = document(spec)
    assert documents.members_of(text) == ()
    found = documents.program(text)
    assert found.command == ("python", "train.py")
    assert (found.retry, found.checkpoint) == (spec.retry, spec.checkpoint)
    assert (found.max_runtime_s, found.launcher, found.members) == (60.0, spec.launcher, ())


GANG = json.loads(documents.of_gang(outside_gang()))


@pytest.mark.parametrize(
    "text",
    [
        json.dumps({**GANG, "apiVersion": "haversack.dev/v9"}),
        json.dumps({**GANG, "members": []}),
        json.dumps({**GANG, "members": [1]}),
        json.dumps({**GANG, "members": [""]}),
        json.dumps({**GANG, "members": "team-a/x/u-1"}),
        json.dumps({**GANG, "kind": "Unheard"}),
        "[]",
        "{",
        "",
    ],
)
def test_what_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequestError):
        documents.program(text)
