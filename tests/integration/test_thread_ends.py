from __future__ import annotations

import subprocess
import sys

CODE = """
import threading
from scheduler.daemon import end_with_any_thread
end_with_any_thread()
thread = threading.Thread(target=lambda: {}["part"], name="a part")
thread.start()
thread.join()
threading.Event().wait(60)
"""


def test_a_thread_that_dies_of_a_bug_ends_the_process_loudly() -> None:
    done = subprocess.run(
        [sys.executable, "-c", CODE], capture_output=True, text=True, timeout=50, check=False
    )
    assert done.returncode == 1
    assert "Exception in thread a part" in done.stderr
    assert "error: a thread of the daemon ended: KeyError('part')" in done.stderr
