"""One process a side: the idle side sleeps in a read, and each has a memory peak of its own.

The driver writes {"do": NAME, ...} as a line of JSON, the worker answers {"answer": ...} or {"error": ...} as one.
"""

import contextlib
import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path

from e5jax.errors import FailedError


HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
"""Linux zeroes fresh memory 2 MB at a time instead of 4 kB: a sixth of a step's time on a CPU."""


def serve(handlers: Mapping[str, Callable[..., object]]) -> int:
    """Answer until standard input ends. What libraries print goes to standard error."""
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)
        for line in sys.stdin:
            asked = json.loads(line)
            try:
                answer = {"answer": handlers[asked.pop("do")](**asked)}
            except Exception as error:  # whatever a side breaks on is that row's result
                traceback.print_exc()
                answer = {"error": f"{type(error).__name__}: {error}"}
            answers.write(json.dumps(answer) + "\n")
            answers.flush()
    return 0


def reset_peak() -> bool:
    """Let the memory peak of this process begin anew; False where the system does not allow it."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def timed(f: Callable[[], object]) -> float:
    """Seconds that a call takes."""
    start = time.perf_counter()
    f()
    return time.perf_counter() - start


class Worker:
    """A worker as the driver sees it."""

    def __init__(self, module: str, log: Path):
        self.log = log
        self.module = module
        self._facts: dict[str, dict] = {}
        with log.open("a") as said:
            self._process = subprocess.Popen(
                [sys.executable, "-m", module],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=said,
                text=True,
                env={**HUGE_PAGES, **os.environ, "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"},
            )

    def ask(self, do: str, **arguments):
        """What the worker answers. Raises FailedError with what it says went wrong, or its last words."""
        try:
            self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            words = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-3:]
            raise FailedError(f"{self.module} ended while it did {do}: {' / '.join(words)}")
        answer = json.loads(line)
        if "error" in answer:
            raise FailedError(f"{self.module}, {do}: {answer['error']}")
        return answer["answer"]

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return self._process.poll() is None

    def case(self, kind: str, **arguments) -> "Case":
        """Something to be timed, prepared once: the worker keeps it under a name."""
        name = json.dumps([kind, arguments], sort_keys=True)
        if name not in self._facts:
            self._facts[name] = self.ask(kind, name=name, **arguments)
        return Case(self, name, self._facts[name])

    def forget(self) -> None:
        """Let go of the models and cases that it keeps."""
        self._facts.clear()
        self.ask("forget")

    def peak_bytes(self) -> int:
        """The most memory it held since it began, or since `reset_peak`."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        return 1024 * int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])

    def close(self) -> None:
        """End it."""
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.stdout.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class Case:
    """What a worker keeps ready; `facts` is what it said of it."""

    def __init__(self, worker: Worker, name: str, facts: dict):
        self._worker, self._name, self.facts = worker, name, facts

    def run(self) -> float:
        """Seconds of one turn."""
        return self._worker.ask("run", name=self._name)
