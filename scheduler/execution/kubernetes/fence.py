"""Lets the API server itself turn a stale leader away.

The store's lease row says who leads. Before its first bind a leader publishes its epoch in a
Kubernetes Lease (as `leaseTransitions`), and ValidatingAdmissionPolicies refuse every binding of
ours, and every change of ours to a pod that our gate holds (pinning it, or taking the gate away),
that does not carry exactly that epoch. The Lease is never renewed: it is a token, not a
clock. But whoever deletes it, or makes it anew without an epoch, takes the fence down or stops our
bindings, so that its leader looks after it (`keep`). Order of a take-over: `ensure`, `next_epoch`,
commit it to the store, `publish`, `prove`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from scheduler.errors import FencedError, HaversackError
from scheduler.execution.kubernetes.labels import EPOCH, PLACEMENT_GATE
from scheduler.execution.kubernetes.server import ApiServer, Document, Lane, RejectedError

DEFAULT_NAMESPACE: Final = "haversack-system"
LEASE: Final = "haversack-epoch"
STALE: Final = "stale leader epoch"
"""What the policy's refusal says, so that it can be told from other refusals."""

_POLICIES = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies"
_POLICY_BINDINGS = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicybindings"
_SELF = "/apis/authentication.k8s.io/v1/selfsubjectreviews"
_PROBE = "haversack-fence-probe"
_PROOF_GAP_S = 0.1
PROOF_LONGEST_S = 10.0
"""A policy that was made just now is in force by then."""
LEASE_SEEN_S = 1.0
"""A Lease that was written just now is seen by every API server by then."""
KEEP_EVERY_S = 10.0
"""For so long at most a Lease that was deleted lets a stale leader's bindings pass, or one without
its epoch holds ours up. Shorter buys little: people do that by mistake, not all the time."""
_PUBLISH_TRIES = 10


def policy_name(namespace: str = DEFAULT_NAMESPACE) -> str:
    """Name of the policy, its binding included, for an installation in `namespace`."""
    return f"{namespace}-epoch"


def namespace_manifest(namespace: str = DEFAULT_NAMESPACE) -> Document:
    """The namespace that holds the Lease."""
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}


def lease_manifest(epoch: int, holder: str, namespace: str = DEFAULT_NAMESPACE) -> Document:
    """The Lease that says which epoch may bind."""
    return {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {"name": LEASE, "namespace": namespace},
        "spec": {"holderIdentity": holder, "leaseTransitions": epoch},
    }


def pins_name(namespace: str = DEFAULT_NAMESPACE) -> str:
    """Name of the policy on pins, its binding included."""
    return f"{namespace}-pins"


def policy_manifest(user: str, namespace: str = DEFAULT_NAMESPACE) -> Document:
    """The policy: a binding by `user` carries the Lease's epoch, or it is refused (422).

    Args:
        user: name under which the API server knows our daemon; others' bindings do not concern it.
        namespace: the installation's.
    """
    rule = {"operations": ["CREATE"], "resources": ["pods/binding", "bindings"]}
    return _policy(policy_name(namespace), user, rule)


def pins_policy_manifest(user: str, namespace: str = DEFAULT_NAMESPACE) -> Document:
    """The same for what `user` does to a pod that our gate holds: pin it, take the gate away."""
    gates = "oldObject.spec.schedulingGates"
    gated = {
        "name": "held-by-our-gate",
        "expression": f"has({gates})"
        f" && {gates}.exists(gate, gate.name == {_cel_text(PLACEMENT_GATE)})",
    }
    rule = {"operations": ["UPDATE"], "resources": ["pods"]}
    return _policy(pins_name(namespace), user, rule, gated)


