"""The use cases: one function is one transaction, called through `Database.write` or `read`.

`submission` and `moves` change jobs, `jobs` and `explanation` read them; `cluster`, `decisions`,
`events` and `identity` hold the rest. `access` is what all of them ask first.
"""

from scheduler.service.cluster import (
    cordon_gpu,
    cordon_node,
    get_gpu,
    get_node,
    list_gpus,
    list_nodes,
    list_queues,
)
from scheduler.service.decisions import get_decision, list_decisions
from scheduler.service.events import audit_denied, events_after, head_revision, list_audit
from scheduler.service.explanation import explain, explain_pod
from scheduler.service.identity import (
    authenticate,
    create_tenant,
    create_token,
    list_tenants,
    list_tokens,
    revoke_token,
)
from scheduler.service.jobs import get_job, job_attempts, job_history, list_jobs
from scheduler.service.moves import cancel, hold, release, requeue
from scheduler.service.submission import Limits, submit

__all__ = [
    "Limits",
    "audit_denied",
    "authenticate",
    "cancel",
    "cordon_gpu",
    "cordon_node",
    "create_tenant",
    "create_token",
    "events_after",
    "explain",
    "explain_pod",
    "get_decision",
    "get_gpu",
    "get_job",
    "get_node",
    "head_revision",
    "hold",
    "job_attempts",
    "job_history",
    "list_audit",
    "list_decisions",
    "list_gpus",
    "list_jobs",
    "list_nodes",
    "list_queues",
    "list_tenants",
    "list_tokens",
    "release",
    "requeue",
    "revoke_token",
    "submit",
]
