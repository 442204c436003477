"""API keys: read from the environment or a file, shown nowhere."""

import logging
import os
import stat
from collections.abc import Iterable
from pathlib import Path

from e5jax.errors import UserError


class Key:
    """A secret that does not print."""

    def __init__(self, secret: str):
        self._secret = secret

    def __repr__(self):
        return "Key(…)"

    def reveal(self) -> str:
        """The secret, to be handed to an SDK and to nothing else."""
        return self._secret

    def redact(self, text: str) -> str:
        """The text without the secret: servers and gateways repeat the key that they refuse."""
        return text.replace(self._secret, "[key]") if self._secret else text


def read_key(variables: Iterable[str], key_file: str | None) -> Key | None:
    """The content of `key_file`, or else of the first variable that is set; None where there is neither.

    Raises UserError for a file that is missing, unreadable, empty, longer than a line, or readable by others.
    """
    if key_file is None:
        value = next((os.environ[name].strip() for name in variables if os.environ.get(name, "").strip()), None)
        return None if value is None else Key(value)
    path = Path(key_file).expanduser()
    try:
        mode, lines = path.stat().st_mode, path.read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"key file {path}: {getattr(error, 'strerror', None) or 'it is not text'}") from None
    if stat.S_IMODE(mode) & 0o077:
        raise UserError(f"key file {path} may be read by other users; chmod 600 {path}")
    if len(lines) != 1:
        raise UserError(f"key file {path} has {len(lines)} words; it must hold the key alone")
    return Key(lines[0])


def require_key(variables: tuple[str, ...], key_file: str | None) -> Key:
    """`read_key`, or a UserError that says which variable to set."""
    key = read_key(variables, key_file)
    if key is None:
        raise UserError(f"no API key: set {' or '.join(variables)}, or name a file that holds it with --key-file")
    return key


def redact_logs(key: Key, packages: tuple[str, ...]) -> None:
    """Take the secret out of all that the loggers of these packages write, at DEBUG too.

    A logger's filters do not see the records of its children: each logger gets its own. Called when the packages are
    imported, so their loggers exist.
    """
    redact = _Redact(key)
    for name in list(logging.Logger.manager.loggerDict):
        if name.split(".", 1)[0] in packages:
            logging.getLogger(name).addFilter(redact)


class _Redact(logging.Filter):
    def __init__(self, key: Key):
        super().__init__()
        self._key = key

    def filter(self, record: logging.LogRecord) -> bool:
        try:
            record.msg, record.args = self._key.redact(record.getMessage()), None
        except (TypeError, ValueError):  # words and arguments that do not go together: not ours to fail on
            record.msg, record.args = self._key.redact(f"{record.msg} {record.args}"), None
        if record.exc_info:
            # What a handler would make of the exception, made here; it takes what it finds.
            record.exc_text = self._key.redact(logging.Formatter().formatException(record.exc_info))
        return True
