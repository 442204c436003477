"""Gemini through google-genai, a request at a time."""

import httpx2
from google import genai
from google.genai import errors, types

from e5jax.synthetic import gemini_wire
from e5jax.synthetic.keys import Key, redact_logs, require_key
from e5jax.synthetic.request import Answer, Request, Unavailable


LOGGERS = ("google", "google_genai", "httpx2", "httpcore2")


def sdk(key: Key, timeout_s: float, connections: httpx2.AsyncClient) -> genai.Client:
    """google-genai as this project uses it: the Gemini API (never Vertex), no retries, a time-out on every call."""
    options = types.HttpOptions(
        base_url=gemini_wire.base_url(),
        api_version="v1beta",  # left out, it is v1, which knows no JSON schema
        timeout=int(timeout_s * 1_000),
        httpx_async_client=connections,
    )
    client = genai.Client(api_key=key.reveal(), vertexai=False, http_options=options)
    redact_logs(key, LOGGERS)
    return client


def open_connections() -> httpx2.AsyncClient:
    """As many as there are requests, to be closed by who opened them.

    Left to itself the SDK opens 100, or takes aiohttp where that is installed, with a hidden retry.
    """
    return httpx2.AsyncClient(limits=httpx2.Limits(max_connections=None, max_keepalive_connections=None))


class GeminiClient:
    """google-genai's asynchronous calls."""

    def __init__(self, key: Key, timeout_s: float):
        self._key = key
        self._connections = open_connections()
        self._sdk = sdk(key, timeout_s, self._connections)

    async def ask(self, request: Request) -> Answer:
        """See `Client`."""
        config = types.GenerateContentConfig.model_validate(gemini_wire.generation_config(request))
        try:
            response = await self._sdk.aio.models.generate_content(
                model=request.sampling.model, contents=request.prompt, config=config
            )
        except errors.APIError as error:
            headers = getattr(error.response, "headers", None) or {}
            raise gemini_wire.error(error.code, error.details, error.message, headers, self._key) from None
        except (httpx2.HTTPError, errors.UnknownApiResponseError, ValueError) as error:
            # ValueError: JSON that is cut off, or no answer at all (pydantic).
            raise Unavailable(f"{type(error).__name__}: no whole answer") from None
        return gemini_wire.answer(response)

    async def close(self) -> None:
        """See `Client`."""
        await self._connections.aclose()


def open_client(*, model: str, key_file: str | None, timeout_s: float, replay: str | None) -> GeminiClient:
    """A client with the key of GOOGLE_API_KEY, GEMINI_API_KEY or a file."""
    return GeminiClient(require_key(gemini_wire.VARIABLES, key_file), timeout_s)
