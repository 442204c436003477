"""The clients by name; what a client needs is imported when it is opened."""

import importlib

from e5jax.errors import UserError
from e5jax.synthetic.request import Client


# Name -> the module that has `open_client`, and what it imports -> how to get it.
CLIENTS = {
    "gemini": ("gemini", "google-genai"),
    "gemini-batch": ("gemini_batch", "google-genai"),
    "gemini-legacy": ("gemini_legacy", "google-generativeai"),
    "openai": ("openai_client", "openai"),
    "replay": ("replay", None),
}


def open_client(name: str, *, model: str, key_file: str | None, timeout_s: float, replay: str | None) -> Client:
    """The client of that name, for requests to `model`.

    `key_file` holds the API key (None: the SDK's own variables), `timeout_s` is a whole request's, `replay` the folder
    of a ledger. Raises UserError where the SDK or the key is missing. `gemini-batch` has jobs in place of `ask`: it is
    for `batches.run`.
    """
    if name not in CLIENTS:
        raise UserError(f"no client {name!r}; there are {', '.join(CLIENTS)}")
    module, package = CLIENTS[name]
    try:
        opened = importlib.import_module(f"e5jax.synthetic.{module}")
    except ModuleNotFoundError as error:
        if package is None or (error.name or "").startswith("e5jax"):
            raise
        raise UserError(f"the client {name} needs {package}: pip install {package}") from error
    return opened.open_client(model=model, key_file=key_file, timeout_s=timeout_s, replay=replay)
