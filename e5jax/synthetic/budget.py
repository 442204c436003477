"""What a job costs, and the caps that it never passes.

Money is counted in whole nano-dollars ($1 is 1,000,000,000), each request rounded up: sums are exact. Before a request
is sent its worst case is reserved, so that whatever is in flight fits under the caps together with what was spent. A
try that may have been billed without an answer stays counted at its worst.

The price table is JSON, {model: {"prompt": $ per million tokens, "answer": likewise, "batch": the Batch API's factor}}.
A file of the user's adds to the built-in one and wins over it; its entry "*" stands for every model that is not named,
which is how a server of one's own is free: {"*": {"prompt": 0, "answer": 0}}.
"""

import dataclasses
import json
import math
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path

from e5jax.errors import UserError
from e5jax.records import existing
from e5jax.synthetic.config import CapsConfig
from e5jax.synthetic.request import Answer, Request


BUILT_IN = Path(__file__).with_name("prices.json")
FREE = {"*": {"prompt": Fraction(0), "answer": Fraction(0), "batch": Fraction(1)}}
NANODOLLARS = 10**9
# What a server puts around a prompt: turn markers, the words that introduce a schema.
WRAPPING_TOKENS = 256

Prices = Mapping[str, Mapping[str, Fraction]]


@dataclasses.dataclass(frozen=True, slots=True)
class Spent:
    """What was paid, or may have been."""

    nanodollars: int
    tokens: int
    """Prompt and answer together."""
    requests: int
    """Tries that were sent, whatever became of them."""

    def __add__(self, other: "Spent") -> "Spent":
        return Spent(self.nanodollars + other.nanodollars, self.tokens + other.tokens, self.requests + other.requests)

    def __sub__(self, other: "Spent") -> "Spent":
        return Spent(self.nanodollars - other.nanodollars, self.tokens - other.tokens, self.requests - other.requests)


NOTHING = Spent(0, 0, 0)
UNBILLED = Spent(0, 0, 1)


class CapReached(Exception):
    """The next request might pass a cap; the message says which, and what is spent and in flight."""


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Reservation:
    """Room under the caps for one try."""

    worst: Spent


