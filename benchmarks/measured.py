"""Commands run one after the other, and what each took: seconds, and the most memory its processes held together."""

import dataclasses
import os
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter

from e5jax.errors import FailedError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ran:
    """What a command took."""

    seconds: float
    peak_bytes: int
    """Resident memory of the process and all that it started, looked at ten times a second."""


def run(command: Sequence[str], environment: dict[str, str], log: Path) -> Ran:
    """Run a command to its end; `log` gets what it says. Raises FailedError, with its last words, where it fails."""
    start = perf_counter()
    with log.open("wb") as said:
        process = subprocess.Popen(command, env={**os.environ, **environment}, stdout=said, stderr=subprocess.STDOUT)
        done, most = threading.Event(), [0]

        def watch():
            while not done.wait(0.1):
                most[0] = max(most[0], held(process.pid))

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            status = process.wait()
        finally:
            process.kill()  # a Ctrl-C leaves nothing behind
            done.set()
            watcher.join()
    if status:
        words = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-5:]
        raise FailedError(f"{' '.join(command)} exited with {status}; {log} ends:\n" + "\n".join(words))
    return Ran(seconds=perf_counter() - start, peak_bytes=most[0])


def held(pid: int) -> int:
    """Resident bytes of a process and of all below it; 0 where it is gone."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        children = [
            child for task in Path(f"/proc/{pid}/task").glob("*/children") for child in task.read_text().split()
        ]
    except (OSError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE") + sum(held(int(child)) for child in children)
