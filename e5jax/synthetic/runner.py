"""Requests -> client -> ledger: hundreds in flight, none forgotten, none paid twice, no cap passed.

One loop hands out work: whatever is in the ledger is skipped, a try is sent when the pace and the budget allow it, and
each try is a task that ends in the ledger, in the queue of retries, or in the reason why the run stops. A run that
stops for whatever reason waits for what is in flight and keeps it; only a second signal ends it at once.
"""

import asyncio
import contextlib
import dataclasses
import heapq
import itertools
from collections.abc import Callable, Iterable, Iterator

from e5jax.errors import FailedError
from e5jax.synthetic import pace
from e5jax.synthetic.budget import Budget, CapReached, Reservation
from e5jax.synthetic.ledger import Ledger
from e5jax.synthetic.pace import Pace
from e5jax.synthetic.request import Answer, Client, OutOfQuotaError, Refused, Request, Throttled, Unavailable
from e5jax.synthetic.signals import first_and_second
from e5jax.synthetic.tally import Report, Snapshot, Tally


PATIENCE_S = 600.0  # with a server that only throttles
HOPELESS = 100  # requests given up in a row: the fault is not theirs
TELL_EVERY_S = 0.5
SKIPS_A_TURN = 1_000


async def run(
    requests: Iterable[Request],
    client: Client,
    ledger: Ledger,
    budget: Budget,
    *,
    client_name: str,
    concurrency: int,
    attempts: int,
    timeout_s: float,
    retry_given_up: bool,
    tell: Callable[[Snapshot], None],
) -> Report:
    """Ask all requests that the ledger does not have. `requests` is drawn from as there is room to send.

    A request is given up when it is refused, or unavailable `attempts` times. Ends early, with what is in flight in the
    ledger, at a cap and at a signal (the report says so), and with an error where going on makes no sense:
    OutOfQuotaError, FailedError (the disk; nothing but failures), KeyboardInterrupt (at once) for a second signal.
    """
    job = _Job(client, ledger, budget, client_name, concurrency, attempts, timeout_s, retry_given_up)
    telling = asyncio.create_task(job.tell_all_along(tell))
    try:
        with first_and_second(lambda name: job.stop(f"{name}: what was in flight is kept")):
            await job.work(iter(requests))
    finally:
        telling.cancel()
        tell(job.snapshot())
    return job.tally.report(job.stopped)


@dataclasses.dataclass(order=True)
class _Due:
    """A request and when to send it; equals stay in order."""

    when: float
    order: int
    request: Request = dataclasses.field(compare=False)
    failures: int = dataclasses.field(compare=False, default=0)
    throttled: int = dataclasses.field(compare=False, default=0)


