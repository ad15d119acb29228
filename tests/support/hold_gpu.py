"""A task that takes its GPUs and tells, independently of Haversack's own books, that it has them.

usage: hold_gpu.py FOLDER SECONDS. Holds one flock per GPU for its whole life (a second holder is
recorded as DOUBLE in FOLDER/witness), allocates 1 GiB on each, says so, and sleeps.
"""

from __future__ import annotations

import fcntl
import os
import sys
import time
from pathlib import Path

_BYTES = 2**30


def _lock(folder: Path, gpus: list[str]) -> list[int]:
    """Descriptors that hold the locks."""
    who = " ".join(os.environ[f"HAVERSACK_{name}"] for name in ("JOB_ID", "ATTEMPT", "TASK_INDEX"))
    held = []
    with (folder / "witness").open("a") as witness:
        for gpu in gpus:
            descriptor = os.open(folder / f"{gpu}.lock", os.O_RDWR | os.O_CREAT)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                witness.write(f"DOUBLE {who} {gpu}\n")
                raise SystemExit(90) from None
            held.append(descriptor)
        witness.write(f"start {who}\n")
    return held


def main(folder: Path, seconds: float) -> int:
    """Hold the GPUs for so long."""
    gpus = os.environ["HAVERSACK_GPU_IDS"].split(",")
    locks = _lock(folder, gpus)
    import torch  # after the locks: they must not wait some seconds for it

    blocks = []
    for index, gpu in enumerate(gpus):
        seen = f"GPU-{torch.cuda.get_device_properties(index).uuid}"
        if seen != gpu:
            raise SystemExit(f"device {index} is {seen}, allocated was {gpu}")
        blocks.append(torch.ones(_BYTES, dtype=torch.uint8, device=f"cuda:{index}"))
        torch.cuda.synchronize(index)
        sys.stdout.write(f"holding {gpu}\n")
        sys.stdout.flush()
    time.sleep(seconds)
    assert len(blocks) == len(locks) == torch.cuda.device_count()
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), float(sys.argv[2])))
