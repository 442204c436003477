"""How many requests may be in flight just now: fewer at once when the server says so, more again little by little."""

import random


CUT = 0.75
COOLDOWN_S = 2.0  # the refusals of one burst are one sign
ANSWERS_A_STEP = 25
FIRST_WAIT_S, LONGEST_WAIT_S = 1.0, 60.0


class Pace:
    """Additive increase, multiplicative decrease, and the pauses that a server asks for. Times are the loop's."""

    def __init__(self, most: int):
        self.limit = float(most)
        self.paused_until = 0.0
        self._most, self._answers, self._next_cut = most, 0, 0.0

    def may_send(self, in_flight: int, now: float) -> bool:
        """Whether one more may be sent."""
        return in_flight < int(self.limit) and now >= self.paused_until

    def answered(self) -> None:
        """An answer came."""
        self._answers += 1
        if self._answers >= ANSWERS_A_STEP:
            self._answers = 0
            self.limit = min(self._most, self.limit + 1)

    def throttled(self, now: float, retry_after_s: float | None) -> None:
        """A request was turned away; where the server says for how long, all wait."""
        self._answers = 0
        if now >= self._next_cut:
            self.limit = max(1.0, self.limit * CUT)
            self._next_cut = now + COOLDOWN_S
        if retry_after_s is not None:
            self.paused_until = max(self.paused_until, now + retry_after_s)


def wait_s(key: str, failures: int) -> float:
    """Seconds before a request is tried again: anywhere up to a bound that doubles, so that retries spread out.

    A function of the key: a run that is repeated waits as long.
    """
    longest = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2 ** min(failures - 1, 10))
    return random.Random(f"{key} {failures}").uniform(0, longest)
