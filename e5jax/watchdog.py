"""Waits that have a name and a limit: what does not come in time ends the process, with every thread's stack.

A process that hangs keeps all others waiting in their collectives, and none of them would say so (openxla/xla#44429).
"""

import contextlib
import faulthandler
import os
import sys
import threading


GRACE_S = 5.0
"""After which a process ends that could not even say what it waited for."""


@contextlib.contextmanager
def within(seconds: float | None, what: str):
    """End the process with status 1 where the block takes longer; None: no limit."""
    if seconds is None:
        yield
        return
    timer = threading.Timer(seconds, _give_up, (seconds, what))
    timer.daemon = True
    timer.start()
    # The timer needs Python's lock, which a call that hangs in C++ may hold: this one needs nothing, and knows no name.
    faulthandler.dump_traceback_later(seconds + GRACE_S, exit=True, file=sys.__stderr__)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        timer.cancel()


def _give_up(seconds, what):
    print(f"failed: {what} did not end within {seconds:g} s; where every thread is:", file=sys.stderr, flush=True)
    faulthandler.dump_traceback(all_threads=True, file=sys.__stderr__)
    os._exit(1)
