"""What jobs may ask for where tasks are plain processes of the host."""

from __future__ import annotations

from scheduler.errors import FieldProblem, InvalidRequestError
from scheduler.model.job import JobSpec


class HostRuntime:
    """Runs commands as they are: there is nothing that could start an image."""

    def fitted(self, spec: JobSpec) -> JobSpec:
        """The job as it is.

        Raises:
            InvalidRequestError: it names an image.
        """
        if spec.task.image is None:
            return spec
        raise InvalidRequestError(
            "the job names an image, and this daemon starts commands on its own host",
            problems=(
                FieldProblem(
                    "spec.task.image",
                    "not yet supported: images need the Kubernetes executor; the local one runs"
                    " commands as is",
                ),
            ),
            hint="leave spec.task.image out, or submit to `haversack serve --executor kubernetes`",
        )
