"""Which namespace, which type, which name: from the command line and the kubeconfig."""

from __future__ import annotations

from pathlib import Path

import pytest

from scheduler.cli.kubectl.namespaces import current
from scheduler.cli.kubectl.naming import Named, named, type_of
from scheduler.cli.kubectl.program import in_front
from scheduler.cli.kubectl.refusals import UsageError

CONFIG = """
current-context: a
contexts:
- {name: a, context: {cluster: c, namespace: research}}
- {name: b, context: {cluster: c}}
"""


def test_the_namespace_is_that_of_the_current_context(tmp_path: Path) -> None:
    (tmp_path / ".kube").mkdir()
    config = tmp_path / ".kube" / "config"
    config.write_text(CONFIG)
    assert current({"HOME": str(tmp_path)}) == "research"
    other = tmp_path / "other"
    other.write_text("current-context: b\n")
    # The first file that names a context, and the first that describes it.
    assert current({"KUBECONFIG": f"{other}:{config}", "HOME": str(tmp_path)}) == "default"
    assert current({"KUBECONFIG": f"{config}:{other}"}) == "research"
    assert current({"KUBECONFIG": f"{tmp_path}/none:{config}"}) == "research"


@pytest.mark.parametrize("text", ["", "[]", "contexts: 5", "current-context: z", "contexts: [5]"])
def test_without_a_context_it_is_default(tmp_path: Path, text: str) -> None:
    (tmp_path / "config").write_text(text)
    assert current({"KUBECONFIG": str(tmp_path / "config")}) == "default"
    assert current({}) == "default"


def test_a_kubeconfig_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "config").write_text("a: [")
    with pytest.raises(UsageError, match="not YAML"):
        current({"KUBECONFIG": str(tmp_path / "config")})
    with pytest.raises(UsageError, match="cannot be read"):
        current({"KUBECONFIG": str(tmp_path)})


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["a"], [("", "a")]),
        (["a", "b"], [("", "a"), ("", "b")]),
        (["job", "a", "b"], [("job", "a"), ("job", "b")]),
        (["Pods", "a"], [("pod", "a")]),
        (["job/a", "pod/b", "jobs.haversack.dev/c", "d"],
         [("job", "a"), ("pod", "b"), ("job", "c"), ("", "d")]),
        (["team/my-pod"], [("", "team/my-pod")]),
        (["pod", "team/my-pod"], [("pod", "team/my-pod")]),
    ],
)  # fmt: skip
def test_things_are_named_as_with_kubectl(words: list[str], found: list[tuple[str, str]]) -> None:
    assert named(words, ("job", "pod")) == tuple(Named(*each) for each in found)


@pytest.mark.parametrize("words", [["job"], ["node", "a"], ["node/a"], ["job/"]])
def test_what_names_nothing_is_wrong_usage(words: list[str]) -> None:
    with pytest.raises(UsageError):
        named(words, ("job", "pod"))


def test_types_have_their_short_and_full_forms() -> None:
    assert {type_of(text) for text in ("no", "node", "nodes", "NODES", "nodes.haversack.dev")} == {
        "node"
    }
    assert type_of("namespace") is None


@pytest.mark.parametrize(
    ("given", "ordered"),
    [
        ("get jobs -n a", "-n a get jobs"),
        ("get jobs -na --server=u -A", "-na --server=u get jobs -A"),
        ("get jobs --server u job/x", "--server u get jobs job/x"),
        ("submit -f x -n", "-n submit -f x"),
        ("get -- -n a", "get -- -n a"),
    ],
)
def test_options_of_the_program_may_stand_anywhere(given: str, ordered: str) -> None:
    own = ["--namespace", "-n", "--server", "-s"]
    assert in_front(given.split(), own) == ordered.split()
