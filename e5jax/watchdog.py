"""Waits that have a name and a limit: what does not come in time ends the process, with every thread's stack.

A process that hangs keeps all others waiting in their collectives, and none of them would say so (openxla/xla#44429).
"""

import contextlib
import faulthandler
import os
import sys
import threading


@contextlib.contextmanager
def within(seconds: float | None, what: str):
    """End the process with status 1 where the block takes longer; None: no limit."""
    if seconds is None:
        yield
        return
    timer = threading.Timer(seconds, _give_up, (seconds, what))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _give_up(seconds, what):
    print(f"failed: {what} did not end within {seconds:g} s; where every thread is:", file=sys.stderr, flush=True)
    faulthandler.dump_traceback(all_threads=True)
    os._exit(1)
