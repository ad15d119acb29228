"""What the daemon tells the outside: JSON logs without secrets, and Prometheus metrics.

There is no global metrics registry: one `Metrics` is built at start and handed to whom it concerns.
No metric carries a tenant, a job or a name, so that a scrape tells nobody about anybody.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from typing import Any, TextIO

import orjson
import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from typing_extensions import override

_SECRET_KEY = re.compile(r"token|secret|passw|authorization|cookie|ticket|api_?key", re.IGNORECASE)
_SECRET_TEXT = re.compile(r"hvs_[A-Za-z0-9_-]{8,}|(?i:bearer)\s+\S+|://[^/\s:@]+:[^/\s@]+@")
# C0 is escaped by JSON itself; C1, line separators and text direction marks are ours to escape.
_CONTROL = re.compile("[\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_REDACTED = "[redacted]"

Event = MutableMapping[str, Any]


def _clean_text(text: str) -> str:
    text = _SECRET_TEXT.sub(_REDACTED, text)
    return _CONTROL.sub(lambda found: f"\\u{ord(found.group()):04x}", text)


def _clean(value: Any) -> Any:
    if isinstance(value, str):
        return _clean_text(value)
    if isinstance(value, Mapping):
        return {
            _clean_text(str(key)): _REDACTED if _SECRET_KEY.search(str(key)) else _clean(inner)
            for key, inner in value.items()
        }
    if isinstance(value, list | tuple | set | frozenset):
        return [_clean(inner) for inner in value]
    return value


def redact(_logger: object, _method: str, event: Event) -> Event:
    """Take secrets and control characters out of a log event, at any depth."""
    cleaned = _clean(event)
    assert isinstance(cleaned, dict)
    return cleaned


def _to_json(event: object, **_options: object) -> str:
    return orjson.dumps(event, default=lambda value: _clean_text(str(value))).decode()


def configure_logging(
    *, quiet: bool = False, level: int = logging.INFO, stream: TextIO | None = None
) -> None:
    """Send structlog's and the standard library's logs to `stream`, one JSON object a line.

    Args:
        quiet: only warnings and worse (a person sits at the terminal).
        level: lowest level shown otherwise.
        stream: where to; standard error if None.
    """
    lowest = max(level, logging.WARNING) if quiet else level
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[*shared, structlog.stdlib.PositionalArgumentsFormatter()],
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.format_exc_info,
            redact,
            structlog.processors.JSONRenderer(serializer=_to_json),
        ],
    )
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(lowest)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )


class _Counts(Collector):
    """A gauge whose values are read when a scrape asks for them."""

    def __init__(
        self, name: str, text: str, label: str, read: Callable[[], Mapping[str, int]]
    ) -> None:
        self._name, self._text, self._label, self._read = name, text, label, read

    def describe(self) -> Iterable[Metric]:
        """Name without values, so that registering reads nothing."""
        return [GaugeMetricFamily(self._name, self._text, labels=[self._label])]

    @override
    def collect(self) -> Iterable[Metric]:
        """Values as of now."""
        family = GaugeMetricFamily(self._name, self._text, labels=[self._label])
        for key, count in self._read().items():
            family.add_metric([key], count)
        return [family]


_QUICK_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Metrics:
    """The daemon's metrics, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry(auto_describe=False)
        self._requests = Counter(
            "haversack_http_requests",
            "HTTP requests by route template, method and status.",
            ("route", "method", "status"),
            registry=self.registry,
        )
        self._request_s = Histogram(
            "haversack_http_request_seconds",
            "Time to the last byte of the answer; streams are left out.",
            ("route",),
            buckets=_QUICK_S,
            registry=self.registry,
        )
        self._submit_s = Histogram(
            "haversack_submit_seconds",
            "Time from a submission's arrival to its durable acceptance.",
            buckets=_QUICK_S,
            registry=self.registry,
        )
        self._cycle_s = Histogram(
            "haversack_cycle_seconds",
            "Duration of scheduling cycles: snapshot, decide, commit.",
            buckets=_QUICK_S,
            registry=self.registry,
        )
        self._decision = {
            name: Gauge(f"haversack_decision_{name}", text, registry=self.registry)
            for name, text in (
                ("value", "Objective of the last decision."),
                ("bound", "Proven upper bound of the last decision's objective."),
                ("gap_ratio", "Proven relative distance of the last decision to the optimum."),
            )
        }
        self._placed = Counter(
            "haversack_jobs_placed", "Gangs placed by decisions.", registry=self.registry
        )
        self._refused = Counter(
            "haversack_placements_refused",
            "Placements that no longer fitted when they were committed.",
            registry=self.registry,
        )
        self._killed = Counter(
            "haversack_solver_kills",
            "Solver workers killed at the hard limit.",
            registry=self.registry,
        )

    def request_finished(
        self, *, route: str, method: str, status: int, duration_s: float | None
    ) -> None:
        """Count one HTTP request; `duration_s` is None for a stream."""
        self._requests.labels(route, method, str(status)).inc()
        if duration_s is not None:
            self._request_s.labels(route).observe(duration_s)

    def job_submitted(self, duration_s: float) -> None:
        """Record how long a submission took until it was durable."""
        self._submit_s.observe(duration_s)

    def cycle_finished(
        self,
        *,
        duration_s: float,
        value: float,
        bound: float,
        gap: float,
        placed: int,
        refused: int,
        killed: bool,
    ) -> None:
        """Record one scheduling cycle and its decision."""
        self._cycle_s.observe(duration_s)
        self._decision["value"].set(value)
        self._decision["bound"].set(bound)
        self._decision["gap_ratio"].set(gap)
        self._placed.inc(placed)
        self._refused.inc(refused)
        if killed:
            self._killed.inc()

    def watch_jobs(self, read: Callable[[], Mapping[str, int]]) -> None:
        """Report jobs by state; `read` is called at each scrape, in a worker thread."""
        self.registry.register(_Counts("haversack_jobs", "Jobs by state.", "state", read))

    def watch_intents(self, read: Callable[[], Mapping[str, int]]) -> None:
        """Report open intents by state; `read` is called at each scrape, in a worker thread."""
        self.registry.register(
            _Counts("haversack_intents_open", "Intents not yet settled, by state.", "state", read)
        )

    def render(self) -> bytes:
        """The exposition text. Blocking: it reads what `watch_*` were given."""
        return generate_latest(self.registry)
