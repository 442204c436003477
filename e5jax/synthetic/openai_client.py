"""OpenAI, Azure OpenAI, and every server that speaks chat completions (vLLM, Ollama, llama.cpp, gateways)."""

import os
import re

import openai

from e5jax.errors import UserError
from e5jax.synthetic import faults
from e5jax.synthetic.keys import Key, read_key, redact_logs
from e5jax.synthetic.request import Answer, AskError, OutOfQuotaError, Request, Unavailable


LOGGERS = ("openai", "httpx2", "httpcore2")
FINISH = {"stop": "stop", "length": "max_tokens", "content_filter": "safety"}
FINAL = {
    "insufficient_quota": "the account has no credit or its quota is used up",
    "billing_hard_limit_reached": "the account's spending limit is reached",
    "invalid_api_key": "the API key is not accepted",
    "model_not_found": "no such model",
}
# From what a server should know to what each knows. A list cannot be asked for by schema: OpenAI wants an object.
FORMATS = ("json_schema", "json_object", None)
BLOCKED = Answer(text="", finish_reason="blocked", prompt_tokens=0, answer_tokens=0, model_version="", response_id="")


class OpenAIClient:
    """The openai SDK's asynchronous calls.

    A server that does not know a response format, or `max_tokens`, refuses it unpaid; the request goes out again
    without, and so does every later one.
    """

    def __init__(self, key: Key, timeout_s: float):
        settings = {"api_key": key.reveal(), "timeout": timeout_s, "max_retries": 0}
        if os.environ.get("AZURE_OPENAI_ENDPOINT"):
            if not os.environ.get("OPENAI_API_VERSION"):
                raise UserError("AZURE_OPENAI_ENDPOINT is set, OPENAI_API_VERSION is not: Azure needs both")
            self._sdk = openai.AsyncAzureOpenAI(**settings)
        else:
            self._sdk = openai.AsyncOpenAI(**settings)
        self._key = key
        self._format = 0
        self._max_tokens = "max_tokens"  # the name that every server but OpenAI's for its newest models knows
        redact_logs(key, LOGGERS)

    async def ask(self, request: Request) -> Answer:
        """See `Client`."""
        while True:
            tried = (self._format, self._max_tokens)
            try:
                return self._answer(await self._sdk.chat.completions.create(**self._call(request)))
            except openai.APIStatusError as error:
                if _filtered(error):
                    return BLOCKED
                if not self._gives_way(error, tried):
                    raise self._error(error) from None
            except (openai.OpenAIError, ValueError) as error:  # ValueError: JSON that is cut off
                raise Unavailable(f"{type(error).__name__}: no whole answer") from None

    def _call(self, request: Request) -> dict:
        sampling = request.sampling
        call = {
            "model": sampling.model,
            "messages": [{"role": "user", "content": request.prompt}],
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": int(request.key[:8], 16) >> 1,
            self._max_tokens: sampling.max_tokens,
        }
        kind = FORMATS[self._format] if request.schema.get("type") == "object" else None
        if kind is not None:
            call["response_format"] = {"type": kind}
        if kind == "json_schema":
            call["response_format"]["json_schema"] = {"name": request.kind, "strict": True, "schema": request.schema}
        return call

    def _gives_way(self, error: openai.APIStatusError, tried: tuple[int, str]) -> bool:
        """Whether the call can be put in another way, now or since another request found out."""
        if error.status_code not in (400, 422):
            return False
        said = f"{error.message} {error.param or ''}".lower()
        if (self._format, self._max_tokens) != tried:
            return True
        if "max_completion_tokens" in said and self._max_tokens == "max_tokens":
            self._max_tokens = "max_completion_tokens"
            return True
        if any(word in said for word in ("response_format", "json_schema", "json_object")) and FORMATS[self._format]:
            self._format += 1
            return True
        return False

    def _answer(self, response) -> Answer:
        if not getattr(response, "choices", None):  # a string, where a proxy answers with a page
            raise Unavailable("an answer without choices")
        choice, usage = response.choices[0], response.usage
        text = choice.message.content or ""
        finish = "safety" if getattr(choice.message, "refusal", None) else FINISH.get(choice.finish_reason, "other")
        return Answer(
            text=text,
            finish_reason="other" if finish == "stop" and not text else finish,
            prompt_tokens=usage.prompt_tokens if usage else 0,
            answer_tokens=usage.completion_tokens if usage else 0,  # holds the tokens of thoughts
            model_version=response.model or "",
            response_id=response.id or "",
        )

    def _error(self, error: openai.APIStatusError) -> AskError | OutOfQuotaError:
        said = self._key.redact(re.sub(r"^Error code: \d+ - ", "", error.message))
        reason = FINAL.get(error.code or "") or FINAL.get(error.type or "")
        return faults.fault(error.status_code, said, faults.retry_after(error.response.headers), reason)

    async def close(self) -> None:
        """See `Client`."""
        await self._sdk.close()


def _filtered(error: openai.APIStatusError) -> bool:
    """Azure's way of blocking a prompt."""
    return error.status_code == 400 and error.code == "content_filter"


def open_client(*, model: str, key_file: str | None, timeout_s: float, replay: str | None) -> OpenAIClient:
    """A client for OPENAI_BASE_URL, AZURE_OPENAI_ENDPOINT or OpenAI itself; servers of one's own need no key."""
    azure, own = os.environ.get("AZURE_OPENAI_ENDPOINT"), os.environ.get("OPENAI_BASE_URL")
    variable = "AZURE_OPENAI_API_KEY" if azure else "OPENAI_API_KEY"
    key = read_key((variable,), key_file)
    if key is None and (azure or not own):
        raise UserError(f"no API key: set {variable}, or name a file that holds it with --key-file")
    return OpenAIClient(key or Key("no-key-needed"), timeout_s)