class _Job:
    def __init__(self, client, ledger, budget, client_name, concurrency, attempts, timeout_s, retry_given_up):
        self.client, self.ledger, self.budget = client, ledger, budget
        self.concurrency, self.attempts, self.timeout_s = concurrency, attempts, timeout_s
        self.retry_given_up = retry_given_up
        self.pace = Pace(concurrency)
        self.loop = asyncio.get_running_loop()
        self.tally = Tally(ledger, budget, client_name, self.loop.time)
        self.last_answer = self.loop.time()
        self.order = itertools.count()
        self.retries: list[_Due] = []
        self.tasks: set[asyncio.Task] = set()
        self.changed = asyncio.Event()
        self.stopped: str | Exception | None = None
        self.given_up_in_a_row = 0

    async def work(self, requests: Iterator[Request]) -> None:
        """All of the plan, or as much as can be; nothing is in flight afterwards."""
        try:
            try:
                await self._hand_out(requests)
            except Exception as error:  # the plan's, say
                self.stop(error)
            if self.tasks:
                await asyncio.wait(self.tasks)
        except BaseException:
            for task in self.tasks:
                task.cancel()
            raise
        if isinstance(self.stopped, Exception):
            raise self.stopped

    async def _hand_out(self, requests: Iterator[Request]) -> None:
        while self.stopped is None:
            self.changed.clear()
            now = self.loop.time()
            if not self.pace.may_send(len(self.tasks), now):
                await self._wait(self.pace.paused_until if now < self.pace.paused_until else None)
                continue
            due = await self._next(requests, now)
            if due is None:
                if not self.tasks and not self.retries:
                    return
                await self._wait(self.retries[0].when if self.retries else None)
            elif self.stopped is None:
                await self._send(due)

    async def _next(self, requests: Iterator[Request], now: float) -> _Due | None:
        """A retry whose time has come, else the next of the plan, while those that wait leave room for it."""
        if self.retries and self.retries[0].when <= now:
            return heapq.heappop(self.retries)
        if len(self.tasks) + len(self.retries) >= self.concurrency:
            return None
        for request in requests:
            if request.key not in self.ledger or (self.retry_given_up and self.ledger.gave_up(request.key)):
                return _Due(now, next(self.order), request)
            self.tally.skipped += 1
            if self.tally.skipped % SKIPS_A_TURN == 0:
                await asyncio.sleep(0)  # for signals, and for what is in flight
                if self.stopped is not None:
                    return None
        return None

    async def _send(self, due: _Due) -> None:
        try:
            reservation = self.budget.reserve(due.request)
        except CapReached as reached:
            heapq.heappush(self.retries, due)
            if self.tasks:  # one of them may cost less than its worst
                await self._wait(None)
            else:
                self.stop(str(reached))
            return
        task = asyncio.create_task(self._settle(due, reservation))
        self.tasks.add(task)
        task.add_done_callback(self._landed)

    async def _wait(self, until: float | None) -> None:
        """For something to change, or for a time to come."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(until):
                await self.changed.wait()

    def _landed(self, task: asyncio.Task) -> None:
        self.tasks.discard(task)
        self.changed.set()
        if not task.cancelled() and (error := task.exception()) is not None:
            self.stop(error)

    def stop(self, why: str | Exception) -> None:
        """Send no more."""
        if self.stopped is None or (isinstance(why, Exception) and not isinstance(self.stopped, Exception)):
            self.stopped = why
        self.changed.set()

    async def _settle(self, due: _Due, reservation: Reservation) -> None:
        """One try, into the ledger or back among the retries. What it raises ends the run."""
        key = due.request.key
        try:
            await self.ledger.sending(key, reservation.worst)
        except FailedError:
            self.budget.cancel(reservation)
            raise
        try:
            async with asyncio.timeout(self.timeout_s):
                answer = await self.client.ask(due.request)
        except Throttled as error:
            self.ledger.tried(key, self.budget.release(reservation))
            self._throttled(due, error)
        except (Unavailable, TimeoutError) as error:
            self.ledger.tried(key, self.budget.settle(reservation, None))
            reason = str(error) or f"no answer in {self.timeout_s:g} s"
            due.failures += 1
            if due.failures >= self.attempts:
                await self._keep(due.request, None, reason)
            else:
                self._retry(due, pace.wait_s(key, due.failures))
        except Refused as error:
            self.ledger.tried(key, self.budget.release(reservation))
            await self._keep(due.request, None, str(error))
        except OutOfQuotaError:
            self.ledger.tried(key, self.budget.release(reservation))
            raise
        except Exception:  # a fault of the client's: who knows how far it came
            self.ledger.tried(key, self.budget.settle(reservation, None))
            raise
        else:
            self.ledger.tried(key, self.budget.settle(reservation, answer))
            await self._keep(due.request, answer, None)
            self.pace.answered()
            self.last_answer = self.loop.time()

    def _throttled(self, due: _Due, error: Throttled) -> None:
        now = self.loop.time()
        self.pace.throttled(now, error.retry_after_s)
        # That is not the request's fault, so it is no reason to give it up; but there is an end to it.
        if now + (error.retry_after_s or 0) - self.last_answer > PATIENCE_S:
            raise OutOfQuotaError(f"throttled for {PATIENCE_S / 60:.0f} minutes and no end to it: {error}")
        due.throttled += 1
        self._retry(due, (error.retry_after_s or 0) + pace.wait_s(due.request.key, due.throttled))

    def _retry(self, due: _Due, wait_s: float) -> None:
        due.when = self.loop.time() + wait_s
        heapq.heappush(self.retries, due)

    async def _keep(self, request: Request, answer: Answer | None, gave_up: str | None) -> None:
        await self.tally.settle(request, answer, gave_up)
        self.given_up_in_a_row = 0 if answer is not None else self.given_up_in_a_row + 1
        if self.given_up_in_a_row >= HOPELESS:
            raise FailedError(f"{HOPELESS} requests in a row were given up, the last one: {gave_up}")

    async def tell_all_along(self, tell: Callable[[Snapshot], None]) -> None:
        """Where the run stands, again and again."""
        while True:
            tell(self.snapshot())
            await asyncio.sleep(TELL_EVERY_S)

    def snapshot(self) -> Snapshot:
        """Where the run stands."""
        paused_s = max(0.0, self.pace.paused_until - self.loop.time())
        return self.tally.snapshot(in_flight=len(self.tasks), waiting=len(self.retries), paused_s=paused_s)
