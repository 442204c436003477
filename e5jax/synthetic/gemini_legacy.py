"""Gemini through google-generativeai: the older SDK, out of support since the end of 2025, still in wide use.

Its asynchronous calls need gRPC, which no HTTP stand-in speaks; here it sends JSON over HTTP from threads. It does not
know of JSON schemas (an OpenAPI subset stands in), seeds, thinking or batches.
"""

import asyncio
import warnings
from concurrent.futures import ThreadPoolExecutor

import requests.adapters
from google.protobuf.json_format import ParseError

from e5jax.synthetic import gemini_wire
from e5jax.synthetic.keys import Key, redact_logs, require_key
from e5jax.synthetic.request import Answer, Request, Unavailable


with warnings.catch_warnings():  # ten lines on its end of support, at each start
    warnings.simplefilter("ignore", FutureWarning)
    import google.generativeai as genai
    from google.api_core import exceptions
    from google.auth.exceptions import GoogleAuthError
    from google.generativeai.client import get_default_generative_client


LOGGERS = ("google", "urllib3", "requests")
THREADS = 256
OPENAPI = ("type", "items", "properties", "required", "enum")


class GeminiLegacyClient:
    """google-generativeai's blocking calls, each in a thread. One at a time in a process: the SDK's setup is global."""

    def __init__(self, key: Key, model: str, timeout_s: float):
        options = {"api_endpoint": url} if (url := gemini_wire.base_url()) else None
        genai.configure(api_key=key.reveal(), transport="rest", client_options=options)
        self._key = key
        self._timeout_s = timeout_s
        self._model = genai.GenerativeModel(model)
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="gemini-legacy")
        # The session beneath keeps ten connections and warns about each one more; and after a 401 it asks twice again.
        session = get_default_generative_client().transport._session
        session._max_refresh_attempts = 0
        for scheme in ("http://", "https://"):
            session.mount(scheme, requests.adapters.HTTPAdapter(pool_connections=1, pool_maxsize=THREADS))
        redact_logs(key, LOGGERS)

    async def ask(self, request: Request) -> Answer:
        """See `Client`."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._ask, request)

    def _ask(self, request: Request) -> Answer:
        sampling = request.sampling
        config = {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_output_tokens": sampling.max_tokens,
            "response_mime_type": "application/json",
            "response_schema": openapi(request.schema),
        }
        try:
            response = self._model.generate_content(
                request.prompt,
                generation_config=config,
                # Left out, a 503 is tried again for ten minutes in here.
                request_options={"retry": None, "timeout": self._timeout_s},
            )
        except exceptions.GoogleAPICallError as error:
            headers = getattr(error.response, "headers", None) or {}
            raise gemini_wire.error(int(error.code or 500), _body(error), error.message, headers, self._key) from None
        except (exceptions.GoogleAPIError, GoogleAuthError, requests.RequestException, ParseError, ValueError) as error:
            raise Unavailable(f"{type(error).__name__}: no whole answer") from None
        return gemini_wire.answer(response)

    async def close(self) -> None:
        """See `Client`."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def _body(error: exceptions.GoogleAPICallError) -> object:
    """What the server said; the error's own message has the request's address before it."""
    try:
        return error.response.json()
    except (AttributeError, ValueError):  # no response, or no JSON
        return None


def openapi(schema: dict) -> dict:
    """A JSON schema in the subset of OpenAPI that this SDK can send: additionalProperties and more are left out."""
    kept = {name: value for name, value in schema.items() if name in OPENAPI}
    if "items" in kept:
        kept["items"] = openapi(kept["items"])
    if "properties" in kept:
        kept["properties"] = {name: openapi(value) for name, value in kept["properties"].items()}
    return kept


def open_client(*, model: str, key_file: str | None, timeout_s: float, replay: str | None) -> GeminiLegacyClient:
    """A client with the key of GOOGLE_API_KEY, GEMINI_API_KEY or a file."""
    return GeminiLegacyClient(require_key(gemini_wire.VARIABLES, key_file), model, timeout_s)
