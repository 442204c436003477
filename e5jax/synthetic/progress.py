"""Where a run of requests stands, for people: a bar on a terminal, elsewhere a plain line every ten seconds."""

import sys

from tqdm import tqdm

from e5jax.synthetic.budget import dollars
from e5jax.synthetic.tally import Snapshot


EVERY_S = 10.0


class Progress:
    """`tell` of runner.run, for a plan of so many requests. Close it at the end."""

    def __init__(self, total: int):
        self._total, self._told, self._last = total, 0.0, None
        self._terminal = sys.stderr.isatty()
        self._bar = tqdm(total=total, unit="", dynamic_ncols=True, disable=not self._terminal)

    def __call__(self, at: Snapshot) -> None:
        """Show it."""
        self._last = at
        if self._terminal:
            self._bar.n = at.skipped + at.done + at.failed
            self._bar.set_postfix_str(_words(at))
        elif at.seconds - self._told >= EVERY_S:
            self._say(at)

    def close(self) -> None:
        """Leave the terminal tidy; say where it ended."""
        self._bar.close()
        if self._last is not None and self._last.done + self._last.failed:
            self._say(self._last)

    def _say(self, at: Snapshot) -> None:
        self._told = at.seconds
        settled = at.done + at.failed
        left = self._total - at.skipped - settled
        time_left = f", {left / settled * at.seconds:,.0f} s left" if settled and left > 0 else ""
        print(f"{at.skipped + settled:,} of {self._total:,} requests: {_words(at)}{time_left}", flush=True)


def _words(at: Snapshot) -> str:
    words = f"{at.done:,} done, {at.failed:,} failed, {at.in_flight:,} in flight, {dollars(at.spent)} spent"
    words += "" if at.left is None else f" ({dollars(at.left)} left)"
    words += f", {at.tokens / max(at.seconds, 1e-9):,.0f} tokens/s"
    return words + (f", paused for {at.paused_s:,.0f} s" if at.paused_s else "")
