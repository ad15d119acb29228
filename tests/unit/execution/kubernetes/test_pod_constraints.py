from __future__ import annotations

import pytest
from support.kube_objects import Raw

from scheduler.execution.kubernetes.constraints import Constraints, constraints_of
from scheduler.model.site import ANYWHERE, Effect, Requirement, Taint

REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"
PREFERRED = "preferredDuringSchedulingIgnoredDuringExecution"


def read(gpu_resource: str = "", **spec: object) -> Constraints:
    return constraints_of(spec, "team", gpu_resource)


def affinity(*terms: Raw) -> Raw:
    return {"nodeAffinity": {REQUIRED: {"nodeSelectorTerms": list(terms)}}}


def expressions(*found: tuple[str, str, list[str]]) -> Raw:
    return {
        "matchExpressions": [
            {"key": key, "operator": operator, "values": values} for key, operator, values in found
        ]
    }


def selects(constraints: Constraints, name: str = "node-0", **labels: str) -> bool:
    return constraints.site.selects(name, labels)


def test_a_plain_pod_may_sit_anywhere() -> None:
    assert read() == Constraints()
    assert read().site == ANYWHERE


def test_selector_and_affinity_must_both_be_met() -> None:
    found = read(
        nodeSelector={"disk": "ssd"}, affinity=affinity(expressions(("zone", "In", ["a", "b"])))
    )
    assert selects(found, disk="ssd", zone="a")
    assert not selects(found, disk="ssd", zone="c")
    assert not selects(found, zone="a")


@pytest.mark.parametrize(
    ("operator", "values", "meets", "misses"),
    [
        ("In", ["a", "b"], {"k": "b"}, [{"k": "c"}, {}]),
        ("NotIn", ["a"], {"k": "b"}, [{"k": "a"}]),
        ("NotIn", ["a"], {}, []),
        ("Exists", [], {"k": ""}, [{}]),
        ("DoesNotExist", [], {}, [{"k": ""}]),
        ("Gt", ["5"], {"k": "6"}, [{"k": "5"}, {"k": "x"}, {}]),
        ("Lt", ["5"], {"k": "-6"}, [{"k": "5"}, {}]),
    ],
)
def test_operators(operator: str, values: list[str], meets: Raw, misses: list[Raw]) -> None:
    found = read(affinity=affinity(expressions(("k", operator, values))))
    assert not found.problems
    assert selects(found, **meets)
    assert not any(selects(found, **labels) for labels in misses)


def test_numbers_of_64_bits_are_compared() -> None:
    largest = str(2**63 - 1)
    found = read(affinity=affinity(expressions(("k", "Lt", [largest]))))
    assert not found.problems
    assert selects(found, k="9000000000000000000")
    assert not selects(found, k=largest)
    assert read(affinity=affinity(expressions(("k", "Lt", [str(2**63)])))).problems


def test_a_term_that_cannot_be_read_leaves_the_others() -> None:
    """The API server takes `Gt` of what is no number; kube-scheduler passes over such a term."""
    wrong = expressions(("rank", "Gt", ["high"]))
    found = read(affinity=affinity(wrong, expressions(("zone", "In", ["a"]))))
    assert not found.problems
    assert selects(found, zone="a", rank="9")
    assert not selects(found, zone="b", rank="9")
    (problem,) = read(affinity=affinity(wrong)).problems
    assert problem.startswith(f"spec.affinity.nodeAffinity.{REQUIRED}.nodeSelectorTerms[0]")


def test_terms_are_alternatives_and_their_parts_are_not() -> None:
    found = read(
        affinity=affinity(
            expressions(("a", "Exists", []), ("b", "Exists", [])), expressions(("c", "Exists", []))
        )
    )
    assert selects(found, a="", b="")
    assert selects(found, c="")
    assert not selects(found, a="")


def test_a_node_may_be_asked_for_by_name() -> None:
    """As the DaemonSet controller does."""
    term = {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["node-7"]}]}
    found = read(affinity=affinity(term))
    assert selects(found, name="node-7")
    assert not selects(found, name="node-8")


@pytest.mark.parametrize("required", [{}, {"nodeSelectorTerms": []}, {"nodeSelectorTerms": [{}]}])
def test_no_term_and_an_empty_term_are_met_by_no_node(required: Raw) -> None:
    found = read(affinity={"nodeAffinity": {REQUIRED: required}})
    assert not found.problems
    assert not selects(found, any="thing")


@pytest.mark.parametrize(
    "requirement",
    [
        {"key": "k", "operator": "Resembles", "values": ["a"]},
        {"key": "k", "operator": None},
        {"key": "k", "operator": "In", "values": []},
        {"key": "k", "operator": "NotIn"},
        {"key": "k", "operator": "Exists", "values": ["a"]},
        {"key": "k", "operator": "Gt", "values": ["1", "2"]},
        {"key": "k", "operator": "Lt", "values": ["1_0"]},
        {"operator": "Exists"},
    ],
)
def test_a_requirement_that_breaks_the_rules_is_met_by_no_node(requirement: Raw) -> None:
    found = read(affinity=affinity({"matchExpressions": [requirement]}))
    assert not selects(found)
    assert not selects(found, k="a")
    assert not selects(found, k="5")
    (problem,) = found.problems
    assert problem.startswith(f"spec.affinity.nodeAffinity.{REQUIRED}.nodeSelectorTerms[0]")


