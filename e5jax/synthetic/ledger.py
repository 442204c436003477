"""The ledger: every answer that was paid for, once, and on disk before anybody counts on it.

FOLDER/answers-00000.jsonl ...  settled requests, one a line (see entries.py), 10,000 a file; a line is never changed
FOLDER/sent.jsonl               tries without an answer yet: what a killed process may have paid for
FOLDER/damaged.jsonl            lines that cannot be read, each with its file and line number
FOLDER/lock, FOLDER/ballast     who writes; room for the answers that are still to come when the disk is full

A request that was given up is settled, too. Asked again after all, it gets a second line.
"""

import base64
import collections
import dataclasses
import errno
import fcntl
import hashlib
import json
import logging
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from e5jax.errors import FailedError, UserError
from e5jax.synthetic import entries
from e5jax.synthetic.appender import Appender, sync_folder
from e5jax.synthetic.budget import NOTHING, Spent
from e5jax.synthetic.entries import segments


RECORDS_A_SEGMENT = 10_000
BALLAST_BYTES = 8 << 20  # 400 answers of 20 kB
FULL = (errno.ENOSPC, errno.EDQUOT)

log = logging.getLogger(__name__)


class Ledger:
    """A ledger folder, open for one process, made where there is none.

    UserError where another process has it open, or where nothing can be written.
    """

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        self.damaged = 0
        """Lines that cannot be read; their requests will be asked again."""
        self.spent = NOTHING
        """Of all lines and tries. What a damaged line cost is not known: it counts as much as the dearest."""
        self.full = False
        """The disk: what is in flight may still be written, nothing more be sent."""
        self._answered: set[bytes] = set()
        self._given_up: dict[bytes, int] = {}  # after how many tries
        self._tries: dict[str, list[Spent]] = {}  # of unsettled requests
        self._segment, self._records = 0, 0
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = _lock(self.folder)
        except OSError as error:
            raise UserError(f"{folder}: no ledger can be kept here: {error}") from error
        try:
            _fill_ballast(self.folder)
            self._read_sent(self._read_answers())
            self._pool = ThreadPoolExecutor(max_workers=2, thread_name_prefix="fsync")
            self._write_sent()
            self._sent = Appender(self._sent_path, self._pool, self._make_room)
            self._answers = Appender(self._answers_path(self._segment), self._pool, self._make_room)
        except BaseException as error:
            os.close(self._lock)
            if isinstance(error, OSError):
                raise UserError(f"{folder}: the ledger cannot be read: {error}") from error
            raise

    def __contains__(self, key: str) -> bool:
        """Whether the request is settled: answered or given up."""
        short = _short(key)
        return short in self._answered or short in self._given_up

    def __len__(self) -> int:
        """Settled requests."""
        return len(self._answered) + len(self._given_up)

    def gave_up(self, key: str) -> bool:
        """Whether the request is settled without an answer."""
        return _short(key) in self._given_up

    def unsettled(self, key: str) -> Spent:
        """What the tries of a request came to since it was last settled, those of killed processes included."""
        return sum(self._tries.get(key, []), NOTHING)

    async def sending(self, key: str, worst: Spent) -> None:
        """A try is about to be sent; on return no kill can make it forgotten. FailedError once the disk is full."""
        if self.full:
            raise FailedError(f"{self.folder}: the disk is full. Every answer so far is kept: make room and go on")
        self._tries.setdefault(key, []).append(worst)
        self.spent += worst
        self._sent.write(self._sent_line(key, len(self._tries[key])))
        await self._sent.synced()

    def tried(self, key: str, spent: Spent) -> None:
        """What the last try of a request came to."""
        tries = self._tries[key]
        self.spent += spent - tries[-1]
        tries[-1] = spent
        # Not synced: should this line be lost, the try counts at its worst.
        self._sent.write(self._sent_line(key, len(tries)))

    def write(self, entry: dict) -> None:
        """A settled request (entries.entry). It outlives the process; after `append` or `close`, a power cut, too."""
        if self._records >= RECORDS_A_SEGMENT and not self.full:
            self._begin_segment()
        self._answers.write(entries.to_line(entry))
        self._records += 1
        self.spent -= sum(self._tries.pop(entry["key"], []), NOTHING)
        spent = Spent(entry["cost"], entry["tokens"], entry["tries"])
        self._settle(_short(entry["key"]), spent, entry["gave_up"] is not None)

    async def append(self, entry: dict) -> None:
        """A settled request, on disk on return. FailedError where that cannot be."""
        self.write(entry)
        await self._answers.synced()

    def read(self) -> Iterator[dict]:
        """See entries.read; nothing where nothing was written yet."""
        return entries.read(self.folder)

    def close(self) -> None:
        """All on disk, and free for another process."""
        try:
            self._answers.close()
            self._sent.close()
            self._write_sent()
        finally:
            self._pool.shutdown()
            (self.folder / "ballast").unlink(missing_ok=True)
            os.close(self._lock)

    def __enter__(self) -> "Ledger":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _begin_segment(self) -> None:
        """The next file of answers. Where the disk is too full for one, the last goes on."""
        try:
            self._answers.go_on_in(self._answers_path(self._segment + 1))
            self._segment, self._records = self._segment + 1, 0
            self._write_sent()
            self._sent.go_on_in(self._sent_path)
        except OSError as error:
            if not self._make_room(error):
                raise FailedError(f"{self.folder} cannot be written: {error}") from error

    def _answers_path(self, segment: int) -> Path:
        return self.folder / f"answers-{segment:05d}.jsonl"

    @property
    def _sent_path(self) -> Path:
        return self.folder / "sent.jsonl"

    def _settle(self, short: bytes, spent: Spent, gave_up: bool) -> None:
        self.spent += spent
        if gave_up:
            self._given_up[short] = self._given_up.get(short, 0) + spent.requests
        else:
            self._given_up.pop(short, None)
            self._answered.add(short)

    def _read_answers(self) -> Spent:
        """-> what the dearest line cost."""
        dearest, damaged = NOTHING, []
        _cut_back(self.folder)
        for path in segments(self.folder):
            self._segment, self._records = int(path.stem.removeprefix("answers-")), 0
            for number, line, head in entries.heads(path):
                self._records += 1
                if head is None:
                    damaged.append((path, number, line))
                    continue
                key, spent, gave_up = head
                self._settle(_short(key), spent, gave_up)
                dearest = max(dearest, spent, key=lambda s: s.nanodollars)
        self.damaged = len(damaged)
        _set_aside(self.folder, damaged)
        self.spent += Spent(*(n * len(damaged) for n in dataclasses.astuple(dearest)))
        return dearest

    def _read_sent(self, dearest: Spent) -> None:
        """The tries of unsettled requests."""
        tries: dict[str, dict[int, Spent]] = {}
        with self._sent_path.open("ab+") as file:
            file.seek(0)
            for line in file:
                try:
                    fields = json.loads(line)
                    key, number, spent = fields["key"], fields["try"], Spent(*fields["spent"])
                except (ValueError, KeyError, TypeError, RecursionError):
                    if line.endswith(b"\n"):  # else torn: it was never sent
                        self.spent += dearest
                    continue
                if _short(key) not in self._answered and number > self._given_up.get(_short(key), 0):
                    tries.setdefault(key, {})[number] = spent
        self._tries = {key: [spent for _, spent in sorted(of.items())] for key, of in tries.items()}
        self.spent += sum((spent for of in self._tries.values() for spent in of), NOTHING)

    def _write_sent(self) -> None:
        """sent.jsonl anew, with the tries of unsettled requests alone."""
        partial = self._sent_path.with_suffix(".partial")
        with partial.open("wb") as file:
            for key, tries in self._tries.items():
                file.writelines(self._sent_line(key, number) for number in range(1, len(tries) + 1))
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, self._sent_path)
        sync_folder(self.folder)

    def _sent_line(self, key: str, number: int) -> bytes:
        spent = dataclasses.astuple(self._tries[key][number - 1])
        # Numbered from the request's first try of all: those behind a line that gave it up are settled.
        line = {"key": key, "try": number + self._given_up.get(_short(key), 0), "spent": spent}
        return json.dumps(line).encode() + b"\n"

    def _make_room(self, error: OSError) -> bool:
        """Whether there is room again after this error: the first time on a full disk."""
        if error.errno not in FULL or self.full:
            return False
        self.full = True
        (self.folder / "ballast").unlink(missing_ok=True)
        return True


