"""Gemini's Batch API through google-genai: half the price, within a day. `batches.run` keeps the jobs.

A job's requests go up as a JSONL file and its answers come down as one, each line under its request's key.
"""

import contextlib
import io
import json
from collections.abc import Iterable, Iterator

import httpx2
from google.genai import errors, types

from e5jax.synthetic import gemini_wire
from e5jax.synthetic.batches import Ended
from e5jax.synthetic.gemini import open_connections, sdk
from e5jax.synthetic.keys import Key, require_key
from e5jax.synthetic.request import Answer, AskError, OutOfQuotaError, Request, Unavailable


ENDED = ("SUCCEEDED", "PARTIALLY_SUCCEEDED", "FAILED", "CANCELLED", "EXPIRED")


class GeminiBatchClient:
    """The jobs of one API key; all calls raise the errors of `Client.ask`."""

    def __init__(self, key: Key, timeout_s: float):
        self._key = key
        self._connections = open_connections()
        self._sdk = sdk(key, timeout_s, self._connections)

    async def submit(self, name: str, requests: Iterable[Request]) -> str:
        """A new job for requests to one model -> the job's name at Google. `name` is ours, for `find`."""
        requests = list(requests)
        lines = "".join(json.dumps(_line(request)) + "\n" for request in requests)
        with self._errors():
            file = await self._sdk.aio.files.upload(
                file=io.BytesIO(lines.encode()), config={"mime_type": "jsonl", "display_name": name}
            )
            job = await self._sdk.aio.batches.create(
                model=requests[0].sampling.model, src=file.name, config={"display_name": name}
            )
        return job.name

    async def find(self, name: str) -> str | None:
        """The job that was submitted under a name of ours, None where there is none."""
        with self._errors():
            async for job in await self._sdk.aio.batches.list():
                if job.display_name == name:
                    return job.name
        return None

    async def collect(self, job: str) -> Ended | None:
        """What became of a job; None while it is under way. A job or file that is gone has ended without results."""
        try:
            found = await self._sdk.aio.batches.get(name=job)
            state = found.state.name.removeprefix("JOB_STATE_") if found.state is not None else ""
            if state not in ENDED:
                return None
            if found.dest is None or not found.dest.file_name:
                return Ended(state=state, results={})
            content = await self._sdk.aio.files.download(file=found.dest.file_name)
        except errors.APIError as error:
            if error.code == 404:
                return Ended(state="GONE", results={})
            raise self._error(error) from None
        except (httpx2.HTTPError, ValueError) as error:
            raise Unavailable(f"{type(error).__name__}: no whole answer") from None
        return Ended(state=state, results=dict(self._results(content)))

    def _results(self, content: bytes) -> Iterator[tuple[str, Answer | AskError | OutOfQuotaError]]:
        """Lines that say nothing (null, cut off, without a key) are left out: their requests have no answer."""
        for line in content.split(b"\n"):
            try:
                fields = json.loads(line)
                key, response, failed = (
                    fields["key"],
                    fields.get("response"),
                    fields.get("error") or fields.get("status"),
                )
            except (ValueError, KeyError, TypeError, AttributeError):
                continue
            try:
                if response:
                    yield key, gemini_wire.answer(types.GenerateContentResponse.model_validate(response))
                elif isinstance(failed, dict):
                    yield key, gemini_wire.error(_status(failed), failed, None, {}, self._key)
            except (Unavailable, ValueError) as error:  # ValueError: not the shape of an answer
                yield key, Unavailable(f"a line of the batch: {type(error).__name__}")

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except errors.APIError as error:
            raise self._error(error) from None
        except (httpx2.HTTPError, KeyError, ValueError) as error:  # KeyError: an upload without an address
            raise Unavailable(f"{type(error).__name__}: no whole answer") from None

    def _error(self, error: errors.APIError) -> AskError | OutOfQuotaError:
        headers = getattr(error.response, "headers", None) or {}
        return gemini_wire.error(error.code, error.details, error.message, headers, self._key)

    async def close(self) -> None:
        """Let go of connections; the jobs go on."""
        await self._connections.aclose()


# google.rpc.Code, which some lines have in place of an HTTP status.
HTTP_STATUS = {3: 400, 4: 504, 5: 404, 7: 403, 8: 429, 9: 400, 13: 500, 14: 503, 16: 401}


def _status(error: dict) -> int:
    code = error.get("code")
    return HTTP_STATUS.get(code, code) if isinstance(code, int) else 500


def _line(request: Request) -> dict:
    contents = [{"role": "user", "parts": [{"text": request.prompt}]}]
    config = gemini_wire.generation_config(request)
    return {"key": request.key, "request": {"contents": contents, "generationConfig": config}}


def open_client(*, model: str, key_file: str | None, timeout_s: float, replay: str | None) -> GeminiBatchClient:
    """A client with the key of GOOGLE_API_KEY, GEMINI_API_KEY or a file."""
    return GeminiBatchClient(require_key(gemini_wire.VARIABLES, key_file), timeout_s)
