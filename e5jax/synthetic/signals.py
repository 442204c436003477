"""Ctrl-C and SIGTERM for work that should come to an orderly end."""

import asyncio
import contextlib
import signal
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def first_and_second(on_first: Callable[[str], None]) -> Iterator[None]:
    """The first signal calls `on_first` with its name; a second one ends the block at once, as KeyboardInterrupt."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    seen = 0

    def handle(name: str) -> None:
        nonlocal seen
        seen += 1
        on_first(name) if seen == 1 else task.cancel()

    numbers = (signal.SIGINT, signal.SIGTERM)
    try:
        for number in numbers:
            loop.add_signal_handler(number, handle, number.name)
    except (ValueError, RuntimeError):  # not the main thread: signals are somebody else's
        numbers = ()
    try:
        yield
    except asyncio.CancelledError:
        if seen > 1:
            raise KeyboardInterrupt from None
        raise
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)
