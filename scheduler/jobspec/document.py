"""The schema of a job file (haversack.dev/v1alpha1) and its translation to the model.

Fields that later features need are in the schema from the start and refused as not yet supported
when they are used, so that a file written for a newer Haversack never half works on this one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import PurePosixPath
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag

from scheduler.jobspec.reader import Path, shown
from scheduler.model.job import (
    CheckpointSpec,
    JobSpec,
    LauncherKind,
    RetrySpec,
    TaskSpec,
    Topology,
)
from scheduler.model.quantity import PoolName, QueueName

API_VERSION = "haversack.dev/v1alpha1"
KIND = "Job"

TEXT_BYTES_MAX = 131_072
TASKS_MAX = 4_096
YEAR_S = 31_536_000

_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?")
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_GPU_MODEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._+-]*")
_IMAGE = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._:/@+-]*[A-Za-z0-9])?")
_ENV_VALUE_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")

TORCH_NAMES = frozenset(
    {
        "RANK",
        "LOCAL_RANK",
        "WORLD_SIZE",
        "LOCAL_WORLD_SIZE",
        "GROUP_RANK",
        "GROUP_WORLD_SIZE",
        "ROLE_RANK",
        "ROLE_WORLD_SIZE",
        "ROLE_NAME",
        "MASTER_ADDR",
        "MASTER_PORT",
    }
)
"""Environment names of the torch.distributed contract: the launcher sets them."""

_GPU_NAMES = frozenset({"CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES"})


def _name(value: str) -> str:
    if not value.isprintable():
        raise ValueError(f"contains a control character: {shown(value)}")
    if not _NAME.fullmatch(value):
        raise ValueError(
            "must be lower-case letters, digits, '-' and '.', starting and ending with a letter or"
            f" digit; got {shown(value)!r}"
        )
    return value


def _gpu_model(value: str) -> str:
    if not _GPU_MODEL.fullmatch(value):
        raise ValueError(f"{shown(value)!r} is not a GPU model name")
    return value


def _distinct(values: list[str]) -> list[str]:
    if len(set(values)) != len(values):
        raise ValueError("names a model twice")
    return values


def _argument(value: str) -> str:
    if "\0" in value:
        raise ValueError(f"contains a NUL character: {shown(value)[:80]}")
    return value


def _command(values: list[str]) -> list[str]:
    if not values[0].strip():
        raise ValueError("element 0 is the program to run and must not be empty")
    _bounded(values, "the command")
    return values


def _env_name(name: str) -> str:
    if not _ENV_NAME.fullmatch(name):
        raise ValueError(
            f"{shown(name)[:80]!r} is not an environment name (letters, digits and '_', not"
            " starting with a digit)"
        )
    if name in _GPU_NAMES:
        raise ValueError(
            f"{name} is set by Haversack to exactly the GPUs the task was given; ask for GPUs with"
            " spec.task.gpus"
        )
    if name in TORCH_NAMES or name.startswith(("HAVERSACK_", "TORCHELASTIC_", "PET_")):
        raise ValueError(f"{name} is set by Haversack for every process; choose another name")
    return name


def _env_value(value: str) -> str:
    if _ENV_VALUE_CONTROL.search(value):
        raise ValueError(f"contains a control character: {shown(value)[:80]}")
    return value


def _env(values: dict[str, str]) -> dict[str, str]:
    _bounded([*values, *values.values()], "the environment")
    return values


def _bounded(values: list[str], what: str) -> None:
    size = sum(len(value.encode()) + 1 for value in values)
    if size > TEXT_BYTES_MAX:
        raise ValueError(f"{what} has {size} bytes; at most {TEXT_BYTES_MAX} are allowed")


def _workdir(value: str | None) -> str | None:
    if value is None:
        return None
    if not value.isprintable():
        raise ValueError(f"contains a control character: {shown(value)}")
    if not PurePosixPath(value).is_absolute():
        raise ValueError(f"must be an absolute path; got {value!r}")
    return value


def _image(value: str | None) -> str | None:
    if value is not None and not _IMAGE.fullmatch(value):
        raise ValueError(f"{shown(value)!r} is not an image, such as registry.example/team/train:1")
    return value


def _milli(value: float) -> float:
    if abs(value * 1000 - round(value * 1000)) > 1e-6:  # noqa: PLR2004 - float noise, far below 1 milli
        raise ValueError("has a resolution of 0.001 cores")
    return value


def _later(what: str) -> AfterValidator:
    """Refuses any use of a field whose feature has not been built yet."""

    def refuse(value: object) -> object:
        if value is not None:
            raise ValueError(f"not yet supported: {what}")
        return value

    return AfterValidator(refuse)


def _only(supported: str, what: str) -> AfterValidator:
    """Refuses every value but the one that is built."""

    def refuse(value: str) -> str:
        if value != supported:
            raise ValueError(f"not yet supported: {what}; only {supported!r} works for now")
        return value

    return AfterValidator(refuse)


Name = Annotated[str, Field(min_length=1, max_length=63), AfterValidator(_name)]
GpuModel = Annotated[str, Field(max_length=64), AfterValidator(_gpu_model)]
Argument = Annotated[str, AfterValidator(_argument)]
EnvName = Annotated[str, Field(max_length=256), AfterValidator(_env_name)]
EnvValue = Annotated[str, AfterValidator(_env_value)]
_NOT_YET = "Not yet supported. "


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Metadata(_Part):
    """Who the job is."""

    name: Name = Field(description="Name of the job; need not be unique.")


class TaskRange(_Part):
    """Gang size of an elastic job."""

    min: int = Field(ge=1, le=TASKS_MAX, description="Fewest tasks the job can run with.")
    max: int = Field(ge=1, le=TASKS_MAX, description="Most tasks it can use.")


class Task(_Part):
    """What one task needs and runs."""

    gpus: int = Field(default=0, ge=0, le=1024, description="Whole GPUs per task; 0 for none.")
    gpu_milli: Annotated[int | None, _later("parts of a GPU; ask for whole gpus")] = Field(
        default=None, ge=1, le=1000, description=_NOT_YET + "Thousandths of one GPU."
    )
    gpu_memory_mib: Annotated[int | None, _later("parts of a GPU; ask for whole gpus")] = Field(
        default=None, ge=1, description=_NOT_YET + "MiB of one GPU's memory."
    )
    gpu_models: Annotated[list[GpuModel], AfterValidator(_distinct)] = Field(
        default_factory=list,
        max_length=16,
        description="GPU models that will do, best first; empty accepts any.",
    )
    cpus: Annotated[float, AfterValidator(_milli)] = Field(
        default=1.0, ge=0.001, le=65_536, description="CPU cores per task, in steps of 0.001."
    )
    memory_mib: int = Field(default=512, ge=1, le=2**30, description="Host memory per task in MiB.")
    image: Annotated[str | None, AfterValidator(_image)] = Field(
        default=None,
        max_length=512,
        description="Container image, on Kubernetes only; the daemon's default if absent.",
    )
    command: Annotated[list[Argument], AfterValidator(_command)] = Field(
        min_length=1,
        max_length=256,
        description="Program and arguments, started without a shell; at most 128 KiB in all.",
    )
    env: Annotated[dict[EnvName, EnvValue], AfterValidator(_env)] = Field(
        default_factory=dict,
        max_length=256,
        description="Extra environment. Names that Haversack sets itself are refused.",
    )


class Retry(_Part):
    """Retries after the program's own failures; infrastructure failures are retried for free."""

    max: int = Field(default=0, ge=0, le=100, description="How many retries.")
    backoff_s: float = Field(
        default=30.0, ge=0, le=86_400, description="Seconds before the first; doubles each time."
    )


