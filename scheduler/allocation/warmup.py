"""Pays the solver's import and first-call costs before the first decision."""

from __future__ import annotations

from scheduler.allocation.figures import figures_of
from scheduler.allocation.highs import Limits
from scheduler.allocation.knapsack import build, relax
from scheduler.allocation.outline import Scene, outline_of
from scheduler.model.snapshot import Snapshot


def warm_up() -> None:
    """Build and solve an empty model. Half a second in a fresh process, then nothing."""
    scene = Scene.of(Snapshot(), ())
    outline = outline_of(scene)
    relax(build(outline, figures_of(outline, scene)), Limits(1, 0.0, 0))