def _policy(name: str, user: str, rule: Document, *conditions: Document) -> Document:
    annotations, current = "object.metadata.annotations", "params.spec.leaseTransitions"
    return {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingAdmissionPolicy",
        "metadata": {"name": name},
        "spec": {
            "failurePolicy": "Fail",
            "paramKind": {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease"},
            "matchConstraints": {
                "resourceRules": [{"apiGroups": [""], "apiVersions": ["v1"], **rule}]
            },
            "matchConditions": [
                {
                    "name": "by-haversack",
                    "expression": f"request.userInfo.username == {_cel_text(user)}",
                },
                *conditions,
            ],
            "validations": [
                {
                    "expression": f"has({annotations}) && '{EPOCH}' in {annotations}"
                    f" && has({current}) && int({annotations}['{EPOCH}']) == {current}",
                    "message": STALE,
                }
            ],
        },
    }


def policy_binding_manifest(namespace: str = DEFAULT_NAMESPACE) -> Document:
    """Puts the policy into force, with our Lease as its parameter.

    Without the Lease bindings pass. An API server that misses a parameter does not ask whom the
    policy concerns: it would refuse everybody's bindings, so that whoever deletes our namespace
    would stop the whole cluster. The leader publishes it again (`Fence.keep`).
    """
    return _policy_binding(policy_name(namespace), namespace)


def pins_binding_manifest(namespace: str = DEFAULT_NAMESPACE) -> Document:
    """The same for pins."""
    return _policy_binding(pins_name(namespace), namespace)


def _policy_binding(name: str, namespace: str) -> Document:
    return {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingAdmissionPolicyBinding",
        "metadata": {"name": name},
        "spec": {
            "policyName": name,
            "validationActions": ["Deny"],
            "paramRef": {
                "name": LEASE,
                "namespace": namespace,
                "parameterNotFoundAction": "Allow",
            },
        },
    }


def _cel_text(text: str) -> str:
    """A CEL string literal."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


class LostLeaseError(HaversackError):
    """The Lease has no epoch, or an earlier one: it tells nobody who leads until it is kept."""


@dataclass(frozen=True, slots=True)
class Proof:
    """Whether the fence was seen to hold.

    Attributes:
        holds: a binding with another epoch was refused, and ours is not.
        why: what was seen instead; "" when it holds.
    """

    holds: bool
    why: str = ""


class Fence:
    """The epoch as the cluster knows it, and the policy that guards it.

    Its methods raise what requests raise (`server.py`), and what each says.

    Args:
        server: the cluster.
        holder: who we are, for people who look at the Lease.
        user: the name under which the API server knows us; asked for where it is needed if not
            given.
        namespace: the Lease's.
        sleep: waits between looks.
    """

    def __init__(
        self,
        server: ApiServer,
        *,
        holder: str,
        user: str = "",
        namespace: str = DEFAULT_NAMESPACE,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._server = server
        self._holder = holder
        self._user = user
        self._namespace = namespace
        self._sleep = sleep
        self._leases = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"

    async def ensure(self) -> tuple[str, ...]:
        """Create the namespace, the policies and their bindings where they are missing.

        What exists stays as it is: whoever made it may have had reasons. The Lease itself is
        created by `publish`.

        Returns:
            What could not be created and why, for people; empty if nothing is missing.
        """
        troubles = []
        user = self._user or await self._who_we_are()
        for what, path, body in (
            ("namespace", "/api/v1/namespaces", namespace_manifest(self._namespace)),
            ("policy", _POLICIES, policy_manifest(user, self._namespace)),
            ("policy binding", _POLICY_BINDINGS, policy_binding_manifest(self._namespace)),
            ("policy", _POLICIES, pins_policy_manifest(user, self._namespace)),
            ("policy binding", _POLICY_BINDINGS, pins_binding_manifest(self._namespace)),
        ):
            name = body["metadata"]["name"]
            try:
                await self._create_missing(path, body)
            except RejectedError as error:
                troubles.append(f"cannot create {what} {name}: {error.message}")
        return tuple(troubles)

    async def _create_missing(self, path: str, body: Document) -> None:
        try:
            await self._server.get(f"{path}/{body['metadata']['name']}")
        except RejectedError as error:
            if not (error.missing or error.forbidden):
                raise
        else:
            return
        try:
            await self._server.post(path, body)
        except RejectedError as error:
            if not error.conflict:
                raise

    async def _who_we_are(self) -> str:
        review = {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}
        answer = await self._server.post(_SELF, review)
        return str(answer["status"]["userInfo"]["username"])

    async def read_epoch(self) -> int:
        """The epoch that may bind now; 0 if none was ever published."""
        lease = await self._lease()
        return 0 if lease is None else _epoch(lease)

    async def next_epoch(self, store_epoch: int) -> int:
        """An epoch for a new leader: above the store's and the cluster's.

        The cluster's counts too, so that a database restored from a backup cannot go back to
        epochs that were used already.

        Args:
            store_epoch: the highest that the store knows.
        """
        return max(store_epoch, await self.read_epoch()) + 1

    def refused(self, error: RejectedError) -> bool:
        """Whether our policies refused it."""
        names = (policy_name(self._namespace), pins_name(self._namespace))
        ours = any(f"'{name}'" in error.message for name in names)
        return ours and (error.invalid or error.forbidden)

    async def publish(self, epoch: int) -> None:
        """Make `epoch` the one that may bind. Repeating it does no harm.

        Raises:
            FencedError: the cluster is at a higher epoch, or another holder has this one.
        """
        for _ in range(_PUBLISH_TRIES):
            lease = await self._lease()
            try:
                if lease is not None and self._is_ours(lease, epoch):
                    return
                # The resource version goes along: a write in between makes this one conflict. A
                # PUT without one only creates; unlike POST it names what, as rights may, too.
                made = lease_manifest(epoch, self._holder, self._namespace)
                body = made if lease is None else {**lease, "spec": made["spec"]}
                await self._server.put(f"{self._leases}/{LEASE}", body)
            except RejectedError as error:
                made_meanwhile = lease is None and error.invalid
                if not (error.conflict or made_meanwhile):
                    raise
            else:
                return
        raise FencedError(f"epoch {epoch}: others keep writing the Lease {LEASE}")

    async def keep(self, epoch: int, we_lead: Callable[[], Awaitable[None]]) -> bool:
        """Publish `epoch` again if the Lease is gone, or has none or an earlier one.

        Cost: one GET while nothing is wrong.

        Args:
            epoch: ours.
            we_lead: raises FencedError if we do not. The store is asked before anything is written:
                a Lease that is gone cannot tell a leader that is back from a pause that it is over.

        Returns:
            Whether it was published again.

        Raises:
            FencedError: another leader has taken over.
            HaversackError: the API server or the store does not answer, or our rights forbid it.
        """
        lease = await self._lease()
        if lease is not None and self._is_ours(lease, epoch):
            return False
        await we_lead()
        await self.publish(epoch)
        return True

    def _is_ours(self, lease: Document, epoch: int) -> bool:
        """Whether the Lease says so already. Raises FencedError when it says otherwise."""
        at = _epoch(lease)
        holder = (lease.get("spec") or {}).get("holderIdentity")
        if at > epoch or (at == epoch and holder != self._holder):
            raise FencedError(f"epoch {epoch} is over: the cluster is at {at}, held by {holder}")
        return at == epoch

    async def prove(self, epoch: int, *, longest_s: float = PROOF_LONGEST_S) -> Proof:
        """See by dry runs that another epoch is refused and ours is not.

        A policy takes some time to come into force, and an API server some milliseconds to see a
        new Lease; this waits for both. Raises what requests raise, but not RejectedError: a
        refusal is an answer.

        Args:
            epoch: the one that was published.
            longest_s: how long to wait at most.
        """
        waited_s = 0.0
        while True:
            other, ours = await self._dry_run(epoch + 1), await self._dry_run(epoch)
            if other is not None and is_stale(other) and ours is None:
                return Proof(holds=True)
            if waited_s >= longest_s:
                if ours is not None:
                    return Proof(holds=False, why=f"cannot bind with epoch {epoch}: {ours.message}")
                return Proof(holds=False, why=f"nothing refuses other epochs than {epoch}")
            await self._sleep(_PROOF_GAP_S)
            waited_s += _PROOF_GAP_S

    async def _dry_run(self, epoch: int) -> RejectedError | None:
        """Bind a pod that does not exist; the refusal, if it was not for the want of that pod.

        Admission comes before the pod is looked up.
        """
        path = f"/api/v1/namespaces/{self._namespace}/pods/{_PROBE}/binding"
        body = {
            "apiVersion": "v1",
            "kind": "Binding",
            "metadata": {"name": _PROBE, "annotations": {EPOCH: str(epoch)}},
            "target": {"apiVersion": "v1", "kind": "Node", "name": _PROBE},
        }
        try:
            await self._server.post(path, body, query={"dryRun": "All"}, lane=Lane.BIND)
        except RejectedError as error:
            return None if error.missing else error
        return None

    async def _lease(self) -> Document | None:
        try:
            return await self._server.get(f"{self._leases}/{LEASE}")
        except RejectedError as error:
            if error.missing:
                return None
            raise


def is_stale(error: RejectedError) -> bool:
    """Whether the fence refused it: the epoch it carried is not the cluster's."""
    return (error.invalid or error.forbidden) and STALE in error.message


def _epoch(lease: Document) -> int:
    return int((lease.get("spec") or {}).get("leaseTransitions") or 0)
