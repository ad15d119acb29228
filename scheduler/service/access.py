"""What every use case asks first: may this actor do that, and does this object exist for it?"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Row

from scheduler.errors import ForbiddenError, NotFoundError, PreconditionError
from scheduler.model.access import Actor, Permission
from scheduler.model.quantity import JobId
from scheduler.store import jobs
from scheduler.store.transaction import Transaction


def require(actor: Actor, permission: Permission) -> None:
    """Let the actor pass if its role grants `permission`.

    Routes check this too; here it holds for every caller, whatever the route forgot.

    Raises:
        ForbiddenError: the role does not grant it.
    """
    if not actor.may(permission):
        raise ForbiddenError(
            f"role {actor.role} of tenant {actor.tenant} does not grant {permission}",
            hint="ask an administrator for a token with another role",
        )


def require_change(actor: Actor, permission: Permission) -> None:
    """As `require`, for use cases that change something; read-only sessions never may.

    Raises:
        ForbiddenError: the role does not grant it, or the session may only read.
    """
    require(actor, permission)
    if actor.read_only:
        raise ForbiddenError(
            "this session may only read", hint="use the command line with a token of your own"
        )
    if not actor.cluster_wide and actor.acts_for != actor.tenant:
        raise ForbiddenError(f"{actor.name} may not act for tenant {actor.acts_for}")


def job_row(tx: Transaction, actor: Actor, job_id: JobId) -> Row[Any]:
    """The job's row.

    Raises:
        NotFoundError: there is none that the actor may know of.
    """
    found = jobs.row(tx, actor, job_id)
    if found is None:
        raise NotFoundError(f"no job {job_id!r}", hint="`haversack jobs` lists the jobs you see")
    return found


def check_version(what: str, version: int, if_match: int | None) -> None:
    """Refuse when the caller has seen another version than the stored one.

    Raises:
        PreconditionError: the object changed since.
    """
    if if_match is not None and if_match != version:
        raise PreconditionError(
            f"{what} is at version {version}, the request expects {if_match}",
            hint="read it again and decide anew",
        )
