"""A run to be killed: python -m tests.synthetic.killed LEDGER LOG REQUESTS DOLLARS. Says so when it starts to ask."""

import sys
from pathlib import Path

from e5jax.synthetic.config import CapsConfig
from tests.synthetic.asking import FakeClient, ask_all, plan


class Announcing(FakeClient):
    async def ask(self, asked):
        if not self.asked:
            print("asking", flush=True)
        return await super().ask(asked)


if __name__ == "__main__":
    folder, log, count, dollars = sys.argv[1:]
    client = Announcing(delay_s=0.02, log=Path(log))
    caps = CapsConfig(dollars=float(dollars) or None)
    report = ask_all(Path(folder), plan(int(count)), client, caps=caps, concurrency=64, loop_factory=None)
    print("settled", report.stopped)
