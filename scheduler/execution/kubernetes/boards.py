"""A node's GPUs and the NVLinks between them, as far as a cluster can say.

With a plain device plugin a pod asks for a number of GPUs and the kubelet picks which. So the model
may only claim what holds for every choice of the kubelet:

* all GPUs of the node in one NVLink domain: any choice is right, the links count;
* several domains (bridged pairs, for instance): a choice may span two of them, so every GPU counts
  as alone, and `same-nvlink` work of more than one GPU goes elsewhere;
* nothing known, or slices and shares instead of whole GPUs: likewise.

Links are known from our agent's annotation on the node (`haversack.dev/topology`), which also gives
the real GPU ids. Without it one domain is assumed if GPU feature discovery names an NVLink fabric
(`nvidia.com/gpu.clique`) or a product whose boards are all linked (SXM and its successors); how
fast the links are is unknown then. Ids are `<node uid>/gpu-<index>` where nobody tells real ones.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import orjson

from scheduler.execution.kubernetes import labels
from scheduler.execution.kubernetes.raw import Json, mapping, mappings, text, whole
from scheduler.model.gpu_names import short_model
from scheduler.model.node import NO_LINKS, Gpu, Links
from scheduler.model.quantity import GpuId

_SLICED = re.compile(r"-(MIG-.+|SHARED)$")
_LINKED_BOARD = re.compile(r"SXM|HBM3$|^NVIDIA-(H20|H200|H800|B200|B300|GB200|GB300)$")
_AMD_MODEL = re.compile(r"MI\d+\w*?(?=[_-]|$)")
_GPUS_MAX = 256


@dataclass(frozen=True, slots=True)
class Gpus:
    """The GPUs of one node.

    Attributes:
        gpus: in index order.
        links: what holds for any choice of the kubelet; `NO_LINKS` when nothing does.
        warnings: what was wrong with the annotation.
    """

    gpus: tuple[Gpu, ...] = ()
    links: Links = NO_LINKS
    warnings: tuple[str, ...] = ()


class TopologyError(ValueError):
    """The annotation is not what our agent writes."""


def gpus_of(uid: str, count: int, node_labels: Mapping[str, str], annotation: str) -> Gpus:
    """The GPUs of a node.

    Args:
        uid: the node's.
        count: how many the node offers (allocatable, so without unhealthy ones).
        node_labels: GPU feature discovery's, among others.
        annotation: our agent's, or "". A broken one, or one about another number of GPUs than the
            node offers, is a warning and otherwise as good as none.
    """
    if not count:
        return Gpus()
    if not annotation:
        return _by_labels(uid, count, node_labels)
    try:
        gpus, links = _annotated(annotation, count)
    except TopologyError as error:
        found = _by_labels(uid, count, node_labels)
        return Gpus(found.gpus, found.links, (f"annotation {labels.TOPOLOGY}: {error}",))
    return Gpus(gpus, links if len(links.domains()) == 1 else NO_LINKS)


def annotation_of(gpus: Sequence[Gpu], links: Links) -> str:
    """What `gpus_of` reads back: these GPUs and the links between them, as JSON in one line.

    Args:
        gpus: whole and healthy ones, as a device plugin offers them; at least one.
        links: of the host, over its GPU indexes.
    """
    box = [gpu.index for gpu in gpus]
    told = {
        "gpus": [
            {"uuid": gpu.id, "model": gpu.model, "memory_mib": gpu.memory_mib} for gpu in gpus
        ],
        "nvlinks": [[links.nvlinks[a][b] for b in box] for a in box],
        "bandwidth_gbps": [[links.bandwidth_gbps[a][b] for b in box] for a in box],
    }
    return orjson.dumps(told).decode()


def model_of(node_labels: Mapping[str, str]) -> str:
    """The GPU model by which jobs ask, `unknown` without a label.

    A slice or a share of a GPU is another model: `A100-MIG-1g.10gb`, `L4-SHARED`.
    """
    product = node_labels.get(labels.GPU_PRODUCT, "")
    if product:
        cut = _SLICED.search(product)
        return short_model(product[: cut.start()]) + cut.group() if cut else short_model(product)
    amd = _AMD_MODEL.search(node_labels.get(labels.AMD_PRODUCT, ""))
    return amd.group() if amd else "unknown"


def _by_labels(uid: str, count: int, node_labels: Mapping[str, str]) -> Gpus:
    model, memory_mib = model_of(node_labels), _memory_mib(node_labels)
    gpus = tuple(
        Gpu(GpuId(f"{uid}/gpu-{index}"), index, model, memory_mib) for index in range(count)
    )
    return Gpus(gpus, _linked(count) if _one_domain(node_labels) else NO_LINKS)


def _one_domain(node_labels: Mapping[str, str]) -> bool:
    product = node_labels.get(labels.GPU_PRODUCT, "")
    sharing = node_labels.get(labels.GPU_SHARING, "none")
    if _SLICED.search(product) or sharing != "none":
        return False
    return bool(node_labels.get(labels.GPU_CLIQUE)) or bool(_LINKED_BOARD.search(product))


def _linked(count: int) -> Links:
    """Every pair has a link; how many and how fast is not known."""
    box = range(count)
    return Links(nvlinks=tuple(tuple(int(a != b) for b in box) for a in box), bandwidth_gbps=())


def _memory_mib(node_labels: Mapping[str, str]) -> int:
    written = node_labels.get(labels.GPU_MEMORY, "")
    if written.isascii() and written.isdigit() and len(written) < 10:  # noqa: PLR2004 - below PiB
        return int(written)
    vram = re.fullmatch(r"(\d{1,5})G", node_labels.get(labels.AMD_MEMORY, ""), re.ASCII)
    return int(vram.group(1)) * 1024 if vram else 0


def _annotated(annotation: str, count: int) -> tuple[tuple[Gpu, ...], Links]:
    try:
        found = orjson.loads(annotation)
    except orjson.JSONDecodeError as error:
        raise TopologyError(f"no JSON: {error}") from error
    document = mapping(found)
    gpus = tuple(_gpu(at, each) for at, each in mappings(document.get("gpus")))
    size = len(gpus)
    if size != count:
        raise TopologyError(f"it names {size} GPUs, the node offers {count}")
    if not 0 < size <= _GPUS_MAX or len({gpu.id for gpu in gpus}) != size:
        raise TopologyError(f"gpus: wants 1 to {_GPUS_MAX} of them with different uuids")
    nvlinks = _matrix(document, "nvlinks", size)
    if any(value != int(value) for row in nvlinks for value in row):
        raise TopologyError("nvlinks: wants whole numbers")
    return gpus, Links(
        nvlinks=tuple(tuple(int(value) for value in row) for row in nvlinks),
        bandwidth_gbps=_matrix(document, "bandwidth_gbps", size),
    )


def _gpu(index: int, written: Json) -> Gpu:
    uuid, model = text(written.get("uuid")), text(written.get("model"))
    memory_mib = whole(written.get("memory_mib"))
    if not uuid or not model or memory_mib < 0:
        raise TopologyError(f"gpus[{index}]: wants uuid, model and memory_mib")
    return Gpu(GpuId(uuid), index, model, memory_mib)


def _matrix(document: Json, name: str, size: int) -> tuple[tuple[float, ...], ...]:
    """A symmetric matrix of finite numbers, not negative, with zeros on its diagonal."""
    rows = document.get(name)
    if not isinstance(rows, list) or [_length(row) for row in rows] != [size] * size:
        raise TopologyError(f"{name}: wants a matrix of {size} x {size}")
    values = [value for row in rows for value in row]
    if not all(_is_amount(value) for value in values):
        raise TopologyError(f"{name}: wants finite numbers that are not negative")
    pairs = ((a, b) for a in range(size) for b in range(a + 1))
    if any(rows[a][b] != rows[b][a] or (a == b and rows[a][b]) for a, b in pairs):
        raise TopologyError(f"{name}: wants a symmetric matrix with zeros on its diagonal")
    return tuple(tuple(float(value) for value in row) for row in rows)


def _length(row: object) -> int:
    return len(row) if isinstance(row, list) else -1


def _is_amount(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return math.isfinite(value) and 0 <= value < 10**9
