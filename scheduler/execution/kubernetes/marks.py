"""What our writes leave on a pod: by it everybody can tell which pods are ours, at any time.

A pod that we bind gets its marks together with its node. One that kube-scheduler shall judge too
gets them together with a pin, a node affinity that allows one node only, while our gate still
holds it; then the gate goes, and kube-scheduler binds it there or says why not.
"""

from __future__ import annotations

from scheduler.execution.kubernetes import labels
from scheduler.execution.kubernetes.pods import Pod
from scheduler.model.quantity import AttemptId
from scheduler.model.site import NODE_NAME_FIELD, Operator, Term


def attempt_of(pod: Pod) -> AttemptId | None:
    """The attempt that a pod was bound or pinned for.

    Marks of a pod with neither node nor pin, or with another uid than they were written for, were
    copied from another pod.
    """
    if pod.annotation(labels.MARKED) != pod.ref.uid:
        return None
    if not pod.node_name and not pin_of(pod):
        return None
    return AttemptId(pod.annotation(labels.ATTEMPT)) or None


def pin_of(pod: Pod) -> str:
    """The one node that its required node affinity allows; "" if it allows several, or none."""
    pins = {_pin(term) for term in pod.constraints.site.terms or () if term.labels or term.fields}
    return pins.pop() if len(pins) == 1 else ""


def _pin(term: Term) -> str:
    named = {
        value
        for each in term.fields
        if each.key == NODE_NAME_FIELD and each.operator is Operator.IN
        for value in each.values
    }
    return named.pop() if len(named) == 1 else ""


def is_ours(pod: Pod) -> bool:
    """Whether its place is ours to choose, or was.

    It names us as its scheduler; or it is left to kube-scheduler, and our gate holds it, or has
    held it until we pinned it.
    """
    if pod.scheduler_name == labels.SCHEDULER_NAME:
        return True
    if pod.scheduler_name != labels.KUBE_SCHEDULER_NAME:
        return False
    return labels.PLACEMENT_GATE in pod.gates or attempt_of(pod) is not None


def is_released(pod: Pod) -> bool:
    """Whether our part is done: it has a node, or our gate no longer holds it."""
    return bool(pod.node_name) or (
        pod.scheduler_name == labels.KUBE_SCHEDULER_NAME and labels.PLACEMENT_GATE not in pod.gates
    )


def seat_of(pod: Pod) -> str:
    """The node whose room it takes, or may take at any moment as kube-scheduler binds it there."""
    if pod.over:
        return ""
    if pod.node_name:
        return pod.node_name
    return pin_of(pod) if is_released(pod) and attempt_of(pod) is not None else ""