def _short(key: str) -> bytes:
    """16 bytes for a key: half a million of them fit in 60 MB."""
    return hashlib.blake2b(key.encode(), digest_size=16).digest()


def _lock(folder: Path) -> int:
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(descriptor, 20).decode()
        os.close(descriptor)
        raise UserError(
            f"{folder}: process {holder} is writing this ledger: wait for it, or choose another --workdir"
        ) from None
    os.ftruncate(descriptor, 0)
    os.write(descriptor, str(os.getpid()).encode())
    return descriptor


def _fill_ballast(folder: Path) -> None:
    try:
        with (folder / "ballast").open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, BALLAST_BYTES)
    except OSError as error:
        (folder / "ballast").unlink(missing_ok=True)
        raise UserError(f"{folder}: a ledger needs {BALLAST_BYTES >> 20} MiB to begin with: {error}") from error


def _cut_back(folder: Path) -> None:
    """A line that a crash tore off at the end is moved to damaged.jsonl. Nobody was told that it was on disk."""
    for path in segments(folder)[-1:]:
        last = collections.deque(entries.heads(path), maxlen=1)
        if last and not (line := last[0][1]).endswith(b"\n"):
            _set_aside(folder, [(path, last[0][0], line)])
            with path.open("rb+") as file:
                file.truncate(path.stat().st_size - len(line))
                os.fsync(file.fileno())


def _set_aside(folder: Path, lines: list[tuple[Path, int, bytes]]) -> None:
    """Copies in damaged.jsonl, each once; base64, as they may be no text."""
    if not lines:
        return
    with (folder / "damaged.jsonl").open("a+", encoding="utf-8") as file:
        file.seek(0)
        known = set(file)
        for path, number, line in lines:
            log.warning("%s:%d: a damaged line is set aside; its request will be asked again", path, number)
            row = {"file": path.name, "line": number, "base64": base64.b64encode(line).decode()}
            row = json.dumps(row) + "\n"
            if row not in known:
                file.write(row)
        file.flush()
        os.fsync(file.fileno())
