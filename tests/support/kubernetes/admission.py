"""The parts of admission that Haversack leans on, written out natively.

One ValidatingAdmissionPolicy is understood, whatever it is called: the fence. It is a policy on
CREATE of `pods/binding` with a Lease as parameter whose validation reads `leaseTransitions`; its
match conditions may compare `request.userInfo.username`. It may be about UPDATE of `pods`, too:
then those with a scheduling gate that a match condition names. The CEL text is not evaluated.
"""

from __future__ import annotations

import re
from typing import Any

from support.kubernetes.pod_rules import TERMINAL
from support.kubernetes.refusals import Json, RefusedError, internal, too_many
from support.kubernetes.resources import BUDGETS, LEASES, POLICIES, POLICY_BINDINGS
from support.kubernetes.selectors import matches
from support.kubernetes.storage import Storage

_ANNOTATION = re.compile(r"annotations\s*\[\s*['\"]([\w./-]+)['\"]\s*\]")
_GATE = re.compile(r"gate\.name\s*==\s*['\"]([\w./-]+)['\"]")
_USERNAME = re.compile(r"request\.userInfo\.username\s*==\s*['\"]([^'\"]+)['\"]")


def fence(storage: Storage, username: str, name: str, binding: Json) -> None:
    """Turn away a Binding whose epoch is not the Lease's.

    Raises:
        RefusedError: 422 or 403, in the words of the policy.
    """
    for rule in storage.shelf(POLICY_BINDINGS.shelf).objects.values():
        policy = storage.shelf(POLICIES.shelf).objects.get(("", rule["spec"]["policyName"]))
        if policy is None or not _about(policy["spec"], username):
            continue
        if _is_fence(policy["spec"], "pods/binding"):
            _judge(storage, policy, rule, name, binding)


def pin_fence(storage: Storage, username: str, old: Json, new: Json) -> None:
    """Turn away a change of a gated pod that does not carry the Lease's epoch.

    Raises:
        RefusedError: 422 or 403, in the words of the policy.
    """
    gates = {gate["name"] for gate in old["spec"].get("schedulingGates") or ()}
    for rule in storage.shelf(POLICY_BINDINGS.shelf).objects.values():
        policy = storage.shelf(POLICIES.shelf).objects.get(("", rule["spec"]["policyName"]))
        if policy is None or not _about(policy["spec"], username):
            continue
        if _is_fence(policy["spec"], "pods") and gates & _gates(policy["spec"]):
            _judge(storage, policy, rule, new["metadata"]["name"], new)


def _gates(spec: Json) -> set[str]:
    conditions = (condition["expression"] for condition in spec.get("matchConditions") or ())
    return {found[1] for each in conditions if (found := _GATE.search(each))}


def _is_fence(spec: Json, resource: str) -> bool:
    resources = [
        each
        for rule in spec.get("matchConstraints", {}).get("resourceRules", ())
        for each in rule.get("resources", ())
    ]
    return (
        resource in resources
        and (spec.get("paramKind") or {}).get("kind") == "Lease"
        and any("leaseTransitions" in one["expression"] for one in spec.get("validations", ()))
    )


def _about(spec: Json, username: str) -> bool:
    names = [
        found[1]
        for condition in spec.get("matchConditions") or ()
        if (found := _USERNAME.search(condition["expression"]))
    ]
    return not names or username in names


def _judge(storage: Storage, policy: Json, rule: Json, name: str, changed: Json) -> None:
    validation = next(
        one for one in policy["spec"]["validations"] if "leaseTransitions" in one["expression"]
    )
    reference = rule["spec"].get("paramRef") or {}
    key = (reference.get("namespace", ""), reference.get("name", ""))
    lease = storage.shelf(LEASES.shelf).objects.get(key)
    begin = (
        f"ValidatingAdmissionPolicy '{policy['metadata']['name']}' with binding "
        f"'{rule['metadata']['name']}' denied request: "
    )
    if lease is None:
        if reference.get("parameterNotFoundAction", "Deny") == "Allow":
            return
        raise _denied(
            name,
            begin + "failed to configure binding: no params found for policy "
            "binding with `Deny` parameterNotFoundAction",
            "Invalid",
            422,
        )
    annotation = _ANNOTATION.search(validation["expression"])
    if annotation is None:
        raise internal(f"the fake cannot read the policy {policy['metadata']['name']}")
    told = (changed["metadata"].get("annotations") or {}).get(annotation[1])
    if told != str(lease["spec"].get("leaseTransitions", 0)):
        why = validation.get("message") or f"failed expression: {validation['expression'].strip()}"
        raise _denied(name, begin + why, validation.get("reason", "Invalid"), 422)


def _denied(name: str, why: str, reason: str, code: int) -> RefusedError:
    code = {"Forbidden": 403, "Unauthorized": 401, "RequestEntityTooLarge": 413}.get(reason, code)
    details = {"name": name, "kind": "pods", "causes": [{"message": why}]}
    return RefusedError(code, reason, f'pods "{name}" is forbidden: {why}', details=details)


def spent_budget(storage: Storage, pod: Json) -> tuple[tuple[str, str], Json] | None:
    """The one disruption budget that guards a pod, after this eviction; None if none counts.

    Raises:
        RefusedError: 429, the budget allows none now; 500, several budgets guard the pod.
    """
    if (
        pod["status"].get("phase") in (*TERMINAL, "Pending")
        or "deletionTimestamp" in pod["metadata"]
    ):
        return None
    name, namespace = pod["metadata"]["name"], pod["metadata"]["namespace"]
    guards = [
        (key, budget)
        for key, budget in storage.shelf(BUDGETS.shelf).objects.items()
        if key[0] == namespace
        and matches(budget["spec"].get("selector") or {}, pod["metadata"].get("labels") or {})
    ]
    if not guards:
        return None
    if len(guards) > 1:
        raise internal(
            "This pod has more than one PodDisruptionBudget, which the eviction subresource does "
            "not support."
        )
    key, budget = guards[0]
    status: dict[str, Any] = budget.get("status") or {}
    healthy, needed = status.get("currentHealthy", 0), status.get("desiredHealthy", 0)
    # What is not ready may go when enough others are healthy (`IfHealthyBudget`).
    if not _is_ready(pod) and healthy >= needed > 0:
        return None
    allowed = status.get("disruptionsAllowed", 0)
    if status.get("observedGeneration", 0) < budget["metadata"].get("generation", 1):
        cause = {
            "reason": "DisruptionBudget",
            "message": f"The disruption budget {key[1]} is still being processed by the server.",
        }
        raise too_many(
            "Cannot evict pod as it would violate the pod's disruption budget.",
            retry_after_s=10,
            cause=cause,
        )
    if allowed <= 0:
        cause = {
            "reason": "DisruptionBudget",
            "message": f"The disruption budget {key[1]} needs {needed} healthy pods and has "
            f"{healthy} currently",
        }
        raise too_many(
            "Cannot evict pod as it would violate the pod's disruption budget.",
            retry_after_s=None,
            cause=cause,
        )
    disrupted = {**(status.get("disruptedPods") or {}), name: pod["metadata"]["creationTimestamp"]}
    spent = {**status, "disruptionsAllowed": allowed - 1, "disruptedPods": disrupted}
    return key, {**budget, "status": spent}


def _is_ready(pod: Json) -> bool:
    conditions = pod["status"].get("conditions") or ()
    return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)
