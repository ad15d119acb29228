"""The settings tree: frozen, one section per layer, the unit in every field name.

Values come from `HAVERSACK_<SECTION>__<FIELD>` variables and from the command line; there is no
settings file yet.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from scheduler.model.node import PriceClass
from scheduler.model.ports import Effort
from scheduler.model.terms import Price, Terms, Weights

Positive = Annotated[float, Field(gt=0)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ApiSettings(_Section):
    """Serving HTTP.

    Attributes:
        host: address to listen on; anything but loopback needs TLS or `trusted_proxies`.
        port: TCP port.
        body_bytes_max: larger requests are refused with 413.
        allowed_hosts: extra Host header values accepted, against DNS rebinding.
        trusted_proxies: addresses of proxies that terminate TLS for us.
        tls_certificate, tls_key: PEM files.
        requests_in_flight_max: further requests get 503 with Retry-After.
        event_streams_max: open SSE and log-follow streams.
    """

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8470
    body_bytes_max: Annotated[int, Field(ge=1024)] = 1_048_576
    allowed_hosts: tuple[str, ...] = ()
    trusted_proxies: tuple[str, ...] = ()
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    requests_in_flight_max: Annotated[int, Field(ge=1)] = 256
    event_streams_max: Annotated[int, Field(ge=1)] = 128


class QueueSettings(_Section):
    """Accepting and ordering jobs.

    Attributes:
        policy: a profile of the policy registry: who is next, and where work sits.
        waiting_jobs_max: a tenant's waiting jobs; one more is refused with 429.
        idempotency_keep_s: how long a key is remembered.
        free_requeues_max: infrastructure failures in a row before a job is quarantined.
        retry_backoff_max_s: cap of the exponential retry backoff.
        requeue_backoff_s: wait after an infrastructure failure; doubles with each in a row.
        requeue_backoff_max_s: cap of that wait.
    """

    policy: str = "priority-age"
    waiting_jobs_max: Annotated[int, Field(ge=1)] = 100_000
    idempotency_keep_s: Positive = 86_400.0
    free_requeues_max: Annotated[int, Field(ge=1)] = 5
    retry_backoff_max_s: Positive = 3_600.0
    requeue_backoff_s: Annotated[float, Field(ge=0)] = 1.0
    requeue_backoff_max_s: Annotated[float, Field(ge=0)] = 60.0


class CycleSettings(_Section):
    """When cycles run and how hard they may work.

    Attributes:
        batch_window_s: wait this long after the first wake-up, so that a burst is one cycle.
        rest_ratio: rest this multiple of the last cycle's duration before the next.
        hard_limit_s: after this the solver worker is killed; what it had sent is used.
        milp_nodes_max: branch-and-bound nodes of one decision.
        columns_max: largest exact model built; above it the LP bound and rounding serve.
        gap_target: deciding stops when the proven relative gap is at most this.
        order_max: how many jobs of the queue's front the solver looks at.
        lp_iterations_max: simplex iterations of one linear program.
        placements_max: how many jobs one cycle starts at most; the rest follow in the next.
        seed: solver seed.
    """

    batch_window_s: Annotated[float, Field(ge=0)] = 0.05
    rest_ratio: Annotated[float, Field(ge=0)] = 1.0
    hard_limit_s: Positive = 5.0
    milp_nodes_max: Annotated[int, Field(ge=1)] = 2_000
    columns_max: Annotated[int, Field(ge=1)] = 9_000
    gap_target: Annotated[float, Field(ge=0)] = 0.001
    order_max: Annotated[int, Field(ge=1)] = 20_000
    lp_iterations_max: Annotated[int, Field(ge=1)] = 200_000
    placements_max: Annotated[int, Field(ge=1)] = 400
    seed: int = 0

    @property
    def effort(self) -> Effort:
        """What of it a decision needs."""
        return Effort(
            milp_nodes_max=self.milp_nodes_max,
            columns_max=self.columns_max,
            lp_iterations_max=self.lp_iterations_max,
            gap_target=self.gap_target,
            order_max=self.order_max,
            placements_max=self.placements_max,
        )


class PlacementSettings(_Section):
    """How much each quality of a place counts when several places hold a job.

    The first six choose between places. Their terms are in GPUs: with a weight of 1, the term
    counts like that many GPUs lost (ADR-0006 has the measurements). `price_value` and the prices
    enter the objective itself: a job may wait for a cheaper node when it is not worth the price.

    Attributes:
        fragmentation_weight: GPUs that the usual mix of jobs could no longer use (FGD, ATC'23).
        tightness_weight: prefer nodes with few free GPUs (best fit).
        balance_weight: GPUs that the CPU and memory left beside them could no longer feed.
        topology_weight: prefer nodes where a task's GPUs share an NVLink domain.
        spread_weight: prefer nodes with many free GPUs, the opposite of tightness.
        price_weight: prefer cheap nodes; 1 for a GPU of the dearest price.
        price_value: objective units of one unit of price; 0 leaves price to the weight above.
        price_reserved: price of a GPU for an hour on reserved nodes.
        price_on_demand: the same, on-demand.
        price_spot: the same, spot.
    """

    fragmentation_weight: Annotated[float, Field(ge=0)] = 1.0
    tightness_weight: Annotated[float, Field(ge=0)] = 0.0
    balance_weight: Annotated[float, Field(ge=0)] = 0.2
    topology_weight: Annotated[float, Field(ge=0)] = 0.2
    spread_weight: Annotated[float, Field(ge=0)] = 0.0
    price_weight: Annotated[float, Field(ge=0)] = 0.1
    price_value: Annotated[float, Field(ge=0)] = 0.0
    price_reserved: Annotated[float, Field(ge=0)] = 0.0
    price_on_demand: Annotated[float, Field(ge=0)] = 0.0
    price_spot: Annotated[float, Field(ge=0)] = 0.0

    @property
    def terms(self) -> Terms:
        """Weights and prices as the objective takes them."""
        return Terms(
            Weights(
                fragmentation=self.fragmentation_weight,
                tightness=self.tightness_weight,
                balance=self.balance_weight,
                topology=self.topology_weight,
                spread=self.spread_weight,
                price=self.price_weight,
            ),
            prices=(
                Price(PriceClass.RESERVED, self.price_reserved),
                Price(PriceClass.ON_DEMAND, self.price_on_demand),
                Price(PriceClass.SPOT, self.price_spot),
            ),
            price_weight=self.price_value,
        )


class ExecutionSettings(_Section):
    """Launching and watching.

    Attributes:
        launches_in_flight_max: launch orders carried out at once; 0 is half of the cores.
        reconcile_every_s: full compare of the store with the host.
        log_bytes_max: cap of one rank's log file.
        open_files_max: RLIMIT_NOFILE of a task.
        env_allow: names of the daemon's environment that tasks inherit; `*` stands for any end.
    """

    launches_in_flight_max: Annotated[int, Field(ge=0)] = 0
    reconcile_every_s: Positive = 30.0
    log_bytes_max: Annotated[int, Field(ge=4096)] = 64 * 1_048_576
    open_files_max: Annotated[int, Field(ge=64)] = 65_536
    env_allow: tuple[str, ...] = (
        "PATH",
        "HOME",
        "LANG",
        "LC_ALL",
        "TZ",
        "TMPDIR",
        "USER",
        "LD_LIBRARY_PATH",
        "CUDA_HOME",
        # What an operator has set for this host's collectives must reach every process: some hosts
        # forbid NVLink multicast, some have one network interface that works.
        "NCCL_*",
        "NVSHMEM_*",
        "TORCH_NCCL_*",
        "TORCH_SYMM_MEM_*",
    )


class KubernetesSettings(_Section):
    """Executing on a cluster (`haversack serve --executor kubernetes`).

    Attributes:
        kubeconfig: how to reach the API server; without one, as a pod of the cluster.
        namespace: where the leader's epoch is published, as Lease `haversack-epoch`.
        binds_in_flight_max: requests to bind a pod that are under way at once.
        sync_s: how long the first reading of nodes and pods may take.
        job_namespace: where jobs that were submitted to Haversack become pods.
        image: container image of such jobs that name none.
        start_s: how long a pod of such a job may take to start, pulling its image included; then
            its gang gives up its place and is placed anew.
        keep_pods_s: how long their pods, and with them their logs, stay after the end.
        relist_s: nodes and pods are listed whole at least so often, should an event have been lost
            on the way; 20,000 pods cost about 2 s of CPU.
        silence_s: a watch without a byte for so long counts as dead; above the bookmark period of
            the API server, about 60 s.
        pin_s: how long kube-scheduler may refuse to bind a pod to the node that was chosen for it,
            before its gang is given up and all its pods are deleted, to be made anew.
        fence: `required` refuses to start where the API server would not turn a stale leader away;
            `preferred` starts, and readiness warns of it; never with PostgreSQL.
        pod_name: our own pod, in that namespace, where we are one of several: while it leads, it
            has the label `haversack.dev/role: leader`, by which a Service finds it.
    """

    kubeconfig: Path | None = None
    namespace: str = "haversack-system"
    binds_in_flight_max: Annotated[int, Field(ge=1)] = 64
    sync_s: Positive = 60.0
    relist_s: Positive = 1800.0
    silence_s: Positive = 90.0
    pin_s: Positive = 30.0
    fence: Literal["required", "preferred"] = "preferred"
    pod_name: str = ""
    job_namespace: str = "haversack-jobs"
    image: str = ""
    start_s: Positive = 900.0
    keep_pods_s: Annotated[float, Field(ge=0)] = 3_600.0


class StoreSettings(_Section):
    """Where state lives.

    Attributes:
        data_dir: everything local: database, token, logs, attempts.
        database_url: SQLAlchemy URL; empty means SQLite inside `data_dir`.
        lease_ttl_s: a PostgreSQL leader that has not renewed for this long may be replaced.
        commands_per_commit_max: how many queued commands share one commit.
        write_queue_max: queued commands; one more is refused with 503.
        readers: read connections.
    """

    data_dir: Path = Path(".haversack")
    database_url: str = ""
    lease_ttl_s: Positive = 10.0
    commands_per_commit_max: Annotated[int, Field(ge=1)] = 64
    write_queue_max: Annotated[int, Field(ge=1)] = 4_096
    readers: Annotated[int, Field(ge=1)] = 2


class Settings(BaseSettings):
    """All settings of one daemon."""

    model_config = SettingsConfigDict(
        env_prefix="HAVERSACK_",
        env_nested_delimiter="__",
        frozen=True,
        extra="ignore",
        use_attribute_docstrings=True,
    )

    api: ApiSettings = ApiSettings()
    queue: QueueSettings = QueueSettings()
    cycle: CycleSettings = CycleSettings()
    placement: PlacementSettings = PlacementSettings()
    execution: ExecutionSettings = ExecutionSettings()
    kubernetes: KubernetesSettings = KubernetesSettings()
    store: StoreSettings = StoreSettings()
    virtual: str = ""
    """Simulated GPUs instead of this host's, for example `16x8:H100`."""
