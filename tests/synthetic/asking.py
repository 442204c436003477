"""Requests, a client that answers as a pure function of the request, and a clock that does not make tests wait."""

import asyncio
import os
import random
import selectors
from fractions import Fraction
from pathlib import Path

from e5jax.synthetic import runner
from e5jax.synthetic.budget import Budget
from e5jax.synthetic.config import CapsConfig
from e5jax.synthetic.ledger import Ledger
from e5jax.synthetic.request import Answer, Request, Sampling
from e5jax.synthetic.tally import Report


PRICES = {"m": {"prompt": Fraction(1), "answer": Fraction(10), "batch": Fraction(1, 2)}}
SAMPLING = Sampling(model="m", temperature=1.0, top_p=1.0, max_tokens=1_000)


def request(number: int) -> Request:
    return Request(
        kind="example",
        task_type="sts",
        number=number,
        prompt_version="1",
        prompt=f"Write sentence {number} in Ελληνικά.",
        schema={"type": "object"},
        drawn={"language": "el"},
        sampling=SAMPLING,
    )


def plan(count: int) -> list[Request]:
    return [request(number) for number in range(count)]


def answer(asked: Request, finish_reason: str = "stop") -> Answer:
    """Decided by the request alone."""
    draw = random.Random(asked.key)
    return Answer(
        text=f"answer to {asked.number}",
        finish_reason=finish_reason,
        prompt_tokens=draw.randint(10, 40),
        answer_tokens=draw.randint(20, 1_000),
        model_version="m-1",
        response_id=asked.key[:8],
    )


def bill(answered: Answer) -> int:
    """Nano-dollars."""
    return answered.prompt_tokens * 1_000 + answered.answer_tokens * 10_000


class FakeClient:
    """`script` has, by request number, what becomes of its tries: exceptions, answers, seconds; then it is answered."""

    def __init__(self, script: dict[int, list] | None = None, delay_s: float = 0.01, log: Path | None = None):
        self.script, self.delay_s = script or {}, delay_s
        self.asked: list[int] = []
        self.times: list[float] = []
        self.in_flight = self.most = 0
        self.log = None if log is None else os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    async def ask(self, asked: Request) -> Answer:
        self.asked.append(asked.number)
        self.times.append(asyncio.get_running_loop().time())
        if self.log is not None:
            os.write(self.log, f"{asked.number} {bill(answer(asked))}\n".encode())
        self.in_flight += 1
        self.most = max(self.most, self.in_flight)
        try:
            await asyncio.sleep(self.delay_s)
            outcomes = self.script.get(asked.number)
            outcome = (outcomes.pop(0) if len(outcomes) > 1 else outcomes[0]) if outcomes else None
            if isinstance(outcome, float):
                await asyncio.sleep(outcome)
            if isinstance(outcome, Exception):
                raise outcome
            return outcome if isinstance(outcome, Answer) else answer(asked)
        finally:
            self.in_flight -= 1

    async def close(self) -> None:
        pass


class JumpingLoop(asyncio.SelectorEventLoop):
    """Its clock jumps to the next timer as soon as there is nothing else to do; threads are waited for."""

    def __init__(self):
        self.now, self.busy, loop = 1_000.0, 0, self

        class Jumping(selectors.DefaultSelector):
            def select(self, timeout=None):
                if timeout and not loop.busy:
                    loop.now += timeout
                    timeout = 0
                return super().select(timeout and 0.01)

        super().__init__(Jumping())

    def time(self) -> float:
        return self.now

    def run_in_executor(self, executor, function, *args):
        self.busy += 1
        future = super().run_in_executor(executor, function, *args)
        future.add_done_callback(lambda _: setattr(self, "busy", self.busy - 1))
        return future


def ask_all(
    folder: Path,
    requests,
    client,
    *,
    caps: CapsConfig | None = None,
    concurrency: int = 8,
    attempts: int = 3,
    retry_given_up: bool = False,
    loop_factory=JumpingLoop,
    tell=lambda at: None,
) -> Report:
    """A whole run, ledger opened and closed."""
    with Ledger(folder) as ledger, asyncio.Runner(loop_factory=loop_factory) as loop:
        budget = Budget(caps or CapsConfig(), PRICES, "m", batch=False, spent=ledger.spent)
        return loop.run(
            runner.run(
                requests,
                client,
                ledger,
                budget,
                client_name="fake",
                concurrency=concurrency,
                attempts=attempts,
                timeout_s=30.0,
                retry_given_up=retry_given_up,
                tell=tell,
            )
        )