class Checkpoint(_Part):
    """How to ask the job to save itself before it is stopped."""

    signal: Literal["SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2"] = Field(
        default="SIGTERM", description="Signal sent to every process."
    )
    grace_s: float = Field(
        default=30.0, ge=0, le=3_600, description="Seconds between the signal and SIGKILL."
    )
    every_s: Annotated[float | None, _later("periodic checkpoint signals")] = Field(
        default=None, gt=0, description=_NOT_YET + "Seconds between periodic checkpoints."
    )


def _tasks_form(value: object) -> str:
    return "<range>" if isinstance(value, dict | TaskRange) else "<count>"


Tasks = Annotated[
    Annotated[int, Field(ge=1, le=TASKS_MAX), Tag("<count>")]
    | Annotated[TaskRange, Tag("<range>")],
    Discriminator(_tasks_form),
]


class Spec(_Part):
    """What to run, how large, and under which rules."""

    queue: Name = Field(default="default", description="Queue of your tenant.")
    priority: int = Field(default=50, ge=0, le=100, description="0 (last) to 100 (first).")
    tasks: Tasks = Field(
        default=1,
        description="Gang size: all tasks start together. {min, max} is not yet supported.",
    )
    task: Task = Field(description="What one task needs and runs.")
    launcher: Literal["torch", "none"] = Field(
        default="torch",
        description="torch: one process per GPU with the torch.distributed environment; none: one"
        " plain process per task.",
    )
    topology: Literal[
        "any",
        "same-nvlink",
        "same-node",
        "same-rack",
        "prefer-same-nvlink",
        "prefer-same-node",
        "prefer-same-rack",
    ] = Field(default="any", description="How close the tasks must (or, prefer-, should) be.")
    max_runtime_s: float | None = Field(
        default=None, gt=0, le=10 * YEAR_S, description="Wall time after which it is stopped."
    )
    preemptible: bool = Field(default=True, description="Whether it may be stopped for others.")
    retry: Retry = Field(default_factory=Retry, description="Retries after its own failures.")
    checkpoint: Checkpoint = Field(
        default_factory=Checkpoint, description="How it is asked to stop."
    )
    pool: Name | None = Field(default=None, description="The only pool to run in; any if absent.")
    workdir: Annotated[str | None, AfterValidator(_workdir)] = Field(
        default=None, max_length=4096, description="Absolute path; the attempt's folder if absent."
    )
    processes_per_task: int | None = Field(
        default=None, ge=1, le=1024, description="Processes per task; the number of GPUs if absent."
    )
    class_: Annotated[Literal["batch", "service"], _only("batch", "jobs that run for ever")] = (
        Field(default="batch", alias="class", description="Only batch for now.")
    )
    type: Annotated[
        Literal["training", "inference", "notebook", "data"],
        _only("training", "scheduling by kind of work"),
    ] = Field(default="training", description="Only training for now.")
    after: Annotated[list[str] | None, _later("dependencies")] = Field(
        default=None, description=_NOT_YET + "Jobs that must have succeeded before."
    )
    array: Annotated[int | None, _later("job arrays")] = Field(
        default=None, ge=1, le=10_000, description=_NOT_YET + "Copies of this job."
    )
    deadline: Annotated[str | None, _later("deadlines")] = Field(
        default=None, description=_NOT_YET + "RFC 3339 instant by which it should be done."
    )
    not_before: Annotated[str | None, _later("delayed starts")] = Field(
        default=None, description=_NOT_YET + "RFC 3339 instant before which it must not start."
    )
    volumes: Annotated[list[dict[str, str]] | None, _later("volumes")] = Field(
        default=None, description=_NOT_YET + "Volumes to mount."
    )
    secrets: Annotated[list[dict[str, str]] | None, _later("secret references")] = Field(
        default=None, description=_NOT_YET + "Secrets by reference."
    )


