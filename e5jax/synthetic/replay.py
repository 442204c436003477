"""Answers of another ledger: the same run once more, unpaid, also for another model's name or other sampling."""

import hashlib
from pathlib import Path

from e5jax import places
from e5jax.errors import UserError
from e5jax.synthetic import entries
from e5jax.synthetic.request import Answer, Refused, Request


class ReplayClient:
    """Every answer of a ledger, in memory (some 3 GB for half a million). No network, no key.

    What counts is what was asked: kind, task type, number and prompt; the key would bind model and sampling too.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._answers: dict[bytes, Answer | str] = {}
        for entry in entries.read(folder):
            request, answer = entry["request"], entry["answer"]
            place = _place(request["kind"], request["task_type"], request["number"], request["prompt"])
            self._answers[place] = f"given up: {entry['gave_up']}" if answer is None else Answer(**answer)
        if not self._answers:
            raise UserError(f"{folder}: this ledger has no answers to replay")

    async def ask(self, request: Request) -> Answer:
        """See `Client`; Refused where the ledger has no answer."""
        place = _place(request.kind, request.task_type, request.number, request.prompt)
        answer = self._answers.get(place, "never asked with this prompt")
        if isinstance(answer, str):
            raise Refused(f"{self._folder}: {request.kind} {request.number} of {request.task_type} was {answer}")
        return answer

    async def close(self) -> None:
        """See `Client`."""


def _place(kind: str, task_type: str, number: int, prompt: str) -> bytes:
    content = "\0".join((kind, task_type, str(number), prompt))
    return hashlib.sha256(content.encode("utf-8", "surrogatepass")).digest()[:16]


def open_client(*, model: str, key_file: str | None, timeout_s: float, replay: str | None) -> ReplayClient:
    """A client that answers from the ledger folder `replay`."""
    if replay is None:
        raise UserError("the client replay needs --replay LEDGER")
    return ReplayClient(places.local(replay))
