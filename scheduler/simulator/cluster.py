"""The cluster to simulate: a description such as `16x8:H100`, or a file of nodes.

A file is the node list of openb (CSV), or ours (YAML or JSON):

    nodes:
    - {name: a, count: 16, gpus: 8, model: H100, cpus: 128, memory_mib: 1048576, nvlinks: 18}
    - {name: old, gpus: 4, model: V100, cpus: 64, memory_mib: 262144, pool: legacy}
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from scheduler.errors import InvalidRequestError
from scheduler.jobspec.reader import Located, dotted, read_yaml
from scheduler.model.node import Gpu, Links, Node, PriceClass
from scheduler.model.quantity import DEFAULT_POOL, GpuId, NodeId, PoolName, Resources
from scheduler.simulator.importers import openb
from scheduler.simulator.importers.records import opened

_Count = Annotated[int, Field(ge=0)]


class _Group(BaseModel):
    """Equal nodes; more than one are named `<name>-0000` on.

    `nvlinks` is the number of links between every two GPUs, or a matrix of them; pairs without one
    have `pcie_gbps`, the others `link_gbps` for each link, one way.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    name: str = Field(min_length=1)
    count: int = Field(default=1, ge=1, le=100_000)
    gpus: int = Field(default=0, ge=0, le=16)
    model: str = ""
    cpus: float = Field(gt=0)
    memory_mib: int = Field(gt=0)
    gpu_memory_mib: int = Field(default=0, ge=0)
    nvlinks: _Count | list[list[_Count]] = 0
    link_gbps: float = Field(default=25.0, gt=0)
    pcie_gbps: float = Field(default=12.0, gt=0)
    rack: str = ""
    zone: str = ""
    pool: str = DEFAULT_POOL
    price_class: PriceClass = PriceClass.RESERVED

    @model_validator(mode="after")
    def _links_fit(self) -> Self:
        rows = self.nvlinks
        if isinstance(rows, list) and not (
            len(rows) == self.gpus
            and all(len(row) == self.gpus and row[place] == 0 for place, row in enumerate(rows))
            and all(
                count == rows[b][a] for a, row in enumerate(rows) for b, count in enumerate(row)
            )
        ):
            raise ValueError(
                f"nvlinks must be one number or a symmetric {self.gpus} x {self.gpus} matrix with"
                " zeros on its diagonal"
            )
        return self

    def nodes(self) -> list[Node]:
        numbered = [f"{self.name}-{number:04d}" for number in range(self.count)]
        return [self._node(name) for name in (numbered if self.count > 1 else [self.name])]

    def _node(self, name: str) -> Node:
        return Node(
            id=NodeId(name),
            name=name,
            capacity=Resources(self.gpus, round(self.cpus * 1000), self.memory_mib),
            gpus=tuple(
                Gpu(GpuId(f"SIM-{name}-{index}"), index, self.model, self.gpu_memory_mib)
                for index in range(self.gpus)
            ),
            links=self._links(),
            pool=PoolName(self.pool),
            price_class=self.price_class,
            rack=self.rack,
            zone=self.zone,
            simulated=True,
        )

    def _links(self) -> Links:
        rows = self.nvlinks
        if not isinstance(rows, list):
            return Links.uniform(self.gpus, rows, self._gbps(rows))
        return Links(
            nvlinks=tuple(map(tuple, rows)),
            bandwidth_gbps=tuple(
                tuple(0.0 if a == b else self._gbps(count) for b, count in enumerate(row))
                for a, row in enumerate(rows)
            ),
        )

    def _gbps(self, links: int) -> float:
        return links * self.link_gbps if links else self.pcie_gbps


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    nodes: list[_Group] = Field(min_length=1)


def read_nodes(path: Path) -> tuple[Node, ...]:
    """The nodes of a file, in its order.

    Raises:
        NotFoundError: there is no such file.
        InvalidRequestError: it is malformed; the message names file, line and column.
    """
    if path.name.removesuffix(".gz").endswith(".csv"):
        nodes = openb.read_nodes(path)
    else:
        nodes = tuple(node for group in _groups(path) for node in group.nodes())
    twice = [name for name, count in Counter(node.name for node in nodes).items() if count > 1]
    if twice:
        raise InvalidRequestError(f"{path}: a second node {twice[0]!r}", hint="names are unique")
    if not any(node.capacity.gpus for node in nodes):
        raise InvalidRequestError(f"{path}: no node has a GPU")
    return nodes


def _groups(path: Path) -> list[_Group]:
    with opened(path) as stream:
        text = stream.read()
    try:
        located = read_yaml(text)
    except InvalidRequestError as error:
        problem = error.problems[0]
        what = problem.message.replace("the job file", "the file")
        raise InvalidRequestError(
            f"{path}, line {problem.line or 1}, column {problem.column or 1}: {what}"
        ) from error
    try:
        return _File.model_validate(located.value).nodes
    except ValidationError as error:
        raise _refused(path, located, error) from error


def _refused(path: Path, located: Located, error: ValidationError) -> InvalidRequestError:
    first = error.errors()[0]
    at = tuple(first["loc"])
    extra = first["type"] == "extra_forbidden"
    line, column = (located.key_at(at) if extra else located.value_at(at)) or (1, 1)
    known = ", ".join(_Group.model_fields)
    return InvalidRequestError(
        f"{path}, line {line}, column {column}: {dotted(at)}: {first['msg']}",
        hint=f"a node has {known}" if extra else "see docs/guide/simulate.md for the node file",
    )


def described(nodes: tuple[Node, ...]) -> str:
    """The cluster in a few words: `16 nodes, 128 GPUs (16 x 8 H100)`."""
    kinds = Counter((node.capacity.gpus, node.gpus[0].model if node.gpus else "") for node in nodes)
    parts = [f"{count} x {gpus} {model}".rstrip() for (gpus, model), count in kinds.most_common(4)]
    parts += ["..."] if len(kinds) > len(parts) else []
    total = sum(node.capacity.gpus for node in nodes)
    return f"{len(nodes)} nodes, {total} GPUs ({', '.join(parts)})"
