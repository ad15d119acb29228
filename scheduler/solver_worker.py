"""The process that decides: `python -m scheduler.solver_worker`, killed when it takes too long.

It keeps a copy of the snapshot, fed by deltas, and answers each request with ever better plans.
Solvers print to file descriptor 1; so frames go to a private duplicate of it, and 1 is pointed at
stderr before any solver is imported. It ends when its standard input ends: its daemon is gone.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import os
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Sequence
from typing import BinaryIO, cast

from scheduler.model.ports import Decider, Profile
from scheduler.model.snapshot import Snapshot
from scheduler.solver_protocol import (
    HEADER,
    Candidate,
    Decide,
    Done,
    Failed,
    Feed,
    FromWorker,
    ProtocolError,
    Ready,
    ToWorker,
    body_bytes,
    frame,
    message_of,
)

DEFAULT_DECIDER = "scheduler.decide:decide"

NICENESS = 5
"""Where cores are few, answering a request comes before improving a plan."""
GARBAGE_THRESHOLDS = (10_000, 20, 100)
"""A snapshot is 100,000 values that live long and form no cycles: the collector's defaults would go
over them several times while one is read, which doubles the time of that."""


class Worker:
    """Holds the snapshot and answers messages.

    Args:
        decider: decides on it.
        output: where frames go.
    """

    def __init__(self, decider: Decider, output: BinaryIO) -> None:
        self._decider = decider
        self._output = output
        self._snapshot = Snapshot()
        self._profiles: dict[str, Profile] = {}

    def handle(self, message: ToWorker | FromWorker) -> None:
        """Act on one message.

        Raises:
            ProtocolError: the message is not for a worker.
            ValueError: a delta does not follow the snapshot held.
            OSError: the daemon is gone.
        """
        if isinstance(message, Feed):
            self._snapshot = self._snapshot.apply(message.delta)
            self._snapshot.columns  # noqa: B018 - made now, while nobody waits for an answer
        elif isinstance(message, Decide):
            self._decide(message)
        else:
            raise ProtocolError(f"a worker got a {type(message).__name__}")

    def say(self, message: FromWorker) -> None:
        """Send one message.

        Raises:
            OSError: the daemon is gone.
        """
        self._output.write(frame(message))
        self._output.flush()

    def _decide(self, request: Decide) -> None:
        from policies.registry import profile_named  # noqa: PLC0415 - kept off the stub's path

        try:
            if request.policy not in self._profiles:  # kept: node scores learn as they go
                self._profiles[request.policy] = profile_named(request.policy)
            for plan in self._decider(
                self._snapshot,
                self._profiles[request.policy],
                request.effort,
                request.now,
                request.seed,
            ):
                self.say(Candidate(request.request, plan))
        except OSError:
            raise
        except Exception as error:  # noqa: BLE001 - any defect is told, and the daemon goes on
            traceback.print_exc(file=sys.stderr)
            self.say(Failed(request.request, f"{type(error).__name__}: {error}"))
        else:
            self.say(Done(request.request))


def decider_named(path: str) -> Decider:
    """Import `module:function`.

    Raises:
        ImportError, AttributeError: there is no such thing.
    """
    module, _, name = path.partition(":")
    return cast("Decider", getattr(importlib.import_module(module), name))


def _read(stream: BinaryIO, inbox: queue.SimpleQueue[bytes]) -> None:
    """Read frames until the daemon is gone; then end, even in the middle of a solve."""
    while len(header := stream.read(HEADER.size)) == HEADER.size:
        inbox.put(stream.read(body_bytes(header)))
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)  # and with us a CBC that we may be waiting for
    os._exit(0)


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until standard input ends."""
    parser = argparse.ArgumentParser(prog="scheduler.solver_worker", description=__doc__)
    parser.add_argument("--decider", default=DEFAULT_DECIDER, help="module:function")
    options = parser.parse_args(arguments)
    os.nice(NICENESS)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the daemon's to handle
    output = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    inbox: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(sys.stdin.buffer, inbox), daemon=True).start()
    decider = decider_named(options.decider)
    if options.decider == DEFAULT_DECIDER:  # another one, of a test, must stay quick to start
        from scheduler.allocation.warmup import warm_up  # noqa: PLC0415 - only the real decider
        from scheduler.decide import remembering  # noqa: PLC0415 - only the real decider

        warm_up()
        decider = remembering()
    worker = Worker(decider, output)
    gc.freeze()
    gc.set_threshold(*GARBAGE_THRESHOLDS)
    worker.say(Ready())
    while True:
        worker.handle(message_of(inbox.get()))


if __name__ == "__main__":
    main()
