"""What is asked of an LLM, what it says, and the ways in which it does not.

Everything between the plan and the ledger speaks in these terms; a client turns them into one API's.
"""

import dataclasses
import functools
import hashlib
import json
from typing import Literal, Protocol

from e5jax.errors import FailedError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the model draws its answer."""

    model: str
    temperature: float
    top_p: float
    max_tokens: int
    """Of an answer; one that reaches it is cut off, and thrown away."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """One prompt to one model."""

    kind: Literal["brainstorm", "example", "query", "ranking"]
    task_type: str
    number: int
    """Its place in the plan: what makes two equal prompts two requests."""
    prompt_version: str
    prompt: str
    schema: dict
    """JSON schema of the answer, for APIs that hold a model to one."""
    drawn: dict[str, str]
    """The placeholders' values: language, num_words, task, ..."""
    sampling: Sampling

    @functools.cached_property
    def key(self) -> str:
        """sha256 of all that the answer depends on: the name under which the ledger keeps it."""
        fields = {name: getattr(self, name) for name in ("kind", "task_type", "number", "prompt_version", "prompt")}
        content = {**fields, **dataclasses.asdict(self.sampling)}
        return hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answer:
    """What came back, as it came."""

    text: str
    finish_reason: Literal["stop", "max_tokens", "safety", "recitation", "blocked", "other"]
    prompt_tokens: int
    answer_tokens: int
    """Billed as output: thoughts included."""
    model_version: str
    response_id: str


class Client(Protocol):
    """One API. `ask` may be called hundreds of times at once; it does not retry and does not wait."""

    async def ask(self, request: Request) -> Answer:
        """Raises one of the errors below, and no other."""

    async def close(self) -> None:
        """Let go of connections."""


class AskError(Exception):
    """A request without an answer. The message never holds a key."""


class Throttled(AskError):
    """Too many requests just now (429): again later, and fewer at a time."""

    def __init__(self, message: str, retry_after_s: float | None):
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Unavailable(AskError):
    """A fault that passes: 408, 5xx, a dropped connection, a time-out. It may have been billed."""


class Refused(AskError):
    """This request will never be answered: malformed, too long, blocked before the model saw it."""


class OutOfQuotaError(FailedError):
    """Nothing will be answered today: a quota of the day, no credit, a key that is not accepted."""