@pytest.mark.parametrize(
    "field",
    [
        {"key": "metadata.uid", "operator": "In", "values": ["node-0"]},
        {"key": "metadata.name", "operator": "Exists"},
        {"key": "metadata.name", "operator": "In", "values": ["node-0", "node-1"]},
    ],
)
def test_only_one_name_can_be_asked_for(field: Raw) -> None:
    found = read(affinity=affinity({"matchFields": [field]}))
    assert found.problems
    assert not selects(found)


def test_tolerations() -> None:
    found = read(
        tolerations=[
            {"key": "gpu", "operator": "Exists", "effect": "NoSchedule", "value": "ignored"},
            {"key": "team", "value": "nlp"},
            {"key": "gpu", "operator": "Exists", "effect": "NoSchedule"},
        ]
    )
    assert len(found.site.tolerations) == 2
    gpu, team = Taint("gpu", "yes", Effect.NO_SCHEDULE), Taint("team", "nlp", Effect.NO_EXECUTE)
    assert found.site.untolerated((gpu, team)) is None
    assert found.site.untolerated((Taint("gpu", "", Effect.NO_EXECUTE),)) is not None
    assert found.site.untolerated((Taint("team", "cv", Effect.NO_SCHEDULE),)) is not None
    everything = read(tolerations=[{"operator": "Exists"}])
    assert everything.site.untolerated((gpu, team)) is None


def test_gpus_of_another_maker_will_not_do() -> None:
    found = read("amd.com/gpu", nodeSelector={"zone": "a"})
    assert found.site.selector == (("haversack.dev/gpu-resource", "amd.com/gpu"), ("zone", "a"))


def test_equal_templates_share_one_value() -> None:
    first = read(nodeSelector={"zone": "shared"})
    assert first is read(nodeSelector={"zone": "shared"})


@pytest.mark.parametrize(
    ("spec", "fields"),
    [
        (
            {"affinity": {"podAffinity": {REQUIRED: [{"topologyKey": "zone"}]}}},
            [f"spec.affinity.podAffinity.{REQUIRED}"],
        ),
        (
            {"affinity": {"podAntiAffinity": {REQUIRED: [{"matchLabelKeys": ["hash"]}]}}},
            [f"spec.affinity.podAntiAffinity.{REQUIRED}"],
        ),
        (
            {
                "topologySpreadConstraints": [
                    {"whenUnsatisfiable": "ScheduleAnyway"},
                    {"whenUnsatisfiable": "DoNotSchedule"},
                    {},
                ]
            },
            ["spec.topologySpreadConstraints[1]", "spec.topologySpreadConstraints[2]"],
        ),
        ({"resourceClaims": [{"name": "gpu"}]}, ["spec.resourceClaims"]),
        ({"volumes": [{"emptyDir": {}}, {"rbd": {"image": "x"}}]}, ["spec.volumes[1].rbd"]),
        ({"tolerations": [{"key": "k", "operator": "Gt"}]}, ["spec.tolerations[0].operator"]),
        ({"affinity": {"podAffinity": {REQUIRED: []}}}, []),
    ],
)
def test_what_is_not_modelled_is_named_with_a_remedy(spec: Raw, fields: list[str]) -> None:
    found = read(**spec)
    assert [need.field for need in found.needs] == fields
    assert all("haversack.dev/placement" in str(need) for need in found.needs)


def test_preferences_are_listed_as_wishes() -> None:
    found = read(
        affinity={kind: {PREFERRED: [{}]} for kind in ("nodeAffinity", "podAntiAffinity")},
        topologySpreadConstraints=[{"whenUnsatisfiable": "ScheduleAnyway"}],
    )
    assert not found.needs
    assert found.wishes == (
        f"spec.affinity.nodeAffinity.{PREFERRED}",
        f"spec.affinity.podAntiAffinity.{PREFERRED}",
        "spec.topologySpreadConstraints[0]",
    )


def anti(**term: object) -> Constraints:
    return read(affinity={"podAntiAffinity": {REQUIRED: [{"topologyKey": "zone", **term}]}})


def test_anti_affinity_keeps_later_pods_away() -> None:
    selector = {
        "matchLabels": {"app": "db"},
        "matchExpressions": [{"key": "tier", "operator": "NotIn", "values": ["test"]}],
    }
    (own,) = anti(labelSelector=selector).repulsions
    assert own.repels("team", {"app": "db"})
    assert not own.repels("team", {"app": "db", "tier": "test"})
    assert not own.repels("other", {"app": "db"})
    (named,) = anti(labelSelector=selector, namespaces=["other"]).repulsions
    assert named.repels("other", {"app": "db"})
    assert not named.repels("team", {"app": "db"})
    (all_of_them,) = anti(labelSelector={}, namespaceSelector={}).repulsions
    assert all_of_them.repels("anywhere", {})
    assert not anti().repulsions, "a term without a selector matches no pod"


def test_a_selector_that_cannot_be_read_repels_more_not_less() -> None:
    selector = {"matchExpressions": [{"key": "tier", "operator": "Resembles"}]}
    (found,) = anti(labelSelector=selector).repulsions
    assert found.requirements == ()
    assert found.repels("team", {})


def test_requirements_are_written_alike_whatever_their_order() -> None:
    one = read(affinity=affinity(expressions(("k", "In", ["b", "a", "a"]))))
    other = read(affinity=affinity(expressions(("k", "In", ["a", "b"]))))
    assert one == other
    assert one.site.terms is not None
    assert isinstance(one.site.terms[0].labels[0], Requirement)
