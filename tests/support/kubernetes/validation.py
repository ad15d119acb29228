"""Rules for types other than pods, as far as Haversack writes them: Lease and Event."""

from __future__ import annotations

import re
from collections.abc import Iterator

from support.kubernetes.refusals import Json, invalid
from support.kubernetes.resources import EVENTS, LEASES, Resource

_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_MICRO_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}(Z|[+-]\d\d:\d\d)")
_UNSET = (
    "deprecatedCount",
    "deprecatedFirstTimestamp",
    "deprecatedLastTimestamp",
    "deprecatedSource",
)
_LIMITS = {"reportingInstance": 128, "action": 128, "reason": 128, "note": 1024}
_NAME_RULE = (
    "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or "
    "'.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used "
    f"for validation is '{_NAME.pattern}')"
)


def check_name(resource: Resource, name: str) -> None:
    """Whether an object may be called this.

    Raises:
        RefusedError: 422.
    """
    if not name:
        why = "Required value: name or generateName is required"
        raise invalid(resource.kind, name, "metadata.name", why, group=resource.group)
    # RBAC objects are the ones whose names are paths.
    if resource.group != "rbac.authorization.k8s.io" and not _NAME.fullmatch(name):
        why = f'Invalid value: "{name}": {_NAME_RULE}'
        raise invalid(resource.kind, name, "metadata.name", why, group=resource.group)


def check(resource: Resource, document: Json) -> None:
    """Whether an object of a type with rules follows them.

    Raises:
        RefusedError: 422.
    """
    if resource == LEASES:
        _check_lease(document)
    elif resource == EVENTS:
        _check_event(document)


def _check_lease(lease: Json) -> None:
    name, spec = lease["metadata"]["name"], lease.get("spec") or {}

    def refuse(field: str, why: str) -> None:
        raise invalid("Lease", name, f"spec.{field}", why, group=LEASES.group)

    duration, transitions = spec.get("leaseDurationSeconds"), spec.get("leaseTransitions")
    if duration is not None and duration <= 0:
        refuse("leaseDurationSeconds", f"Invalid value: {duration}: must be greater than 0")
    if transitions is not None and transitions < 0:
        refuse(
            "leaseTransitions",
            f"Invalid value: {transitions}: must be greater than or equal to 0",
        )
    for field in ("acquireTime", "renewTime"):
        time = spec.get(field)
        if time is not None and not _MICRO_TIME.fullmatch(time):
            refuse(
                field, f'Invalid value: parsing time "{time}" as "2006-01-02T15:04:05.000000Z07:00"'
            )


def _check_event(event: Json) -> None:
    for field, why in _event_faults(event):
        raise invalid("Event", event["metadata"]["name"], field, why)


def _event_faults(event: Json) -> Iterator[tuple[str, str]]:
    """Fields that break a rule, with the reason."""
    for field in ("eventTime", "reportingController", "reportingInstance", "action", "reason"):
        if not event.get(field):
            yield field, "Required value"
    if not _MICRO_TIME.fullmatch(event["eventTime"]):
        yield "eventTime", f'Invalid value: parsing time "{event["eventTime"]}"'
    for field, limit in _LIMITS.items():
        if len(event.get(field) or "") > limit:
            yield field, f"Invalid value: can have at most {limit} characters"
    if event.get("type") not in ("Normal", "Warning"):
        yield "type", f'Invalid value: "{event.get("type", "")}"'
    about = (event.get("regarding") or {}).get("namespace", "")
    if about and about != event["metadata"]["namespace"]:
        yield (
            "involvedObject.namespace",
            f'Invalid value: "{about}": does not match event.namespace',
        )
    for field in _UNSET:
        if event.get(field):
            yield field, "Invalid value: needs to be unset"
