"""Requests -> batch jobs -> ledger: what `runner.run` does for single requests, for an API that answers within a day.

A job's requests and its name are on disk before it is submitted, and so is each step of it (`batch_journal`): a restart
collects the jobs under way and submits none twice. Ctrl-C leaves them under way. What a job does not answer is asked
again in another.
"""

import asyncio
import dataclasses
import secrets
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol

from e5jax.errors import FailedError
from e5jax.synthetic.batch_journal import Journal
from e5jax.synthetic.budget import Budget, CapReached, Reservation
from e5jax.synthetic.ledger import Ledger
from e5jax.synthetic.request import Answer, AskError, OutOfQuotaError, Refused, Request, Throttled, Unavailable
from e5jax.synthetic.tally import Report, Snapshot, Tally


LINES = 2_000  # results of big jobs get lost more often
AT_ONCE = 20
POLL_S = 30.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ended:
    """A job that is over."""

    state: str
    results: dict[str, Answer | AskError | OutOfQuotaError]
    """By request key; requests that are missing got nothing."""


class BatchClient(Protocol):
    """An API of jobs. Every call may raise what `Client.ask` may."""

    async def submit(self, name: str, requests: Iterable[Request]) -> str:
        """A new job -> the API's name for it."""

    async def find(self, name: str) -> str | None:
        """The job submitted under a name of ours."""

    async def collect(self, job: str) -> Ended | None:
        """What became of it; None while it is under way."""


async def run(
    requests: Iterable[Request],
    client: BatchClient,
    ledger: Ledger,
    budget: Budget,
    *,
    folder: Path,
    client_name: str,
    attempts: int,
    lines: int,
    at_once: int,
    poll_s: float,
    retry_given_up: bool,
    tell: Callable[[Snapshot], None],
) -> Report:
    """Ask all requests that the ledger does not have, in jobs of `lines`, `at_once` of them, looked at every `poll_s`.

    A request is given up when it is refused, or without an answer in `attempts` jobs. Ends early at a cap, when the
    jobs under way are in. Raises OutOfQuotaError, and FailedError where the server answers nothing `attempts` times.
    """
    work = _Run(requests, client, ledger, budget, folder, client_name, attempts, lines, retry_given_up)
    work.take_up()
    while True:
        while len(work.jobs) < at_once and (job := work.next_job()) is not None:
            await work.submit(job)
        tell(work.snapshot())
        if not work.jobs:
            return work.tally.report(work.stopped)
        await asyncio.sleep(poll_s)
        for job in list(work.jobs):
            await work.look_at(job)
            tell(work.snapshot())


@dataclasses.dataclass(kw_only=True, eq=False)
class _Job:
    name: str
    requests: dict[str, Request]
    reservations: dict[str, Reservation | None]
    """None: the try is counted at its worst for good."""
    remote: str | None
    """The API's name for it; None until it is submitted."""
    failures: int = 0
    """Calls about it in a row that came to nothing."""


