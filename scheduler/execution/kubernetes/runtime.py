"""What jobs may ask for where tasks are pods, and what every one of them needs besides."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from scheduler.errors import FieldProblem, InvalidRequestError
from scheduler.execution.kubernetes import labels
from scheduler.model.job import JobSpec
from scheduler.model.site import Site, Toleration, TolerationOperator

STOP_SIGNAL = "SIGTERM"
"""What a kubelet sends first; no field of a pod changes it on every supported version."""


def tolerated(*, gpus: bool) -> tuple[Toleration, ...]:
    """Taints that our own pods may ignore.

    Nodes kept for Haversack are kept for them. A taint named after the GPU resource keeps pods off
    that ask for none; Kubernetes' ExtendedResourceToleration plugin tolerates it likewise.
    """
    keys = (labels.ONLY, *(labels.GPU_RESOURCES if gpus else ()))
    return tuple(Toleration(key, TolerationOperator.EXISTS) for key in keys)


@dataclass(frozen=True, slots=True)
class PodRuntime:
    """Runs every task as a pod.

    Attributes:
        image: of jobs that name none; "" if there is none.
    """

    image: str = ""

    def fitted(self, spec: JobSpec) -> JobSpec:
        """The job as the allocator must see it: each task is one of a node's pods.

        Raises:
            InvalidRequestError: a pod cannot do what it asks for.
        """
        problems = tuple(self._problems(spec))
        if problems:
            raise InvalidRequestError("the job cannot become pods", problems=problems)
        site = Site(tolerations=tolerated(gpus=spec.task.gpus > 0))
        return replace(spec, task=replace(spec.task, site=site, extras=((labels.PODS, 1),)))

    def _problems(self, spec: JobSpec) -> Iterator[FieldProblem]:
        if not (spec.task.image or self.image):
            yield FieldProblem(
                "spec.task.image",
                "a pod needs an image: name one here, or have the operator set"
                " HAVERSACK_KUBERNETES__IMAGE",
            )
        if spec.checkpoint.signal != STOP_SIGNAL:
            yield FieldProblem(
                "spec.checkpoint.signal",
                f"pods are stopped with {STOP_SIGNAL}; leave this out, and let the program save"
                " itself then",
            )
