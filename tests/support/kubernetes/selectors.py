"""Label and field selectors of lists and watches."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from support.kubernetes.refusals import Json, bad_request
from support.kubernetes.resources import Resource

_REQUIREMENT = re.compile(
    r"\s*(?:(?P<absent>!)\s*(?P<unwanted>[\w./-]+)"
    r"|(?P<key>[\w./-]+)\s*(?:(?P<op>==|=|!=)\s*(?P<value>[\w.-]*)"
    r"|(?P<set>in|notin)\s*\((?P<values>[^)]*)\))?)\s*(?:,|$)"
)
_COMMON = ("metadata.name", "metadata.namespace")
_FIELDS = {
    ("", "pods"): (
        *_COMMON,
        "spec.nodeName",
        "spec.schedulerName",
        "spec.restartPolicy",
        "spec.serviceAccountName",
        "spec.hostNetwork",
        "status.phase",
        "status.podIP",
        "status.nominatedNodeName",
    ),
    ("", "nodes"): ("metadata.name", "spec.unschedulable"),
    ("batch", "jobs"): (*_COMMON, "status.successful"),
    ("events.k8s.io", "events"): (
        *_COMMON,
        "reason",
        "type",
        "regarding.kind",
        "regarding.name",
        "regarding.namespace",
        "regarding.uid",
        "reportingController",
    ),
}

Test = Callable[[Json], bool]


@dataclass(frozen=True, slots=True)
class Selection:
    """Which objects of a type a list or a watch is about; without tests, all."""

    namespace: str = ""
    tests: tuple[Test, ...] = ()

    def takes(self, found: Json) -> bool:
        """Whether this object is one of them."""
        if self.namespace and found["metadata"].get("namespace") != self.namespace:
            return False
        return all(test(found) for test in self.tests)


def selection(resource: Resource, namespace: str, labels: str, fields: str) -> Selection:
    """Both selectors of a request.

    Raises:
        RefusedError: 400, one of them cannot be read or names a field that is not supported.
    """
    return Selection(namespace, (*_label_tests(labels), *_field_tests(resource, fields)))


def matches(selector: Json, labels: Json) -> bool:
    """Whether a LabelSelector object (matchLabels, matchExpressions) takes these labels."""
    if any(labels.get(key) != value for key, value in selector.get("matchLabels", {}).items()):
        return False
    return all(
        _has(
            labels,
            requirement["key"],
            requirement["operator"].lower(),
            requirement.get("values", ()),
        )
        for requirement in selector.get("matchExpressions", ())
    )


def _has(labels: Json, key: str, operator: str, values: object) -> bool:
    assert isinstance(values, list | tuple | set)
    match operator:
        case "in":
            return labels.get(key) in values
        case "notin":
            return labels.get(key) not in values
        case "exists":
            return key in labels
        case _:
            return key not in labels


def _label_tests(text: str) -> list[Test]:
    tests: list[Test] = []
    place = 0
    while place < len(text):
        found = _REQUIREMENT.match(text, place)
        if found is None:
            raise bad_request(f"unable to parse requirement: {text[place:]!r}")
        place = found.end()
        tests.append(_label_test(found))
    return tests


def _label_test(found: re.Match[str]) -> Test:
    key = found["unwanted"] or found["key"]
    if found["absent"]:
        operator, values = "doesnotexist", {""}
    elif found["set"]:
        operator, values = found["set"], {value.strip() for value in found["values"].split(",")}
    elif found["op"]:
        operator, values = ("notin" if found["op"] == "!=" else "in"), {found["value"]}
    else:
        operator, values = "exists", {""}
    return lambda seen: _has(seen["metadata"].get("labels") or {}, key, operator, values)


def _field_tests(resource: Resource, text: str) -> list[Test]:
    known = _FIELDS.get(resource.shelf, _COMMON)
    tests: list[Test] = []
    for term in filter(None, text.split(",")):
        found = re.fullmatch(r"([^=!]+)(==|=|!=)(.*)", term)
        if found is None:
            raise bad_request(f"invalid selector: {term!r}; can't understand {term!r}")
        field, operator, value = found.groups()
        if field not in known:
            raise bad_request(f"field label not supported: {field}")
        tests.append(_field_test(field.split("."), value, same=operator != "!="))
    return tests


def _field_test(path: list[str], value: str, *, same: bool) -> Test:
    def test(seen: Json) -> bool:
        at: object = seen
        for step in path:
            at = at.get(step) if isinstance(at, dict) else None
        text = str(at).lower() if isinstance(at, bool) else str(at or "")
        # A field that is false is often absent.
        if value in ("true", "false") and text == "":
            text = "false"
        return (text == value) == same

    return test
