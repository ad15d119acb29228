"""Memory and time for the pods of a cluster: raw objects as parsed, against what we keep of them.

20,000 pods of one realistic template (about 3.5 KiB of JSON each) are parsed, projected and
dropped. Prints bytes per pod of both forms and the time that parsing and projecting take. Exits 1
when a projected pod takes more than an eighth of its parsed object.
"""

from __future__ import annotations

import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import orjson

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.kube_objects import training_pod

from scheduler.execution.kubernetes.pods import pod_of

PODS = 20_000
SHARE_MAX = 1 / 8


def bytes_per_pod(lines: list[bytes], read: Callable[[bytes], object]) -> float:
    """What stays allocated for each pod that `read` makes."""
    tracemalloc.start()
    kept = [read(line) for line in lines]
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return (size - sys.getsizeof(kept)) / len(kept)


def seconds_per_pod(lines: list[bytes], read: Callable[[bytes], object]) -> float:
    """CPU time of `read`; nothing is kept."""
    begin = time.process_time()
    for line in lines:
        read(line)
    return (time.process_time() - begin) / len(lines)


def projected(line: bytes) -> object:
    """A watch line on its way into our picture."""
    return pod_of(orjson.loads(line))


def main() -> int:
    """Measure, print, judge."""
    lines = [orjson.dumps(training_pod(number)) for number in range(PODS)]
    raw, ours = bytes_per_pod(lines, orjson.loads), bytes_per_pod(lines, projected)
    parse_s, read_s = seconds_per_pod(lines, orjson.loads), seconds_per_pod(lines, projected)
    say = sys.stdout.write
    say(f"{PODS} pods of {sum(map(len, lines)) / PODS:.0f} bytes of JSON\n")
    say(f"{'':22}{'bytes/pod':>12}{'us/pod':>10}{'in all, MiB':>14}\n")
    for name, size, cost_s in (("parsed", raw, parse_s), ("parsed + projected", ours, read_s)):
        say(f"{name:22}{size:12.0f}{cost_s * 1e6:10.1f}{size * PODS / 2**20:14.1f}\n")
    share = ours / raw
    say(f"share {share:.3f}, at most {SHARE_MAX:.3f}\n")
    return int(share > SHARE_MAX)


if __name__ == "__main__":
    sys.exit(main())