class _Run:
    def __init__(self, requests, client, ledger, budget, folder, client_name, attempts, lines, retry_given_up):
        self.client, self.ledger, self.budget, self.journal = client, ledger, budget, Journal(folder)
        self.attempts, self.lines, self.retry_given_up = attempts, lines, retry_given_up
        self.tally = Tally(ledger, budget, client_name, time.monotonic)
        self.source = iter(requests)
        self.drained = self.full = False
        self.jobs: list[_Job] = []
        self.under_way: set[str] = set()
        self.again: dict[str, Request] = {}
        self.stopped: str | None = None
        self.barren = 0

    def take_up(self) -> None:
        """The jobs of a former process."""
        for name, remote, asked in self.journal.open_jobs():
            asked = [request for request in asked if self._wanted(request)]
            reservations = {request.key: self.budget.resume(request) for request in asked}
            # One whose submission was cut short is looked for before it is submitted: see `_submit`.
            failures = 0 if remote else 1
            requests = {request.key: request for request in asked}
            self._add(_Job(name=name, requests=requests, reservations=reservations, remote=remote, failures=failures))

    def next_job(self) -> _Job | None:
        """As many requests as a job holds and the caps allow; those to be asked again come when there is no other."""
        job = _Job(name=f"e5jax-{secrets.token_hex(8)}", requests={}, reservations={}, remote=None)
        while not self.full and len(job.requests) < self.lines and (request := self._next_request(job)) is not None:
            try:
                job.reservations[request.key] = self.budget.reserve(request)
                job.requests[request.key] = request
            except CapReached as reached:
                self.again[request.key] = request
                self.full = True  # until a job is in, which may have cost less than its worst
                if not self.jobs and not job.requests:
                    self.stopped = str(reached)
        if not job.requests:
            return None
        self._add(job)
        return job

    def _next_request(self, job: _Job) -> Request | None:
        for request in self.source if not self.drained else ():
            if any(request.key in taken for taken in (self.under_way, self.again, job.requests)):
                continue
            if self._wanted(request):
                return request
            self.tally.skipped += 1
        self.drained = True
        last = not self.jobs or job.requests or len(self.again) >= self.lines
        return self.again.pop(next(iter(self.again))) if self.again and last else None

    def _wanted(self, request: Request) -> bool:
        return request.key not in self.ledger or (self.retry_given_up and self.ledger.gave_up(request.key))

    async def submit(self, job: _Job) -> None:
        """On disk first: a kill at any point leaves either no job, or one that `take_up` finds."""
        self.journal.begin(job.name, job.requests.values())
        await asyncio.gather(*(self.ledger.sending(key, room.worst) for key, room in job.reservations.items()))
        self.journal.counted(job.name)
        await self._call(job, self._submit)

    async def look_at(self, job: _Job) -> None:
        """Submit it, if that failed before; collect it, if it is over."""
        if job.remote is None:
            await self._call(job, self._submit)
        elif (ended := await self._call(job, lambda job: self.client.collect(job.remote))) is not None:
            await self._keep(job, ended)

    async def _submit(self, job: _Job) -> None:
        # After a failure it may be there all the same.
        job.remote = (await self.client.find(job.name)) if job.failures else None
        job.remote = job.remote or await self.client.submit(job.name, job.requests.values())
        self.journal.submitted(job.name, job.remote)

    async def _call(self, job: _Job, call: Callable):
        """A call about a job; None where it came to nothing this time."""
        try:
            result = await call(job)
        except (Throttled, Unavailable) as error:
            # Throttled with others under way: they fill the quota of queued tokens, and will be done some day.
            job.failures += isinstance(error, Unavailable) or len(self.jobs) == 1
            if job.failures >= self.attempts:
                raise FailedError(f"batch {job.name}: {error}; the next run goes on with it") from None
            return None
        except (Refused, OutOfQuotaError) as error:
            if job.remote is None:
                for key, room in job.reservations.items():
                    self._tried(key, room, self.budget.release)
                self.journal.ended(job.name, "REFUSED")
            if isinstance(error, OutOfQuotaError):
                raise
            raise FailedError(f"batch {job.name} was refused: {error}") from None
        job.failures = 0
        return result

    async def _keep(self, job: _Job, ended: Ended) -> None:
        """All results into the ledger, then the note that the job is over: a kill between them repeats only reading."""
        final, appends = None, []
        for key, request in job.requests.items():
            result = ended.results.get(key) or Unavailable(f"a batch {ended.state} without an answer to it")
            room = job.reservations[key]
            if isinstance(result, Answer):
                self._tried(key, room, lambda room, answer=result: self.budget.settle(room, answer))
                appends.append(self.tally.settle(request, result, None))
                continue
            unpaid = isinstance(result, (Throttled, Refused, OutOfQuotaError))
            self._tried(key, room, self.budget.release if unpaid else lambda room: self.budget.settle(room, None))
            if isinstance(result, OutOfQuotaError):
                final = result
            elif isinstance(result, Refused) or self.ledger.unsettled(key).requests >= self.attempts:
                appends.append(self.tally.settle(request, None, str(result)))
            else:
                self.again[key] = request
        answered = sum(isinstance(result, Answer) for result in ended.results.values())
        await asyncio.gather(*appends)
        self.journal.ended(job.name, ended.state)
        self.jobs.remove(job)
        self.full = False
        self.under_way -= job.requests.keys()
        self.barren = 0 if answered else self.barren + 1
        if final is not None:
            raise final
        if self.barren >= self.attempts and (self.again or not self.drained):
            raise FailedError(f"{self.barren} batches in a row without one answer; the last one {ended.state}")

    def _tried(self, key: str, room: Reservation | None, settle: Callable) -> None:
        if room is not None:
            self.ledger.tried(key, settle(room))

    def _add(self, job: _Job) -> None:
        self.jobs.append(job)
        self.under_way |= job.requests.keys()

    def snapshot(self) -> Snapshot:
        """Where the run stands."""
        return self.tally.snapshot(in_flight=len(self.under_way), waiting=len(self.again), paused_s=0.0)
