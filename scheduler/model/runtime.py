"""How tasks are run here, as far as a job must fit it: on the host itself, or in a container."""

from __future__ import annotations

from typing import Protocol

from scheduler.model.job import JobSpec


class Runtime(Protocol):
    """Decides which jobs can be run by this daemon's kind of executor."""

    def fitted(self, spec: JobSpec) -> JobSpec:
        """The job with what every job needs here besides what it asks for. Pure, microseconds.

        Raises:
            InvalidRequestError: it can never run here; `problems` names the fields and the remedy.
        """
        ...
