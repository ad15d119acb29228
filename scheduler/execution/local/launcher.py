"""The process that runs one attempt and outlives the daemon.

`python -I -S launcher.py <data_dir> <attempt_id>` in a session of its own. Tells on stdout what
became of it, in one line, before anything else happens:

    claimed            it holds the claim and is going to start the ranks
    taken              somebody started the attempt before, or forbade it: nothing to do
    late               it came up after its order had lapsed: it started nothing
    refused <reason>   it started nothing and never will

Standard library only, without site: it is up in milliseconds.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time

if __name__ == "__main__":  # started by path: make our package importable, behind the library
    _ROOT = os.path.abspath(__file__).rsplit("/scheduler/execution/local/", 1)[0]  # noqa: PTH100
    sys.path.append(_ROOT)

from scheduler.execution.local import gang, process
from scheduler.execution.local.files import AttemptFolder, Reserved, highest_epoch
from scheduler.execution.local.orders import GangOrder

CLAIMED, TAKEN, LATE, REFUSED = "claimed", "taken", "late", "refused"

_EXIT_BYTES, _EXIT_BYTES_PER_RANK = 8_192, 128


def _say(word: str, reason: str = "") -> None:
    """Answer whoever started us, then leave the pipe: later words go to launcher.log."""
    with contextlib.suppress(BrokenPipeError):  # the daemon was killed meanwhile: no reason to stop
        os.write(1, f"{word} {reason}".strip().encode(errors="replace") + b"\n")
    os.dup2(2, 1)


class LateError(Exception):
    """The order has lapsed: whoever gave it may not lead any more."""


def _claim(data_dir: str, attempt_id: str) -> tuple[AttemptFolder, GangOrder, Reserved] | None:
    """Take the right to start the attempt; None when it was taken, or forbidden, before.

    Raises:
        LateError, OSError, ValueError: nothing was claimed and nothing starts.
    """
    folder = AttemptFolder(data_dir, attempt_id)
    record = folder.read("order.json")
    if record is None:
        raise ValueError("there is no order.json")
    order = GangOrder.from_record(record)
    epoch = highest_epoch(data_dir, order.epoch)
    if epoch > order.epoch:
        raise ValueError(f"the order's epoch {order.epoch} is over; this host has seen {epoch}")
    if folder.has("claim"):
        return None
    process.become_subreaper()
    size = _EXIT_BYTES + _EXIT_BYTES_PER_RANK * len(order.ranks)
    exit_file = Reserved(folder.file("exit.json"), size)
    claimed = False
    try:
        gang.failpoint("launcher-before-claim")
        lapses_s = order.launch_before_s
        if lapses_s is not None and time.clock_gettime(time.CLOCK_BOOTTIME) >= lapses_s:
            raise LateError
        claimed = folder.claim_for(process.identity_of(os.getpid()))
    finally:
        if not claimed:
            exit_file.discard()
    return (folder, order, exit_file) if claimed else None


def main() -> int:
    """Run as a script; the exit status tells nothing that exit.json does not."""
    gang.prepare_signals()
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    os.chdir("/")  # hold no mount of whoever started us
    try:
        held = _claim(sys.argv[1], sys.argv[2])
    except (OSError, ValueError) as error:
        _say(REFUSED, str(error))
        return 1
    except LateError:
        _say(LATE)
        return 0
    if held is None:
        _say(TAKEN)
        return 0
    gang.failpoint("launcher-after-claim")
    _say(CLAIMED)
    gang.supervise(*held)
    return 0


if __name__ == "__main__":
    sys.exit(main())
