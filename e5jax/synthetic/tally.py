"""What a run of requests has come to, while it goes on (Snapshot) and at its end (Report)."""

import collections
import dataclasses
from collections.abc import Callable

from e5jax.synthetic import entries
from e5jax.synthetic.budget import Budget, Spent
from e5jax.synthetic.ledger import Ledger
from e5jax.synthetic.request import Answer, Request


@dataclasses.dataclass(frozen=True, kw_only=True)
class Snapshot:
    """Where a run stands."""

    done: int
    """Answered in this run."""
    failed: int
    """Given up in this run."""
    skipped: int
    """Settled before, so not asked."""
    in_flight: int
    waiting: int
    """To be tried again."""
    tokens: int
    """Of this run's answers."""
    spent: int
    """Nano-dollars, of the whole ledger."""
    left: int | None
    """Nano-dollars under the cap, what is in flight at its worst; None without a cap."""
    seconds: float
    paused_s: float
    """Until the server wants more."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """What a run came to."""

    done: int
    gave_up: dict[str, int]
    """How many, by reason."""
    finish_reasons: dict[str, int]
    skipped: int
    spent: Spent
    """Of the whole ledger."""
    stopped: str | None
    """Why the run ended before the plan did (a cap, a signal); None where all is settled."""
    seconds: float


class Tally:
    """Settles requests in the ledger and counts them. `clock` tells seconds."""

    def __init__(self, ledger: Ledger, budget: Budget, client_name: str, clock: Callable[[], float]):
        self._ledger, self._budget, self._client_name, self._clock = ledger, budget, client_name, clock
        self._start = clock()
        self._done = self._tokens = 0
        self._gave_up: collections.Counter[str] = collections.Counter()
        self._finish_reasons: collections.Counter[str] = collections.Counter()
        self.skipped = 0
        """Requests that the ledger had: for the run to count."""

    async def settle(self, request: Request, answer: Answer | None, gave_up: str | None) -> None:
        """An answer, or the reason why there is none, is on disk on return."""
        spent = self._ledger.unsettled(request.key)
        await self._ledger.append(entries.entry(request, answer, gave_up, spent, self._client_name))
        if answer is None:
            self._gave_up[gave_up[:200]] += 1
            return
        self._done += 1
        self._tokens += answer.prompt_tokens + answer.answer_tokens
        self._finish_reasons[answer.finish_reason] += 1

    def snapshot(self, *, in_flight: int, waiting: int, paused_s: float) -> Snapshot:
        """Where the run stands."""
        return Snapshot(
            done=self._done,
            failed=self._gave_up.total(),
            skipped=self.skipped,
            in_flight=in_flight,
            waiting=waiting,
            tokens=self._tokens,
            spent=self._budget.spent.nanodollars,
            left=self._budget.left(),
            seconds=self._clock() - self._start,
            paused_s=paused_s,
        )

    def report(self, stopped: str | None) -> Report:
        """What the run came to."""
        return Report(
            done=self._done,
            gave_up=dict(self._gave_up),
            finish_reasons=dict(self._finish_reasons),
            skipped=self.skipped,
            spent=self._budget.spent,
            stopped=stopped,
            seconds=self._clock() - self._start,
        )
