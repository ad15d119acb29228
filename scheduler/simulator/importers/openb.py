"""openb, the GPU-sharing trace of Alibaba 2023, and the protocol of the FGD paper on it.

Source of format and protocol: hkust-adsl/kubernetes-scheduler-simulator (Weng et al., "Beware of
Fragmentation", USENIX ATC'23).
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np

from scheduler.model.node import Gpu, Links, Node
from scheduler.model.quantity import WHOLE_GPU_MILLI, GpuId, NodeId, Resources
from scheduler.simulator.importers.records import Collector, Reading, Row, csv_rows
from scheduler.simulator.workload import Arrivals, SimJob, Workload

_POD = ("name", "cpu_milli", "memory_mib", "num_gpu", "gpu_milli")
_NODE = ("sn", "cpu_milli", "memory_mib", "gpu", "model")
_PARTS_OF_SEVERAL = "asks for parts of several GPUs"


def read(path: Path, _: Reading) -> Workload:
    """The pods of a pod list, as a replay in the order of the file; time columns are not read.

    Each pod is one task. `gpu_spec` (models separated by `|`) limits where it may run.

    Raises:
        NotFoundError: there is no such file.
        InvalidRequestError: it is malformed; the message names file, line and column.
    """
    found = Collector(path)
    for row in csv_rows(path, _POD):
        gpus, milli = row.whole("num_gpu"), row.whole("gpu_milli")
        if milli > WHOLE_GPU_MILLI:
            raise row.wrong("gpu_milli", f"{milli} is above 1000", "it is a part of one GPU")
        if gpus > 1 and milli < WHOLE_GPU_MILLI:
            found.skip(_PARTS_OF_SEVERAL)
            continue
        found.add(_pod(row, gpus, milli), row)
    return _in_sequence(found.workload(Arrivals.REPLAY))


def _pod(row: Row, gpus: int, milli: int) -> SimJob:
    whole = gpus if milli == WHOLE_GPU_MILLI else 0
    return SimJob(
        id=row.text("name"),
        submit_s=0.0,
        duration_s=0.0,
        gpus_per_task=whole,
        gpu_milli=milli if gpus and not whole else 0,
        cpu_milli=row.whole("cpu_milli"),
        memory_mib=row.whole("memory_mib"),
        name=row.optional("qos"),
        gpu_models=tuple(model for model in row.optional("gpu_spec").split("|") if model),
    )


def _in_sequence(workload: Workload) -> Workload:
    jobs = tuple(replace(job, submit_s=float(place)) for place, job in enumerate(workload.jobs))
    return replace(workload, jobs=jobs)


def resampled(workload: Workload, capacity_milli: int, arrive: float, seed: int) -> Workload:
    """The pods in the order in which the FGD protocol submits them.

    They are shuffled; then pods drawn with replacement are appended, or pods drawn without it
    removed, until what they ask for is `arrive` times the cluster's GPUs. O(pods).

    Args:
        workload: a replay.
        capacity_milli: thousandths of a GPU in the cluster.
        arrive: GPUs asked for over GPUs in the cluster, above 0.
        seed: of shuffle and draws.
    """
    rng = np.random.default_rng(seed)
    jobs = [workload.jobs[int(place)] for place in rng.permutation(len(workload.jobs))]
    total = sum(job.total_milli for job in jobs)
    target = arrive * capacity_milli
    while total > target:
        total -= jobs.pop(int(rng.integers(len(jobs)))).total_milli
    source = tuple(jobs)
    for copy in itertools.count() if total else ():
        drawn = source[int(rng.integers(len(source)))]
        if total + drawn.total_milli > target:
            break
        jobs.append(replace(drawn, id=f"{drawn.id}+{copy}"))
        total += drawn.total_milli
    return _in_sequence(replace(workload, jobs=tuple(jobs)))


def read_nodes(path: Path) -> tuple[Node, ...]:
    """The machines of a node list, in the order of the file.

    The trace does not tell link topologies or GPU memory: no links, 0 MiB.

    Raises:
        NotFoundError: there is no such file.
        InvalidRequestError: it is malformed; the message names file, line and column.
    """
    return tuple(_node(row) for row in csv_rows(path, _NODE))


def _node(row: Row) -> Node:
    name, gpus, model = row.text("sn"), row.whole("gpu"), row.optional("model")
    if gpus and not model:
        raise row.wrong("model", "is empty", "a node with GPUs has a model")
    return Node(
        id=NodeId(name),
        name=name,
        capacity=Resources(gpus, row.whole("cpu_milli"), row.whole("memory_mib")),
        gpus=tuple(
            Gpu(GpuId(f"SIM-{name}-{index}"), index, model, memory_mib=0) for index in range(gpus)
        ),
        links=Links.uniform(gpus, 0, 0.0),
        simulated=True,
    )
