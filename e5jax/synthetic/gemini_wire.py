"""What Gemini's answers and errors mean, for both of its SDKs and for the lines of a batch."""

import os
import re
from collections.abc import Mapping
from typing import Any

from e5jax.errors import UserError
from e5jax.synthetic import faults
from e5jax.synthetic.keys import Key
from e5jax.synthetic.request import Answer, AskError, OutOfQuotaError, Request, Unavailable


VARIABLES = ("GOOGLE_API_KEY", "GEMINI_API_KEY")  # google-genai's order: it warns where both are set
FINISH = {
    "STOP": "stop",
    "MAX_TOKENS": "max_tokens",
    "SAFETY": "safety",
    "PROHIBITED_CONTENT": "safety",
    "BLOCKLIST": "safety",
    "SPII": "safety",
    "RECITATION": "recitation",
}
# Thoughts are billed and count against max_tokens, and a text in the style asked for needs none: the least that each
# model can do. What is not here (gemini-2.0 and older) does not think.
THINKING = (
    ("gemini-2.5-pro", {"thinkingBudget": 128}),
    ("gemini-2.5", {"thinkingBudget": 0}),
    ("gemini-3", {"thinkingLevel": "LOW"}),
)


def base_url() -> str | None:
    """Where GOOGLE_GEMINI_BASE_URL points; None: Google. UserError for what is no URL."""
    url = os.environ.get("GOOGLE_GEMINI_BASE_URL") or None
    if url is not None and not re.match(r"https?://[^/]", url):
        raise UserError(f"GOOGLE_GEMINI_BASE_URL is no URL (http://… or https://…): {url}")
    return url


def generation_config(request: Request) -> dict:
    """How the model is to draw its answer, in the names of the wire."""
    sampling = request.sampling
    name = sampling.model.removeprefix("models/")
    thinking = next((config for prefix, config in THINKING if name.startswith(prefix)), None)
    return {
        "temperature": sampling.temperature,
        "topP": sampling.top_p,
        "maxOutputTokens": sampling.max_tokens,
        # From the key: equal prompts with different numbers differ in their answers, the same request does not.
        "seed": int(request.key[:8], 16) >> 1,
        "responseMimeType": "application/json",
        "responseJsonSchema": request.schema,
        **({"thinkingConfig": thinking} if thinking else {}),
    }


def answer(response: Any) -> Answer:
    """A GenerateContentResponse of either SDK -> an Answer.

    A prompt that was blocked has been answered (`blocked`): it would be again. Raises Unavailable where there is no
    candidate and no reason for that: a fault of the server's that passes.
    """
    usage = response.usage_metadata
    prompt_tokens = getattr(usage, "prompt_token_count", None) or 0
    # The older SDK does not know of thoughts; the total holds them.
    written = (getattr(usage, "candidates_token_count", None) or 0) + (
        getattr(usage, "thoughts_token_count", None) or 0
    )
    total = getattr(usage, "total_token_count", None) or 0
    about = {
        "prompt_tokens": prompt_tokens,
        "answer_tokens": max(written, total - prompt_tokens),
        "model_version": getattr(response, "model_version", None) or "",
        "response_id": getattr(response, "response_id", None) or "",
    }
    feedback = response.prompt_feedback
    if feedback is not None and feedback.block_reason:
        return Answer(text="", finish_reason="blocked", **about)
    if not response.candidates:
        raise Unavailable("an answer without candidates")
    candidate = response.candidates[0]
    parts = (candidate.content.parts or ()) if candidate.content is not None else ()
    text = "".join(part.text or "" for part in parts if not getattr(part, "thought", False))
    finish = FINISH.get(getattr(candidate.finish_reason, "name", ""), "other")
    return Answer(text=text, finish_reason="other" if finish == "stop" and not text else finish, **about)


def error(
    status: int, body: Any, message: str | None, headers: Mapping[str, str], key: Key
) -> AskError | OutOfQuotaError:
    """An HTTP error, its JSON body ({"error": {…}} or that object itself) and its headers -> the error to raise."""
    said = body.get("error", body) if isinstance(body, dict) else {}
    details = [detail for detail in said.get("details") or () if isinstance(detail, dict)]
    found = {str(detail.get("@type", "")).rsplit(".", 1)[-1]: detail for detail in details}
    delay = re.fullmatch(r"(\d+(?:\.\d+)?)s", str(found.get("RetryInfo", {}).get("retryDelay", "")))
    message = key.redact(str(said.get("message") or message or "no message"))
    return faults.fault(status, message, float(delay[1]) if delay else faults.retry_after(headers), _final(found, said))


def _final(found: Mapping[str, dict], said: Mapping) -> str | None:
    violations = found.get("QuotaFailure", {}).get("violations") or ()
    if any("perday" in str(v.get("quotaId", "")).lower() for v in violations):
        return "the quota of the day is used up"
    if found.get("ErrorInfo", {}).get("reason") in ("API_KEY_INVALID", "API_KEY_SERVICE_BLOCKED"):
        return "the API key is not accepted"
    if said.get("status") == "FAILED_PRECONDITION":  # no billing, or a country without the API
        return "the account cannot use the API"
    return None
