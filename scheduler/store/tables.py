"""Every table. Invariants I3, I4, I8 and I15 are indexes and checks here, not Python.

Every row carries its tenant (`system` for what tenants share). Instants are UTC seconds. JSON
documents are text: they are values to us, never queried inside. `revision` is the journal revision
of a row's last change, which is how snapshots are fed by deltas.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    false,
    text,
    true,
)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)


def _id(name: str = "id") -> Column[str]:
    return Column(name, String(128), primary_key=True)


def _tenant() -> Column[str]:
    return Column("tenant_id", String(64), nullable=False)


head = Table(
    "journal_head",
    metadata,
    # One row: the gapless revision, the audit chain's last hash, and this store's identity.
    Column("id", Integer, primary_key=True),
    Column("revision", BigInteger, nullable=False),
    Column("audit_hash", String(64), nullable=False),
    Column("generation", String(64), nullable=False),
    CheckConstraint("id = 1", name="single_row"),
)

journal = Table(
    "journal",
    metadata,
    # SSE ids, snapshot versions, plan revisions and ETags all come from here.
    Column("revision", BigInteger, primary_key=True, autoincrement=False),
    _tenant(),
    Column("at", Double, nullable=False),
    Column("kind", String(64), nullable=False),
    Column("object_id", String(128), nullable=False),
    Column("payload", Text, nullable=False),
)

leader = Table(
    "leader_lease",
    metadata,
    # I8: the epoch only rises; every decision transaction locks this row where epoch = its own.
    Column("id", Integer, primary_key=True),
    Column("holder", String(128), nullable=False),
    Column("epoch", BigInteger, nullable=False),
    Column("expires_at", Double, nullable=False),
    CheckConstraint("id = 1", name="single_row"),
    CheckConstraint("epoch >= 0", name="epoch_rises"),
)

tenants = Table(
    "tenants",
    metadata,
    _id(),
    Column("name", String(64), nullable=False, unique=True),
    Column("created_at", Double, nullable=False),
    Column("revision", BigInteger, nullable=False),
)

principals = Table(
    "principals",
    metadata,
    _id(),
    _tenant(),
    Column("name", String(64), nullable=False),
    Column("role", String(16), nullable=False),
    Column("created_at", Double, nullable=False),
    UniqueConstraint("tenant_id", "name"),
)

tokens = Table(
    "tokens",
    metadata,
    _id(),
    _tenant(),
    Column("principal_id", ForeignKey("principals.id"), nullable=False),
    # Only the digest is kept: a stolen database holds no usable token.
    Column("sha256", String(64), nullable=False, unique=True),
    Column("read_only", Boolean, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("expires_at", Double),
    Column("revoked_at", Double),
    Column("description", String(256), nullable=False),
)

pools = Table(
    "pools",
    metadata,
    _id(),
    _tenant(),
    Column("price_class", String(16), nullable=False),
    Column("created_at", Double, nullable=False),
)

queues = Table(
    "queues",
    metadata,
    # A queue is a leaf of its tenant's share tree.
    _id(),
    _tenant(),
    Column("name", String(64), nullable=False),
    Column("parent_id", ForeignKey("queues.id")),
    Column("weight", Double, nullable=False),
    Column("created_at", Double, nullable=False),
    UniqueConstraint("tenant_id", "name"),
    CheckConstraint("weight > 0", name="weight_positive"),
)

nodes = Table(
    "nodes",
    metadata,
    _id(),
    _tenant(),
    Column("name", String(128), nullable=False, unique=True),
    Column("pool_id", ForeignKey("pools.id"), nullable=False),
    Column("price_class", String(16), nullable=False),
    Column("rack", String(64), nullable=False),
    Column("zone", String(64), nullable=False),
    Column("health", String(16), nullable=False),
    Column("cordoned", Boolean, nullable=False),
    Column("simulated", Boolean, nullable=False),
    Column("present", Boolean, nullable=False),
    Column("cpu_milli", BigInteger, nullable=False),
    Column("memory_mib", BigInteger, nullable=False),
    # Sums are granted by `SET used = used + n WHERE used + n <= cap`; no CHECK against the cap, so
    # that a shrinking cap never fails a write.
    Column("cpu_milli_used", BigInteger, nullable=False),
    Column("memory_mib_used", BigInteger, nullable=False),
    Column("links", Text, nullable=False),
    # JSON lists, sorted: what sites select by, what keeps tasks off, further resources for jobs.
    Column("labels", Text, nullable=False, server_default="[]"),
    Column("taints", Text, nullable=False, server_default="[]"),
    Column("extras", Text, nullable=False, server_default="[]"),
    Column("seen_at", Double, nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("revision", BigInteger, nullable=False, index=True),
    CheckConstraint("cpu_milli_used >= 0", name="cpu_used"),
    CheckConstraint("memory_mib_used >= 0", name="memory_used"),
)

gpus = Table(
    "gpus",
    metadata,
    _id(),
    _tenant(),
    Column("node_id", ForeignKey("nodes.id"), nullable=False, index=True),
    Column("pool_id", String(64), nullable=False),
    Column("price_class", String(16), nullable=False),
    Column("position", Integer, nullable=False),
    Column("model", String(64), nullable=False),
    Column("memory_mib", BigInteger, nullable=False),
    Column("health", String(16), nullable=False),
    Column("cordoned", Boolean, nullable=False),
    Column("present", Boolean, nullable=False),
    # Fixed leaf slots of the GPU; a whole GPU takes them all. 1 until GPUs are shared.
    Column("leaves", Integer, nullable=False),
    # Somebody uses it whom we did not start.
    Column("external", Boolean, nullable=False, server_default=false()),
    Column("version", BigInteger, nullable=False),
    Column("revision", BigInteger, nullable=False, index=True),
    CheckConstraint("leaves >= 1", name="leaves"),
)

jobs = Table(
    "jobs",
    metadata,
    _id(),
    _tenant(),
    Column("queue", String(64), nullable=False),
    Column("name", String(128), nullable=False),
    Column("origin", String(16), nullable=False),
    Column("principal_id", String(128), nullable=False),
    Column("state", String(16), nullable=False),
    Column("desired", String(8), nullable=False),
    Column("priority", Integer, nullable=False),
    Column("tasks_min", Integer, nullable=False),
    Column("tasks_max", Integer, nullable=False),
    Column("gpus_per_task", Integer, nullable=False),
    Column("cpu_milli", BigInteger, nullable=False),
    Column("memory_mib", BigInteger, nullable=False),
    Column("gpu_models", Text, nullable=False),
    Column("topology", String(32), nullable=False),
    Column("pool", String(64)),
    # JSON: which nodes its tasks may sit on, "" for any; what each takes of further resources.
    Column("site", Text, nullable=False, server_default=""),
    Column("extras", Text, nullable=False, server_default="[]"),
    Column("preemptible", Boolean, nullable=False),
    # Whether others may be stopped for it; whether something outside forbids for now to stop it.
    Column("evicts", Boolean, nullable=False, server_default=true()),
    Column("shielded", Boolean, nullable=False, server_default=false()),
    Column("class_key", String(64), nullable=False),
    # As submitted, with its apiVersion; converted on read.
    Column("api_version", String(64), nullable=False),
    Column("document", Text, nullable=False),
    # What a gang that somebody else made is known by outside; NULL for all others.
    Column("outside_key", String(255)),
    Column("submitted_at", Double, nullable=False),
    Column("eligible_at", Double, nullable=False),
    Column("started_at", Double),
    Column("finished_at", Double),
    Column("attempts", Integer, nullable=False),
    Column("retries_used", Integer, nullable=False),
    Column("free_requeues", Integer, nullable=False),
    Column("end_cause", String(16)),
    Column("exit_code", Integer),
    Column("message", Text, nullable=False),
    Column("history_seq", Integer, nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("revision", BigInteger, nullable=False, index=True),
    CheckConstraint("desired IN ('run', 'stop')", name="desired"),
    CheckConstraint("tasks_min >= 1 AND tasks_max >= tasks_min", name="gang"),
)
Index("ix_jobs_state_submitted", jobs.c.state, jobs.c.submitted_at)
Index("ix_jobs_tenant_submitted", jobs.c.tenant_id, jobs.c.submitted_at, jobs.c.id)
# The cluster-wide listing, newest first, must not sort a million ended jobs.
Index("ix_jobs_submitted", jobs.c.submitted_at, jobs.c.id)
# I15: one gang from outside, one job.
Index(
    "uq_jobs_outside_key",
    jobs.c.outside_key,
    unique=True,
    sqlite_where=text("outside_key IS NOT NULL"),
    postgresql_where=text("outside_key IS NOT NULL"),
)

attempts = Table(
    "attempts",
    metadata,
    _id(),
    _tenant(),
    Column("job_id", ForeignKey("jobs.id"), nullable=False, index=True),
    Column("number", Integer, nullable=False),
    Column("epoch", BigInteger, nullable=False),
    Column("live", Boolean, nullable=False),
    Column("decision_id", String(64), nullable=False),
    Column("placement", Text, nullable=False),
    Column("why", Text, nullable=False),
    Column("outside_id", String(128), nullable=False),
    Column("created_at", Double, nullable=False),
    Column("started_at", Double),
    Column("ended_at", Double),
    Column("end_cause", String(16)),
    Column("exit_code", Integer),
    Column("exit_signal", Integer),
    Column("message", Text, nullable=False),
    Column("revision", BigInteger, nullable=False, index=True),
    UniqueConstraint("job_id", "number"),
)
# I3: at most one live attempt per job.
Index(
    "uq_attempts_live_job",
    attempts.c.job_id,
    unique=True,
    sqlite_where=text("live"),
    postgresql_where=text("live"),
)

# The few live attempts are read every cycle, from among all that ever were.
Index(
    "ix_attempts_live",
    attempts.c.live,
    sqlite_where=text("live"),
    postgresql_where=text("live"),
)

allocations = Table(
    "allocations",
    metadata,
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    _tenant(),
    Column("attempt_id", ForeignKey("attempts.id"), nullable=False, index=True),
    Column("node_id", ForeignKey("nodes.id"), nullable=False),
    Column("task_index", Integer, nullable=False),
    Column("resource", String(16), nullable=False),
    Column("amount", BigInteger, nullable=False),
    Column("gpu_id", ForeignKey("gpus.id")),
    Column("leaf", Integer),
    Column("live", Boolean, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("released_at", Double),
    CheckConstraint("amount >= 0", name="amount"),
    CheckConstraint("(gpu_id IS NULL) = (leaf IS NULL)", name="leaf_of_gpu"),
)
# I4: each GPU leaf has at most one live allocation.
Index(
    "uq_allocations_live_leaf",
    allocations.c.gpu_id,
    allocations.c.leaf,
    unique=True,
    sqlite_where=text("live AND gpu_id IS NOT NULL"),
    postgresql_where=text("live AND gpu_id IS NOT NULL"),
)

intents = Table(
    "intents",
    metadata,
    # I5: nothing happens outside without a committed row here.
    _id(),
    _tenant(),
    Column("attempt_id", ForeignKey("attempts.id"), nullable=False),
    Column("job_id", String(128), nullable=False),
    Column("kind", String(16), nullable=False),
    Column("state", String(16), nullable=False),
    Column("epoch", BigInteger, nullable=False),
    Column("order_json", Text, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("claimed_at", Double),
    Column("settled_at", Double),
    Column("message", Text, nullable=False),
    UniqueConstraint("attempt_id", "kind"),
    CheckConstraint(
        "state IN ('pending', 'claimed', 'done', 'refused', 'void')", name="intent_state"
    ),
)
Index(
    "ix_intents_open",
    intents.c.state,
    sqlite_where=text("state IN ('pending', 'claimed')"),
    postgresql_where=text("state IN ('pending', 'claimed')"),
)

history = Table(
    "history",
    metadata,
    # I9: state = fold(history), gapless per job.
    Column("job_id", ForeignKey("jobs.id"), primary_key=True),
    Column("seq", Integer, primary_key=True, autoincrement=False),
    _tenant(),
    Column("at", Double, nullable=False),
    Column("from_state", String(16)),
    Column("to_state", String(16), nullable=False),
    Column("event", String(32), nullable=False),
    Column("attempt_id", String(128)),
    Column("detail", Text, nullable=False),
    Column("revision", BigInteger, nullable=False),
)

audit = Table(
    "audit",
    metadata,
    # I16: one row per mutating request, denied ones too; each hash covers the one before.
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    _tenant(),
    Column("at", Double, nullable=False),
    Column("principal_id", String(128), nullable=False),
    Column("action", String(64), nullable=False),
    Column("object_id", String(128), nullable=False),
    Column("outcome", String(32), nullable=False),
    Column("detail", Text, nullable=False),
    Column("hash", String(64), nullable=False),
)

idempotency = Table(
    "idempotency",
    metadata,
    # I15: one key, one job.
    Column("principal_id", String(128), primary_key=True),
    Column("key", String(255), primary_key=True),
    _tenant(),
    Column("body_sha256", String(64), nullable=False),
    Column("job_id", String(128), nullable=False),
    Column("created_at", Double, nullable=False, index=True),
)

decisions = Table(
    "decisions",
    metadata,
    _id(),
    _tenant(),
    Column("at", Double, nullable=False),
    Column("epoch", BigInteger, nullable=False),
    Column("snapshot_revision", BigInteger, nullable=False),
    Column("revision", BigInteger, nullable=False, index=True),
    Column("value", Double, nullable=False),
    Column("bound", Double, nullable=False),
    Column("gap", Double, nullable=False),
    Column("placed", Integer, nullable=False),
    Column("refused", Integer, nullable=False),
    Column("waiting_classes", Integer, nullable=False),
    Column("policy", String(64), nullable=False),
    Column("duration_ms", Double, nullable=False),
    # Solver report, placements, and what the commit refused with its reasons.
    Column("document", Text, nullable=False),
)

reasons = Table(
    "reasons",
    metadata,
    # The latest reason record of each class of waiting jobs; rewritten only when it changes.
    Column("class_key", String(64), primary_key=True),
    _tenant(),
    Column("decision_id", String(64), nullable=False),
    Column("at", Double, nullable=False),
    Column("document", Text, nullable=False),
    Column("revision", BigInteger, nullable=False),
)
