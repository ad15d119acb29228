"""What a GPU's product name is called in jobs."""

from __future__ import annotations

import re

_BRANDS = frozenset({"NVIDIA", "TESLA", "QUADRO", "GRID", "GEFORCE"})
_CONSUMER = frozenset({"RTX", "GTX", "TITAN"})
_NOT_A_MODEL = re.compile(r"SXM\d*|PCIE|NVL|HBM\w*|\d+GB|GPU|LAPTOP|GENERATION", re.IGNORECASE)


def short_model(name: str) -> str:
    """The model by which jobs ask for a GPU, from the vendor's product name.

    Brand, form factor and memory size go; data-centre cards keep one word, RTX, GTX and TITAN
    cards keep their number: `NVIDIA H200` -> `H200`, `NVIDIA A100-SXM4-80GB` -> `A100`,
    `NVIDIA H100 80GB HBM3` -> `H100`, `NVIDIA GeForce RTX 3080 Ti` -> `RTX-3080-Ti`. Boards of
    one model with other memory sizes share the name; `memory_mib` tells them apart.
    """
    words = [word for word in re.split(r"[\s-]+", name) if word and word.upper() not in _BRANDS]
    kept = [word for word in words if not _NOT_A_MODEL.fullmatch(word)] or words
    if not kept:
        return "unknown"
    if kept[0].upper() in _CONSUMER:
        return "-".join(kept)
    return kept[0]