class JobDocument(_Part):
    """A Haversack job."""

    apiVersion: Literal["haversack.dev/v1alpha1"] = Field(  # noqa: N815 - the file's spelling
        description="Version of this schema."
    )
    kind: Literal["Job"] = Field(description="What this document describes.")
    metadata: Metadata = Field(description="Who the job is.")
    spec: Spec = Field(description="What to run, how large, and under which rules.")


def contradictions(job: JobDocument) -> Iterator[tuple[Path, str]]:
    """What no single field shows: (path, message) of each rule that two fields break together."""
    spec = job.spec
    if isinstance(spec.tasks, TaskRange):
        if spec.tasks.min > spec.tasks.max:
            yield ("spec", "tasks"), "min is greater than max"
        elif spec.tasks.min < spec.tasks.max:
            yield (
                ("spec", "tasks"),
                "not yet supported: elastic jobs; give one number, or min equal to max",
            )
    if spec.task.gpu_models and spec.task.gpus == 0:
        yield ("spec", "task", "gpu_models"), "needs spec.task.gpus of at least 1"
    if (spec.processes_per_task or 1) > 1:
        if spec.launcher == "none":
            yield ("spec", "processes_per_task"), "needs launcher: torch"
        elif starts_torchrun(spec.task.command):
            yield (
                ("spec", "processes_per_task"),
                "torchrun starts the processes itself; leave this out, or run the script directly",
            )


def starts_torchrun(command: list[str]) -> bool:
    """Whether the command is torchrun, or python running torch.distributed's launcher module."""
    program = PurePosixPath(command[0]).name
    if program == "torchrun":
        return True
    modules = ("torch.distributed.run", "torch.distributed.launch")
    return program.startswith("python") and any(
        flag == "-m" and module in modules for flag, module in pairwise(command[1:])
    )


def to_model(job: JobDocument) -> JobSpec:
    """The job as the scheduler sees it. `contradictions(job)` must be empty."""
    spec, task = job.spec, job.spec.task
    tasks = (spec.tasks, spec.tasks) if isinstance(spec.tasks, int) else _bounds(spec.tasks)
    return JobSpec(
        name=job.metadata.name,
        queue=QueueName(spec.queue),
        priority=spec.priority,
        tasks_min=tasks[0],
        tasks_max=tasks[1],
        task=TaskSpec(
            gpus=task.gpus,
            gpu_models=tuple(task.gpu_models),
            cpu_milli=round(task.cpus * 1000),
            memory_mib=task.memory_mib,
            command=tuple(task.command),
            env=tuple(sorted(task.env.items())),
            image=task.image,
            processes=_processes(spec),
            workdir=spec.workdir,
        ),
        launcher=LauncherKind(spec.launcher),
        topology=Topology(spec.topology),
        pool=None if spec.pool is None else PoolName(spec.pool),
        max_runtime_s=spec.max_runtime_s,
        preemptible=spec.preemptible,
        retry=RetrySpec(max_retries=spec.retry.max, backoff_s=spec.retry.backoff_s),
        checkpoint=CheckpointSpec(signal=spec.checkpoint.signal, grace_s=spec.checkpoint.grace_s),
    )


def _bounds(tasks: TaskRange) -> tuple[int, int]:
    return tasks.min, tasks.max


def _processes(spec: Spec) -> int:
    # torchrun starts one process per GPU itself: starting it once per GPU would launch them twice.
    if spec.launcher == "none" or starts_torchrun(spec.task.command):
        return 1
    return spec.processes_per_task or max(1, spec.task.gpus)
