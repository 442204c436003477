"""An append-only file that hundreds of tasks write to: one fsync serves all that arrived since the last."""

import asyncio
import os
import threading
from collections.abc import Callable
from concurrent.futures import Executor
from pathlib import Path

from e5jax.errors import FailedError


class Appender:
    """Bytes go to the system at once, where they outlive the process; `synced` waits until they are on disk.

    `make_room(error)` is asked what to do about an error of a write: True to try once more.
    """

    def __init__(self, path: Path, pool: Executor, make_room: Callable[[OSError], bool]):
        self._pool, self._make_room = pool, make_room
        self._changing = threading.Lock()  # no file is closed while a thread syncs it
        self._written = self._durable = 0
        self._broken: FailedError | None = None
        self._syncing: asyncio.Task | None = None
        self._open(path)

    def write(self, data: bytes) -> None:
        """All of it or, with a FailedError, nothing."""
        self._check()
        left = memoryview(data)
        while left:
            try:
                left = left[os.write(self._descriptor, left) :]
            except OSError as error:
                if not self._make_room(error):
                    os.ftruncate(self._descriptor, self._size)
                    raise FailedError(f"{self.path} cannot be written: {error}") from error
        self._size += len(data)
        self._written += 1

    async def synced(self) -> None:
        """Wait until all that was written before this call is on disk."""
        mine = self._written
        while self._durable < mine:
            self._check()
            if self._syncing is None:
                self._syncing = asyncio.create_task(self._sync())
            await asyncio.shield(self._syncing)

    def go_on_in(self, path: Path) -> None:
        """The next bytes go to another file; those before are on disk. OSError where it cannot be: all stays."""
        with self._changing:
            self._fsync()
            former = self._descriptor
            self._open(path)
            os.close(former)
        self._check()
        self._durable = self._written

    def close(self) -> None:
        """All on disk, or a FailedError."""
        with self._changing:
            self._fsync()
            os.close(self._descriptor)
        self._check()

    def _open(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self.path = path
        self._size = os.fstat(self._descriptor).st_size
        sync_folder(path.parent)

    async def _sync(self) -> None:
        upto = self._written
        try:
            await asyncio.get_running_loop().run_in_executor(self._pool, self._locked_fsync)
        finally:
            self._syncing = None
        if self._broken is None:
            self._durable = max(self._durable, upto)

    def _locked_fsync(self) -> None:
        with self._changing:
            self._fsync()

    def _fsync(self) -> None:
        try:
            os.fsync(self._descriptor)
        except OSError as error:
            # For good: a second fsync would succeed and mean nothing, as the pages that failed count as clean.
            self._broken = FailedError(f"{self.path} cannot be written: {error}")

    def _check(self) -> None:
        if self._broken is not None:
            raise self._broken


def sync_folder(folder: Path) -> None:
    """The names of new files are on disk, too."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
