"""Markdown tables that the code writes into the documentation, between two marker comments.

`make docs` writes them; a test fails when a page no longer says what the code says.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from prometheus_client.metrics_core import Metric
from pydantic import BaseModel

from scheduler import errors, failpoints
from scheduler.model.lifecycle import TABLE, JobState
from scheduler.model.plan import ReasonCode
from scheduler.observability import Metrics
from scheduler.settings import Settings

PLACES = {
    "lifecycle": "docs/architecture.md",
    "settings": "docs/reference/settings.md",
    "metrics": "docs/reference/metrics.md",
    "problems": "docs/reference/problems.md",
}
"""Which page holds which table."""


def replace(page: str, name: str, table: str) -> str:
    """`page` with the block called `name` holding `table`.

    Raises:
        LookupError: the page has no such block.
    """
    begin, end = f"<!-- {name}: written by `make docs` -->", f"<!-- end of {name} -->"
    if begin not in page or end not in page:
        raise LookupError(f"no block {begin} ... {end}")
    before, rest = page.split(begin, 1)
    _, after = rest.split(end, 1)
    return f"{before}{begin}\n{table}\n{end}{after}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in lines
    )


def lifecycle() -> str:
    """Every legal move of a job."""
    rows = [
        (state, event, move.to, ", ".join(move.instructions) or "nothing")
        for (state, event), move in TABLE.items()
    ]
    final = [(state, "none: final", "", "") for state in JobState if state.terminal]
    head = ("state", "event", "next state", "done in the same transaction")
    return _table(head, [*rows, *final])


def _attribute_texts(model: type[BaseModel]) -> dict[str, str]:
    """Field texts from the `Attributes:` part of a Google docstring; a line may name several."""
    _, _, part = (model.__doc__ or "").partition("Attributes:")
    texts: dict[str, str] = {}
    names: list[str] = []
    for line in part.splitlines():
        found = re.match(r" {8}(\w+(?:, \w+)*): (.+)", line)
        if found:
            names = found[1].split(", ")
            texts.update(dict.fromkeys(names, found[2]))
        elif line.strip():
            for name in names:
                texts[name] += " " + line.strip()
    return texts


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "none"
    if value is None or value == "":
        return "none"
    return str(value)


def settings() -> str:
    """Every setting: variable, default, meaning."""
    rows: list[tuple[str, str, str]] = []
    for section, field in Settings.model_fields.items():
        default = field.default
        if not isinstance(default, BaseModel):
            rows.append(
                (f"`HAVERSACK_{section.upper()}`", _shown(default), field.description or "")
            )
            continue
        texts = _attribute_texts(type(default))
        rows.extend(
            (
                f"`HAVERSACK_{section.upper()}__{name.upper()}`",
                _shown(getattr(default, name)),
                texts[name],
            )
            for name in type(default).model_fields
        )
    return _table(("variable", "default", "meaning"), rows)


def _families() -> list[Metric]:
    metrics = Metrics()
    metrics.watch_jobs(dict)
    metrics.watch_intents(dict)
    return sorted(metrics.registry.collect(), key=lambda family: family.name)


def metrics() -> str:
    """Every metric the daemon exposes."""
    rows = [
        (
            f"`{family.name}{'_total' if family.type == 'counter' else ''}`",
            family.type,
            family.documentation,
        )
        for family in _families()
    ]
    return _table(("metric", "type", "meaning"), rows)


def problems() -> str:
    """Every error code of the API and the CLI."""
    classes = {
        value
        for value in vars(errors).values()
        if isinstance(value, type) and issubclass(value, errors.HaversackError)
    }
    classes.discard(errors.HaversackError)
    rows = [
        (f"`{found.code}`", (found.__doc__ or "").strip().splitlines()[0])
        for found in sorted(classes, key=lambda found: found.code)
    ]
    fault = "A fault of the daemon itself; its log has the details."
    rows.append((f"`{errors.HaversackError.code}`", fault))
    return _table(("code", "meaning"), rows)


def names_that_docs_must_mention() -> dict[str, tuple[str, ...]]:
    """Stable names by kind that have no generated table: people describe them."""
    return {
        "reason code": tuple(ReasonCode),
        "failpoint": (*failpoints.NAMES, *failpoints.BIND_NAMES, *failpoints.PIN_NAMES),
        "state": tuple(JobState),
    }