class Budget:
    """The caps, what is spent, and what is in flight. `spent` at first is what the ledger has (Ledger.spent)."""

    def __init__(self, caps: CapsConfig, prices: Prices, model: str, *, batch: bool, spent: Spent):
        """UserError for a model without a price."""
        price = price_of(prices, model)
        factor = 1_000 * (price["batch"] if batch else 1)  # $ per million tokens -> nano-dollars per token
        self._prompt, self._answer = price["prompt"] * factor, price["answer"] * factor
        # str(): the decimal number that was typed, not the binary one beside it.
        dollars = None if caps.dollars is None else math.floor(Fraction(str(caps.dollars)) * NANODOLLARS)
        self.caps = {"nanodollars": dollars, "tokens": caps.tokens, "requests": caps.requests}
        self.spent = spent
        self.in_flight = NOTHING
        self._reserved: set[Reservation] = set()

    def worst_case(self, request: Request) -> Spent:
        """No bill for one try of it is higher: no tokenizer makes more tokens than there are bytes."""
        schema = json.dumps(request.schema, ensure_ascii=False)
        prompt = len(request.prompt.encode("utf-8", "surrogatepass")) + len(schema.encode()) + WRAPPING_TOKENS
        return self._cost(prompt, request.sampling.max_tokens)

    def reserve(self, request: Request) -> Reservation:
        """Room for one try; CapReached where its worst case might pass a cap. Settle or release it, once."""
        worst = self.worst_case(request)
        would_be = self.spent + self.in_flight + worst
        for name, cap in self.caps.items():
            if cap is not None and getattr(would_be, name) > cap:
                say = dollars if name == "nanodollars" else lambda n, name=name: f"{n:,} {name}"
                spent, flying, more = (getattr(part, name) for part in (self.spent, self.in_flight, worst))
                raise CapReached(
                    f"the cap of {say(cap)} leaves no room: {say(spent)} spent, at the most {say(flying)} in flight "
                    f"and {say(more)} for the next request"
                )
        reservation = Reservation(worst)
        self._reserved.add(reservation)
        self.in_flight += worst
        return reservation

    def resume(self, request: Request) -> Reservation | None:
        """A try of a former process, in `spent` at its worst, is in flight again; None where a lowered cap has no room.

        Without a reservation it stays counted at its worst for good.
        """
        worst = self.worst_case(request)
        self.spent -= worst
        try:
            return self.reserve(request)
        except CapReached:
            self.spent += worst
            return None

    def settle(self, reservation: Reservation, answer: Answer | None) -> Spent:
        """What the try is counted at: what its answer used; its worst case without one, as it may have been billed."""
        if answer is None or answer.prompt_tokens + answer.answer_tokens == 0:  # it does not say what it used
            return self._count(reservation, reservation.worst)
        return self._count(reservation, self._cost(answer.prompt_tokens, answer.answer_tokens))

    def release(self, reservation: Reservation) -> Spent:
        """The try was turned away unbilled; it counts as a request and costs nothing."""
        return self._count(reservation, UNBILLED)

    def cancel(self, reservation: Reservation) -> None:
        """The try was never sent."""
        self._count(reservation, NOTHING)

    def left(self) -> int | None:
        """Nano-dollars under the cap, less what is in flight; None without a cap."""
        cap = self.caps["nanodollars"]
        return None if cap is None else cap - self.spent.nanodollars - self.in_flight.nanodollars

    def _cost(self, prompt_tokens: int, answer_tokens: int) -> Spent:
        nanodollars = math.ceil(prompt_tokens * self._prompt + answer_tokens * self._answer)
        return Spent(nanodollars, prompt_tokens + answer_tokens, 1)

    def _count(self, reservation: Reservation, spent: Spent) -> Spent:
        self._reserved.remove(reservation)
        self.in_flight -= reservation.worst
        self.spent += spent
        return spent


def read_prices(path: str | None) -> Prices:
    """The built-in table, with the entries of a file over it; UserError, by model, for what is no price."""
    prices = _read(BUILT_IN)
    return prices if path is None else {**prices, **_read(existing(path))}


def price_of(prices: Prices, model: str) -> Mapping[str, Fraction]:
    """The prices of a model; UserError naming those that are known."""
    if model not in prices and "*" not in prices:
        raise UserError(
            f"no price for {model!r}; known: {', '.join(sorted(prices))}. Say what it costs in a file given as "
            f'--prices: {{"{model}": {{"prompt": $ per million tokens, "answer": $ per million tokens}}}}, '
            "zeros for a server of your own"
        )
    return prices.get(model) or prices["*"]


def dollars(nanodollars: int) -> str:
    """For people: rounded up to a hundredth of a cent, cents alone from $100."""
    places = 2 if nanodollars >= 100 * NANODOLLARS else 4
    unit = NANODOLLARS // 10**places
    whole = -(-nanodollars // unit)
    return f"${whole // 10**places:,}.{whole % 10**places:0{places}d}"


def _read(path: Path) -> Prices:
    try:
        table = json.loads(path.read_text(encoding="utf-8"), parse_float=Fraction, parse_int=Fraction)
    except (ValueError, OSError, RecursionError) as error:
        raise UserError(f"{path}: not a price table in JSON: {error}") from None
    if not isinstance(table, dict):
        raise UserError(f"{path}: not a price table: an object of prices by model is needed")
    return {model: _checked(path, model, price) for model, price in table.items()}


def _checked(path: Path, model: str, price) -> Mapping[str, Fraction]:
    price = {"batch": Fraction(1), **price} if isinstance(price, dict) else {}
    if set(price) != {"prompt", "answer", "batch"}:
        raise UserError(f'{path}: {model}: a price is {{"prompt": ..., "answer": ..., "batch": ...}}, batch may lack')
    for name, value in price.items():
        if not isinstance(value, Fraction) or value < 0:
            raise UserError(f"{path}: {model}: {name} must be a number and not negative, got {value!r}")
    return price
